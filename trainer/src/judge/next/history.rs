//! The steps before an answer: calls and what they returned, youngest first.
//!
//! Invariant: at most [`STEPS_MAX`] steps are read, however long the conversation is.

use super::call::{self, Call};
use super::is_output;
use crate::judge::exchange::{role_of, text_of};
use serde_json::Value;

/// Steps that are looked back.
pub const STEPS_MAX: usize = 24;

/// One earlier step.
pub struct Step<'a> {
    /// Calls, in order.
    pub calls: Vec<Call<'a>>,
    /// Messages up to the next answer.
    pub after: &'a [Value],
}

impl Step<'_> {
    /// What each call returned, in the order of the calls.
    pub fn results(&self) -> Vec<Option<String>> {
        let mut texts = call::texts(&self.calls, self.after);
        if let [slot @ None] = texts.as_mut_slice() {
            let users = self.after.iter().filter(|m| role_of(m) == "user");
            let mut texts = users.map(|m| (m, text_of(m)));
            *slot = texts.find(|(m, t)| is_output(&self.calls, m, t)).map(|found| found.1);
        }
        texts
    }
}

/// The steps of a conversation, youngest first. A step ends at the next answer or at a person's
/// words.
pub fn steps(messages: &[Value]) -> impl Iterator<Item = Step<'_>> {
    let mut end = messages.len();
    let answers = messages.iter().enumerate().rev().filter(|(_, m)| role_of(m) == "assistant");
    answers.take(STEPS_MAX).map(move |(at, message)| {
        let after = messages.get(at + 1..end).unwrap_or_default();
        end = at;
        Step { calls: call::of_answer(message), after }
    })
}

/// What a person asked last: the youngest user message that is no program's output.
pub fn request(messages: &[Value]) -> String {
    let users = messages.iter().enumerate().rev().filter(|(_, m)| role_of(m) == "user");
    let asks = |at: usize, message: &Value, text: &str| {
        let before = messages.iter().take(at).rev().find(|m| role_of(m) == "assistant");
        !is_output(&before.map(call::of_answer).unwrap_or_default(), message, text)
    };
    let mut users = users.map(|(at, m)| (at, m, text_of(m)));
    users.find(|(at, m, text)| asks(*at, m, text)).map(|found| found.2).unwrap_or_default()
}

/// The first request of the conversation, which states an agent's task, and the last one.
pub fn task(messages: &[Value]) -> String {
    let first = messages.iter().find(|m| role_of(m) == "user").map(text_of).unwrap_or_default();
    let last = request(messages);
    if first == last { first } else { format!("{first}\n{last}") }
}
