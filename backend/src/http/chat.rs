//! `POST /v1/chat/completions`.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde_json::{Value, json};

use super::infer::{self, Ended, Envelope, Said, Shared, Tally};
use super::sse::{self, Writer};
use crate::error::ApiError;
use crate::request::{chat, object};
use crate::sample::Picked;
use crate::tools::Call;

/// Kind of the objects of a stream.
const CHUNK: &str = "chat.completion.chunk";

/// Answers a chat request, whole or as a stream.
///
/// # Errors
/// OpenAI-shaped.
pub async fn handle(
    State(app): State<Shared>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, ApiError> {
    let body = super::adapters::body(&app, body)?;
    let job = chat::parse(&object(&body)?, &infer::limits(&app))?;
    let running = infer::start(&app, &headers, &job, "chatcmpl").await?;
    let logprobs = job.draw.alternatives.is_some();
    if job.stream {
        let (usage, choices) = (job.include_usage, job.choices());
        return sse::respond(running, |envelope| Chunks { envelope, choices, usage, logprobs })
            .await;
    }
    let (envelope, ended, usage) = infer::collect(running).await?;
    let choices = ended.iter().enumerate().map(|(index, choice)| whole(index, choice, logprobs));
    let body = envelope.whole("chat.completion", choices.collect(), usage);
    Ok(infer::json_response(&envelope, &body))
}

fn whole(index: usize, choice: &Ended, logprobs: bool) -> Value {
    let last = choice.steps.last();
    let calls = last.map(|step| step.calls.as_slice()).unwrap_or_default();
    let finish = last.and_then(|step| step.finish).map(|finish| finish.as_str());
    let content = match (choice.text.is_empty(), calls.is_empty()) {
        (true, false) => Value::Null,
        _ => json!(choice.text),
    };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !calls.is_empty() {
        message["tool_calls"] = calls.iter().map(call).collect();
    }
    let tokens = choice.steps.iter().flat_map(|step| &step.tokens);
    json!({
        "index": index,
        "message": message,
        "logprobs": logprobs.then(|| token_logprobs(tokens, &choice.bytes)),
        "finish_reason": finish,
    })
}

fn call(call: &Call) -> Value {
    let function = json!({"name": call.name, "arguments": call.arguments});
    json!({"id": call.id, "type": "function", "function": function})
}

/// OpenAI's chat form of log-probabilities.
fn token_logprobs<'a>(tokens: impl Iterator<Item = &'a Picked>, table: &[(u32, Vec<u8>)]) -> Value {
    let entry = |id: u32, logprob: f32| {
        let bytes = infer::bytes_of(table, id);
        json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes})
    };
    let content: Vec<Value> = tokens
        .map(|token| {
            let mut this = entry(token.id, token.logprob);
            let top = token.alternatives.iter().map(|(id, logprob)| entry(*id, *logprob));
            this["top_logprobs"] = top.collect();
            this
        })
        .collect();
    json!({"content": content, "refusal": null})
}

struct Chunks {
    envelope: Envelope,
    choices: usize,
    usage: bool,
    logprobs: bool,
}

impl Chunks {
    fn chunk(
        &self,
        index: usize,
        delta: &Value,
        logprobs: Option<Value>,
        end: Option<&str>,
    ) -> Value {
        let choice =
            json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end});
        self.envelope.chunk(CHUNK, &choice, self.usage)
    }
}

impl Writer for Chunks {
    fn open(&mut self) -> Vec<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (0..self.choices).map(|index| self.chunk(index, &delta, None, None)).collect()
    }

    fn write(&mut self, said: &Said) -> Vec<Value> {
        let mut chunks = Vec::new();
        let logprobs = (self.logprobs && !said.step.tokens.is_empty())
            .then(|| token_logprobs(said.step.tokens.iter(), &said.bytes));
        if !said.step.text.is_empty() || logprobs.is_some() {
            let delta = json!({"content": said.step.text});
            chunks.push(self.chunk(said.index, &delta, logprobs, None));
        }
        for (position, made) in said.step.calls.iter().enumerate() {
            let mut made = call(made);
            made["index"] = json!(position);
            chunks.push(self.chunk(said.index, &json!({"tool_calls": [made]}), None, None));
        }
        if let Some(finish) = said.step.finish {
            chunks.push(self.chunk(said.index, &json!({}), None, Some(finish.as_str())));
        }
        chunks
    }

    fn close(&mut self, tally: &Tally) -> Vec<Value> {
        self.envelope.last(CHUNK, tally.usage(), self.usage)
    }
}
