//! OpenAI chat completions and legacy completions: requests, whole responses, streams.
//!
//! A legacy prompt becomes one user message and its text one assistant message, so that everything
//! after this module knows conversations only.
//!
//! Invariant: what is not understood is kept (`params`, unknown message keys) or ignored, never an
//! error by itself.

use serde_json::{Map, Value, json};

use super::assemble::Assembly;
use super::coding::inflate;
use super::{Choice, RequestView, ResponseView, Usage, WireError, sse};
use crate::turn::Generation;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Chat,
    Legacy,
}

fn shape_of(path: &str) -> Result<Shape, WireError> {
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    if path.ends_with("/chat/completions") {
        return Ok(Shape::Chat);
    }
    if path.ends_with("/completions") {
        return Ok(Shape::Legacy);
    }
    Err(WireError::Path(path.chars().take(200).collect()))
}

/// Whether bodies of this path are understood by this module. A query is ignored.
pub fn understands(path: &str) -> bool {
    shape_of(path).is_ok()
}

/// Reads a request body. A gzip or zstd body is recognised by its first bytes. Errors: a path that
/// is not parsed, invalid JSON, no `messages` (or `prompt`).
pub fn parse_request(path: &str, body: &[u8]) -> Result<RequestView, WireError> {
    const WHAT: &str = "request body";
    let shape = shape_of(path)?;
    let coding = match body {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        _ => None,
    };
    let body = inflate(coding, body)?;
    let mut params = match parse_json(WHAT, &body)? {
        Value::Object(params) => params,
        _ => return Err(WireError::Shape { what: WHAT, key: "object" }),
    };
    let messages = match shape {
        Shape::Chat => match params.remove("messages") {
            Some(Value::Array(messages)) => messages,
            _ => return Err(WireError::Shape { what: WHAT, key: "messages" }),
        },
        Shape::Legacy => match params.remove("prompt") {
            None | Some(Value::Null) => return Err(WireError::Shape { what: WHAT, key: "prompt" }),
            Some(prompt) => vec![json!({"role": "user", "content": one_prompt(prompt)})],
        },
    };
    let model = params.get("model").and_then(Value::as_str).map(str::to_owned);
    let stream = params.get("stream").and_then(Value::as_bool).unwrap_or(false);
    Ok(RequestView { messages, params: Value::Object(params), model, stream })
}

/// A list of one string is that string; several prompts and token ids stay as they are.
fn one_prompt(prompt: Value) -> Value {
    match prompt {
        Value::Array(mut list) if list.len() == 1 && list.first().is_some_and(Value::is_string) => {
            list.pop().unwrap_or_default()
        }
        other => other,
    }
}

/// Reads a response body, chat or legacy, whole or a stream. Errors: an unknown or damaged content
/// coding, invalid JSON in a whole response. A stream is never an error: what can be read of it is
/// returned.
pub fn parse_response(
    content_type: Option<&str>,
    content_encoding: Option<&str>,
    body: &[u8],
    stream: bool,
) -> Result<ResponseView, WireError> {
    let body = inflate(content_encoding, body)?;
    let kind = content_type.unwrap_or_default().to_ascii_lowercase();
    let events = if kind.contains("event-stream") {
        true
    } else if kind.contains("json") {
        false
    } else {
        let first = body.iter().find(|b| !b.is_ascii_whitespace());
        stream && first != Some(&b'{')
    };
    if events {
        return Ok(parse_stream(&body));
    }
    Ok(parse_whole(&parse_json("response body", &body)?))
}

fn parse_json(what: &'static str, body: &[u8]) -> Result<Value, WireError> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    serde_json::from_slice(body).map_err(|e| WireError::Json { what, problem: e.to_string() })
}

fn parse_whole(body: &Value) -> ResponseView {
    let mut view = ResponseView::default();
    take_common(&mut view, body);
    let choices = body.get("choices").and_then(Value::as_array);
    for (position, choice) in choices.into_iter().flatten().enumerate() {
        let index = choice.get("index").and_then(Value::as_u64).unwrap_or(position as u64);
        let message = choice.get("message").cloned().or_else(|| {
            let text = choice.get("text")?;
            Some(json!({"role": "assistant", "content": text}))
        });
        let (Some(message), Ok(index)) = (message, u32::try_from(index)) else { continue };
        let finish_reason = choice.get("finish_reason").and_then(Value::as_str).map(str::to_owned);
        view.choices.push(Choice { index, message, finish_reason });
    }
    view.choices.sort_by_key(|choice| choice.index);
    finish(view)
}

fn parse_stream(body: &[u8]) -> ResponseView {
    let mut view = ResponseView::default();
    let mut assembly = Assembly::default();
    for event in sse::events(body) {
        // Clients stop here, too.
        if event.data.trim_start().starts_with("[DONE]") {
            break;
        }
        let Ok(chunk) = serde_json::from_str::<Value>(&event.data) else {
            view.bad_events = view.bad_events.saturating_add(1);
            continue;
        };
        take_common(&mut view, &chunk);
        if event.name == "error" && view.error.is_none() {
            view.error = Some(chunk.clone());
        }
        for choice in chunk.get("choices").and_then(Value::as_array).into_iter().flatten() {
            assembly.take(choice);
        }
    }
    view.choices = assembly.finish();
    finish(view)
}

/// What a whole response and every chunk have in common. The first id, model and generation stand,
/// the last usage.
fn take_common(view: &mut ResponseView, object: &Value) {
    let text = |key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
    view.id = view.id.take().or_else(|| text("id"));
    view.model = view.model.take().or_else(|| text("model"));
    view.usage = object.get("usage").and_then(usage_of).or(view.usage);
    if let Some(error) = object.get("error").filter(|error| !error.is_null()) {
        view.error.get_or_insert_with(|| error.clone());
    }
    let generation = match object.get("adapter_generation") {
        None => None,
        Some(Value::Null) => Some(Generation::base()),
        // A name that cannot be a generation is not evidence of one: the turn's provenance stays
        // unknown.
        Some(value) => value.as_str().and_then(|text| Generation::parse(text).ok()),
    };
    match (&view.adapter_generation, generation) {
        (Some(first), Some(now)) => view.generation_conflict |= *first != now,
        (None, found) => view.adapter_generation = found,
        (Some(_), None) => {}
    }
}

fn usage_of(usage: &Value) -> Option<Usage> {
    let usage: &Map<String, Value> = usage.as_object()?;
    let prompt_tokens = usage.get("prompt_tokens").and_then(Value::as_u64)?;
    let completion_tokens = usage.get("completion_tokens").and_then(Value::as_u64).unwrap_or(0);
    Some(Usage { prompt_tokens, completion_tokens })
}

fn finish(mut view: ResponseView) -> ResponseView {
    let all = view.choices.iter().all(|choice| choice.finish_reason.is_some());
    view.finished = all && !view.choices.is_empty();
    view
}
