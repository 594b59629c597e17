//! Content blocks to chat messages, for requests and answers alike.
//!
//! A user message with tool results becomes one `tool` message per result and one user message for
//! the rest, in order. In an assistant message `tool_use` becomes `tool_calls`; thoughts go to
//! `reasoning_content`, and with their signatures to `thinking_blocks`; linking reads neither.
//!
//! Invariant: a client that sends the blocks of an answer back gets the message that the answer
//! had.

use serde_json::{Map, Value, json};

use crate::wire::content_of;

/// Adds a message of a request to the conversation.
pub(super) fn push(messages: &mut Vec<Value>, mut message: Value) {
    let role = message.get("role").cloned().unwrap_or_default();
    let blocks = match message.get_mut("content") {
        Some(Value::Array(blocks)) => std::mem::take(blocks),
        _ => return messages.push(message),
    };
    if role == "assistant" {
        return messages.push(answer(blocks));
    }
    let (results, before) = (blocks.iter().any(is_result), messages.len());
    let mut parts = Vec::new();
    for block in blocks {
        if !is_result(&block) {
            parts.push(part_of(block));
            continue;
        }
        if !parts.is_empty() {
            let content = content_of(std::mem::take(&mut parts));
            messages.push(json!({"role": role, "content": content}));
        }
        messages.push(tool_result(block));
    }
    if !parts.is_empty() || !results && messages.len() == before {
        messages.push(json!({"role": role, "content": content_of(parts)}));
    }
}

/// The assistant message of an answer's blocks.
pub(super) fn answer(blocks: Vec<Value>) -> Value {
    let (mut parts, mut calls) = (Vec::new(), Vec::new());
    let (mut reasoning, mut thoughts) = (String::new(), Vec::new());
    for block in blocks {
        match kind_of(&block) {
            "tool_use" => calls.push(call_of(&block)),
            "thinking" | "redacted_thinking" => {
                reasoning.push_str(block.get("thinking").and_then(Value::as_str).unwrap_or(""));
                thoughts.push(block);
            }
            _ => parts.push(part_of(block)),
        }
    }
    let mut message = Map::new();
    let mut put = |key: &str, value: Value| drop(message.insert(key.to_owned(), value));
    put("role", json!("assistant"));
    put("content", content_of(parts));
    if !reasoning.is_empty() {
        put("reasoning_content", json!(reasoning));
    }
    if !calls.is_empty() {
        put("tool_calls", Value::Array(calls));
    }
    if !thoughts.is_empty() {
        put("thinking_blocks", Value::Array(thoughts));
    }
    Value::Object(message)
}

/// A text, or blocks as content parts.
pub(super) fn content(content: Value) -> Value {
    match content {
        Value::Array(blocks) => content_of(blocks.into_iter().map(part_of).collect()),
        other => other,
    }
}

fn kind_of(block: &Value) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn is_result(block: &Value) -> bool {
    kind_of(block) == "tool_result"
}

fn tool_result(mut block: Value) -> Value {
    let content = content(block.get_mut("content").map(Value::take).unwrap_or_default());
    let id = block.get("tool_use_id");
    let mut message = json!({"role": "tool", "tool_call_id": id, "content": content});
    if block.get("is_error").and_then(Value::as_bool) == Some(true) {
        message["is_error"] = json!(true);
    }
    message
}

/// Arguments are text in the chat shape: a stream's own bytes, else the input written as JSON.
fn call_of(block: &Value) -> Value {
    let arguments = match block.get("input") {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        None | Some(Value::Null | Value::String(_)) => "{}".to_owned(),
        Some(input) => input.to_string(),
    };
    let function = json!({"name": block.get("name"), "arguments": arguments});
    json!({"id": block.get("id"), "type": "function", "function": function})
}

/// A block without its cache mark, and without what is empty beside a text.
fn part_of(mut block: Value) -> Value {
    if let Value::Object(fields) = &mut block {
        fields.shift_remove("cache_control");
        if fields.get("type").and_then(Value::as_str) == Some("text") {
            fields.retain(|key, value| matches!(key.as_str(), "type" | "text") || !value.is_null());
        }
    }
    block
}
