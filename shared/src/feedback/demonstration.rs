//! A demonstration: the answer as it should have been, as one assistant's message.
//!
//! Invariant: what comes out has the role `assistant` and says or calls something, so that a chat
//! template can render it.

use serde_json::{Map, Value, json};

use super::fields::{checked, must_be};
use super::{FeedbackError, wrong};

/// Keys that a message may have.
const KEYS: [&str; 4] = ["role", "content", "tool_calls", "reasoning_content"];
/// Longest demonstration, characters; the limit on bodies is usually smaller.
const CHARS_MAX: usize = 1 << 20;

/// A text, or a message of the chat API.
pub(super) fn read(name: &'static str, given: Value) -> Result<Value, FeedbackError> {
    match given {
        Value::String(text) => said(checked(name, text, CHARS_MAX)?),
        Value::Object(message) => message_of(name, message),
        other => Err(must_be(name, "a string or an assistant's message", &other)),
    }
}

fn said(text: String) -> Result<Value, FeedbackError> {
    Ok(json!({"role": "assistant", "content": text}))
}

fn message_of(name: &'static str, mut message: Map<String, Value>) -> Result<Value, FeedbackError> {
    if let Some(key) = message.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let key: String = key.chars().filter(|c| !c.is_control()).take(64).collect();
        let known = KEYS.join(", ");
        return Err(wrong(name, format!("`{name}` may not hold `{key}`; known are {known}.")));
    }
    let role = message.entry("role").or_insert_with(|| json!("assistant"));
    if role != "assistant" {
        return Err(wrong(name, format!("`{name}.role` must be \"assistant\".")));
    }
    let content = message.get("content").unwrap_or(&Value::Null);
    let says = match content {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(parts) => {
            let is_text = |part: &Value| part["type"] == "text" && part["text"].is_string();
            if !parts.iter().all(is_text) {
                return Err(wrong(name, format!("`{name}.content` may hold text parts only.")));
            }
            !parts.is_empty()
        }
        other => return Err(must_be(name, "a message whose content is text", other)),
    };
    let calls = match message.get("tool_calls") {
        None | Some(Value::Null) => false,
        Some(Value::Array(calls)) if calls.iter().all(is_call) => !calls.is_empty(),
        Some(_) => {
            let shape = "{\"type\": \"function\", \"function\": {\"name\", \"arguments\"}}";
            return Err(wrong(name, format!("`{name}.tool_calls` must be a list of {shape}.")));
        }
    };
    if !says && !calls {
        return Err(wrong(name, format!("`{name}` neither says nor calls anything.")));
    }
    Ok(Value::Object(message))
}

fn is_call(call: &Value) -> bool {
    call["function"]["name"].is_string() && call["function"]["arguments"].is_string()
}

/// TensorZero's value: a text, or a list of content blocks.
pub(super) fn of_blocks(name: &'static str, given: Value) -> Result<Value, FeedbackError> {
    let Value::Array(blocks) = given else { return read(name, given) };
    let (mut text, mut calls) = (String::new(), Vec::new());
    for block in &blocks {
        match (block["type"].as_str(), block["text"].as_str(), block["name"].as_str()) {
            (Some("text"), Some(part), _) => text.push_str(part),
            (Some("tool_call"), _, Some(function)) => {
                let arguments = match &block["arguments"] {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                let id = block["id"].as_str().unwrap_or(function);
                calls.push(json!({"id": id, "type": "function",
                    "function": {"name": function, "arguments": arguments}}));
            }
            _ => {
                let message = format!("`{name}` may hold blocks of type text and tool_call only.");
                return Err(wrong(name, message));
            }
        }
    }
    let mut message = Map::from_iter([("role".to_owned(), json!("assistant"))]);
    if !text.is_empty() {
        message.insert("content".to_owned(), json!(text));
    }
    if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    message_of(name, message)
}
