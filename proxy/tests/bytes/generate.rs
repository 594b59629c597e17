//! Exchanges drawn from a seed: everything that HTTP allows clients and engines to do to each
//! other.
//!
//! Invariant: an exchange depends on its own seed only, so that one of a thousand can be repeated
//! alone.

use std::io::Write;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::exchange::{Exchange, Framing, Reply, Writes};
use crate::transcripts;
use crate::wire::Fields;

/// A brotli body, recorded: 155 bytes of JSON that say "brotli says hello".
const BROTLI: &str = "\
    1b9a00201c05eedc5de4c562bab99d234690b7d4afdbb42e189f6c8ca07d8b91a1c9691d96aebe7ab290abcd34\
    49b47d36d34c28925002a81b4e3fac0a2e5f46bfb444347e9cb70bcb001239df21400cdab4d4cb509331497402\
    e021c536e6f7ef759bb199cab3a2da793a80936c07";

const METHODS: &[&str] =
    &["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "QUERY", "BREW", "M-SEARCH"];
/// None below `/models`: the door refuses most methods there.
const TARGETS: &[&str] = &[
    "/",
    "/v1/batches",
    "/v1/assistants/org%2Fname%20with%20space",
    "/v1/caf%C3%A9/%e2%82%ac?q=%2f+%20&&a=;",
    "/v1/a//b/./c/../d/",
    "/v1/files/file-abc/content?",
    "/v1/embeddings",
    "/health",
    "/v2/unknown",
    "/v1/audio/transcriptions",
    "/v1/x;v=1,2/(y)*~!$'@:=",
    "/v1/threads/t_1/runs?limit=2&order=asc",
    "/v1/search?u=http://other.test/a?b&c=%00%ff",
    "/tokenize?x=%25%32%35",
];
const STATUSES: &[(u16, &str)] = &[
    (200, "OK"),
    (201, "Created"),
    (202, "Accepted"),
    (203, "Non-Authoritative Information"),
    (204, "No Content"),
    (206, "Partial Content"),
    (301, "Moved Permanently"),
    (302, "Found"),
    (304, "Not Modified"),
    (307, "Temporary Redirect"),
    (400, "Bad Request"),
    (401, "Unauthorized"),
    (403, "Forbidden"),
    (404, "Not Found"),
    (405, "Method Not Allowed"),
    (409, "Conflict"),
    (413, "Payload Too Large"),
    (418, "Short And Stout"),
    (422, "Unprocessable Entity"),
    (429, "Too Many Requests"),
    (499, "Client Closed Request"),
    (500, "Internal Server Error"),
    (501, "Not Implemented"),
    (502, "Bad Gateway"),
    (503, "Service Unavailable"),
    (504, "Gateway Timeout"),
    (529, "Overloaded"),
    (599, "Odd"),
    (299, "Just Fine"),
];
const REQUEST_FIELDS: &[(&str, &str)] = &[
    ("Authorization", "Bearer sk-test"),
    ("X-API-Key", "sk-ant-test"),
    ("Cookie", "a=1; b=2"),
    ("cookie", "c=3"),
    ("OpenAI-Organization", "org-1"),
    ("X-Stainless-Lang", "python"),
    ("x-stainless-async", "false"),
    ("anthropic-version", "2023-06-01"),
    ("Anthropic-Beta", "a,b"),
    ("anthropic-beta", "c"),
    ("User-Agent", "OpenAI/Python 3.54.0"),
    ("ACCEPT", "*/*"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("X-oDd-CaSe", "Kept As Is"),
    ("x_under_score", "1"),
    ("X.Dot", "2"),
    ("x-empty", ""),
    ("traceparent", "00-0af7-b7ad-01"),
    ("Range", "bytes=0-99"),
    ("If-None-Match", "\"etag\""),
    ("Forwarded", "for=192.0.2.1"),
    ("X-Forwarded-For", "192.0.2.1"),
    ("Via", "1.1 cache"),
    ("Idempotency-Key", "k-1"),
    ("Connection", "keep-alive"),
    ("Origin", "http://app.test"),
    ("Referer", "http://app.test/?q=1"),
];
const REPLY_FIELDS: &[(&str, &str)] = &[
    ("Set-Cookie", "a=1; Path=/; HttpOnly"),
    ("set-cookie", "b=2; Secure"),
    ("Set-Cookie", "c=3"),
    ("Retry-After", "2"),
    ("retry-after-ms", "1500"),
    ("x-ratelimit-limit-requests", "60"),
    ("X-RateLimit-Remaining-Tokens", "149984"),
    ("x-ratelimit-reset-tokens", "6m0s"),
    ("X-Should-Retry", "true"),
    ("openai-processing-ms", "17"),
    ("OpenAI-Version", "2020-10-01"),
    ("x-request-id", "req_1"),
    ("request-id", "req_2"),
    ("Server", "uvicorn"),
    ("date", "Sun, 22 Nov 2026 10:00:00 GMT"),
    ("Cache-Control", "no-cache"),
    ("Vary", "Accept"),
    ("vary", "Origin"),
    ("X-oDd-CaSe", "Kept"),
    ("ETag", "W/\"1\""),
    ("Link", "</next>; rel=next"),
    ("X-Accel-Buffering", "no"),
    ("x-empty", ""),
    ("Access-Control-Allow-Origin", "*"),
    ("Content-Language", "de-CH"),
    ("Warning", "199 - \"stale\""),
    ("Strict-Transport-Security", "max-age=1"),
    ("Keep-Alive", "timeout=5"),
    ("x-hone-generation", "base"),
    ("Alt-Svc", "clear"),
    ("WWW-Authenticate", "Bearer"),
    ("Location", "/v1/else?x=%2F"),
];

/// The exchange of a seed.
pub fn exchange(number: u64, seed: u64) -> Exchange {
    let random = &mut StdRng::seed_from_u64(seed);
    let mut exchange = match random.random_range(0..100) {
        0..35 => streamed(number, random),
        35..60 => whole(number, random),
        60..75 => upload(number, random),
        _ => other(number, random),
    };
    exchange.fields.extend(some(random, REQUEST_FIELDS));
    exchange.reply.fields.extend(some(random, REPLY_FIELDS));
    if random.random_bool(0.1) {
        let bytes: Vec<u8> =
            (0..random.random_range(1..6000)).map(|_| value_byte(random)).collect();
        exchange.fields.push(("X-Bytes".to_owned(), bytes.trim_ascii().to_vec()));
        exchange.reply.fields.push(("x-bytes".to_owned(), bytes.trim_ascii().to_vec()));
    }
    if random.random_bool(0.1) {
        exchange.reply.interim =
            "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n".to_owned();
    }
    if exchange.framing != Framing::None && random.random_bool(0.05) {
        exchange.expects = true;
        exchange.reply.interim.insert_str(0, "HTTP/1.1 100 Continue\r\n\r\n");
    }
    exchange
}

fn some(random: &mut StdRng, from: &[(&str, &str)]) -> Fields {
    let many = random.random_range(0..8);
    let picked = from.choose_multiple(random, many);
    picked.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
}

/// A byte that a field's value may hold.
fn value_byte(random: &mut StdRng) -> u8 {
    match random.random_range(0..10) {
        0 => b' ',
        1 => b'\t',
        2 => random.random_range(0x80..=0xff),
        _ => random.random_range(0x21..=0x7e),
    }
}

/// A chat or agent request with a stream as its answer.
fn streamed(number: u64, random: &mut StdRng) -> Exchange {
    let mut all = transcripts::all();
    all.push(transcripts::long_event());
    let picked = all.choose(random).unwrap().clone();
    let body = transcripts::request(picked.path, &format!("exchange {number}"));
    let kind = ["text/event-stream", "text/event-stream; charset=utf-8"].choose(random).unwrap();
    let mut reply = Reply {
        fields: vec![("content-type".to_owned(), kind.as_bytes().to_vec())],
        body: picked.bytes,
        pause_ms: random.random_range(0..2),
        ..Reply::default()
    };
    frame(random, &mut reply);
    let broken = matches!(reply.framing, Framing::Short { .. });
    let mut exchange = Exchange::post(number, picked.path, body, reply);
    exchange.texts = (!broken).then_some(picked.texts);
    exchange.model_error = picked.error && !broken;
    (exchange.framing, exchange.writes) = sent(random, exchange.body.len());
    exchange
}

/// A request with a whole answer, plain or compressed, of any status.
fn whole(number: u64, random: &mut StdRng) -> Exchange {
    let text = format!("answer {number}");
    let message = json!({"role": "assistant", "content": text});
    let answer = json!({"id": format!("chatcmpl-{number}"), "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}});
    let (body, coding) = encoded(random, answer.to_string().as_bytes());
    let (status, reason) = *STATUSES.choose(random).unwrap();
    let mut fields = vec![("Content-Type".to_owned(), b"application/json".to_vec())];
    fields.extend(coding.map(|coding| ("content-encoding".to_owned(), coding.into())));
    let mut reply = Reply { status, reason, fields, body, ..Reply::default() };
    if random.random_bool(0.5) {
        frame(random, &mut reply);
    }
    let text = if coding == Some("br") { "brotli says hello".to_owned() } else { text };
    let readable = status != 204 && status != 304;
    let broken = matches!(reply.framing, Framing::Short { .. });
    let said = json!([{"role": "user", "content": format!("ask {number}")}]);
    let asked = json!({"model": "test", "messages": said});
    let mut exchange = Exchange::post(
        number,
        "/v1/chat/completions?api-version=1",
        asked.to_string().into(),
        reply,
    );
    exchange.texts = (readable && !broken).then(|| vec![text]);
    (exchange.framing, exchange.writes) = sent(random, exchange.body.len());
    exchange
}

fn encoded(random: &mut StdRng, plain: &[u8]) -> (Vec<u8>, Option<&'static str>) {
    match random.random_range(0..6) {
        0 => {
            let level = flate2::Compression::default();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(plain).unwrap();
            (encoder.finish().unwrap(), Some("gzip"))
        }
        1 => (zstd::bulk::compress(plain, 3).unwrap(), Some("zstd")),
        2 => (unhex(BROTLI), Some("br")),
        _ => (plain.to_vec(), None),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

/// A body that is nobody's conversation, there and back.
fn upload(number: u64, random: &mut StdRng) -> Exchange {
    let body = bytes(random);
    let kind: &[u8] = match random.random_range(0..3) {
        0 => b"multipart/form-data; boundary=----7MA4YWxk",
        1 => b"application/octet-stream",
        _ => b"audio/wav",
    };
    let (status, reason) = *STATUSES.choose(random).unwrap();
    let mut reply = Reply { status, reason, body: bytes(random), ..Reply::default() };
    frame(random, &mut reply);
    let mut exchange = Exchange::post(number, TARGETS.choose(random).unwrap(), body, reply);
    exchange.method = ["POST", "PUT", "PATCH"].choose(random).unwrap();
    exchange.fields = vec![("content-TYPE".to_owned(), kind.to_vec())];
    if random.random_bool(0.2) {
        exchange.fields.push(("Content-Encoding".to_owned(), b"gzip".to_vec()));
    }
    (exchange.framing, exchange.writes) = sent(random, exchange.body.len());
    exchange
}

/// Any method without a body, any path, any status, HTTP/1.0 among them.
fn other(number: u64, random: &mut StdRng) -> Exchange {
    let (status, reason) = *STATUSES.choose(random).unwrap();
    let mut reply = Reply { status, reason, body: bytes(random), ..Reply::default() };
    frame(random, &mut reply);
    let mut exchange = Exchange::post(number, TARGETS.choose(random).unwrap(), Vec::new(), reply);
    exchange.method = METHODS.choose(random).unwrap();
    exchange.fields.clear();
    exchange.framing = Framing::None;
    exchange.http10 = random.random_bool(0.15);
    if exchange.http10 && matches!(exchange.reply.framing, Framing::Chunked { .. }) {
        exchange.reply.framing = Framing::Length; // HTTP/1.0 knows no chunks.
    }
    exchange
}

/// Mostly short, sometimes at the edges of buffers, seldom long.
fn bytes(random: &mut StdRng) -> Vec<u8> {
    let size = match random.random_range(0..20) {
        0..3 => 0,
        3..12 => random.random_range(1..2000),
        12..16 => random.random_range(4090..4100) * random.random_range(1..5),
        16..19 => 65_536 + random.random_range(0..3) - 1,
        _ => random.random_range(100_000..1_000_000),
    };
    let mut bytes = vec![0; size];
    random.fill(bytes.as_mut_slice());
    bytes
}

/// How an engine frames and paces an answer.
fn frame(random: &mut StdRng, reply: &mut Reply) {
    let length = reply.body.len();
    reply.framing = match random.random_range(0..20) {
        0..6 => Framing::Length,
        6..15 => chunked(random, length),
        15 => Framing::Close { http10: true },
        16..18 => Framing::Close { http10: false },
        18 if length > 1 => Framing::Short { chunked: random.random() },
        _ => chunked(random, length),
    };
    reply.writes = cut(random, length);
    reply.close = random.random_bool(0.1);
}

/// How a client frames and paces a body.
fn sent(random: &mut StdRng, length: usize) -> (Framing, Writes) {
    let framing = if random.random_bool(0.3) { chunked(random, length) } else { Framing::Length };
    (framing, cut(random, length))
}

fn chunked(random: &mut StdRng, length: usize) -> Framing {
    let many = random.random_range(0..8);
    let mut starts: Vec<usize> = (0..many).map(|_| random.random_range(0..=length)).collect();
    starts.push(0);
    starts.sort_unstable();
    let extension = if random.random_bool(0.1) { ";a=b;c" } else { "" };
    Framing::Chunked { starts, extension, trailers: Fields::new() }
}

fn cut(random: &mut StdRng, length: usize) -> Writes {
    match random.random_range(0..4) {
        0 => Writes::Once,
        1 => Writes::Chunks,
        _ => Writes::At(
            (0..random.random_range(1..6)).map(|_| random.random_range(0..length + 400)).collect(),
        ),
    }
}
