//! Every protocol by transcripts in the providers' own shape (`fuzz/seeds`): what is read of them,
//! and that it does not depend on how the bytes are cut.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly")]

use std::path::PathBuf;

use hone_shared::link::canon;
use hone_shared::wire::{
    Protocol, RequestView, ResponseView, parse_request, parse_response, parse_stream,
};
use rand::Rng;
use rand::SeedableRng;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

fn seed(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name)).unwrap()
}

fn answered(path: &str, name: &str) -> ResponseView {
    parse_response(path, None, None, &seed(name), name.ends_with("sse")).unwrap()
}

fn asked(path: &str, name: &str) -> RequestView {
    parse_request(path, None, &seed(name)).unwrap()
}

/// Every stream with its path.
const STREAMS: [(&str, &str); 19] = [
    (CHAT, "openai_response/parallel_tools.sse"),
    (CHAT, "openai_response/two_choices_reasoning.sse"),
    (CHAT, "openai_response/refusal.sse"),
    (CHAT, "openai_response/error_midway.sse"),
    ("/v1/completions", "openai_response/legacy.sse"),
    (MESSAGES, "anthropic/text.sse"),
    (MESSAGES, "anthropic/thinking_tools.sse"),
    (MESSAGES, "anthropic/no_event_lines.sse"),
    (MESSAGES, "anthropic/error_midway.sse"),
    (MESSAGES, "anthropic/refusal.sse"),
    (RESPONSES, "responses/text.sse"),
    (RESPONSES, "responses/text_empty_output.sse"),
    (RESPONSES, "responses/broken_off.sse"),
    (RESPONSES, "responses/parallel_tools.sse"),
    (RESPONSES, "responses/incomplete.sse"),
    (RESPONSES, "responses/failed.sse"),
    (RESPONSES, "responses/error.sse"),
    (RESPONSES, "responses/refusal.sse"),
    (CHAT, "sse/grammar.txt"),
];

/// Content, finish reason, prompt and completion tokens, error message.
type Expected = (Value, Option<&'static str>, Option<(u64, u64)>, Option<&'static str>);

#[test]
fn every_stream_is_read_as_the_provider_means_it() {
    let hello = || json!("Grüße, Wörld 🦀!");
    let used = Some((36, 87));
    let table: [(&str, &str, Expected); 13] = [
        (CHAT, STREAMS[2].1, (Value::Null, Some("stop"), None, None)),
        (
            CHAT,
            STREAMS[3].1,
            (
                json!("Once upon"),
                None,
                None,
                Some("The server had an error while processing your request"),
            ),
        ),
        ("/v1/completions", STREAMS[4].1, (json!("Once upon"), Some("length"), None, None)),
        (MESSAGES, STREAMS[5].1, (hello(), Some("stop"), Some((1125, 15)), None)),
        (MESSAGES, STREAMS[8].1, (json!("Once"), None, Some((1125, 1)), Some("Overloaded"))),
        (MESSAGES, STREAMS[9].1, (json!("I can't"), Some("content_filter"), Some((1125, 4)), None)),
        (RESPONSES, STREAMS[10].1, (hello(), Some("stop"), used, None)),
        (RESPONSES, STREAMS[11].1, (hello(), Some("stop"), used, None)),
        (RESPONSES, STREAMS[12].1, (hello(), None, None, None)),
        (RESPONSES, STREAMS[14].1, (json!("Once upon"), Some("length"), used, None)),
        (
            RESPONSES,
            STREAMS[15].1,
            (json!("Once"), None, None, Some("The model failed to generate a response.")),
        ),
        (RESPONSES, STREAMS[17].1, (Value::Null, Some("stop"), used, None)),
        (CHAT, STREAMS[0].1, (Value::Null, Some("tool_calls"), Some((82, 37)), None)),
    ];
    for (path, name, (content, reason, usage, error)) in table {
        let view = answered(path, name);
        assert_eq!(view.choices.len(), 1, "{name}");
        let choice = &view.choices[0];
        assert_eq!(choice.message["content"], content, "{name}");
        assert_eq!(choice.finish_reason.as_deref(), reason, "{name}");
        let counts = view.usage.map(|u| (u.prompt_tokens, u.completion_tokens));
        assert_eq!(counts, usage, "{name}");
        let message = view.error.as_ref().map(|error| error["message"].as_str().unwrap());
        assert_eq!((message, view.finished), (error, reason.is_some()), "{name}");
        assert_eq!(view.bad_events, 0, "{name}");
    }
    let error = answered(RESPONSES, "responses/error.sse");
    assert!(error.choices.is_empty());
    assert_eq!(error.error.unwrap()["code"], "rate_limit_exceeded");
    for name in [STREAMS[2].1, STREAMS[17].1] {
        let view = answered(if name == STREAMS[2].1 { CHAT } else { RESPONSES }, name);
        let refusal = view.choices[0].message["refusal"].as_str().unwrap().to_owned();
        assert!(refusal.starts_with("I can’t help"), "{refusal}");
    }
}

#[test]
fn interleaved_choices_keep_their_own_reasoning_and_log_probabilities() {
    let view = answered(CHAT, STREAMS[1].1);
    let [first, second] = &view.choices[..] else { panic!("{:?}", view.choices) };
    assert_eq!(first.message["content"], "Hello there");
    assert_eq!(first.message["logprobs"]["content"][0]["token"], " there");
    assert_eq!(second.message["reasoning_content"], "The user greets.");
    assert_eq!(second.message["content"], "Hi 👋");
    assert_eq!(second.finish_reason.as_deref(), Some("length"));
    let whole = answered(CHAT, "openai_response/whole.json");
    assert_eq!(whole.choices[0].message["logprobs"]["content"][0]["token"], "Hello");
}

fn calls(message: &Value) -> Vec<(String, String, Value)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let call = |call: &Value| {
        assert_eq!(call["type"], "function");
        let arguments = serde_json::from_str(call["function"]["arguments"].as_str().unwrap());
        (text(&call["id"]), text(&call["function"]["name"]), arguments.unwrap())
    };
    message["tool_calls"].as_array().unwrap().iter().map(call).collect()
}

#[test]
fn parallel_calls_come_out_alike_from_all_protocols() {
    let (a, b) = ("Zk3vT9qLw8RbN2xYcD5fGh7J", "Qw4eRt6yUi8oPa1sDf3gHj5K");
    let named = |id: &str| format!("call_{id}");
    let expected = [
        (named(a), "get_weather".to_owned(), json!({"city": "Köln"})),
        (named(b), "get_time".to_owned(), json!({"zone": "CET"})),
    ];
    assert_eq!(calls(&answered(CHAT, STREAMS[0].1).choices[0].message), expected);
    for name in ["responses/parallel_tools.sse", "responses/whole.json"] {
        let view = answered(RESPONSES, name);
        let choice = &view.choices[0];
        assert_eq!(calls(&choice.message), expected);
        assert_eq!(choice.finish_reason.as_deref(), Some("tool_calls"));
        assert_eq!(choice.message["reasoning_content"], "**Both cities**");
        assert_eq!(choice.message["items"][0]["encrypted_content"], "gAAAAAB", "kept");
    }
    for name in ["thinking_tools.sse", "no_event_lines.sse", "whole.json"] {
        let view = answered(MESSAGES, &format!("anthropic/{name}"));
        let choice = &view.choices[0];
        let found = calls(&choice.message);
        assert_eq!((found[0].1.as_str(), &found[0].2), ("get_weather", &json!({"city": "Köln"})));
        assert_eq!((found[1].1.as_str(), &found[1].2), ("get_time", &json!({})));
        assert_eq!(choice.message["content"], "I'll check both.");
        assert_eq!(choice.message["reasoning_content"], "Both cities at once.");
        assert!(choice.message["thinking_blocks"][0]["signature"].is_string(), "{name}");
        assert_eq!(choice.finish_reason.as_deref(), Some("tool_calls"));
    }
}

#[test]
fn an_answer_that_a_client_sends_back_is_the_message_that_it_was() {
    for (path, request, answer, at) in [
        (MESSAGES, "anthropic/request.json", "anthropic/thinking_tools.sse", 2),
        (RESPONSES, "responses/request_items.json", "responses/parallel_tools.sse", 2),
    ] {
        let sent = asked(path, request).messages[at].clone();
        let given = answered(path, answer).choices[0].message.clone();
        assert_eq!(canon(&sent), canon(&given), "{path}");
    }
}

#[test]
fn the_providers_own_tools_come_back_as_they_were_streamed() {
    // What each block's input came as, and what a client sends back.
    let blocks = [
        (
            "server_tool_use",
            &["", "{\"query\": \"we", "ather\", \"n\": 2}"][..],
            json!({"n": 2, "query": "weather"}),
        ),
        ("mcp_tool_use", &[], json!({})),
        ("mcp_tool_use", &[""], json!({})),
        ("tool_use", &["{\"a\":", "1}"], json!({"a": 1})),
        ("server_tool_use", &["{\"cut"], json!("{\"cut")),
    ];
    let mut stream = String::new();
    let mut event = |value: Value| stream += &format!("data: {value}\n\n");
    let block = |at: usize, kind: &str, input: Value| json!({"type": kind, "id": format!("toolu_{at}"), "name": "f", "input": input});
    let mut sent = Vec::new();
    for (at, (kind, deltas, input)) in blocks.into_iter().enumerate() {
        let start = block(at, kind, json!({}));
        event(json!({"type": "content_block_start", "index": at, "content_block": start}));
        for part in deltas {
            let delta = json!({"type": "input_json_delta", "partial_json": part});
            event(json!({"type": "content_block_delta", "index": at, "delta": delta}));
        }
        event(json!({"type": "content_block_stop", "index": at}));
        sent.push(block(at, kind, input));
    }
    event(json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}));
    let given = parse_response(MESSAGES, None, None, stream.as_bytes(), true).unwrap();
    let again = json!({"messages": [{"role": "assistant", "content": sent}]}).to_string();
    let again = parse_request(MESSAGES, None, again.as_bytes()).unwrap();
    assert_eq!(canon(&given.choices[0].message), canon(&again.messages[0]), "{given:?}");
}

#[test]
fn requests_of_all_protocols_become_one_conversation() {
    let view = asked(MESSAGES, "anthropic/request.json");
    let roles = |view: &RequestView| {
        view.messages.iter().map(|m| m["role"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(roles(&view), ["system", "user", "assistant", "tool", "tool", "user"]);
    assert_eq!(view.messages[0]["content"].as_array().unwrap().len(), 2);
    assert_eq!(view.messages[3]["content"], "12 °C");
    assert_eq!(
        view.messages[4],
        json!({"role": "tool", "tool_call_id":
        "toolu_01T1x1fJ34qAmk2tNTrN7Up6", "content": "no such zone", "is_error": true})
    );
    assert_eq!(view.messages[5], json!({"role": "user", "content": "and tomorrow?"}));
    assert_eq!(view.params["tools"][0]["function"]["parameters"]["type"], "object");
    assert_eq!(view.params["tools"][1]["type"], "web_search_20250305", "kept as it is");
    assert!(view.stream && view.params.get("messages").is_none());
    let session = "metadata.user_id:0b7c1f9e-8c51-4a5e-9a55-2f5f7fd0c0a1";
    assert_eq!(view.session(&Vec::new()).as_deref(), Some(session));

    let view = asked(RESPONSES, "responses/request_items.json");
    assert_eq!(roles(&view), ["system", "user", "assistant", "tool", "tool", "user"]);
    assert_eq!(view.messages[1]["content"], "Köln?");
    assert_eq!(view.messages[4]["content"], "14:00");
    assert_eq!(view.params["tools"][0]["function"]["name"], "get_weather");
    assert_eq!(view.params["tools"][1], json!({"type": "web_search"}));
    assert!(!view.named.is_any());
    let view = asked(RESPONSES, "responses/request_previous.json");
    assert_eq!(view.messages, [json!({"role": "user", "content": "and tomorrow?"})]);
    assert!(view.named.response.unwrap().starts_with("resp_"));
    let view = asked(RESPONSES, "responses/request_reference.json");
    assert_eq!(
        (roles(&view), view.named.items),
        (vec!["user".to_owned(), "assistant".to_owned(), "tool".to_owned()], true)
    );
    let view = asked(CHAT, "openai_request/surrogate.json");
    assert_eq!(view.messages[0]["content"], "cut \u{fffd} emoji");
    for (path, bad) in [(RESPONSES, "{}"), (MESSAGES, "{\"messages\":{}}"), (RESPONSES, "[]")] {
        assert!(parse_request(path, None, bad.as_bytes()).is_err());
    }
}

#[test]
fn paths_are_told_apart_by_their_end() {
    for (path, protocol) in [
        ("/v1/chat/completions", Some(Protocol::Chat)),
        ("/openai/deployments/gpt/chat/completions?api-version=1", Some(Protocol::Chat)),
        ("/v1/completions/", Some(Protocol::Completions)),
        ("/openai/v1/responses", Some(Protocol::Responses)),
        ("/backend-api/codex/responses", Some(Protocol::Responses)),
        ("/anthropic/v1/messages", Some(Protocol::Messages)),
        ("/v1/messages/count_tokens", None),
        ("/v1/threads/t_1/messages", None),
        ("/v1/chat/completions/c_1/messages", None),
        ("/v1/responses/resp_1/cancel", None),
        ("/v1/embeddings", None),
    ] {
        assert_eq!(Protocol::of(path), protocol, "{path}");
    }
}

#[test]
fn a_wrong_content_type_does_not_matter() {
    for (path, name) in STREAMS {
        let body = seed(name);
        let expected = parse_response(path, None, None, &body, true).unwrap();
        for kind in [Some("application/json"), Some("text/plain"), Some("text/event-stream")] {
            for stream in [true, false] {
                let read = parse_response(path, kind, None, &body, stream).unwrap();
                assert_eq!(read, expected, "{name}");
            }
        }
    }
    let whole = seed("anthropic/whole.json");
    let view = parse_response(MESSAGES, Some("text/event-stream"), None, &whole, true).unwrap();
    assert!(view.finished);
    for (path, name) in [
        (MESSAGES, "anthropic/error.json"),
        (CHAT, "openai_response/error.json"),
        (RESPONSES, "openai_response/error.json"),
    ] {
        let view = answered(path, name);
        assert!(view.error.unwrap()["message"].is_string() && view.choices.is_empty(), "{name}");
    }
}

#[test]
fn every_stream_is_the_same_turn_cut_at_every_byte_and_cut_a_thousand_times_at_random() {
    let number: u64 = rand::rng().random();
    println!("seed {number}");
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(number);
    for (path, name) in STREAMS {
        let body = seed(name);
        let expected = parse_response(path, None, None, &body, true).unwrap();
        for cut in 0..=body.len() {
            let (head, tail) = body.split_at(cut);
            assert_eq!(parse_stream(path, [head, tail]).unwrap(), expected, "{name} cut at {cut}");
        }
        for _ in 0..1000 {
            let mut cuts: Vec<usize> = (0..random.random_range(2..40))
                .map(|_| random.random_range(0..=body.len()))
                .chain([0, body.len()])
                .collect();
            cuts.sort_unstable();
            let chunks = cuts.windows(2).map(|pair| &body[pair[0]..pair[1]]);
            assert_eq!(parse_stream(path, chunks).unwrap(), expected, "{name} cut at {cuts:?}");
        }
    }
}

#[test]
fn a_stream_that_ends_anywhere_is_read_up_to_there() {
    for (path, name) in STREAMS {
        let body = seed(name);
        let mut texts = 0;
        for end in 0..body.len() {
            let view = parse_stream(path, [&body[..end]]).unwrap();
            let text =
                view.choices.first().and_then(|c| c.message["content"].as_str().map(str::len));
            // What is known only grows.
            assert!(text.unwrap_or(0) >= texts, "{name} ends at {end}");
            texts = text.unwrap_or(0);
            // The grammar's events are no JSON anyway.
            assert!(
                view.bad_events <= 1 || name.starts_with("sse/"),
                "{name}: {} bad events",
                view.bad_events
            );
        }
    }
}
