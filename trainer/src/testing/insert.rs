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
    let (parent, turn) = turn(session, &first, message("assistant", answer), &[]);
    let (_, child) = self::turn(session, &second, message("assistant", "As you wish."), &[]);
    let pos = IngestPos { boot: "test".into(), segment: 0, offset: 0 };
    let inserted = store.insert_batch(&[turn, child], &pos).unwrap();
    assert_eq!((inserted.stored, inserted.linked), (2, 1), "{inserted:?}");
    parent
}

/// As [`conversation`], `count` times in one batch, with the number in the question; returns the
/// first turns.
pub fn many(store: &mut Store, count: usize, answer: &str, next: &str) -> Vec<TurnId> {
    let (mut parents, mut turns) = (Vec::new(), Vec::new());
    for at in 0..count {
        let first = vec![message("user", &format!("Question {at}?"))];
        let mut second = first.clone();
        second.extend([message("assistant", answer), message("user", next)]);
        let session = format!("many-{at}");
        let (parent, asked) = turn(&session, &first, message("assistant", answer), &[]);
        let (_, child) = turn(&session, &second, message("assistant", "As you wish."), &[]);
        parents.push(parent);
        turns.extend([asked, child]);
    }
    let pos = IngestPos { boot: "test".into(), segment: 0, offset: 0 };
    assert_eq!(store.insert_batch(&turns, &pos).unwrap().linked, count as u64);
    parents
}

/// Stores one turn, with further request headers; returns it and how many turns were linked.
pub fn one(
    store: &mut Store,
    session: &str,
    messages: &[Value],
    answer: Value,
    headers: &[(&str, &str)],
) -> (TurnId, u64) {
    let (id, turn) = turn(session, messages, answer, headers);
    let pos = IngestPos { boot: "test".into(), segment: 0, offset: 0 };
    let inserted = store.insert_batch(&[turn], &pos).unwrap();
    (id, inserted.linked)
}

fn turn(
    session: &str,
    messages: &[Value],
    answer: Value,
    headers: &[(&str, &str)],
) -> (TurnId, IngestTurn) {
    let turn_id = TurnId::now();
    let mut all = vec![("x-session-id".to_owned(), session.to_owned())];
    all.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
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
        headers: all,
        generation: Generation::base(),
        policy_version: 1,
        body_len: body.len() as u64,
        body: body.into_bytes().into(),
        body_truncated: false,
        body_cut: None,
    };
    let body = json!({"id": "x", "object": "chat.completion", "model": "tiny",
        "choices": [{"index": 0, "finish_reason": "stop", "message": answer}],
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
        body_at: 0,
        body_truncated: false,
        body_cut: None,
    };
    (turn_id, IngestTurn::parse(&SECRET, begin, Some(done)))
}
