//! OpenAI chat completions and legacy completions: requests, whole responses, streams.
//!
//! A legacy prompt becomes one user message and its text one assistant message, so that everything
//! after this module knows conversations only. Log-probabilities of an answer are kept in its
//! message, under `logprobs`.
//!
//! Invariant: what is not understood is kept (`params`, unknown message keys) or ignored, never an
//! error by itself.

use serde_json::{Map, Value, json};

use super::assemble::Assembly;
use super::repeat::Repeats;
use super::sse::{Chunks, Seen};
use super::{
    Choice, Named, RequestView, ResponseView, Take, Usage, WireError, count_at, for_each_event,
};

const WHAT: &str = "request body";

/// A request to `/chat/completions`.
pub(super) fn chat_request(mut params: Map<String, Value>) -> Result<RequestView, WireError> {
    let Some(Value::Array(messages)) = params.remove("messages") else {
        return Err(WireError::Shape { what: WHAT, key: "messages" });
    };
    Ok(super::request_view(messages, params, Named::default()))
}

/// A request to `/completions`.
pub(super) fn legacy_request(mut params: Map<String, Value>) -> Result<RequestView, WireError> {
    let prompt = match params.remove("prompt") {
        None | Some(Value::Null) => return Err(WireError::Shape { what: WHAT, key: "prompt" }),
        // A list of one string is that string; several prompts and token ids stay as they are.
        Some(Value::Array(mut list))
            if list.len() == 1 && list.first().is_some_and(Value::is_string) =>
        {
            list.pop().unwrap_or_default()
        }
        Some(prompt) => prompt,
    };
    let messages = vec![json!({"role": "user", "content": prompt})];
    Ok(super::request_view(messages, params, Named::default()))
}

/// A whole response, chat or legacy.
pub(super) fn whole(mut body: Value) -> ResponseView {
    let mut view = ResponseView::default();
    take(&mut view, &body);
    let choices = body.get_mut("choices").and_then(Value::as_array_mut);
    for (position, choice) in choices.into_iter().flatten().enumerate() {
        let index = count_at(choice, "index").unwrap_or(position as u64);
        let probs = choice.get_mut("logprobs").map(Value::take).filter(|probs| !probs.is_null());
        let finish_reason = choice.get("finish_reason").and_then(Value::as_str).map(str::to_owned);
        let message = choice.get_mut("message").map(Value::take).or_else(|| {
            let text = choice.get("text")?;
            Some(json!({"role": "assistant", "content": text}))
        });
        let (Some(mut message), Ok(index)) = (message, u32::try_from(index)) else { continue };
        if let (Value::Object(fields), Some(probs)) = (&mut message, probs) {
            fields.insert("logprobs".to_owned(), probs);
        }
        view.choices.push(Choice { index, message, finish_reason });
    }
    view.settled()
}

/// A stream, chat or legacy.
pub(super) fn stream(chunks: Chunks<'_, '_>) -> ResponseView {
    let mut stream = Stream::default();
    stream.view.bad_events = for_each_event(chunks, &mut stream);
    stream.view.choices = stream.assembly.finish();
    stream.view.settled()
}

#[derive(Default)]
struct Stream {
    view: ResponseView,
    assembly: Assembly,
    repeats: Repeats,
}

impl Take for Stream {
    fn repeated(&mut self, seen: Seen<'_>) -> bool {
        let Some((choice, text)) = self.repeats.text(seen) else { return false };
        self.assembly.append(choice, text);
        true
    }

    fn take(&mut self, seen: Seen<'_>, chunk: Value) {
        self.repeats.learn(seen, &chunk);
        take(&mut self.view, &chunk);
        for choice in chunk.get("choices").and_then(Value::as_array).into_iter().flatten() {
            self.assembly.take(choice);
        }
        if seen.name == "error" && self.view.error.is_none() {
            self.view.error = Some(chunk);
        }
    }
}

/// The last usage stands: engines repeat it with every chunk.
fn take(view: &mut ResponseView, object: &Value) {
    view.take_common(object);
    // vLLM and SGLang have also written errors flat, without an `error` key.
    if view.error.is_none() && object.get("object").and_then(Value::as_str) == Some("error") {
        view.error = Some(object.clone());
    }
    view.usage = object.get("usage").and_then(usage_of).or(view.usage);
}

fn usage_of(usage: &Value) -> Option<Usage> {
    let prompt_tokens = count_at(usage, "prompt_tokens")?;
    let completion_tokens = count_at(usage, "completion_tokens").unwrap_or(0);
    Some(Usage { prompt_tokens, completion_tokens })
}
