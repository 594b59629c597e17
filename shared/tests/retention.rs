//! Expiry by route on a real store.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod records;

use std::sync::Arc;

use hone_shared::policy::{PolicySet, RoutePolicy, builtin_files};
use hone_shared::store::{
    BATCH_TURNS_MAX, IngestPos, IngestTurn, RoundRow, RoundState, Split, Store, Subject,
};
use hone_shared::turn::{Begin, Generation, TurnId};
use records::{begin, done};
use serde_json::json;

const DAY_MS: i64 = 24 * 3600 * 1000;
const NOW: i64 = 1_800_000_000_000;

struct Place {
    dir: tempfile::TempDir,
    store: Store,
    at: u64,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.sqlite")).unwrap();
        Self { dir, store, at: 0 }
    }

    fn put(&mut self, route: &str, days_old: i64, texts: &[&str]) -> TurnId {
        let messages: Vec<_> =
            texts.iter().map(|t| json!({"role": "user", "content": t})).collect();
        let body = json!({"messages": messages}).to_string().into_bytes();
        let begin =
            Begin { route: route.into(), started_ms: NOW - days_old * DAY_MS, ..begin(body) };
        let answer = json!({"choices": [{"index": 0, "message":
            {"role": "assistant", "content": "the answer"}, "finish_reason": "stop"}]});
        let done = done(begin.turn_id, answer.to_string().into_bytes());
        let id = begin.turn_id;
        self.at += 1;
        let pos = IngestPos { boot: "b".into(), segment: 0, offset: self.at };
        self.store.insert_batch(&[IngestTurn::parse(&[7; 32], begin, Some(done))], &pos).unwrap();
        id
    }

    fn is_there(&self, turn: TurnId) -> bool {
        self.store.turn(turn).unwrap().is_some()
    }

    fn holds(&self, text: &str) -> bool {
        self.store.checkpoint().unwrap();
        let bytes = std::fs::read(self.dir.path().join("store.sqlite")).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

fn route(days: u64) -> Arc<RoutePolicy> {
    let files: Vec<(String, String)> = builtin_files()
        .iter()
        .map(|(path, text)| {
            let more = if *path == "routes/chat.toml" {
                format!("\n[retention]\ndays_max = {days}\n")
            } else {
                String::new()
            };
            ((*path).to_owned(), format!("{text}{more}"))
        })
        .collect();
    let set = PolicySet::from_files(files.iter().map(|(p, t)| (p.as_str(), t.as_str()))).unwrap();
    Arc::clone(set.route("chat").unwrap())
}

#[test]
fn old_turns_of_the_route_go_and_all_others_stay() {
    let mut place = Place::new();
    let old = place.put("chat", 31, &["shared", "OLDTEXT"]);
    let young = place.put("chat", 29, &["shared", "YOUNGTEXT"]);
    let other = place.put("completions", 400, &["OTHERTEXT"]);
    place.put("chat", 0, &["new"]);
    let swept = place.store.sweep_route(&route(30), NOW).unwrap();
    assert_eq!((swept.erased.turns, swept.more), (1, false));
    assert!(!place.is_there(old) && place.is_there(young) && place.is_there(other));
    let messages = place.store.turn(young).unwrap().unwrap().messages;
    assert_eq!(messages[0]["content"], "shared", "what others use stays");
    assert!(!place.holds("OLDTEXT") && place.holds("YOUNGTEXT") && place.holds("OTHERTEXT"));
    assert_eq!(place.store.sweep_route(&route(0), i64::MAX).unwrap().erased.turns, 0, "0 = kept");
    assert_eq!(place.store.integrity_check().unwrap(), ["ok"]);
}

#[test]
fn issue_3_a_route_that_nobody_uses_any_more_expires_all_the_same() {
    let mut place = Place::new();
    let last = place.put("chat", 31, &["LASTTEXT"]);
    place.put("completions", 0, &["new"]);
    assert_eq!(place.store.sweep_route(&route(30), NOW).unwrap().erased.turns, 1);
    assert!(!place.is_there(last) && !place.holds("LASTTEXT"));
}

#[test]
fn a_clock_that_jumps_ahead_deletes_nothing_young() {
    let mut place = Place::new();
    let turns: Vec<_> = (0..5).map(|day| place.put("chat", 5 - day, &["text"])).collect();
    let swept = place.store.sweep_route(&route(30), NOW + 1_000 * DAY_MS).unwrap();
    assert_eq!(swept.erased.turns + swept.erased.provenance, 0);
    assert!(turns.iter().all(|turn| place.is_there(*turn)));
    let behind = place.store.sweep_route(&route(30), NOW - 1_000 * DAY_MS).unwrap();
    assert_eq!(behind.erased.turns, 0);
}

#[test]
fn a_turn_that_was_trained_on_leaves_an_empty_row_that_an_erasure_still_finds() {
    let mut place = Place::new();
    let used = place.put("chat", 40, &["USEDTEXT"]);
    place.put("chat", 0, &["new"]);
    let row = RoundRow {
        round_id: "r1".into(),
        route: "chat".into(),
        state: RoundState::Promoted,
        started_ms: 1,
        finished_ms: Some(2),
        incumbent: Generation::base(),
        candidate: None,
        reason: String::new(),
        metrics: json!({}),
    };
    place.store.begin_round(&row).unwrap();
    place.store.set_round_turns("r1", &[(used, Split::Train)]).unwrap();
    let swept = place.store.sweep_route(&route(30), NOW).unwrap();
    assert_eq!((swept.erased.turns, swept.erased.provenance), (0, 1));
    assert!(!place.holds("USEDTEXT"));
    let left = place.store.turn(used).unwrap().unwrap();
    assert_eq!((left.messages.len(), left.choices.len(), left.tenant.as_str()), (0, 0, "tenant"));
    assert_eq!(place.store.round_turns("r1").unwrap(), [(used, Split::Train)]);
    let found = place.store.concerned(&Subject::Tenant("tenant".into()), &[7; 32]).unwrap();
    assert!(found.turns.contains(&used));
    assert_eq!(place.store.sweep_route(&route(30), NOW).unwrap().erased.provenance, 0, "once");
}

#[test]
fn many_old_turns_go_in_bounded_batches_and_their_pages_are_given_back() {
    let mut place = Place::new();
    let text = "many words ".repeat(40);
    let turns = (0..BATCH_TURNS_MAX + 20).map(|n| {
        let (begin, done) = {
            let body = json!({"messages": [{"role": "user", "content": format!("{n} {text}")}]});
            let begin = begin(body.to_string().into_bytes());
            let begin = Begin { started_ms: NOW - 60 * DAY_MS + n as i64, ..begin };
            let done = done(begin.turn_id, b"{}".to_vec());
            (begin, done)
        };
        IngestTurn::parse(&[7; 32], begin, Some(done))
    });
    let turns: Vec<_> = turns.collect();
    let pos = IngestPos { boot: "b".into(), segment: 0, offset: 1 };
    place.store.insert_batch(&turns, &pos).unwrap();
    place.put("chat", 0, &["new"]);
    place.store.checkpoint().unwrap();
    let size = || std::fs::metadata(place.dir.path().join("store.sqlite")).unwrap().len();
    let before = size();
    let first = place.store.sweep_route(&route(30), NOW).unwrap();
    assert_eq!((first.erased.turns, first.more), (BATCH_TURNS_MAX as u64, true));
    let second = place.store.sweep_route(&route(30), NOW).unwrap();
    assert_eq!((second.erased.turns, second.more), (20, false));
    place.store.checkpoint().unwrap();
    assert!(size() < before / 2, "{before} → {}", size());
    assert_eq!(place.store.counts().unwrap().turns, 1);
}
