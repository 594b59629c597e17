//! What the store's tests share: a store in a file of its own, conversations and verdicts.

use std::path::PathBuf;

use hone_shared::store::{IngestPos, IngestTurn, Store, VerdictRow};
use hone_shared::turn::{Begin, Done, TurnId};
use serde_json::{Value, json};

use super::{begin, done};

pub const SECRET: [u8; 32] = [7; 32];

pub struct Place {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
    pub store: Store,
}

pub fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let store = Store::open(&path).unwrap();
    Place { _dir: dir, path, store }
}

pub fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

pub fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

/// One exchange: the messages that were sent and the answer that came.
pub fn halves(messages: &[Value], answer: &str) -> (Begin, Done) {
    let request = json!({"model": "m", "messages": messages, "temperature": 0.5, "stream": false});
    let begin = Begin { tenant: "t1".into(), ..begin(request.to_string().into_bytes()) };
    let response = json!({"id": "x", "model": "m", "choices": [
        {"index": 0, "message": assistant(answer), "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2}});
    let headers = vec![("content-type".into(), "application/json".into())];
    let done = Done { headers, ..done(begin.turn_id, response.to_string().into_bytes()) };
    (begin, done)
}

pub fn turn(messages: &[Value], answer: &str) -> IngestTurn {
    let (begin, done) = halves(messages, answer);
    IngestTurn::parse(&SECRET, begin, Some(done))
}

pub fn pos(offset: u64) -> IngestPos {
    IngestPos { boot: "boot".into(), segment: 0, offset }
}

pub fn conversation() -> (IngestTurn, IngestTurn) {
    let parent = turn(&[user("what is 2+2?")], "five");
    let child = turn(&[user("what is 2+2?"), assistant("five"), user("no, it is four")], "four");
    (parent, child)
}

pub fn verdict(turn_id: TurnId, child: TurnId, verdict: i8, hints: &[&str]) -> VerdictRow {
    VerdictRow {
        turn_id,
        child: Some(child),
        verdict,
        source: "rule:correction".into(),
        reason: "the user says no".into(),
        votes: json!([-1]),
        hints: hints.iter().map(|hint| (*hint).to_owned()).collect(),
        judge: "chat@1".into(),
        judged_ms: 5,
        kind: None,
        llm: None,
    }
}
