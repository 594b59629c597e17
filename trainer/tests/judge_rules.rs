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

/// Prints what a set comes to, by kind and by rule.
fn report(name: &str) -> Report {
    let report = Report::of(&judged(name));
    let kinds = report.kinds.iter().map(|(kind, found)| (kind.as_str(), found));
    for (kind, found) in kinds.chain([("all", &report.all)]) {
        println!(
            "{name} {kind:<9} n {:>3}  coverage {:.3}  precision {:.3}  kind {:.2}",
            found.n,
            found.coverage,
            found.precision.unwrap_or(1.0),
            found.kind_detected
        );
    }
    for (source, (spoke, right)) in &report.sources {
        println!("{name} {source}: {right} of {spoke} right");
    }
    report
}

#[test]
fn where_the_rules_speak_they_are_right_in_97_of_100_cases_that_they_were_tuned_on() {
    for name in ["tune", "tune_more", "tune_third"] {
        let all = report(name).all;
        let precision = all.precision.unwrap();
        assert!(precision >= 0.97, "{name}: {precision:.3}");
        assert!(all.coverage >= 0.08, "{name}: {:.3}", all.coverage);
        assert!(all.kind_detected >= 0.95, "{name}: {:.3}", all.kind_detected);
    }
}

/// Nobody who made the rules had read these cases: 35 of 36 verdicts are right (`cases/README.md`). A limit that they fail is for whoever improves the rules without reading
/// them; the kinds are measured and not asserted.
#[test]
fn where_the_rules_speak_they_are_right_in_97_of_100_cases_that_nobody_tuned_on() {
    let all = report("heldout").all;
    assert_eq!(all.n, 300);
    let precision = all.precision.unwrap();
    assert!(precision >= 0.97, "{precision:.3}");
    assert!(all.coverage >= 0.10, "{:.3}", all.coverage);
    let [_, _, praised] = all.confusion[2];
    assert!(praised > 0, "good answers can be praised");
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
