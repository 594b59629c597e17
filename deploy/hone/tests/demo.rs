//! The demo's claim, as a test: a handful of corrections shortens answers to questions that were
//! never corrected, through adapters that the running engine swapped in, with no failed request,
//! and a rollback undoes it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use serde_json::Value;
use support::{hone, model_dir};

#[test]
fn twelve_corrections_teach_the_model_and_a_rollback_undoes_it() {
    let home = tempfile::tempdir().unwrap();
    let started = std::time::Instant::now();
    let output = hone()
        .args(["demo", "--json", "--data"])
        .arg(home.path())
        .arg("--model")
        .arg(model_dir())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let home = home.path().join("demo");
    assert!(output.status.success(), "{said}\n{}", support::logs(&home));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    eprintln!("{report:#}\ntook {:.0} s", started.elapsed().as_secs_f64());

    let last = report["generations"].as_array().and_then(|all| all.last()).expect("a generation");
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    // The README has the figures; these bounds leave room for the luck of sampling 16 replies.
    let base_tokens = number(&report["base"]["held_out"]["tokens_mean"]);
    assert!(base_tokens > 75.0, "{report:#}");
    assert!(number(&last["held_out"]["tokens_mean"]) < 0.6 * base_tokens, "{report:#}");
    assert!(number(&last["held_out"]["ended_share"]) >= 0.7, "{report:#}");
    assert!(number(&last["corrections"]) <= 12.0, "{report:#}");
    // The same seeds on the same weights: the rollback brings back exactly the old answers.
    assert_eq!(report["after_rollback"]["held_out"], report["base"]["held_out"], "{report:#}");
    assert_eq!(report["requests"]["failed"], 0, "{report:#}");
}
