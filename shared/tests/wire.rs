//! Parsing of OpenAI bodies: every shape that engines send, cut anywhere, and anything at all without a panic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly")]

use std::io::Write;

use hone_shared::turn::Generation;
use hone_shared::wire::coding::{INFLATED_BYTES_MAX, inflate};
use hone_shared::wire::sse::{Decoder, Event, events};
use hone_shared::wire::{ResponseView, WireError, parse_request, parse_response, understands};
use proptest::prelude::*;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const LEGACY: &str = "/v1/completions";
const SSE: Option<&str> = Some("text/event-stream; charset=utf-8");
const JSON: Option<&str> = Some("application/json");

fn stream(chunks: &[Value]) -> Vec<u8> {
    let events = chunks.iter().map(|chunk| format!("data: {chunk}\n\n"));
    (events.collect::<String>() + "data: [DONE]\n\n").into_bytes()
}

fn read(body: &[u8]) -> ResponseView {
    parse_response(CHAT, SSE, None, body, true).unwrap()
}

fn delta(index: u32, delta: Value) -> Value {
    json!({"id": "c1", "model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": null}]})
}

fn end(index: u32, reason: &str) -> Value {
    json!({"id": "c1", "choices": [{"index": index, "delta": {}, "finish_reason": reason}]})
}

/// Two interleaved choices, reasoning, parallel tool calls, refusal, usage: everything at once.
fn rich() -> Vec<Value> {
    vec![
        delta(0, json!({"role": "assistant", "content": ""})),
        delta(1, json!({"role": "assistant", "content": null, "reasoning_content": "hm"})),
        delta(0, json!({"content": "Grüße, "})),
        delta(1, json!({"reasoning_content": "m."})),
        delta(
            1,
            json!({"tool_calls": [{"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        ),
        delta(0, json!({"content": "wörld 🦀", "refusal": null})),
        delta(
            1,
            json!({"tool_calls": [{"index": 1, "id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{\"y\""}}]}),
        ),
        delta(1, json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"x\":"}}]})),
        delta(
            1,
            json!({"tool_calls": [{"index": 1, "function": {"arguments": ":2}"}}, {"index": 0, "function": {"arguments": "1}"}}]}),
        ),
        end(1, "tool_calls"),
        end(0, "stop"),
        json!({"id": "c1", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, "adapter_generation": null}),
    ]
}

#[test]
fn a_stream_is_assembled_as_if_it_had_come_whole() {
    let view = read(&stream(&rich()));
    assert_eq!(view.id.as_deref(), Some("c1"));
    assert_eq!(view.choices.len(), 2);
    assert_eq!(view.choices[0].message, json!({"role": "assistant", "content": "Grüße, wörld 🦀"}));
    assert_eq!(view.choices[0].finish_reason.as_deref(), Some("stop"));
    assert_eq!(
        view.choices[1].message,
        json!({"role": "assistant", "content": null, "reasoning_content": "hmm.", "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
            {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{\"y\":2}"}},
        ]})
    );
    let usage = view.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (5, 7));
    assert_eq!(view.adapter_generation, Some(Generation::base()));
    assert!(view.finished && view.error.is_none() && view.bad_events == 0);
}

#[test]
fn the_events_do_not_depend_on_where_the_stream_is_cut() {
    let mut body =
        b"\xef\xbb\xbf: ping\r\nevent: a\r\ndata: 1\rdata: 2\r\n\r\nid: 3\nretry\ndata\n\ndata:x"
            .to_vec();
    let expected = events(&body);
    let event = |name: &str, data: &str| Event { name: name.into(), data: data.into() };
    assert_eq!(expected, [event("a", "1\n2"), event("", ""), event("", "x")]);
    body.extend_from_slice(b"\r\n\r\n");
    body.extend_from_slice(&stream(&rich()));
    let expected = events(&body);
    for cut in 0..=body.len() {
        let mut found = Vec::new();
        let mut decoder = Decoder::new();
        decoder.feed(&body[..cut], &mut |event| found.push(event));
        decoder.feed(&body[cut..], &mut |event| found.push(event));
        decoder.finish(&mut |event| found.push(event));
        assert_eq!(found, expected, "cut at {cut}");
    }
}

#[test]
fn line_endings_and_a_missing_end_make_no_difference() {
    let body = String::from_utf8(stream(&rich())).unwrap();
    let expected = read(body.as_bytes());
    for ending in ["\r\n", "\r"] {
        assert_eq!(read(body.replace('\n', ending).as_bytes()), expected);
    }
    let without_done = body.replace("data: [DONE]\n\n", "");
    assert_eq!(read(without_done.as_bytes()), expected, "no [DONE]");
    assert_eq!(read(without_done.trim_end().as_bytes()), expected, "no last blank line");
    assert_eq!(read(body.replace("data: ", "data:").as_bytes()), expected);
    assert_eq!(
        parse_response(CHAT, None, None, body.as_bytes(), true).unwrap(),
        expected,
        "no content type"
    );
}

#[test]
fn a_stream_that_breaks_off_keeps_what_came() {
    let body = stream(&rich()[..6]);
    let cut = &body[..body.len() - "data: [DONE]\n\n".len()];
    let view = read(&cut[..cut.len() - 20]);
    assert_eq!(view.choices[0].message["content"], "Grüße, ");
    assert!(!view.finished);
    assert_eq!(view.bad_events, 1);
    let mut failed = cut.to_vec();
    failed.extend_from_slice(
        b"data: {\"error\": {\"message\": \"out of memory\", \"code\": 500}}\n\n",
    );
    let view = read(&failed);
    assert_eq!(view.error, Some(json!({"message": "out of memory", "code": 500})));
    assert_eq!(view.choices[0].message["content"], "Grüße, wörld 🦀");
    let view = read(b"event: error\ndata: {\"message\": \"gone\"}\n\n");
    assert_eq!(view.error, Some(json!({"message": "gone"})));
}

#[test]
fn tool_calls_without_index_or_with_a_late_id_are_still_whole() {
    let calls = |deltas: &[Value]| {
        let chunks: Vec<Value> =
            deltas.iter().map(|call| delta(0, json!({"tool_calls": [call]}))).collect();
        read(&stream(&chunks)).choices[0].message["tool_calls"].clone()
    };
    let found = calls(&[
        json!({"id": "a", "function": {"name": "f", "arguments": "{"}}),
        json!({"function": {"arguments": "}"}}),
        json!({"id": "b", "function": {"name": "g", "arguments": "1"}}),
        json!({"id": "a", "function": {"arguments": " "}}),
    ]);
    assert_eq!(found[0]["function"]["arguments"], "{} ");
    assert_eq!(found[1]["function"], json!({"name": "g", "arguments": "1"}));
    let found = calls(&[
        json!({"index": 3, "function": {"name": "f"}}),
        json!({"index": 3, "id": "late", "function": {"name": "f", "arguments": "{}"}}),
    ]);
    assert_eq!(
        found,
        json!([{"id": "late", "type": "function", "function": {"name": "f", "arguments": "{}"}}])
    );
    let legacy = [
        delta(0, json!({"function_call": {"name": "f", "arguments": "{\"a\""}})),
        delta(0, json!({"function_call": {"arguments": ":1}"}})),
    ];
    let found = read(&stream(&legacy));
    assert_eq!(
        found.choices[0].message["function_call"],
        json!({"name": "f", "arguments": "{\"a\":1}"})
    );
}

#[test]
fn a_refusal_is_kept_apart_from_the_content() {
    let view = read(&stream(&[
        delta(0, json!({"refusal": "I "})),
        delta(0, json!({"refusal": "won't"})),
        end(0, "stop"),
    ]));
    assert_eq!(view.choices[0].message["refusal"], "I won't");
    assert_eq!(view.choices[0].message["content"], Value::Null);
}

#[test]
fn the_generation_is_read_and_a_mixed_stream_is_marked() {
    let hex = "ab".repeat(32);
    let mut chunk = delta(0, json!({"content": "x"}));
    chunk["adapter_generation"] = json!(hex);
    let view = read(&stream(&[chunk.clone(), chunk.clone()]));
    assert_eq!(view.adapter_generation.as_ref().map(Generation::as_str), Some(hex.as_str()));
    assert!(!view.generation_conflict);
    let mut other = chunk.clone();
    other["adapter_generation"] = Value::Null;
    assert!(read(&stream(&[chunk.clone(), other])).generation_conflict);
    chunk["adapter_generation"] = json!("../../etc");
    assert_eq!(read(&stream(&[chunk])).adapter_generation, None);
}

#[test]
fn a_whole_response_keeps_every_message_as_sent() {
    let body = json!({"id": "r", "model": "m", "usage": {"prompt_tokens": 1, "completion_tokens": 2}, "choices": [
        {"index": 1, "message": {"role": "assistant", "content": "b", "reasoning": "r", "vendor": {"k": 1}}, "finish_reason": "stop"},
        {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "length"},
    ]});
    let view = parse_response(CHAT, JSON, None, body.to_string().as_bytes(), false).unwrap();
    assert_eq!(view.choices[0].message["content"], "a");
    assert_eq!(view.choices[1].message, body["choices"][0]["message"]);
    assert!(view.finished && view.adapter_generation.is_none());
    let error =
        json!({"error": {"message": "no such model", "code": "model_not_found"}}).to_string();
    let view = parse_response(CHAT, JSON, None, error.as_bytes(), true).unwrap();
    assert_eq!(view.error.unwrap()["code"], "model_not_found");
    assert!(view.choices.is_empty() && !view.finished);
    let bad = parse_response(CHAT, JSON, None, b"<html>", false);
    assert!(matches!(bad, Err(WireError::Json { .. })));
}

#[test]
fn legacy_completions_become_a_conversation() {
    let request = parse_request(
        "/v1/completions",
        None,
        br#"{"model":"m","prompt":["Once"],"max_tokens":5}"#,
    )
    .unwrap();
    assert_eq!(request.messages, [json!({"role": "user", "content": "Once"})]);
    assert_eq!(request.params, json!({"model": "m", "max_tokens": 5}));
    let tokens = parse_request("/v1/completions", None, br#"{"prompt":[1,2,3]}"#).unwrap();
    assert_eq!(tokens.messages[0]["content"], json!([1, 2, 3]));
    let whole = br#"{"choices":[{"index":0,"text":" upon","finish_reason":"length"}]}"#;
    let view = parse_response(LEGACY, JSON, None, whole, false).unwrap();
    assert_eq!(view.choices[0].message, json!({"role": "assistant", "content": " upon"}));
    let chunks = [
        json!({"choices": [{"index": 0, "text": " up"}]}),
        json!({"choices": [{"index": 0, "text": "on", "finish_reason": "stop"}]}),
    ];
    assert_eq!(read(&stream(&chunks)).choices[0].message["content"], " upon");
}

#[test]
fn a_request_is_split_into_messages_and_the_rest() {
    let body = br#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"tools":[1],"x":null}"#;
    let view = parse_request("/v1/chat/completions?a=b", None, body).unwrap();
    assert_eq!(view.messages, [json!({"role": "user", "content": "hi"})]);
    assert_eq!(view.params, json!({"model": "m", "stream": true, "tools": [1], "x": null}));
    assert_eq!((view.model.as_deref(), view.stream), (Some("m"), true));
    assert!(matches!(parse_request(CHAT, None, b"{"), Err(WireError::Json { .. })));
    assert!(matches!(parse_request(CHAT, None, b"[]"), Err(WireError::Shape { .. })));
    assert!(matches!(
        parse_request(CHAT, None, b"{}"),
        Err(WireError::Shape { key: "messages", .. })
    ));
    assert!(matches!(parse_request("/v1/embeddings", None, b"{}"), Err(WireError::Path(_))));
    assert!(understands("/v1/completions") && !understands("/v1/chat"));
    let headers = vec![("X-Session-Id".to_owned(), "s1".to_owned())];
    assert_eq!(view.session(&headers).as_deref(), Some("x-session-id:s1"));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    brotli::CompressorWriter::new(&mut packed, 4096, 5, 22).write_all(bytes).unwrap();
    packed
}

#[test]
fn compressed_bodies_are_inflated_up_to_a_cap() {
    let body = stream(&rich());
    let expected = read(&body);
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(&body).unwrap();
    let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    raw.write_all(&body).unwrap();
    for (coding, bytes) in [
        ("gzip", gzip(&body)),
        ("GZIP", gzip(&body)),
        ("deflate", zlib.finish().unwrap()),
        ("deflate", raw.finish().unwrap()),
        ("zstd", zstd::encode_all(&body[..], 1).unwrap()),
        ("br", brotli(&body)),
        ("br, zstd", zstd::encode_all(&brotli(&body)[..], 1).unwrap()),
        ("identity", body.clone()),
        ("gzip, gzip", gzip(&gzip(&body))),
    ] {
        let view = parse_response(CHAT, SSE, Some(coding), &bytes, true).unwrap();
        assert_eq!(view, expected, "{coding}");
    }
    let cut = gzip(&body);
    let view = parse_response(CHAT, SSE, Some("gzip"), &cut[..cut.len() - 30], true).unwrap();
    assert!(!view.choices.is_empty(), "a cut body is read as far as it goes");
    for (coding, whole) in
        [("br", brotli(&body)), ("zstd", zstd::encode_all(&body[..], 1).unwrap())]
    {
        for end in 0..whole.len() {
            if let Ok(plain) = inflate(Some(coding), &whole[..end]) {
                assert!(body.starts_with(&plain), "{coding} cut at {end}");
            }
        }
    }
    let numbers = (1..20_000u64).map(|n| format!("{}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let long = numbers.collect::<String>().into_bytes();
    let whole = brotli(&long);
    let plain = inflate(Some("br"), &whole[..whole.len() / 2]).unwrap();
    assert!(plain.len() > long.len() / 4 && long.starts_with(&plain), "{}", plain.len());
    // 100 times its size is not reached, 8 MiB are.
    let small = gzip(&vec![b' '; 9 << 20]);
    assert!(matches!(inflate(Some("gzip"), &small), Err(WireError::Inflate(_))));
    assert!(inflate(Some("gzip"), &gzip(&vec![b' '; 7 << 20])).is_ok());
    assert!(matches!(inflate(Some("compress"), &body), Err(WireError::Coding(_))));
    assert!(matches!(inflate(Some("gzip"), b"not gzip"), Err(WireError::Inflate(_))));
    let zeros = vec![0u8; 1 << 20];
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    (0..INFLATED_BYTES_MAX / (1 << 20) + 1).for_each(|_| bomb.write_all(&zeros).unwrap());
    assert!(matches!(inflate(Some("gzip"), &bomb.finish().unwrap()), Err(WireError::Inflate(_))));
    let request = gzip(br#"{"messages":[]}"#);
    assert!(parse_request(CHAT, None, &request).unwrap().messages.is_empty());
}

#[test]
fn absurd_indexes_cost_nothing() {
    let chunks = [
        json!({"choices": [{"index": u64::MAX, "delta": {"content": "x"}}, {"index": u32::MAX, "delta": {"content": "y"}}]}),
        delta(0, json!({"tool_calls": [{"index": u64::MAX, "id": "a"}, {"id": "b"}, {}, 7]})),
        json!({"choices": {"a": 1}, "usage": 3, "id": 4}),
        json!([[[]]]),
    ];
    let view = read(&stream(&chunks));
    assert_eq!(view.choices.iter().map(|c| c.index).collect::<Vec<_>>(), [0, u32::MAX]);
    let many: Vec<Value> = (0..1000).map(|i| delta(i, json!({"content": "x"}))).collect();
    assert_eq!(read(&stream(&many)).choices.len(), 128);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(
        body in prop::collection::vec(any::<u8>(), 0..2000),
        path in "/v1/(chat/)?completions",
        coding in prop::option::of(prop::sample::select(vec!["gzip", "deflate", "zstd", "identity", "x"])),
        stream in any::<bool>(),
    ) {
        let _ = parse_request(&path, None, &body);
        for kind in [SSE, JSON, None] {
            let _ = parse_response(&path, kind, coding, &body, stream);
        }
    }

    #[test]
    fn no_damage_to_a_real_stream_makes_the_parser_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut body = stream(&rich());
        for (at, byte) in edits {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body.truncate(cut.index(body.len() + 1));
        let whole = events(&body);
        let mut pieces = Vec::new();
        let mut decoder = Decoder::new();
        body.chunks(7).for_each(|chunk| decoder.feed(chunk, &mut |event| pieces.push(event)));
        decoder.finish(&mut |event| pieces.push(event));
        prop_assert_eq!(whole, pieces);
        let _ = read(&body);
    }
}
