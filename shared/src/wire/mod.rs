//! Reading request and response bodies: parse only, off the hot path.
//!
//! Why: the tap records bytes; ingest needs messages, choices and usage. Each protocol has its
//! module ([`openai`]); the event-stream grammar ([`sse`]) and content codings ([`coding`]) are
//! shared.
//! Invariant: no input makes these parsers panic, loop for ever or hold more than a fixed multiple
//! of the capped body.

mod assemble;
pub mod coding;
pub mod openai;
pub mod sse;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::turn::{Generation, Headers};

/// Why a body could not be read. The turn is kept all the same; only its parsed form is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The path belongs to no protocol that is parsed.
    #[error("`{0}` is not a path whose bodies are parsed")]
    Path(String),
    /// The body is not the JSON that it should be.
    #[error("the {what} is not valid JSON: {problem}")]
    Json {
        /// `request body` or `response body`.
        what: &'static str,
        /// What the parser said, with line and column.
        problem: String,
    },
    /// The JSON does not have the shape of the protocol.
    #[error("the {what} has no usable `{key}`")]
    Shape {
        /// `request body` or `response body`.
        what: &'static str,
        /// The key that is missing or has the wrong type.
        key: &'static str,
    },
    /// The content coding is not gzip, deflate or zstd.
    #[error("content-encoding `{0}` is not supported (supported: gzip, deflate, zstd, identity)")]
    Coding(String),
    /// The compressed body is damaged, or inflates past the cap.
    #[error("the compressed body cannot be inflated: {0}")]
    Inflate(String),
}

/// One answer of a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Index of the choice within its response.
    pub index: u32,
    /// The complete assistant message, deltas merged.
    pub message: Value,
    /// `stop`, `length`, `tool_calls`, …; `None` when the response ended before it came.
    pub finish_reason: Option<String>,
}

/// Token counts as the engine reported them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of all choices together.
    pub completion_tokens: u64,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestView {
    /// The conversation, oldest first, exactly as sent.
    pub messages: Vec<Value>,
    /// The rest of the body: an object without `messages` or `prompt`.
    pub params: Value,
    /// The model name as sent.
    pub model: Option<String>,
    /// Whether an event stream was asked for.
    pub stream: bool,
}

impl RequestView {
    /// The session id that the client states itself, if any; see [`crate::link::explicit_session`].
    pub fn session(&self, headers: &Headers) -> Option<String> {
        crate::link::explicit_session(headers, &self.params)
    }
}

/// What a response says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ResponseView {
    /// The response id of the engine.
    pub id: Option<String>,
    /// The model name of the engine.
    pub model: Option<String>,
    /// The answers, by index.
    pub choices: Vec<Choice>,
    /// Token counts, when reported.
    pub usage: Option<Usage>,
    /// The value of `error`, from an error body or from inside a stream.
    pub error: Option<Value>,
    /// `adapter_generation`: `Some(base)` for a JSON null, `None` when the engine does not report
    /// it.
    pub adapter_generation: Option<Generation>,
    /// Whether chunks of one stream named different generations: the turn must not be trained on.
    pub generation_conflict: bool,
    /// Whether every choice has a finish reason and at least one choice is there.
    pub finished: bool,
    /// Events of a stream that were not readable JSON; 0 for a whole response.
    pub bad_events: u32,
}
