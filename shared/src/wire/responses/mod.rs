//! OpenAI `/v1/responses`: requests, whole responses, streams.
//!
//! Items become chat messages ([`items`]); instructions become the leading system message. History
//! that stays with the engine (`previous_response_id`, `conversation`, item references) is named in
//! [`Named`], so that linking can bring it back.
//!
//! Invariant: what is not understood is kept (`params`, `items` of an answer) or ignored, never an
//! error by itself.

mod items;
mod stream;

use serde_json::{Map, Value, json};

use super::{Choice, Named, RequestView, ResponseView, Usage, WireError, count_at, text_at};
use items::Items;
pub(in crate::wire) use stream::read as stream;

/// A request to `/responses`.
pub(super) fn request(mut params: Map<String, Value>) -> Result<RequestView, WireError> {
    let mut named = Named {
        response: params.get("previous_response_id").and_then(Value::as_str).map(str::to_owned),
        conversation: params.get("conversation").and_then(id_of),
        items: false,
    };
    let mut items = Items::default();
    match params.remove("instructions") {
        Some(Value::String(text)) if !text.is_empty() => {
            // Marked, because they hold for this request only: the next one does not inherit them.
            items.message(json!({"role": "system", "content": text, "instructions": true}));
        }
        _ => {}
    }
    match params.remove("input") {
        Some(Value::String(text)) => items.message(json!({"role": "user", "content": text})),
        Some(Value::Array(list)) => list.into_iter().for_each(|item| items.take(item)),
        None | Some(Value::Null) if named.is_any() => {}
        _ => return Err(WireError::Shape { what: "request body", key: "input" }),
    }
    let (messages, references) = items.finish();
    named.items = references;
    if let Some(Value::Array(tools)) = params.get_mut("tools") {
        tools.iter_mut().for_each(chat_tool);
    }
    Ok(super::request_view(messages, params, named))
}

/// A text, or an object with an `id`.
fn id_of(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned).or_else(|| text_at(value, "id"))
}

/// A function tool in the chat shape; hosted tools stay as they are.
fn chat_tool(tool: &mut Value) {
    let Value::Object(fields) = tool else { return };
    let is_function = fields.get("type").and_then(Value::as_str) == Some("function");
    if is_function && !fields.contains_key("function") {
        let mut function = std::mem::take(fields);
        let kind = function.shift_remove("type").unwrap_or_default();
        *tool = json!({"type": kind, "function": function});
    }
}

/// A whole response.
pub(super) fn whole(body: Value) -> ResponseView {
    let mut view = ResponseView::default();
    take_response(&mut view, body);
    view.settled()
}

/// Takes a response object: of a whole response, or of one of the events that carry it.
fn take_response(view: &mut ResponseView, mut response: Value) {
    view.take_common(&response);
    view.resumable = true;
    view.usage = response.get("usage").and_then(usage_of).or(view.usage);
    view.conversation = view.conversation.take().or_else(|| id_of(response.get("conversation")?));
    let output = match response.get_mut("output").map(Value::take) {
        Some(Value::Array(output)) => output,
        _ => Vec::new(),
    };
    let message = items::answer(output);
    let finish_reason = finish_reason(&response, message.as_ref());
    if message.is_none() && finish_reason.is_none() {
        return;
    }
    let empty = || json!({"role": "assistant", "content": null});
    view.choices = vec![Choice { index: 0, message: message.unwrap_or_else(empty), finish_reason }];
}

/// The chat word for how the response ended; `None` while it has not.
fn finish_reason(response: &Value, message: Option<&Value>) -> Option<String> {
    let word = match response.get("status").and_then(Value::as_str)? {
        "completed" if message.is_some_and(|message| message.get("tool_calls").is_some()) => {
            "tool_calls"
        }
        "completed" => "stop",
        "incomplete" => {
            match response.pointer("/incomplete_details/reason").and_then(Value::as_str) {
                Some("max_output_tokens" | "max_tokens") | None => "length",
                Some(other) => other,
            }
        }
        _ => return None,
    };
    Some(word.to_owned())
}

fn usage_of(usage: &Value) -> Option<Usage> {
    let prompt_tokens = count_at(usage, "input_tokens")?;
    let completion_tokens = count_at(usage, "output_tokens").unwrap_or(0);
    Some(Usage { prompt_tokens, completion_tokens })
}
