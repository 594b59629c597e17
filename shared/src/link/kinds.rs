//! The words of linking: how a parent was found, and what a hash in the index stands for.
//!
//! Invariant: a word or number never changes its meaning: both are stored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a parent was found, surest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// The history up to and with the answer is the same.
    Exact,
    /// A tool result names a call that the parent made.
    ToolCallId,
    /// The engine keeps the history, and the request names it: the response that it continues, the
    /// conversation, or items of the answer.
    Named,
    /// The same but for white space, system messages and unknown keys; or the answer is the part of
    /// an aborted one.
    Loose,
    /// The user's messages are the same and the answer is at least 90 % similar.
    Edited,
    /// The history was cut at its beginning; the last answer is the parent's.
    Truncated,
    /// The history was replaced by a summary, and the summary is the parent's answer.
    Compacted,
}

impl LinkKind {
    /// All kinds, surest first.
    pub const ALL: &'static [Self] = &[
        Self::Exact,
        Self::ToolCallId,
        Self::Named,
        Self::Loose,
        Self::Edited,
        Self::Truncated,
        Self::Compacted,
    ];

    /// Whether the link holds however many turns match: those have the same history and answer, or
    /// were named by the client.
    pub fn is_sure(self) -> bool {
        matches!(self, Self::Exact | Self::ToolCallId | Self::Named)
    }

    /// The word as it stands in tables and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::ToolCallId => "tool_call_id",
            Self::Named => "named",
            Self::Loose => "loose",
            Self::Edited => "edited",
            Self::Truncated => "truncated",
            Self::Compacted => "compacted",
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no [`LinkKind`].
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a link kind (exact, tool_call_id, named, loose, edited, truncated, compacted)"
)]
pub struct UnknownLinkKind(pub String);

impl FromStr for LinkKind {
    type Err = UnknownLinkKind;

    fn from_str(text: &str) -> Result<Self, UnknownLinkKind> {
        let found = Self::ALL.iter().find(|kind| kind.as_str() == text);
        found.copied().ok_or_else(|| UnknownLinkKind(text.chars().take(40).collect()))
    }
}

/// What an indexed hash stands for. The number is its column value in the store and never changes
/// its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum HashKind {
    /// The chain past an answer: one per choice.
    Out = 1,
    /// The same over folded text, without system messages: one per choice.
    LooseOut = 2,
    /// The chain over the prompt without assistant and system messages: one per turn, choice 0.
    Skeleton = 3,
    /// The folded answer alone, when it is long enough: one per choice.
    Assistant = 4,
    /// An id of a tool call, when it is random enough: one per call.
    ToolCall = 5,
    /// The whole prompt's chain: one per turn, choice 0. Finds retries and regenerations.
    Prompt = 6,
    /// An id that the engine gave to the response or to an item of it, where requests can name it.
    ResponseId = 7,
    /// The conversation that the engine keeps: one per turn, choice 0.
    Conversation = 8,
    /// A predictable id of a tool call, within the session, person or client: one per call.
    ScopedCall = 9,
    /// The explicit session: one per turn, choice 0.
    Session = 10,
    /// The idempotency key with the prompt: one per turn, choice 0.
    Idempotency = 11,
}

impl HashKind {
    /// The column value.
    pub fn number(self) -> u8 {
        self as u8
    }
}
