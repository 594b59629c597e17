//! From items to chat messages, for requests and answers alike.
//!
//! Everything that the model says in a row (messages, reasoning, calls) is one assistant message,
//! as in the chat shape; a call's output is a `tool` message. Items that the shape has no word for
//! stay whole in the message's `items`, the ids of known ones in `item_ids`; linking reads neither
//! as content.
//!
//! Invariant: a client that sends the output items of an answer back gets the message that the
//! answer had.

use serde_json::{Map, Value, json};

use crate::wire::content_of;

/// Messages in the making.
#[derive(Debug, Default)]
pub(super) struct Items {
    messages: Vec<Value>,
    open: Option<Answer>,
    references: bool,
}

/// An assistant message in the making.
#[derive(Debug, Default)]
struct Answer {
    parts: Vec<Value>,
    reasoning: String,
    refusal: String,
    calls: Vec<Value>,
    lists: Map<String, Value>,
    phase: Option<Value>,
}

/// The one message of an answer's output; `None` when there is none.
pub(super) fn answer(output: Vec<Value>) -> Option<Value> {
    if output.is_empty() {
        return None;
    }
    let mut answer = Answer::default();
    for item in output {
        // Outputs of hosted tools are the engine's own doing and no next state.
        if let Some(other) = answer.take(item) {
            answer.list("items", other);
        }
    }
    Some(answer.message())
}

impl Items {
    /// Takes a message in the chat shape.
    pub(super) fn message(&mut self, message: Value) {
        self.close();
        self.messages.push(message);
    }

    /// Takes one item of the input.
    pub(super) fn take(&mut self, item: Value) {
        self.references |= item.get("type").and_then(Value::as_str) == Some("item_reference");
        let Some(item) = self.open.get_or_insert_default().take(item) else { return };
        // Not the model's: the answer before it, if it said anything, is over.
        self.close();
        let kind = item.get("type").and_then(Value::as_str).unwrap_or_default();
        self.messages.push(match item.get("role") {
            Some(role) => json!({"role": role, "content": parts_of(item.get("content"))}),
            None if kind == "mcp_approval_response" => {
                let id = item.get("approval_request_id");
                json!({"role": "tool", "tool_call_id": id, "content": item.to_string()})
            }
            None => {
                let output = parts_of(item.get("output"));
                json!({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
            }
        });
    }

    fn close(&mut self) {
        if let Some(answer) = self.open.take().filter(|answer| !answer.is_empty()) {
            self.messages.push(answer.message());
        }
    }

    /// The messages, and whether items stand among them by their ids only.
    pub(super) fn finish(mut self) -> (Vec<Value>, bool) {
        self.close();
        (self.messages, self.references)
    }
}

impl Answer {
    fn is_empty(&self) -> bool {
        let Self { parts, reasoning, refusal, calls, lists, phase: _ } = self;
        parts.is_empty()
            && reasoning.is_empty()
            && refusal.is_empty()
            && calls.is_empty()
            && lists.is_empty()
    }

    /// Takes what the model says; gives back what somebody else says.
    fn take(&mut self, mut item: Value) -> Option<Value> {
        let kind = item.get("type").and_then(Value::as_str).unwrap_or("message").to_owned();
        match kind.as_str() {
            "message" => {
                if item.get("role").and_then(Value::as_str) != Some("assistant") {
                    return Some(item);
                }
                self.note_id(&item);
                self.phase = item.get("phase").filter(|phase| !phase.is_null()).cloned();
                self.take_content(item.get_mut("content").map(Value::take).unwrap_or_default());
            }
            "function_call" | "custom_tool_call" => {
                self.note_id(&item);
                self.calls.push(call_of(&kind, &item));
            }
            "mcp_approval_response" => return Some(item),
            _ if kind.ends_with("_output") => return Some(item),
            "reasoning" => {
                for text in ["summary", "content"].iter().filter_map(|key| item.get(key)) {
                    self.take_reasoning(text);
                }
                self.list("items", item);
            }
            // Computer, shell and patch calls: the client carries them out and reports by id.
            _ if kind.ends_with("_call") && item.get("call_id").is_some_and(Value::is_string) => {
                self.note_id(&item);
                self.calls.push(call_of(&kind, &item));
                self.list("items", item);
            }
            _ => self.list("items", item),
        }
        None
    }

    fn take_content(&mut self, content: Value) {
        let parts = match content {
            Value::Array(parts) => parts,
            Value::Null => return,
            text => return self.parts.push(json!({"type": "text", "text": text})),
        };
        for mut part in parts {
            for (from, to) in [("annotations", "annotations"), ("logprobs", "logprobs")] {
                match part.get_mut(from).map(Value::take) {
                    Some(Value::Array(list)) => {
                        list.into_iter().for_each(|each| self.list(to, each));
                    }
                    _ => continue,
                }
            }
            match part.get("refusal").and_then(Value::as_str) {
                Some(refusal) => self.refusal.push_str(refusal),
                None => self.parts.push(chat_part(part)),
            }
        }
    }

    fn take_reasoning(&mut self, texts: &Value) {
        for text in texts.as_array().into_iter().flatten() {
            let Some(text) = text.get("text").and_then(Value::as_str) else { continue };
            if !self.reasoning.is_empty() {
                self.reasoning.push_str("\n\n");
            }
            self.reasoning.push_str(text);
        }
    }

    fn note_id(&mut self, item: &Value) {
        if let Some(id) = item.get("id").filter(|id| id.is_string()) {
            self.list("item_ids", id.clone());
        }
    }

    fn list(&mut self, key: &str, value: Value) {
        let list = self.lists.entry(key).or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(value);
        }
    }

    fn message(self) -> Value {
        let mut message = Map::new();
        let mut put = |key: &str, value: Value| drop(message.insert(key.to_owned(), value));
        put("role", json!("assistant"));
        put("content", content_of(self.parts));
        if !self.refusal.is_empty() {
            put("refusal", json!(self.refusal));
        }
        if !self.reasoning.is_empty() {
            put("reasoning_content", json!(self.reasoning));
        }
        if !self.calls.is_empty() {
            put("tool_calls", Value::Array(self.calls));
        }
        if let Some(phase) = self.phase {
            put("phase", phase);
        }
        for (key, list) in self.lists {
            // The chat shape wraps the list.
            let value = if key == "logprobs" { json!({"content": list}) } else { list };
            put(&key, value);
        }
        Value::Object(message)
    }
}

/// A call in the chat shape. Calls of the client's own devices are named after their type.
fn call_of(kind: &str, item: &Value) -> Value {
    let id = item.get("call_id").or_else(|| item.get("id"));
    let name = item.get("name");
    match kind {
        "function_call" => {
            let function = json!({"name": name, "arguments": item.get("arguments")});
            json!({"id": id, "type": "function", "function": function})
        }
        "custom_tool_call" => {
            let custom = json!({"name": name, "input": item.get("input")});
            json!({"id": id, "type": "custom", "custom": custom})
        }
        _ => {
            let arguments = ["action", "operation", "actions"].iter().find_map(|key| item.get(key));
            let arguments = arguments.map(Value::to_string).unwrap_or_default();
            let name = kind.trim_end_matches("_call");
            let function = json!({"name": name, "arguments": arguments});
            json!({"id": id, "type": "function", "function": function})
        }
    }
}

/// A content or output: a text, or parts in the chat shape.
fn parts_of(content: Option<&Value>) -> Value {
    match content {
        Some(Value::Array(parts)) => content_of(parts.iter().cloned().map(chat_part).collect()),
        other => other.cloned().unwrap_or_default(),
    }
}

/// Text parts have one name in the chat shape; others stay as they are.
fn chat_part(mut part: Value) -> Value {
    let kind = part.get("type").and_then(Value::as_str);
    let is_text = matches!(kind, Some("input_text" | "output_text" | "summary_text" | "text"));
    match part.get_mut("text").map(Value::take) {
        Some(text) if is_text => json!({"type": "text", "text": text}),
        Some(text) => {
            part["text"] = text;
            part
        }
        None => part,
    }
}
