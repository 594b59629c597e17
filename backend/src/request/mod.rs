//! From a request body to what the engine must do. Pure: no engine, no clock.
//!
//! Unknown fields are ignored, as OpenAI's own server does; known fields with a wrong type or value
//! are refused with the field's name.
//!
//! Invariant: what leaves this module is within every limit of the configuration.

pub mod chat;
pub mod completion;
pub mod params;

use mistralrs::core::{RequestMessage, Tool};
use serde_json::{Map, Value};

use crate::error::{ApiError, Code};
use crate::sample::Draw;

#[cfg(test)]
mod tests;

/// What the parser must know of the server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Choices per request.
    pub choices_max: usize,
    /// Reply tokens if the request names no limit; 0 means up to the context.
    pub tokens_default_max: usize,
    /// The chat template renders `tool_calls` itself.
    pub tells_calls: bool,
}

/// One prompt, ready for the engine.
#[derive(Clone)]
pub enum Prompt {
    /// Messages for the chat template.
    Chat(RequestMessage),
    /// Plain text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// A parsed generation request of either API.
#[derive(Clone)]
pub struct Job {
    /// The model as the client wrote it.
    pub model: Option<String>,
    /// The `adapter` field, unparsed.
    pub adapter: Value,
    /// The prompts; a chat has exactly one.
    pub prompts: Vec<Prompt>,
    /// Choices per prompt.
    pub n: usize,
    /// Reply tokens per choice.
    pub tokens_max: usize,
    /// How tokens are drawn; choice `i` adds `i` to the seed.
    pub draw: Draw,
    /// Where replies stop.
    pub stops: Vec<String>,
    /// The tools that the chat template shows.
    pub tools: Vec<Tool>,
    /// The tools whose calls are looked for.
    pub callable: Vec<String>,
    /// JSON schema that guards the reply.
    pub schema: Option<Value>,
    /// Whether to stream.
    pub stream: bool,
    /// Whether the stream ends with a usage chunk.
    pub include_usage: bool,
}

impl Job {
    /// Choices in total.
    pub fn choices(&self) -> usize {
        self.prompts.len() * self.n
    }
}

/// Reads the body as a JSON object.
///
/// # Errors
/// [`Code::InvalidJson`] with line and column.
pub fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            let message = format!("The request body must be a JSON object, not {}.", kind(&other));
            Err(ApiError::new(Code::InvalidJson, message))
        }
        Err(error) => {
            let message = format!("The request body is not valid JSON: {error}.");
            Err(ApiError::new(Code::InvalidJson, message))
        }
    }
}

/// What kind of JSON value this is, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// An error that names the field, what it must be and what it was.
pub fn wrong(name: &str, must: &str, found: &Value) -> ApiError {
    ApiError::value(name, format!("`{name}` must be {must}, not {}.", kind(found)))
}

/// Typed access to the fields of an object; null counts as absent.
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The raw value.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A string.
    ///
    /// # Errors
    /// A wrong type.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.get(name)
            .map(|value| value.as_str().ok_or_else(|| wrong(name, "a string", value)))
            .transpose()
    }

    /// A boolean; absent is false.
    ///
    /// # Errors
    /// A wrong type.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| wrong(name, "a boolean", value)),
        }
    }

    /// A number within a range.
    ///
    /// # Errors
    /// A wrong type or a value out of range.
    pub fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong(name, "a number", value))?;
        if (least..=most).contains(&number) {
            return Ok(Some(number as f32));
        }
        let message = format!("`{name}` must be from {least} to {most}, not {number}.");
        Err(ApiError::value(name, message))
    }

    /// An integer within a range.
    ///
    /// # Errors
    /// A wrong type or a value out of range.
    pub fn count(&self, name: &str, least: u64, most: u64) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        if !value.is_i64() && !value.is_u64() {
            let must = "an integer";
            return Err(match value {
                Value::Number(number) => {
                    ApiError::value(name, format!("`{name}` must be {must}, not {number}."))
                }
                _ => wrong(name, must, value),
            });
        }
        match value.as_u64().filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number as usize)),
            None if most == u64::from(u32::MAX) => Err(ApiError::value(
                name,
                format!("`{name}` must be at least {least}, not {value}."),
            )),
            None => {
                let message = format!("`{name}` must be from {least} to {most}, not {value}.");
                Err(ApiError::value(name, message))
            }
        }
    }
}
