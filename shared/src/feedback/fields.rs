//! The fields of a JSON object, taken one after the other, each with words for what it must be.
//!
//! Invariant: `null` counts as not given; a message never quotes what the client sent beyond names
//! of fields and numbers.

use serde_json::{Map, Value};

use super::{FeedbackError, ID_CHARS_MAX, wrong};

/// Longest name of an unknown field that is said back, characters.
const NAME_CHARS_MAX: usize = 64;

/// What is left of an object.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// The object in a body.
    pub(super) fn of(body: &[u8]) -> Result<Self, FeedbackError> {
        let none = |message: String| FeedbackError { param: None, message };
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => {
                Err(none(format!("The body must be a JSON object, not {}.", kind(&other))))
            }
            Err(error) => {
                let (line, column) = (error.line(), error.column());
                Err(none(format!("The body is not JSON: see line {line}, column {column}.")))
            }
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A string of 1 to `chars_max` characters.
    pub(super) fn text(
        &mut self,
        name: &'static str,
        chars_max: usize,
    ) -> Result<Option<String>, FeedbackError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let Value::String(text) = value else {
            return Err(must_be(name, "a string", &value));
        };
        checked(name, text, chars_max).map(Some)
    }

    /// A string that names something.
    pub(super) fn id(&mut self, name: &'static str) -> Result<Option<String>, FeedbackError> {
        let Some(text) = self.text(name, ID_CHARS_MAX)? else { return Ok(None) };
        if text.chars().any(char::is_control) {
            return Err(wrong(name, format!("`{name}` may not hold control characters.")));
        }
        Ok(Some(text.trim().to_owned()))
    }

    /// A finite number.
    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<f64>, FeedbackError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| must_be(name, "a number", &value))
    }

    pub(super) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, FeedbackError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| must_be(name, "true or false", &value))
    }

    /// Refuses what is left: a misspelt field would be lost in silence.
    pub(super) fn finish(self, known: &'static str) -> Result<(), FeedbackError> {
        let Some(name) = self.0.keys().next() else { return Ok(()) };
        let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
        let message = format!("`{name}` is not a field of feedback; known are {known}.");
        Err(FeedbackError { param: None, message })
    }
}

/// A text that is neither empty nor too long.
pub(super) fn checked(
    name: &'static str,
    text: String,
    chars_max: usize,
) -> Result<String, FeedbackError> {
    if text.trim().is_empty() {
        return Err(wrong(name, format!("`{name}` is empty.")));
    }
    if text.chars().nth(chars_max).is_some() {
        let message = format!("`{name}` is longer than {chars_max} characters.");
        return Err(wrong(name, message));
    }
    Ok(text)
}

pub(super) fn must_be(name: &'static str, wanted: &str, found: &Value) -> FeedbackError {
    wrong(name, format!("`{name}` must be {wanted}, not {}.", kind(found)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Maps a number on a scale to −1…1. A scale whose ends are swapped says that less is better.
pub(super) fn scaled(
    name: &'static str,
    number: f64,
    scale: [f64; 2],
) -> Result<f64, FeedbackError> {
    let [from, to] = scale;
    let (low, high) = (from.min(to), from.max(to));
    if number < low || number > high {
        let message = format!("`{name}` is {number}; on this scale it is from {low} to {high}.");
        return Err(wrong(name, message));
    }
    Ok((2.0 * (number - from) / (to - from) - 1.0).clamp(-1.0, 1.0))
}
