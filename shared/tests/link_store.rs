//! Linking in the store: named histories come back whole, retries add no next state, and the order
//! in which two proxies store their turns makes no difference.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly")]

mod records;

use std::path::Path;

use hone_shared::link::LinkKind;
use hone_shared::store::{IngestPos, IngestTurn, Store, StoredTurn, flags};
use hone_shared::turn::{Begin, Done, Headers, Outcome, TurnId};
use serde_json::{Value, json};

const SECRET: [u8; 32] = [7; 32];

fn pos(boot: &str) -> IngestPos {
    IngestPos { boot: boot.into(), segment: 0, offset: 1 }
}

/// An exchange at a path; `at` orders the turns in time.
fn exchange(path: &str, at: i64, request: Value, response: Value, headers: Headers) -> IngestTurn {
    let begin = records::begin(request.to_string().into_bytes());
    let started_ms = 1_700_000_000_000 + at;
    let begin = Begin { tenant: "t1".into(), path: path.into(), started_ms, headers, ..begin };
    let done = records::done(begin.turn_id, response.to_string().into_bytes());
    let headers = vec![("content-type".into(), "application/json".into())];
    IngestTurn::parse(&SECRET, begin, Some(Done { headers, ..done }))
}

fn responses(at: i64, request: Value, id: &str, answer: &str) -> IngestTurn {
    let output = json!([{"type": "message", "id": format!("msg_{id}"), "role": "assistant",
        "content": [{"type": "output_text", "text": answer, "annotations": []}]}]);
    let response = json!({"id": id, "object": "response", "status": "completed", "output": output});
    exchange("/v1/responses", at, request, response, vec![])
}

fn chat(at: i64, messages: &Value, answer: &str, headers: Headers) -> IngestTurn {
    let message = json!({"role": "assistant", "content": answer});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let response = json!({"id": format!("chatcmpl-{at}"), "choices": [choice]});
    exchange("/v1/chat/completions", at, json!({"messages": messages}), response, headers)
}

fn open(dir: &Path) -> Store {
    Store::open(&dir.join("store.sqlite")).unwrap()
}

fn ids<const N: usize>(turns: &[IngestTurn; N]) -> [TurnId; N] {
    std::array::from_fn(|at| turns[at].begin.turn_id)
}

fn texts(turn: &StoredTurn) -> Vec<&str> {
    turn.messages.iter().map(|m| m["content"].as_str().unwrap_or_default()).collect()
}

fn named_chain() -> [IngestTurn; 3] {
    let ask = |text: &str, rest: Value| {
        let mut request = json!({"model": "m", "input": text});
        rest.as_object().unwrap().iter().for_each(|(k, v)| request[k] = v.clone());
        request
    };
    [
        responses(1, ask("capital?", json!({"instructions": "Be brief."})), "resp_1", "Canberra."),
        responses(2, ask("sure?", json!({"previous_response_id": "resp_1"})), "resp_2", "Yes."),
        responses(
            3,
            ask("thanks", json!({"previous_response_id": "resp_2", "instructions": "Be kind."})),
            "resp_3",
            "Welcome.",
        ),
    ]
}

/// Every order in which three turns can be stored.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn a_history_that_is_only_named_is_stored_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let turns = named_chain();
    let [root, second, third] = ids(&turns);
    store.insert_batch(&turns, &pos("a")).unwrap();
    let stored = store.turn(second).unwrap().unwrap();
    assert_eq!((stored.parent, stored.link), (Some(root), Some(LinkKind::Named)));
    assert_eq!(
        texts(&stored),
        ["capital?", "Canberra.", "sure?"],
        "instructions do not carry over"
    );
    let stored = store.turn(third).unwrap().unwrap();
    let whole = ["Be kind.", "capital?", "Canberra.", "sure?", "Yes.", "thanks"];
    assert_eq!((texts(&stored), stored.parent), (whole.to_vec(), Some(second)));
    assert_eq!(stored.session_id, root.to_string());
    let judged = store.unjudged(10).unwrap();
    let pairs: Vec<_> = judged.iter().map(|item| (item.turn.turn_id, item.child)).collect();
    assert_eq!(pairs, [(root, second), (second, third)]);
    assert_eq!(judged[1].next_state, [json!({"role": "user", "content": "thanks"})]);
    assert_eq!(store.turn_of_response("t1", "resp_2").unwrap(), Some(second));
    assert_eq!(store.turn_of_response("other", "resp_2").unwrap(), None);
    assert_eq!(stored.response_id.as_deref(), Some("resp_3"));
}

#[test]
fn a_named_history_that_never_came_keeps_the_turn_and_its_children_out_of_training() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let turns = named_chain();
    let [_, second, third] = ids(&turns);
    store.insert_batch(&turns[1..], &pos("a")).unwrap();
    assert!(store.unjudged(10).unwrap().is_empty());
    assert_eq!(store.turn(third).unwrap().unwrap().parent, Some(second));
    let raw = rusqlite::Connection::open(dir.path().join("store.sqlite")).unwrap();
    let flagged: i64 = raw
        .query_row("SELECT count(*) FROM turns WHERE flags & ?1", [flags::HISTORY_MISSING], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(flagged, 2);
}

#[test]
fn the_order_of_storing_makes_no_difference_to_links() {
    let conversation = || {
        let user = |text: &str| json!({"role": "user", "content": text});
        let says = |text: &str| json!({"role": "assistant", "content": text});
        let a = json!([user("hi")]);
        let b = json!([user("hi"), says("Hello!"), user("more")]);
        let c = json!([user("hi"), says("Hello!"), user("more"), says("More."), user("thanks")]);
        [chat(1, &a, "Hello!", vec![]), chat(2, &b, "More.", vec![]), chat(3, &c, "x", vec![])]
    };
    for (order, make) in ORDERS.iter().flat_map(|order| {
        [(order, &conversation as &dyn Fn() -> [IngestTurn; 3]), (order, &named_chain)]
    }) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let turns = make();
        let [first, second, third] = ids(&turns);
        let mut turns = turns.map(Some);
        for at in *order {
            store.insert_batch(&[turns[at].take().unwrap()], &pos("a")).unwrap();
        }
        let parent = |turn| store.turn(turn).unwrap().unwrap().parent;
        assert_eq!((parent(second), parent(third)), (Some(first), Some(second)), "{order:?}");
        for turn in [first, second, third] {
            let session = store.turn(turn).unwrap().unwrap().session_id;
            assert_eq!(session, first.to_string(), "{order:?}");
        }
        let children = store.unjudged(10).unwrap();
        let pairs: Vec<_> = children.iter().map(|item| (item.turn.turn_id, item.child)).collect();
        assert!(pairs.contains(&(first, second)), "{order:?}");
        // Of named histories, one whose parent's own came late stays flagged.
        assert!(children.iter().all(|item| item.next_state.len() == 1), "{order:?}");
    }
}

#[test]
fn a_retry_is_recorded_as_such_and_gives_no_second_next_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let user = |text: &str| json!({"role": "user", "content": text});
    let says = |text: &str| json!({"role": "assistant", "content": text});
    let next = json!([user("hi"), says("Hello!"), user("more")]);
    let count = |n: &str| vec![("x-stainless-retry-count".to_owned(), n.to_owned())];
    let mut failed = chat(2, &next, "", count("0"));
    failed.outcome = Outcome::UpstreamError;
    let turns = [
        chat(1, &json!([user("hi")]), "Hello!", vec![]),
        failed,
        chat(3, &next, "More.", count("1")),
        chat(4, &next, "Else.", count("0")),
    ];
    let [root, first, retry, again] = ids(&turns);
    store.insert_batch(&turns, &pos("a")).unwrap();
    let of = |turn| {
        let stored = store.turn(turn).unwrap().unwrap();
        (stored.parent, stored.repeat_of, stored.retry)
    };
    assert_eq!(of(first), (Some(root), None, false));
    assert_eq!(of(retry), (Some(root), Some(first), true));
    assert_eq!(of(again), (Some(root), Some(retry), false), "a regeneration");
    let raw = rusqlite::Connection::open(dir.path().join("store.sqlite")).unwrap();
    let counted: i64 = raw
        .query_row("SELECT next_states FROM turns WHERE turn_id = ?1", [root.to_string()], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(counted, 1, "one next state, however often it was sent");
    assert_eq!(store.unjudged(10).unwrap().len(), 1);
}

#[test]
fn two_proxies_that_store_a_conversation_at_once_make_one_tree() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let mut messages = Vec::new();
    let mut turns = Vec::new();
    for step in 0..40 {
        messages.push(json!({"role": "user", "content": format!("question {step}")}));
        let answer = format!("answer {step}");
        turns.push(chat(step, &json!(messages), &answer, vec![]));
        messages.push(json!({"role": "assistant", "content": answer}));
    }
    let all: Vec<TurnId> = turns.iter().map(|turn| turn.begin.turn_id).collect();
    // Each proxy has every other turn.
    let (mut even, mut odd) = (Vec::new(), Vec::new());
    for (at, turn) in turns.into_iter().enumerate() {
        if at.is_multiple_of(2) { even.push(turn) } else { odd.push(turn) }
    }
    std::thread::scope(|scope| {
        for (name, turns) in [("a", even), ("b", odd)] {
            let dir = dir.path();
            scope.spawn(move || {
                let mut store = open(dir);
                for turn in turns {
                    store.insert_batch(&[turn], &pos(name)).unwrap();
                }
            });
        }
    });
    let store = open(dir.path());
    for pair in all.windows(2) {
        assert_eq!(store.turn(pair[1]).unwrap().unwrap().parent, Some(pair[0]));
    }
    assert_eq!(store.counts().unwrap().sessions, 1);
}

/// An Anthropic exchange.
fn messages(at: i64, messages: Value, content: Value) -> IngestTurn {
    let request = json!({"model": "m", "max_tokens": 9, "system": "agent", "messages": messages});
    let usage = json!({"input_tokens": 1, "output_tokens": 1});
    let response = json!({"id": format!("msg_{at}"), "type": "message", "role": "assistant",
        "content": content, "stop_reason": "end_turn", "usage": usage});
    exchange("/v1/messages", at, request, response, vec![])
}

#[test]
fn anthropic_turns_link_across_strings_blocks_and_tool_use() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let id = "toolu_01A09q90qw90lq917835lq9";
    let call = json!({"type": "tool_use", "id": id, "name": "f", "input": {"a": 1}});
    let thought = json!({"type": "thinking", "thinking": "hm", "signature": "s"});
    let said = json!([thought, {"type": "text", "text": "Looking."}, call]);
    let failed = json!({"type": "tool_result", "tool_use_id": id, "content": "exit code 1",
        "is_error": true});
    let result = json!({"role": "user", "content": [failed]});
    let says = |content: Value| json!({"role": "assistant", "content": content});
    let user = |content: Value| json!({"role": "user", "content": content});
    let marked = json!([{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]);
    let turns = [
        messages(1, json!([user(marked)]), said.clone()),
        messages(
            2,
            json!([user(json!("hi")), says(said), result]),
            json!([{"type": "text", "text": "It failed."}]),
        ),
        // The client dropped text and thoughts from the first answer; its second still stands.
        messages(
            3,
            json!([
                user(json!("hi")),
                says(json!([call])),
                result,
                says(json!("It failed.")),
                user(json!("again"))
            ]),
            json!([]),
        ),
    ];
    let [first, second, third] = ids(&turns);
    store.insert_batch(&turns, &pos("a")).unwrap();
    let link = |turn| {
        let stored = store.turn(turn).unwrap().unwrap();
        (stored.parent, stored.link)
    };
    assert_eq!(link(second), (Some(first), Some(LinkKind::Exact)));
    assert_eq!(link(third).0, Some(second));
    let item = &store.unjudged(10).unwrap()[0];
    assert_eq!(item.next_state[0]["role"], "tool");
    assert_eq!(item.next_state[0]["content"], "exit code 1");
}
