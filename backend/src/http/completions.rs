//! `POST /v1/completions`, the legacy API.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde_json::{Map, Value, json};

use super::infer::{self, Ended, Envelope, Said, Shared, Tally};
use super::sse::{self, Writer};
use crate::error::ApiError;
use crate::request::{completion, object};
use crate::sample::Picked;

/// Kind of every object of this API.
const KIND: &str = "text_completion";

/// Answers a legacy completion request, whole or as a stream.
///
/// # Errors
/// OpenAI-shaped.
pub async fn handle(
    State(app): State<Shared>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, ApiError> {
    let body = super::adapters::body(&app, body)?;
    let job = completion::parse(&object(&body)?, &infer::limits(&app))?;
    let running = infer::start(&app, &headers, &job, "cmpl").await?;
    let logprobs = job.draw.alternatives.is_some();
    if job.stream {
        let usage = job.include_usage;
        let offsets = vec![0; job.choices()];
        return sse::respond(running, |envelope| Chunks { envelope, usage, logprobs, offsets })
            .await;
    }
    let (envelope, ended, usage) = infer::collect(running).await?;
    let choices = ended.iter().enumerate().map(|(index, choice)| whole(index, choice, logprobs));
    let body = envelope.whole(KIND, choices.collect(), usage);
    Ok(infer::json_response(&envelope, &body))
}

fn whole(index: usize, choice: &Ended, logprobs: bool) -> Value {
    let finish = choice.steps.last().and_then(|step| step.finish).map(|finish| finish.as_str());
    let tokens = choice.steps.iter().flat_map(|step| &step.tokens);
    json!({
        "index": index,
        "text": choice.text,
        "logprobs": logprobs.then(|| token_logprobs(tokens, &choice.bytes, &mut 0)),
        "finish_reason": finish,
    })
}

/// OpenAI's legacy form of log-probabilities. `offset` counts characters of the text.
fn token_logprobs<'a>(
    tokens: impl Iterator<Item = &'a Picked>,
    table: &[(u32, Vec<u8>)],
    offset: &mut usize,
) -> Value {
    let text = |id: u32| String::from_utf8_lossy(infer::bytes_of(table, id)).into_owned();
    let (mut texts, mut own, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for token in tokens {
        let this = text(token.id);
        offsets.push(*offset);
        *offset += this.chars().count();
        texts.push(this);
        own.push(token.logprob);
        let top: Map<String, Value> =
            token.alternatives.iter().map(|(id, logprob)| (text(*id), json!(logprob))).collect();
        tops.push(top);
    }
    json!({"tokens": texts, "token_logprobs": own, "top_logprobs": tops, "text_offset": offsets})
}

struct Chunks {
    envelope: Envelope,
    usage: bool,
    logprobs: bool,
    offsets: Vec<usize>,
}

impl Writer for Chunks {
    fn open(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn write(&mut self, said: &Said) -> Vec<Value> {
        let step = &said.step;
        if step.text.is_empty() && step.finish.is_none() && !self.logprobs {
            return Vec::new();
        }
        let logprobs = match self.offsets.get_mut(said.index) {
            Some(offset) if self.logprobs => {
                Some(token_logprobs(step.tokens.iter(), &said.bytes, offset))
            }
            _ => None,
        };
        let choice = json!({
            "index": said.index,
            "text": step.text,
            "logprobs": logprobs,
            "finish_reason": step.finish.map(|finish| finish.as_str()),
        });
        vec![self.envelope.chunk(KIND, &choice, self.usage)]
    }

    fn close(&mut self, tally: &Tally) -> Vec<Value> {
        self.envelope.last(KIND, tally.usage(), self.usage)
    }
}
