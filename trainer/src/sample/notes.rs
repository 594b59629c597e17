//! What the store knows about a turn beside its verdict: a demonstration, the outcome of its
//! episode, and the step of a task that it is.
//!
//! A task is named by the client in the request's `metadata`: `hone_task`, `task_id` or `task`. The
//! step is the number of answers that the request's history already has, so that the first steps of
//! all attempts at a task are compared with each other.
//!
//! Invariant: what weighs nothing (nobody was authenticated) is as if it had not been said.

use hone_shared::feedback::FeedbackKind;
use hone_shared::store::{FeedbackRow, Store, StoreError, StoredTurn, VerdictRow};
use serde_json::Value;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Keys of `metadata` that name a task, most specific first.
const TASK_KEYS: [&str; 3] = ["hone_task", "task_id", "task"];
/// Longest name of a task that is one, characters.
const TASK_CHARS_MAX: usize = 256;

/// What is known about one turn of a pool.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Note {
    /// The assistant's message that a person would have had.
    pub demonstration: Option<Value>,
    /// How the episode ended, −1 to 1.
    pub outcome: Option<f64>,
    /// The task, as the client names it.
    pub task: Option<String>,
    /// Answers before this one.
    pub step: usize,
}

/// Tenant and session.
type Session<'a> = (&'a str, &'a str);

/// One note per turn of the pool.
pub fn take(store: &Store, pool: &[(StoredTurn, VerdictRow)]) -> Result<Vec<Note>, StoreError> {
    // The same for all turns of a session, asked once.
    let mut outcomes: BTreeMap<Session<'_>, Option<f64>> = BTreeMap::new();
    let mut notes = Vec::with_capacity(pool.len());
    for (turn, _) in pool {
        let session = (turn.tenant.as_str(), turn.session_id.as_str());
        let outcome = match outcomes.entry(session) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let outcome = store.outcome_of_session(session.0, session.1)?;
                let counts = outcome.filter(|row| row.weight > 0.0);
                *new.insert(counts.and_then(|row| row.value))
            }
        };
        let (task, step) = (task(&turn.params), step(&turn.messages));
        notes.push(Note { demonstration: demonstration(store, turn)?, outcome, task, step });
    }
    Ok(notes)
}

/// The youngest that counts.
fn demonstration(store: &Store, turn: &StoredTurn) -> Result<Option<Value>, StoreError> {
    let said = store.feedback_of_turn(turn.turn_id)?;
    let counts = |row: &&FeedbackRow| row.kind == FeedbackKind::Demonstration && row.weight > 0.0;
    Ok(said.iter().rev().find(counts).and_then(|row| row.message.clone()))
}

fn task(params: &Value) -> Option<String> {
    let metadata = params.get("metadata")?;
    let name = TASK_KEYS.iter().find_map(|key| metadata.get(*key)?.as_str())?.trim();
    let usable = !name.is_empty() && name.chars().count() <= TASK_CHARS_MAX;
    usable.then(|| name.to_owned())
}

fn step(messages: &[Value]) -> usize {
    messages.iter().filter(|message| message["role"] == "assistant").count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_task_is_named_in_the_metadata_and_nowhere_else() {
        let named = |metadata: Value| task(&json!({"metadata": metadata}));
        assert_eq!(named(json!({"task": "b", "hone_task": " a "})), Some("a".into()));
        assert_eq!(named(json!({"task_id": "b"})), Some("b".into()));
        assert_eq!(named(json!({"task": "", "other": "c"})), None);
        assert_eq!(named(json!({"task": "x".repeat(300)})), None);
        assert_eq!(task(&json!({"task": "a"})), None);
    }

    #[test]
    fn the_step_is_the_number_of_answers_before() {
        let message = |role: &str| json!({"role": role, "content": "x"});
        assert_eq!(step(&[message("user")]), 0);
        assert_eq!(step(&[message("user"), message("assistant"), message("tool")]), 1);
    }
}
