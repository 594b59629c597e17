//! Anthropic `/v1/messages`: requests, whole responses, streams.
//!
//! `system` becomes the leading system message; content blocks become text, `tool_calls` and `tool`
//! messages ([`blocks`]); tools and stop reasons get their chat names. Cache marks are dropped:
//! they move with every request and say nothing about the conversation.
//!
//! Invariant: what is not understood is kept (`params`, other blocks as content parts) or ignored,
//! never an error by itself.

mod blocks;
mod stream;

use serde_json::{Map, Value, json};

use super::{Choice, Named, RequestView, ResponseView, Usage, WireError, count_at};
pub(in crate::wire) use stream::read as stream;

/// A request to `/messages`.
pub(super) fn request(mut params: Map<String, Value>) -> Result<RequestView, WireError> {
    let Some(Value::Array(sent)) = params.remove("messages") else {
        return Err(WireError::Shape { what: "request body", key: "messages" });
    };
    let mut messages = Vec::with_capacity(sent.len() + 1);
    match params.remove("system") {
        None | Some(Value::Null) => {}
        Some(system) => {
            let content = blocks::content(system);
            if !content.is_null() {
                messages.push(json!({"role": "system", "content": content}));
            }
        }
    }
    sent.into_iter().for_each(|message| blocks::push(&mut messages, message));
    if let Some(Value::Array(tools)) = params.get_mut("tools") {
        tools.iter_mut().for_each(chat_tool);
    }
    Ok(super::request_view(messages, params, Named::default()))
}

/// A client tool in the chat shape; the provider's own tools stay as they are.
fn chat_tool(tool: &mut Value) {
    let Value::Object(fields) = tool else { return };
    let own = matches!(fields.get("type").and_then(Value::as_str), None | Some("custom"));
    if own && fields.contains_key("input_schema") {
        let mut function = std::mem::take(fields);
        function.shift_remove("type");
        function.shift_remove("cache_control");
        let schema = function.shift_remove("input_schema").unwrap_or_default();
        function.insert("parameters".to_owned(), schema);
        *tool = json!({"type": "function", "function": function});
    }
}

/// A whole response.
pub(super) fn whole(mut body: Value) -> ResponseView {
    let mut view = ResponseView::default();
    view.take_common(&body);
    view.usage = body.get("usage").and_then(usage_of);
    let reason = body.get("stop_reason").and_then(Value::as_str).map(finish_reason);
    if let Some(Value::Array(content)) = body.get_mut("content").map(Value::take) {
        let message = blocks::answer(content);
        view.choices = vec![Choice { index: 0, message, finish_reason: reason }];
    }
    view.settled()
}

/// The chat word for a stop reason.
fn finish_reason(reason: &str) -> String {
    let word = match reason {
        "end_turn" | "stop_sequence" => "stop",
        "max_tokens" | "model_context_window_exceeded" => "length",
        "tool_use" => "tool_calls",
        "refusal" => "content_filter",
        other => other,
    };
    word.to_owned()
}

/// Cached tokens are counted apart by this provider.
fn usage_of(usage: &Value) -> Option<Usage> {
    let cached = ["cache_creation_input_tokens", "cache_read_input_tokens"];
    let cached = cached.iter().filter_map(|key| count_at(usage, key));
    let fresh = count_at(usage, "input_tokens")?;
    let prompt_tokens = cached.fold(fresh, u64::saturating_add);
    let completion_tokens = count_at(usage, "output_tokens").unwrap_or(0);
    Some(Usage { prompt_tokens, completion_tokens })
}
