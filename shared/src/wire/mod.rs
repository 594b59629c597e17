//! Reading request and response bodies: parse only, off the hot path.
//!
//! Why: the tap records bytes; ingest needs messages, choices and usage. Each protocol has its
//! module ([`openai`], [`responses`], [`anthropic`]), and all of them end in the one shape that
//! judge and trainer know: OpenAI chat messages. What that shape has no word for is kept beside it.
//! The path says which protocol a body speaks ([`Protocol::of`]); other paths stay opaque. The
//! event-stream grammar ([`sse`]), bounded JSON ([`json`]) and content codings ([`coding`]) are
//! shared.
//!
//! Invariant: no input makes these parsers panic, loop for ever or hold more than a fixed multiple
//! of the capped body.

mod anthropic;
mod assemble;
pub mod coding;
mod json;
mod openai;
mod repeat;
mod responses;
pub mod sse;
mod view;

use std::borrow::Cow;
use std::ops::ControlFlow;

use serde_json::{Map, Value};

use sse::{Chunks, Seen};

pub use json::JSON_VALUES_MAX;
pub use view::{Choice, Named, RequestView, ResponseView, Usage};

/// Why a body could not be read. The turn is kept all the same; only its parsed form is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The path belongs to no protocol that is parsed.
    #[error("`{0}` is not a path whose bodies are parsed")]
    Path(String),
    /// The body is not the JSON that it should be, or more of it than is read.
    #[error("the {what} is not valid JSON: {problem}")]
    Json {
        /// `request body` or `response body`.
        what: &'static str,
        /// What the parser said, with line and column.
        problem: String,
    },
    /// The JSON does not have the shape of the protocol.
    #[error("the {what} has no usable `{key}`")]
    Shape {
        /// `request body` or `response body`.
        what: &'static str,
        /// The key that is missing or has the wrong type.
        key: &'static str,
    },
    /// The content coding is none of those that are undone.
    #[error(
        "content-encoding `{0}` is not supported (supported: gzip, deflate, br, zstd, identity)"
    )]
    Coding(String),
    /// The compressed body is damaged, or inflates past the cap.
    #[error("the compressed body cannot be inflated: {0}")]
    Inflate(String),
}

/// The protocols whose bodies are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// OpenAI `/v1/chat/completions`.
    Chat,
    /// OpenAI `/v1/completions`, the legacy one.
    Completions,
    /// OpenAI `/v1/responses`.
    Responses,
    /// Anthropic `/v1/messages`.
    Messages,
}

impl Protocol {
    /// The protocol of a path; a query is ignored, and so is what stands before the last part
    /// (deployments and gateways put much there).
    pub fn of(path: &str) -> Option<Self> {
        let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        if path.ends_with("/chat/completions") {
            return Some(Self::Chat);
        }
        if path.ends_with("/completions") {
            return Some(Self::Completions);
        }
        if path.ends_with("/responses") {
            return Some(Self::Responses);
        }
        // `/v1/threads/{id}/messages` and `/v1/chat/completions/{id}/messages` are others'.
        (path == "/messages" || path.ends_with("/v1/messages")).then_some(Self::Messages)
    }
}

/// Whether bodies of this path are understood. A query is ignored.
pub fn understands(path: &str) -> bool {
    Protocol::of(path).is_some()
}

fn protocol(path: &str) -> Result<Protocol, WireError> {
    Protocol::of(path).ok_or_else(|| WireError::Path(path.chars().take(200).collect()))
}

/// Reads a request body. A gzip or zstd body is recognised by its first bytes, should the header be
/// missing. Errors: a path that is not parsed, an unknown or damaged content coding, invalid JSON,
/// no conversation in it.
pub fn parse_request(
    path: &str,
    content_encoding: Option<&str>,
    body: &[u8],
) -> Result<RequestView, WireError> {
    const WHAT: &str = "request body";
    let protocol = protocol(path)?;
    let sniffed = match body {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        _ => None,
    };
    let body = match coding::inflate(content_encoding.or(sniffed), body) {
        // Layers that inflate sometimes leave the header on the plain body.
        Err(_) if body.trim_ascii_start().starts_with(b"{") => Cow::Borrowed(body),
        inflated => inflated?,
    };
    let Value::Object(params) = json::parse(WHAT, &body)? else {
        return Err(WireError::Shape { what: WHAT, key: "object" });
    };
    match protocol {
        Protocol::Chat => openai::chat_request(params),
        Protocol::Completions => openai::legacy_request(params),
        Protocol::Responses => responses::request(params),
        Protocol::Messages => anthropic::request(params),
    }
}

/// Reads a response body, whole or a stream. `stream` says whether one was asked for; what came is
/// told by its content, then by its type. Errors: a path that is not parsed, an unknown or damaged
/// content coding, invalid JSON in a whole response. A stream is never an error: what can be read
/// of it is returned.
pub fn parse_response(
    path: &str,
    content_type: Option<&str>,
    content_encoding: Option<&str>,
    body: &[u8],
    stream: bool,
) -> Result<ResponseView, WireError> {
    let protocol = protocol(path)?;
    let body = coding::inflate(content_encoding, body)?;
    if is_stream(content_type, &body, stream) {
        return Ok(read_stream(protocol, &mut std::iter::once(body.as_ref())));
    }
    let value = json::parse("response body", &body)?;
    Ok(match protocol {
        Protocol::Chat | Protocol::Completions => openai::whole(value),
        Protocol::Responses => responses::whole(value),
        Protocol::Messages => anthropic::whole(value),
    })
}

/// Reads an event stream from chunks, however it was cut. Errors: a path that is not parsed.
pub fn parse_stream<'a>(
    path: &str,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> Result<ResponseView, WireError> {
    Ok(read_stream(protocol(path)?, &mut chunks.into_iter()))
}

fn read_stream(protocol: Protocol, chunks: Chunks<'_, '_>) -> ResponseView {
    match protocol {
        Protocol::Chat | Protocol::Completions => openai::stream(chunks),
        Protocol::Responses => responses::stream(chunks),
        Protocol::Messages => anthropic::stream(chunks),
    }
}

/// Servers and gateways mislabel both kinds, so the first bytes decide where they can.
fn is_stream(content_type: Option<&str>, body: &[u8], asked: bool) -> bool {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    if matches!(body.first(), Some(b'{' | b'[')) {
        return false;
    }
    let fields: [&[u8]; 4] = [b"data:", b"event:", b"id:", b":"];
    if fields.iter().any(|field| body.starts_with(field)) {
        return true;
    }
    let kind = content_type.unwrap_or_default().to_ascii_lowercase();
    kind.contains("event-stream") || (asked && !kind.contains("json"))
}

/// What becomes of the events of a stream.
trait Take {
    /// Takes an event without reading its JSON, if what it says is known already.
    fn repeated(&mut self, _: Seen<'_>) -> bool {
        false
    }

    /// Takes an event with its JSON.
    fn take(&mut self, seen: Seen<'_>, value: Value);
}

impl<F: FnMut(&str, Value)> Take for F {
    fn take(&mut self, seen: Seen<'_>, value: Value) {
        self(seen.name, value);
    }
}

/// Hands each event to `to`, up to `[DONE]`, where clients stop, too. Returns how many events were
/// no readable JSON.
fn for_each_event(chunks: Chunks<'_, '_>, to: &mut impl Take) -> u32 {
    let mut bad_events = 0u32;
    sse::for_each(chunks, |seen| {
        if to.repeated(seen) {
            return ControlFlow::Continue(());
        }
        if seen.data.trim_ascii_start().starts_with(b"[DONE]") {
            return ControlFlow::Break(());
        }
        match json::parse("event", seen.data) {
            Ok(value) => to.take(seen, value),
            Err(_) => bad_events = bad_events.saturating_add(1),
        }
        ControlFlow::Continue(())
    });
    bad_events
}

fn text_at(object: &Value, key: &str) -> Option<String> {
    object.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn count_at(object: &Value, key: &str) -> Option<u64> {
    object.get(key).and_then(Value::as_u64)
}

/// A request once its messages are out of `params`.
fn request_view(messages: Vec<Value>, params: Map<String, Value>, named: Named) -> RequestView {
    let model = params.get("model").and_then(Value::as_str).map(str::to_owned);
    let stream = params.get("stream").and_then(Value::as_bool).unwrap_or(false);
    RequestView { messages, params: Value::Object(params), model, stream, named }
}

/// Text parts as the chat shape has them: one plain text is a string, none is nothing.
fn content_of(mut parts: Vec<Value>) -> Value {
    let is_plain = |part: &Value| {
        part.as_object().is_some_and(|fields| {
            fields.get("type").and_then(Value::as_str) == Some("text")
                && fields.get("text").is_some_and(Value::is_string)
                && fields.len() == 2
        })
    };
    match parts.as_mut_slice() {
        [] => Value::Null,
        [only] if is_plain(only) => only.get_mut("text").map(Value::take).unwrap_or_default(),
        _ => Value::Array(parts),
    }
}
