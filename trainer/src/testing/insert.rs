//! How a conversation gets into the store: as the ingest does it, from recorded bodies.

use super::lab::message;
use hone_shared::clock::now_ms;
use hone_shared::store::{IngestPos, IngestTurn, Store};
use hone_shared::turn::{Begin, Done, Generation, Mode, Outcome, TurnId};
use serde_json::{Value, json};

const SECRET: [u8; 32] = [3; 32];

/// Stores a turn and the one that follows it with `next`; returns the first.
pub fn conversation(
    store: &mut Store,
    session: &str,
    question: &str,
    answer: &str,
    next: &str,
) -> TurnId {
    let first = vec![message("user", question)];
    let mut second = first.clone();
    second.extend([message("assistant", answer), message("user", next)]);
    let (parent, turn) = turn(session, &first, answer);
    let (_, child) = self::turn(session, &second, "As you wish.");
    let pos = IngestPos { boot: "test".into(), segment: 0, offset: 0 };
    let inserted = store.insert_batch(&[turn, child], &pos).unwrap();
    assert_eq!((inserted.stored, inserted.linked), (2, 1), "{inserted:?}");
    parent
}

fn turn(session: &str, messages: &[Value], answer: &str) -> (TurnId, IngestTurn) {
    let turn_id = TurnId::now();
    let body = json!({"model": "tiny", "messages": messages}).to_string();
    let begin = Begin {
        turn_id,
        started_ms: now_ms(),
        route: "chat".into(),
        mode: Mode::Learn,
        alias: "chat".into(),
        tenant: "t".into(),
        client: String::new(),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        headers: vec![("x-session-id".into(), session.into())],
        generation: Generation::base(),
        policy_version: 1,
        body_len: body.len() as u64,
        body: body.into_bytes().into(),
        body_truncated: false,
        body_cut: None,
    };
    let body = json!({"id": "x", "object": "chat.completion", "model": "tiny",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message("assistant", answer)}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}})
    .to_string();
    let done = Done {
        turn_id,
        status: 200,
        outcome: Outcome::Complete,
        headers: vec![("content-type".into(), "application/json".into())],
        first_byte_ms: Some(1),
        duration_ms: 2,
        generation: Some(Generation::base()),
        attempts: 1,
        body_len: body.len() as u64,
        body: body.into_bytes().into(),
        body_truncated: false,
        body_cut: None,
    };
    (turn_id, IngestTurn::parse(&SECRET, begin, Some(done)))
}
