//! What was asked, as far as a chat template shows it.

use serde_json::Value;

/// 2026-01-01 in milliseconds since 1970.
const UNDATED_MS: i64 = 1_767_225_600_000;

/// A request in OpenAI's form.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its messages.
    pub messages: &'a [Value],
    /// Its `tools`.
    pub tools: Option<&'a Value>,
    /// When it was asked, milliseconds since 1970. Templates may print the date.
    pub at_ms: i64,
}

impl<'a> Asked<'a> {
    /// Messages that no client sent, at a fixed date: the same text on whatever day.
    #[must_use]
    pub fn undated(messages: &'a [Value]) -> Self {
        Self { messages, tools: None, at_ms: UNDATED_MS }
    }

    /// When it was asked, seconds since 1970.
    pub(super) fn seconds(&self) -> u64 {
        u64::try_from(self.at_ms / 1000).unwrap_or(0)
    }
}
