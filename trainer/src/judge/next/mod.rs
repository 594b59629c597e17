//! The next state, read: what people said, what every call of the step returned, what a screen
//! shows, and what kind of thing it is.
//!
//! ```text
//! messages after the answer ─► words of a person        (said)
//!                          └─► results, each with its call (results)
//!                                exit code · test run · HTTP status · JSON error · patch
//! ```
//! Results are matched to calls by id, whatever their order; what has no id follows in order. Agents
//! without tool calls send observations as user messages: those that look like output of a shell or
//! like a page are results, too, and nobody's words.
//!
//! Invariant: nothing of the next state is left out; a person's words and a program's output are
//! never taken for each other.

pub mod call;
pub mod detect;
pub mod exit;
pub mod history;
pub mod observed;
pub mod page;
pub mod suite;

use super::exchange::{Exchange, role_of, text_of};
use call::Call;
use hone_shared::next_state::StateKind;
use observed::Observed;
use serde_json::Value;

/// What happened after an answer.
pub struct NextState<'a> {
    /// Its kind.
    pub kind: StateKind,
    /// Calls of the answer, in order; an action that the answer states in text counts.
    pub calls: Vec<Call<'a>>,
    /// What people wrote, in order.
    pub said: Vec<String>,
    /// What came back, in the order of the calls; then what no call asked for.
    pub results: Vec<Observed>,
    /// Images in all of it. They are counted and stay in the messages; rules cannot see them.
    pub images: usize,
}

impl<'a> NextState<'a> {
    /// Reads what followed an answer.
    pub fn of(seen: &'a Exchange) -> Self {
        let calls = call::of_answer(&seen.answer);
        let results = call::results(&calls, &seen.next_state);
        let mut said = Vec::new();
        let mut observed: Vec<Observed> = results
            .into_iter()
            .map(|(at, message)| Observed::of(at, at.and_then(|at| calls.get(at)), message))
            .collect();
        for message in seen.next_state.iter().filter(|m| role_of(m) == "user") {
            let text = text_of(message);
            if is_output(&calls, message, &text) {
                let at = (calls.len() == 1).then_some(0);
                observed.push(Observed::of(at, calls.first(), message));
            } else {
                said.push(text);
            }
        }
        let images = seen.next_state.iter().map(images_of).sum();
        let mut state = Self { kind: StateKind::Chat, calls, said, results: observed, images };
        state.kind = detect::kind(seen, &state);
        state
    }

    /// The results of one call.
    pub fn results_of(&self, call: usize) -> impl Iterator<Item = &Observed> {
        self.results.iter().filter(move |result| result.call == Some(call))
    }
}

/// Whether a user message is a program's output, after an answer with these calls: who answers in
/// JSON alone talks to a program.
pub fn is_output(calls: &[Call<'_>], message: &Value, text: &str) -> bool {
    is_observation(message, text) || calls.iter().any(Call::is_framed) && exit::is_session(text)
}

/// Whether a user message is a program's output.
pub fn is_observation(message: &Value, text: &str) -> bool {
    let head = text.trim_start();
    let marks = ["Output:", "OUTPUT:", "Observation:", "OBSERVATION:", "<returncode>", "<output>"];
    marks.iter().any(|mark| head.starts_with(mark))
        || head.starts_with("$ ")
        || exit::code(text).is_some()
        || page::is_page(text)
        || (images_of(message) > 0 && text.len() < 200 && !head.ends_with('?'))
}

/// Image parts of a message.
pub fn images_of(message: &Value) -> usize {
    let is_image = |part: &&Value| {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        kind.contains("image") || kind == "screenshot"
    };
    message
        .get("content")
        .and_then(Value::as_array)
        .map_or(0, |p| p.iter().filter(is_image).count())
}

#[cfg(test)]
#[path = "next_tests.rs"]
mod tests;
