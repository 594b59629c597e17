//! `[[examples]]`: what a rubric says about a small case; a test runs those that are compiled in.
//!
//! Invariant: an example is data for tests and readers; no verdict depends on one.

use serde::Deserialize;

use crate::next_state::StateKind;

/// One case and what the rules say.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// The user's request.
    #[serde(default = "request")]
    pub request: String,
    /// The answer's text.
    #[serde(default = "answer")]
    pub answer: String,
    /// The answer's call: `name {"argument": "value"}`.
    pub call: Option<String>,
    /// The call's result.
    pub result: Option<String>,
    /// The user's next message.
    pub next: Option<String>,
    /// Why generation ended.
    pub finish: Option<String>,
    /// +1, 0 or −1; none: the rules are silent.
    pub verdict: Option<i8>,
    /// The rule that says so.
    pub rule: Option<String>,
    /// The kind that is detected, where it is of interest.
    pub kind: Option<StateKind>,
}

fn request() -> String {
    "What is the tallest mountain of Austria?".to_owned()
}

fn answer() -> String {
    "The Grossglockner.".to_owned()
}
