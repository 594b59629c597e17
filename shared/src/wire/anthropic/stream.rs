//! The event stream of `/v1/messages`: blocks are put together from their deltas.
//!
//! Events are told apart by the `type` inside of `data`, as the providers' clients do; the `event`
//! line stands in where it is missing. Pings and unknown events and deltas are ignored.
//!
//! Invariant: indexes sent by an engine never size an allocation; memory grows with the bytes only.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::{ResponseView, count_at, for_each_event};
use super::{blocks, finish_reason, usage_of};
use crate::wire::Choice;
use crate::wire::sse::Chunks;

/// Most blocks of one answer; further ones are ignored.
const BLOCKS_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Assembly {
    blocks: BTreeMap<u64, Map<String, Value>>,
    usage: Map<String, Value>,
    finish_reason: Option<String>,
}

/// A stream.
pub(in crate::wire) fn read(chunks: Chunks<'_, '_>) -> ResponseView {
    let mut view = ResponseView::default();
    let mut assembly = Assembly::default();
    view.bad_events = for_each_event(chunks, &mut |name: &str, event| {
        assembly.take(&mut view, name, event);
    });
    view.usage = usage_of(&Value::Object(assembly.usage));
    if !assembly.blocks.is_empty() || assembly.finish_reason.is_some() {
        let blocks = assembly.blocks.into_values().map(ended).collect();
        let finish_reason = assembly.finish_reason;
        view.choices = vec![Choice { index: 0, message: blocks::answer(blocks), finish_reason }];
    }
    view.settled()
}

impl Assembly {
    fn take(&mut self, view: &mut ResponseView, name: &str, mut event: Value) {
        let kind = event.get("type").and_then(Value::as_str).unwrap_or(name).to_owned();
        match kind.as_str() {
            "message_start" => {
                let message = event.get("message").unwrap_or(&Value::Null);
                view.take_common(message);
                self.take_usage(message);
                let blocks = message.get("content").and_then(Value::as_array);
                for (at, block) in (0u64..).zip(blocks.into_iter().flatten()) {
                    self.start(at, block.clone());
                }
            }
            "content_block_start" => {
                let block = event.get_mut("content_block").map(Value::take).unwrap_or_default();
                self.start(count_at(&event, "index").unwrap_or(0), block);
            }
            "content_block_delta" => {
                let at = count_at(&event, "index").unwrap_or(0);
                self.delta(at, event.get("delta").unwrap_or(&Value::Null));
            }
            "message_delta" => {
                let reason = event.pointer("/delta/stop_reason").and_then(Value::as_str);
                self.finish_reason = reason.map(finish_reason).or(self.finish_reason.take());
                self.take_usage(&event);
            }
            // Gateways also send errors of other shapes, with an `error` key and no type.
            _ => {
                view.take_common(&event);
                if kind == "error" && view.error.is_none() {
                    view.error = Some(event);
                }
            }
        }
    }

    /// Counts come in parts; the last of each stands.
    fn take_usage(&mut self, of: &Value) {
        for (key, count) in of.get("usage").and_then(Value::as_object).into_iter().flatten() {
            if count.is_u64() {
                self.usage.insert(key.clone(), count.clone());
            }
        }
    }

    fn block(&mut self, at: u64) -> Option<&mut Map<String, Value>> {
        let room = self.blocks.len() < BLOCKS_MAX || self.blocks.contains_key(&at);
        room.then(|| self.blocks.entry(at).or_default())
    }

    fn start(&mut self, at: u64, block: Value) {
        let Value::Object(fields) = block else { return };
        if let Some(block) = self.block(at) {
            *block = fields;
        }
    }

    fn delta(&mut self, at: u64, delta: &Value) {
        // Which text grows, and what block it is should its start be missing.
        let (key, from, kind) = match delta.get("type").and_then(Value::as_str) {
            Some("text_delta") => ("text", "text", "text"),
            Some("thinking_delta") => ("thinking", "thinking", "thinking"),
            Some("signature_delta") => ("signature", "signature", "thinking"),
            Some("input_json_delta") => ("input", "partial_json", "tool_use"),
            Some("citations_delta") => ("citations", "citation", "text"),
            _ => return,
        };
        let Some(more) = delta.get(from) else { return };
        let Some(block) = self.block(at) else { return };
        block.entry("type").or_insert_with(|| json!(kind));
        match (block.get_mut(key), more) {
            (Some(Value::String(known)), Value::String(more)) => known.push_str(more),
            (Some(Value::Array(known)), more) if key == "citations" => known.push(more.clone()),
            (_, more) if key == "citations" => {
                block.insert(key.to_owned(), json!([more]));
            }
            // An input comes in deltas; the empty object at the start only says that it will.
            (_, more) => {
                block.insert(key.to_owned(), more.clone());
            }
        }
    }
}

/// A block at the end of its stream. The provider's own tools keep their blocks, so their input is
/// what a client sends back: JSON. Text that is none stays.
fn ended(mut block: Map<String, Value>) -> Value {
    let own = block.get("type").and_then(Value::as_str) != Some("tool_use");
    if let Some(input) = block.get_mut("input").filter(|_| own)
        && let Some(text) = input.as_str()
    {
        let text = if text.trim().is_empty() { "{}" } else { text };
        if let Ok(read) = crate::wire::json::parse("tool input", text.as_bytes()) {
            *input = read;
        }
    }
    Value::Object(block)
}
