//! What the parsers return: one shape for all protocols.
//!
//! Invariant: `messages` and the messages of `choices` are OpenAI chat messages (`role`, `content`,
//! `tool_calls`, `tool_call_id`), whatever the protocol; keys beyond those carry what the shape has
//! no word for.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::turn::{Generation, Headers};

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
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: u64,
    /// Tokens of all choices together.
    pub completion_tokens: u64,
}

/// History that a request does not bring but names: the engine keeps it (Responses API).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// `previous_response_id`.
    pub response: Option<String>,
    /// The id of `conversation`.
    pub conversation: Option<String>,
    /// Whether items stand in the history by their ids only (`item_reference`).
    pub items: bool,
}

impl Named {
    /// Whether the messages of the request are not its whole history.
    pub fn is_any(&self) -> bool {
        self.response.is_some() || self.conversation.is_some() || self.items
    }
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestView {
    /// The conversation, oldest first: exactly as sent by chat completions, in their shape for the
    /// other protocols.
    pub messages: Vec<Value>,
    /// The rest of the body: an object without the conversation. `tools` have the chat shape.
    pub params: Value,
    /// The model name as sent.
    pub model: Option<String>,
    /// Whether an event stream was asked for.
    pub stream: bool,
    /// What of the history is only named.
    #[serde(default)]
    pub named: Named,
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
    /// The conversation that the engine keeps the answer in (Responses API).
    #[serde(default)]
    pub conversation: Option<String>,
    /// Whether later requests can name this response and its items (Responses API).
    #[serde(default)]
    pub resumable: bool,
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

impl ResponseView {
    /// Takes what whole responses, chunks and events of all protocols have in common. The first id,
    /// model, error and generation stand.
    pub(super) fn take_common(&mut self, object: &Value) {
        self.id = self.id.take().or_else(|| super::text_at(object, "id"));
        self.model = self.model.take().or_else(|| super::text_at(object, "model"));
        if let Some(error) = object.get("error").filter(|error| !error.is_null()) {
            self.error.get_or_insert_with(|| error.clone());
        }
        let generation = match object.get("adapter_generation") {
            None => None,
            Some(Value::Null) => Some(Generation::base()),
            // A name that cannot be a generation is not evidence of one: the turn's provenance
            // stays unknown.
            Some(value) => value.as_str().and_then(|text| Generation::parse(text).ok()),
        };
        match (&self.adapter_generation, generation) {
            (Some(first), Some(now)) => self.generation_conflict |= *first != now,
            (None, found) => self.adapter_generation = found,
            (Some(_), None) => {}
        }
    }

    /// Settles what follows from the choices.
    pub(super) fn settled(mut self) -> Self {
        self.choices.sort_by_key(|choice| choice.index);
        let all = self.choices.iter().all(|choice| choice.finish_reason.is_some());
        self.finished = all && !self.choices.is_empty();
        self
    }
}
