//! Server-sent events of a streaming response.
//!
//! The first step is awaited before the headers go out, so that a request that fails at once is an
//! ordinary error with its status. An error after that is an event, and no `[DONE]` follows it.
//!
//! Invariant: dropping the body drops the runs, which frees the engine.

use std::collections::VecDeque;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures::stream::{Stream, StreamExt, unfold};
use http::{HeaderValue, header};
use serde_json::Value;

use super::admit::Admitted;
use super::infer::{Envelope, Running, Said, Tally, steps};
use crate::error::ApiError;
use crate::select::HEADER;

/// Writes the events of one kind of response.
pub trait Writer: Send + 'static {
    /// Events before the first step.
    fn open(&mut self) -> Vec<Value>;
    /// Events of a step.
    fn write(&mut self, said: &Said) -> Vec<Value>;
    /// The events after the last step.
    fn close(&mut self, tally: &Tally) -> Vec<Value>;
}

struct Events<S, W> {
    steps: S,
    writer: W,
    tally: Tally,
    ready: VecDeque<Bytes>,
    ended: bool,
    _permit: Admitted,
}

impl<S, W> Events<S, W>
where
    S: Stream<Item = Result<Said, ApiError>> + Unpin,
    W: Writer,
{
    fn take(&mut self, said: Option<Result<Said, ApiError>>) {
        match said {
            Some(Ok(said)) => {
                self.tally.note(&said);
                let events = self.writer.write(&said);
                self.ready.extend(events.iter().map(event));
            }
            Some(Err(error)) => {
                self.ready.push_back(event(&error.body()));
                self.ended = true;
            }
            None => {
                let events = self.writer.close(&self.tally);
                self.ready.extend(events.iter().map(event));
                self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                self.ended = true;
            }
        }
    }

    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some((Ok(bytes), self));
            }
            if self.ended {
                return None;
            }
            let said = self.steps.next().await;
            self.take(said);
        }
    }
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

/// Streams a request.
///
/// # Errors
/// The first choice to say something says an error.
pub async fn respond<W: Writer>(
    running: Running,
    writer: impl FnOnce(Envelope) -> W,
) -> Result<Response, ApiError> {
    let Running { envelope, runs, n, permit } = running;
    let generation = envelope.header();
    let tally = Tally::new(runs.len(), n);
    let mut steps = steps(runs);
    let first = match steps.next().await {
        Some(Err(error)) => return Err(error),
        first => first,
    };
    let writer = writer(envelope);
    let ready = VecDeque::new();
    let mut events = Events { steps, writer, tally, ready, ended: false, _permit: permit };
    let opening = events.writer.open();
    events.ready.extend(opening.iter().map(event));
    events.take(first);
    let mut response = Response::new(Body::from_stream(unfold(events, Events::next)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HEADER, generation);
    Ok(response)
}
