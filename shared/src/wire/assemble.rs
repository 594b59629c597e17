//! Merging the deltas of a chat stream into complete messages.
//!
//! Text fields are concatenated in order of arrival; tool calls are merged by their index (or id,
//! or position, where an engine omits the index); everything is kept apart by choice, so
//! interleaved choices of n > 1 come out whole.
//!
//! Invariant: memory grows with the bytes read only; indexes sent by an engine never size an
//! allocation.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::Choice;

/// Most choices of one response; further ones are ignored.
const CHOICES_MAX: usize = 128;
/// Most tool calls of one message; further ones are ignored.
const CALLS_MAX: usize = 1024;

/// The choices of one stream so far.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    choices: BTreeMap<u32, Partial>,
}

#[derive(Debug, Default)]
struct Partial {
    message: Map<String, Value>,
    calls: BTreeMap<u64, Call>,
    /// Where the call with an id is, so that a long stream of deltas stays linear.
    by_id: HashMap<String, u64>,
    /// The call that a delta without index and id continues.
    last_call: u64,
    finish_reason: Option<String>,
}

#[derive(Debug, Default)]
struct Call {
    fields: Map<String, Value>,
    function: Map<String, Value>,
}

impl Assembly {
    /// Takes one element of a chunk's `choices`.
    pub(super) fn take(&mut self, choice: &Value) {
        let index = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
        let Ok(index) = u32::try_from(index) else { return };
        if !self.choices.contains_key(&index) && self.choices.len() >= CHOICES_MAX {
            return;
        }
        let partial = self.choices.entry(index).or_default();
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            partial.finish_reason = Some(reason.to_owned());
        }
        match choice.get("logprobs") {
            None | Some(Value::Null) => {}
            Some(Value::Object(fields)) => {
                let entry = partial.message.entry("logprobs").or_insert_with(|| json!({}));
                if let Value::Object(known) = entry {
                    fields.iter().for_each(|(name, value)| merge(known, name, value));
                }
            }
            Some(other) => partial.take_field("logprobs", other),
        }
        // Legacy completions stream `text`; some engines send a whole `message` in a stream.
        if let Some(text) = choice.get("text") {
            partial.take_field("content", text);
        }
        let delta = choice.get("delta").or_else(|| choice.get("message"));
        for (key, value) in delta.and_then(Value::as_object).into_iter().flatten() {
            partial.take_field(key, value);
        }
    }

    /// Adds to the text of a choice that was taken before.
    pub(super) fn append(&mut self, choice: u32, text: &str) {
        let Some(partial) = self.choices.get_mut(&choice) else { return };
        match partial.message.get_mut("content") {
            Some(Value::String(known)) => known.push_str(text),
            _ => partial.take_field("content", &Value::from(text)),
        }
    }

    /// The complete messages, by index.
    pub(super) fn finish(self) -> Vec<Choice> {
        let whole = |(index, partial): (u32, Partial)| Choice {
            index,
            finish_reason: partial.finish_reason.clone(),
            message: partial.message(),
        };
        self.choices.into_iter().map(whole).collect()
    }
}

impl Partial {
    fn take_field(&mut self, key: &str, value: &Value) {
        match (key, value) {
            (_, Value::Null) => {}
            ("tool_calls", Value::Array(calls)) => {
                calls.iter().enumerate().for_each(|(at, call)| self.take_call(at as u64, call));
            }
            ("function_call", Value::Object(fields)) => {
                let entry = self.message.entry(key).or_insert_with(|| json!({}));
                if let Value::Object(known) = entry {
                    fields.iter().for_each(|(name, value)| merge(known, name, value));
                }
            }
            _ => merge(&mut self.message, key, value),
        }
    }

    fn take_call(&mut self, position: u64, delta: &Value) {
        let id = delta.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
        let known = id.and_then(|id| self.by_id.get(id)).copied();
        let index = match delta.get("index").and_then(Value::as_u64) {
            Some(index) => index,
            None => match (known, id) {
                (Some(known), _) => known,
                // A new id begins a new call; a delta with neither continues the last one.
                (None, Some(_)) => {
                    self.calls.keys().last().map_or(0, |last| last.saturating_add(1))
                }
                (None, None) => self.last_call.saturating_add(position),
            },
        };
        if !self.calls.contains_key(&index) && self.calls.len() >= CALLS_MAX {
            return;
        }
        self.last_call = index;
        if let Some(id) = id.filter(|_| known.is_none()) {
            self.by_id.insert(id.to_owned(), index);
        }
        let call = self.calls.entry(index).or_default();
        for (key, value) in delta.as_object().into_iter().flatten() {
            match (key.as_str(), value) {
                ("index", _) | (_, Value::Null) => {}
                ("function", Value::Object(fields)) => {
                    fields.iter().for_each(|(name, value)| merge(&mut call.function, name, value));
                }
                _ => {
                    call.fields.insert(key.clone(), value.clone());
                }
            }
        }
    }

    fn message(self) -> Value {
        let mut message = Map::new();
        message.insert("role".to_owned(), json!("assistant"));
        message.insert("content".to_owned(), Value::Null);
        message.extend(self.message);
        let whole = |(_, call): (u64, Call)| {
            let mut fields = call.fields;
            fields.entry("type").or_insert_with(|| json!("function"));
            fields.insert("function".to_owned(), Value::Object(call.function));
            Value::Object(fields)
        };
        let calls: Vec<Value> = self.calls.into_iter().map(whole).collect();
        if !calls.is_empty() {
            message.insert("tool_calls".to_owned(), Value::Array(calls));
        }
        Value::Object(message)
    }
}

/// Text is appended (but for `role` and `name`, which engines repeat); anything else replaces what
/// was there.
fn merge(into: &mut Map<String, Value>, key: &str, value: &Value) {
    match (into.get_mut(key), value) {
        (_, Value::Null) => {}
        (Some(Value::String(known)), Value::String(more)) if !matches!(key, "role" | "name") => {
            known.push_str(more);
        }
        (Some(Value::Array(known)), Value::Array(more)) => known.extend(more.iter().cloned()),
        _ => {
            into.insert(key.to_owned(), value.clone());
        }
    }
}
