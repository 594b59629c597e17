//! `hone judge`, as an operator runs it: the real binary over a file of cases and over a store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::path::Path;
use std::process::{Command, Output};

use hone_shared::data_dir::DataDir;
use hone_shared::store::Store;
use serde_json::{Value, json};

fn judge(home: &Path, args: &[&str]) -> Output {
    let mut hone = Command::new(env!("CARGO_BIN_EXE_hone"));
    hone.arg("judge").arg("--data").arg(home).args(args).output().unwrap()
}

fn case(id: &str, next: &str, label: i8) -> Value {
    json!({"id": id, "kind": "chat", "request": {"messages": [
        {"role": "user", "content": "What is the tallest mountain of Austria?"}]},
        "answer": {"role": "assistant", "content": "The Grossglockner."}, "finish_reason": "stop",
        "next_state": [{"role": "user", "content": next}], "label": label, "note": "made up"})
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8(text).unwrap()
}

#[test]
fn eval_counts_a_good_file_and_fails_below_the_asked_precision() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("cases.jsonl");
    let path = file.to_str().unwrap();
    let cases = [case("a", "Perfect, thanks!", 1), case("b", "And in Italy?", 0)];
    std::fs::write(&file, cases.map(|case| case.to_string()).join("\n")).unwrap();
    let output = judge(home.path(), &["eval", path, "--json", "--precision-min", "0.97"]);
    assert!(output.status.success(), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = &report["report"]["all"];
    assert_eq!((all["n"].as_u64(), all["spoke"].as_u64()), (Some(2), Some(1)), "{all}");
    assert_eq!(all["precision"].as_f64(), Some(1.0));
    assert_eq!(report["cases"][0]["source"], "rule:approval");

    std::fs::write(&file, case("c", "Perfect, thanks!", -1).to_string()).unwrap();
    let output = judge(home.path(), &["eval", path, "--wrong", "--precision-min", "0.97"]);
    assert!(!output.status.success());
    assert!(said(&output).contains("precision 0.000 is below 0.97"), "{}", said(&output));
    assert!(said(&output).contains("is -1, judged +1 by rule:approval"), "{}", said(&output));
}

#[test]
fn eval_names_the_line_that_is_no_case_and_a_kind_that_is_none() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("cases.jsonl");
    let good = case("a", "Thanks!", 1).to_string();
    let unknown = good.replace("\"chat\"", "\"poem\"");
    for (line, word) in [("{\"id\": 1", "line 2"), (unknown.as_str(), "poem")] {
        std::fs::write(&file, format!("{good}\n{line}\n")).unwrap();
        let output = judge(home.path(), &["eval", file.to_str().unwrap()]);
        assert!(!output.status.success());
        let said = said(&output);
        assert!(said.contains("line 2") && said.contains(word), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    let output = judge(home.path(), &["eval", "/nowhere/cases.jsonl"]);
    assert!(!output.status.success() && said(&output).contains("/nowhere/cases.jsonl"));
    std::fs::write(&file, good).unwrap();
    let output = judge(home.path(), &["eval", file.to_str().unwrap(), "--judge", "nobody"]);
    assert!(said(&output).contains("no judge `nobody`; there are auto, chat"), "{}", said(&output));
}

/// What a replay finds is tested beside it (`trainer/src/judge/replay_tests.rs`).
#[test]
fn replay_needs_a_store_and_reports_an_empty_one_as_empty() {
    let home = tempfile::tempdir().unwrap();
    let output = judge(home.path(), &["replay"]);
    assert!(!output.status.success());
    assert!(said(&output).contains("nothing was recorded"), "{}", said(&output));
    let data = DataDir::new(home.path());
    data.create().unwrap();
    drop(Store::open(&data.store_path()).unwrap());
    let output = judge(home.path(), &["replay"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("0 turns judged again, 0 skipped"), "{}", said(&output));
    let output = judge(home.path(), &["replay", "--judge", "nobody"]);
    assert!(!output.status.success() && said(&output).contains("no judge `nobody`"));
}
