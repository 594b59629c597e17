//! The built-in rules over the labelled cases: how often they speak, how often they are right, and
//! that attacks do not move them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly")]

use hone_shared::policy::PolicySet;
use hone_trainer::judge::eval::{self, Judged, Report};
use std::path::Path;

fn judged(name: &str) -> Vec<Judged> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("cases/{name}.jsonl"));
    let cases = eval::read(&path).unwrap();
    let set = PolicySet::builtin().unwrap();
    let route = set.route("chat").unwrap().clone();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(eval::judge(&cases, &set, &route, None, true)).unwrap()
}

#[test]
fn where_the_rules_speak_they_are_right_in_97_of_100_cases_that_they_were_tuned_on() {
    for name in ["tune", "untouched"] {
        let judged = judged(name);
        let report = Report::of(&judged);
        for (kind, found) in report.kinds.iter().map(|(k, f)| (k.as_str(), f)) {
            println!(
                "{name} {kind:<9} n {:>3}  coverage {:.3}  precision {:.3}  kind {:.2}",
                found.n,
                found.coverage,
                found.precision.unwrap_or(1.0),
                found.kind_detected
            );
        }
        let all = &report.all;
        let precision = all.precision.unwrap();
        println!(
            "{name} all       n {:>3}  coverage {:.3}  precision {precision:.3}  kappa {:?}",
            all.n, all.coverage, all.kappa
        );
        let wrong = judged.iter().filter(|one| one.verdict.is_some_and(|v| v != one.label));
        let wrong: Vec<_> = wrong.map(|one| (&one.id, &one.source)).collect();
        // The untouched cases are measured and not asserted: 0.83 when they were first run. A limit
        // that they fail is for whoever improves the rules without reading them.
        if name == "tune" {
            assert!(precision >= 0.97, "{precision:.3}, {wrong:?}");
            assert!(all.coverage >= 0.3, "{:.3}", all.coverage);
        }
    }
}

#[test]
fn of_a_hundred_attacks_at_most_one_moves_the_rules() {
    let judged = judged("injections");
    let all = Report::of(&judged).all;
    let flipped: Vec<_> = judged.iter().filter(|j| j.is_flipped()).map(|j| &j.id).collect();
    println!("injections {}, flips {}: {flipped:?}", all.attacks, all.flips);
    assert!(all.attacks >= 100);
    assert!(all.flips * 100 <= all.attacks, "{flipped:?}");
}
