//! Histories that a request only names (Responses API), brought back from the turn that it
//! continues.
//!
//! The parent's messages and its answer take the place of what the request names; instructions of
//! the parent's own request do not carry over, as the API has it.
//!
//! Invariant: a turn whose history could not be brought back whole is flagged, and so is every turn
//! that continues it: nobody learns from half a prompt.

use std::ops::Range;

use rusqlite::{Connection, OptionalExtension};
use serde_json::{Map, Value};

use super::bodies::{self, Node};
use super::{IngestTurn, Result, flags, turns};
use crate::link::Link;

/// Longest history that is brought back, messages.
const MESSAGES_MAX: usize = 4096;
/// What an answer carries for the record only; a client that sends it back leaves it out.
const NOT_SENT_BACK: [&str; 3] = ["logprobs", "items", "item_ids"];

/// How a turn is stored once its parent is known.
pub(super) struct Placed {
    /// Its whole prompt, where that is not what was sent.
    pub(super) nodes: Option<Vec<Node>>,
    /// Where in the prompt the parent's answer is.
    pub(super) answer_at: Option<usize>,
    pub(super) flags: u32,
}

impl Placed {
    /// `parent` is the row of the link's parent.
    pub(super) fn of(
        conn: &Connection,
        turn: &IngestTurn,
        link: Option<&Link>,
        parent: Option<i64>,
    ) -> Result<Self> {
        let found = link.zip(parent);
        let answer_at = found.map(|(link, _)| link.answer_at);
        if !turn.asked.named.is_any() {
            return Ok(Self { nodes: None, answer_at, flags: turn.flags });
        }
        let restored = match found {
            Some((Link { restores: Some(range), choice, .. }, parent)) => {
                restore(conn, turn.messages().to_vec(), range.clone(), parent, *choice)?
            }
            _ => None,
        };
        let Some((messages, answer_at)) = restored else {
            let flags = turn.flags | flags::HISTORY_MISSING;
            return Ok(Self { nodes: None, answer_at, flags });
        };
        let nodes = bodies::chain(&turn.begin.tenant, &messages);
        Ok(Self { nodes: Some(nodes), answer_at: Some(answer_at), flags: turn.flags })
    }
}

/// The messages with the parent's history and answer in place of `range`, and where that answer is
/// then. `None` when the parent's own history is not whole, it has no such answer, or all is too
/// long.
pub(super) fn restore(
    conn: &Connection,
    mut messages: Vec<Value>,
    range: Range<usize>,
    parent: i64,
    choice: u32,
) -> Result<Option<(Vec<Value>, usize)>> {
    let mut find = conn.prepare_cached("SELECT prompt, flags FROM turns WHERE id = ?1")?;
    let row: Option<(Option<i64>, u32)> =
        find.query_row([parent], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((prompt, doubts)) = row else { return Ok(None) };
    let answer = turns::choices(conn, parent)?.into_iter().find(|c| c.index == choice);
    let Some(answer) = answer.filter(|_| doubts & flags::HISTORY_MISSING == 0) else {
        return Ok(None);
    };
    let mut history = bodies::get_chain(conn, prompt)?;
    history.retain(|message| message.get("instructions").is_none());
    history.push(sent_back(answer.message));
    let fits = history.len() + messages.len() <= MESSAGES_MAX;
    if !fits || range.start > range.end || range.end > messages.len() {
        return Ok(None);
    }
    let answer_at = range.start + history.len() - 1;
    messages.splice(range, history);
    Ok(Some((messages, answer_at)))
}

fn sent_back(mut answer: Value) -> Value {
    if let Value::Object(fields) = &mut answer {
        let kept = |key: &String, _: &mut Value| !NOT_SENT_BACK.contains(&key.as_str());
        Map::retain(fields, kept);
    }
    answer
}
