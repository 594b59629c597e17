//! Prints rule verdicts per second on one core, over the labelled cases.
//!
//! `cargo bench -p hone-trainer --bench judge`

use hone_shared::policy::PolicySet;
use hone_trainer::judge::exchange::Exchange;
use hone_trainer::judge::{by_rules, eval};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one measurement takes.
const SPAN: Duration = Duration::from_secs(2);
/// Measurements, of which the median is reported.
const REPEATS: usize = 5;

fn main() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/tune.jsonl");
    let (Ok(set), Ok(cases)) = (PolicySet::builtin(), eval::read(&path)) else {
        eprintln!("failed: no policies or no cases");
        return;
    };
    let Some(route) = set.route("chat").cloned() else { return };
    let seen: Vec<Exchange> = cases.iter().map(eval::Case::exchange).collect();
    let mut rates: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let (began, mut count) = (Instant::now(), 0u32);
            while began.elapsed() < SPAN {
                for one in &seen {
                    std::hint::black_box(by_rules(&set, &route, one));
                    count += 1;
                }
            }
            f64::from(count) / began.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let (slowest, median) = (rates.first(), rates.get(REPEATS / 2));
    println!(
        "{} cases: {:.0} rule verdicts/s on one core (median of {REPEATS}; slowest {:.0})",
        seen.len(),
        median.copied().unwrap_or(0.0),
        slowest.copied().unwrap_or(0.0)
    );
}
