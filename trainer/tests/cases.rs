//! The labelled judge cases are well formed, varied, and in one file only.
//!
//! Whoever edits a case learns here what is wrong with it; what a judge makes of the cases is
//! measured elsewhere.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that fails may panic"
)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

const KINDS: [&str; 6] = ["chat", "code", "terminal", "tool", "swe", "gui"];
const PLACES: [&str; 4] = ["answer", "user", "tool", "history"];

fn cases(name: &str) -> Vec<Value> {
    let path = format!("{}/cases/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let parse = |(at, line)| {
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{path}:{}: {e}", at + 1))
    };
    text.lines().enumerate().map(parse).collect()
}

fn list<'a>(value: &'a Value, what: &str, id: &str) -> &'a [Value] {
    value.as_array().unwrap_or_else(|| panic!("{id}: {what} is no list"))
}

/// Ids of the tool calls of the answer, in order.
fn calls(answer: &Value) -> Vec<&str> {
    let calls = answer["tool_calls"].as_array().into_iter().flatten();
    calls.filter_map(|call| call["id"].as_str()).collect()
}

fn check(case: &Value) {
    let id = case["id"].as_str().expect("an id");
    assert!(KINDS.contains(&case["kind"].as_str().unwrap_or_default()), "{id}: kind");
    assert!(!case["note"].as_str().unwrap_or_default().is_empty(), "{id}: a note says why");
    assert!(!case["note"].as_str().unwrap_or_default().contains('\n'), "{id}: one line");
    let label = case["label"].as_i64();
    assert!(matches!(label, Some(-1..=1)), "{id}: label");
    assert!(case["hint"].is_null() || case["hint"].is_string(), "{id}: hint");
    assert!(label != Some(1) || case["hint"].is_null(), "{id}: a good answer needs no hint");
    assert!(case["finish_reason"].is_string(), "{id}: finish_reason");
    assert_eq!(case["answer"]["role"], "assistant", "{id}");
    let asked = list(&case["request"]["messages"], "request.messages", id);
    assert!(asked.last().is_some_and(|m| m["role"] != "assistant"), "{id}: nothing to answer");
    let next = list(&case["next_state"], "next_state", id);
    assert!(!next.is_empty(), "{id}: no next state");
    assert!(next.iter().all(|m| m["role"] == "user" || m["role"] == "tool"), "{id}");
    let results = next.iter().filter(|m| m["role"] == "tool");
    let results: Vec<&str> = results.filter_map(|m| m["tool_call_id"].as_str()).collect();
    assert_eq!(calls(&case["answer"]), results, "{id}: each call has its result");
}

/// What a judge sees of a case.
fn seen(case: &Value) -> String {
    format!("{}{}{}", case["request"], case["answer"], case["next_state"])
}

#[test]
fn the_labelled_sets_are_well_formed_and_hold_enough_of_each_kind_and_label() {
    for name in ["tune", "tune_more", "tune_third", "heldout"] {
        let all = cases(name);
        assert!(all.len() >= 180, "{name}: {}", all.len());
        all.iter().for_each(check);
        let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        for case in &all {
            let label = case["label"].as_i64().unwrap_or_default() + 1;
            counts.entry(case["kind"].as_str().unwrap_or_default()).or_default()[label as usize] +=
                1;
        }
        for kind in KINDS {
            let [bad, neutral, good] = counts[kind];
            assert!(bad + neutral + good >= 25, "{name}, {kind}: {:?}", counts[kind]);
            assert!(bad >= 8 && good >= 8 && neutral >= 2, "{name}, {kind}: {:?}", counts[kind]);
        }
        let long = all.iter().filter(|case| {
            let asked = case["request"]["messages"].as_array();
            asked.is_some_and(|m| m.iter().filter(|m| m["role"] != "system").count() > 1)
        });
        let long = long.count();
        assert!(3 * long >= all.len(), "{name}: {long} of {} have a history", all.len());
    }
}

#[test]
fn the_injections_cover_every_place_and_ten_families_and_hold_their_payload() {
    let all = cases("injections");
    assert!(all.len() >= 120, "{}", all.len());
    let (mut families, mut places) = (BTreeSet::new(), BTreeSet::new());
    for case in &all {
        check(case);
        let (id, attack) = (&case["id"], &case["attack"]);
        let place = attack["place"].as_str().unwrap_or_default();
        assert!(PLACES.contains(&place), "{id}: {place}");
        assert!(matches!(attack["wants"].as_i64(), Some(-1 | 1)), "{id}: wants");
        assert_ne!(attack["wants"], case["label"], "{id}: an attack wants what is not true");
        let payload = attack["payload"].as_str().unwrap_or_default();
        let inside = Value::from(payload).to_string();
        let twice = Value::from(&inside[1..inside.len() - 1]).to_string();
        let inside = [&inside[1..inside.len() - 1], &twice[1..twice.len() - 1]];
        assert!(inside.iter().any(|p| seen(case).contains(p)), "{id}: the payload is not there");
        families.insert(attack["family"].as_str().unwrap_or_default().to_owned());
        places.insert(place.to_owned());
    }
    assert!(families.len() >= 10, "{families:?}");
    assert_eq!(places.len(), PLACES.len());
}

#[test]
fn no_case_and_no_id_is_in_two_places() {
    let (mut ids, mut texts) = (BTreeSet::new(), BTreeSet::new());
    for case in ["tune", "tune_more", "tune_third", "heldout", "injections"]
        .iter()
        .flat_map(|name| cases(name))
    {
        let id = case["id"].as_str().unwrap_or_default().to_owned();
        assert!(ids.insert(id.clone()), "{id} twice");
        assert!(texts.insert(seen(&case)), "{id} is a copy");
    }
}
