//! The event stream of `/v1/responses`: items are put together from their deltas.
//!
//! The final event carries the whole response; engines that send it without output, and streams
//! that break off, are read from the items that came. `data` says the type of an event; the `event`
//! line is looked at where `data` does not.
//!
//! Invariant: indexes sent by an engine never size an allocation; memory grows with the bytes only.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::{ResponseView, count_at, for_each_event};
use super::{items, take_response};
use crate::wire::Choice;
use crate::wire::sse::Chunks;

/// Most items of one answer; further ones are ignored.
const ITEMS_MAX: usize = 4096;
/// Most parts of one item; further ones are ignored.
const PARTS_MAX: usize = 1024;

/// An item as far as it came.
#[derive(Debug, Default)]
struct Partial {
    item: Map<String, Value>,
    /// Texts by list (`content` or `summary`) and index, with the type of their part.
    parts: BTreeMap<(&'static str, u64), (&'static str, String)>,
    /// `arguments` of a function call or `input` of a custom one.
    input: String,
    done: bool,
}

/// A stream.
pub(in crate::wire) fn read(chunks: Chunks<'_, '_>) -> ResponseView {
    let mut view = ResponseView::default();
    let mut partials: BTreeMap<u64, Partial> = BTreeMap::new();
    view.bad_events = for_each_event(chunks, &mut |name: &str, mut event: Value| {
        let kind = event.get("type").and_then(Value::as_str).unwrap_or(name).to_owned();
        match event.get_mut("response").map(Value::take) {
            Some(response) => {
                let is_last = matches!(
                    kind.as_str(),
                    "response.completed" | "response.incomplete" | "response.failed"
                );
                take_event_response(&mut view, response, is_last);
            }
            None if kind == "error" || event.get("error").is_some_and(|e| !e.is_null()) => {
                let error = event.get("error").filter(|error| !error.is_null());
                let error = error.cloned().unwrap_or_else(|| event.clone());
                view.error.get_or_insert(error);
            }
            None => {
                let index = count_at(&event, "output_index").unwrap_or(0);
                if partials.contains_key(&index) || partials.len() < ITEMS_MAX {
                    partials.entry(index).or_default().take(&kind, event);
                }
            }
        }
    });
    let whole = |choice: &Choice| choice.message.as_object().is_some_and(|m| m.len() > 2);
    let said = |choice: &Choice| choice.message.get("content").is_some_and(|c| !c.is_null());
    if !view.choices.iter().any(|choice| whole(choice) || said(choice)) {
        settle(&mut view, partials);
    }
    view.settled()
}

/// The response inside an event. Only the last one tells the answer; those before it are empty.
fn take_event_response(view: &mut ResponseView, mut response: Value, is_last: bool) {
    if !is_last && let Value::Object(fields) = &mut response {
        fields.remove("status");
        fields.remove("output");
    }
    take_response(view, response);
}

/// The answer from its items.
fn settle(view: &mut ResponseView, partials: BTreeMap<u64, Partial>) {
    let output: Vec<Value> = partials.into_values().filter_map(Partial::finish).collect();
    let Some(message) = items::answer(output) else { return };
    let calls = message.get("tool_calls").is_some();
    let reason = view.choices.pop().and_then(|choice| choice.finish_reason);
    let finish_reason = reason.map(|reason| match reason.as_str() {
        "stop" if calls => "tool_calls".to_owned(),
        _ => reason,
    });
    view.choices = vec![Choice { index: 0, message, finish_reason }];
}

impl Partial {
    fn take(&mut self, kind: &str, mut event: Value) {
        let part = match kind {
            "response.output_item.added" | "response.output_item.done" => {
                if let Some(Value::Object(item)) = event.get_mut("item").map(Value::take)
                    && !self.done
                {
                    self.done = kind.ends_with("done");
                    self.item = item;
                }
                return;
            }
            "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta" => {
                return self.input.push_str(text(&event, "delta"));
            }
            "response.function_call_arguments.done" => {
                return text(&event, "arguments").clone_into(&mut self.input);
            }
            "response.custom_tool_call_input.done" => {
                return text(&event, "input").clone_into(&mut self.input);
            }
            "response.output_text.delta" => ("content", "output_text", "delta"),
            "response.output_text.done" => ("content", "output_text", "text"),
            "response.refusal.delta" => ("content", "refusal", "delta"),
            "response.refusal.done" => ("content", "refusal", "refusal"),
            "response.reasoning_text.delta" => ("content", "reasoning_text", "delta"),
            "response.reasoning_text.done" => ("content", "reasoning_text", "text"),
            "response.reasoning_summary_text.delta" => ("summary", "summary_text", "delta"),
            "response.reasoning_summary_text.done" => ("summary", "summary_text", "text"),
            _ => return,
        };
        let (list, part, key) = part;
        let index = if list == "summary" { "summary_index" } else { "content_index" };
        let at = (list, count_at(&event, index).unwrap_or(0));
        if !self.parts.contains_key(&at) && self.parts.len() >= PARTS_MAX {
            return;
        }
        let (_, known) = self.parts.entry(at).or_insert_with(|| (part, String::new()));
        match key {
            "delta" => known.push_str(text(&event, key)),
            // The end of a text repeats it; an engine that forgets to must not erase it.
            _ if text(&event, key).is_empty() => {}
            _ => text(&event, key).clone_into(known),
        }
    }

    /// The item; `None` when nothing of it came.
    fn finish(self) -> Option<Value> {
        let mut item = self.item;
        if self.done {
            return Some(Value::Object(item));
        }
        if item.is_empty() && self.parts.is_empty() && self.input.is_empty() {
            return None;
        }
        // Without the event that announces it, the deltas say what it is.
        if item.is_empty() {
            let reasons = |kind: &str| matches!(kind, "reasoning_text" | "summary_text");
            let kind = match self.parts.values().next() {
                Some((part, _)) if reasons(part) => "reasoning",
                Some(_) => "message",
                None => "function_call",
            };
            item.insert("type".to_owned(), json!(kind));
            item.insert("role".to_owned(), json!("assistant"));
        }
        let custom = item.get("type").and_then(Value::as_str) == Some("custom_tool_call");
        let input = if custom { "input" } else { "arguments" };
        if !self.input.is_empty() {
            item.insert(input.to_owned(), json!(self.input));
        }
        for list in ["summary", "content"] {
            let parts = self.parts.iter().filter(|((of, _), _)| *of == list);
            let parts: Vec<Value> = parts.map(|(_, (kind, text))| part_of(kind, text)).collect();
            if !parts.is_empty() {
                item.insert(list.to_owned(), Value::Array(parts));
            }
        }
        Some(Value::Object(item))
    }
}

fn part_of(kind: &str, text: &str) -> Value {
    let key = if kind == "refusal" { "refusal" } else { "text" };
    json!({"type": kind, key: text})
}

fn text<'a>(event: &'a Value, key: &str) -> &'a str {
    event.get(key).and_then(Value::as_str).unwrap_or_default()
}
