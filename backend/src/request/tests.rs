//! The request parsers on plain JSON.

use serde_json::{Value, json};

use super::params::Params;
use super::*;

const LIMITS: Limits = Limits { choices_max: 8, tokens_default_max: 100, tells_calls: true };

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn parse_chat(mut extra: Value) -> Result<Job, ApiError> {
    if extra.get("messages").is_none() {
        extra["messages"] = json!([{"role": "user", "content": "Hi"}]);
    }
    chat::parse(&map(extra), &LIMITS)
}

fn refused(extra: Value) -> ApiError {
    match parse_chat(extra) {
        Err(error) => error,
        Ok(_) => panic!("should have been refused"),
    }
}

fn contents(job: &Job) -> Vec<String> {
    let Prompt::Chat(RequestMessage::Chat { messages, .. }) = &job.prompts[0] else { panic!() };
    let text = |message: &indexmap::IndexMap<String, mistralrs::core::MessageContent>,
                key: &str| { message[key].as_ref().left().cloned().unwrap() };
    messages.iter().map(|m| format!("{}: {}", text(m, "role"), text(m, "content"))).collect()
}

#[test]
fn a_plain_request_gets_the_defaults() {
    let job = parse_chat(json!({"model": "m"})).ok().unwrap();
    assert_eq!((job.n, job.tokens_max, job.stream), (1, 100, false));
    assert_eq!(job.draw.temperature, 1.0);
    assert_eq!(job.draw.alternatives, None);
    assert_eq!(contents(&job), ["user: Hi"]);
}

#[test]
fn null_means_absent_and_unknown_fields_are_ignored() {
    let job = parse_chat(json!({"temperature": null, "stop": null, "tools": null, "n": null,
        "stream_options": null, "parrots": {"many": true}, "store": true, "metadata": {"a": "b"}}));
    assert!(job.is_ok());
}

#[test]
fn the_newer_name_of_the_token_limit_wins() {
    let job = parse_chat(json!({"max_tokens": 5, "max_completion_tokens": 7})).ok().unwrap();
    assert_eq!(job.tokens_max, 7);
}

#[test]
fn content_parts_are_joined_and_images_are_refused() {
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let job = parse_chat(json!({"messages": [{"role": "developer", "content": parts}]}));
    assert_eq!(contents(&job.ok().unwrap()), ["system: a\nb"]);
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    let error = refused(json!({"messages": [{"role": "user", "content": image}]}));
    assert_eq!(error.code, Code::Unsupported);
}

#[test]
fn earlier_tool_calls_may_stand_without_content_and_give_templates_an_object() {
    let job = parse_chat(json!({"messages": [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "t", "arguments": "{\"z\":1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]}))
    .ok()
    .unwrap();
    let Prompt::Chat(RequestMessage::Chat { messages, .. }) = &job.prompts[0] else { panic!() };
    let calls = messages[1]["tool_calls"].as_ref().right().unwrap();
    assert_eq!(calls[0]["function"]["arguments"], json!({"z": 1}));
    let error = refused(json!({"messages": [{"role": "assistant", "content": null}]}));
    assert_eq!(error.param.as_deref(), Some("messages[0].content"));
}

#[test]
fn a_forced_tool_becomes_a_schema_and_none_hides_the_tools() {
    let tools = json!([{"type": "function", "function": {"name": "a"}},
                       {"type": "function", "function": {"name": "b"}}]);
    let job = parse_chat(json!({"tools": tools})).ok().unwrap();
    assert_eq!((job.callable.len(), job.schema.is_some()), (2, false));
    let job = parse_chat(json!({"tools": tools, "tool_choice": "required"})).ok().unwrap();
    assert_eq!(job.schema.unwrap()["anyOf"].as_array().unwrap().len(), 2);
    let job = parse_chat(json!({"tools": tools, "tool_choice": "none"})).ok().unwrap();
    assert!(job.tools.is_empty() && job.callable.is_empty());
    let wrong = json!({"type": "function", "function": {"name": "c"}});
    assert_eq!(refused(json!({"tools": tools, "tool_choice": wrong})).code, Code::InvalidValue);
}

#[test]
fn wrong_types_name_the_field_and_what_was_found() {
    let error = refused(json!({"max_tokens": "5"}));
    assert_eq!(error.param.as_deref(), Some("max_tokens"));
    assert_eq!(error.message, "`max_tokens` must be an integer, not a string.");
    let error = refused(json!({"temperature": 3}));
    assert_eq!(error.message, "`temperature` must be from 0 to 2, not 3.");
    assert_eq!(refused(json!({"n": 1.5})).message, "`n` must be an integer, not 1.5.");
    assert_eq!(
        refused(json!({"max_tokens": -1})).message,
        "`max_tokens` must be at least 1, not -1."
    );
}

#[test]
fn broken_json_says_where() {
    let error = object(b"{\"a\": 1,\n \"b\" 2}").unwrap_err();
    assert_eq!(error.code, Code::InvalidJson);
    assert!(error.message.contains("line 2 column"), "{}", error.message);
    assert!(object(b"[]").unwrap_err().message.contains("not an array"));
    assert!(object(b"").is_err());
    assert!(object(b"\xFF\xFE").is_err());
}

#[test]
fn stops_biases_and_seeds_are_read() {
    let read = |value: Value| Params::read(&map(value), &LIMITS);
    let params = read(json!({"stop": ["a", "", "b"], "seed": -1, "logit_bias": {"5": -100}}));
    let params = params.unwrap();
    assert_eq!(params.stops, ["a", "b"]);
    assert_eq!(params.draw.seed, u64::MAX);
    assert_eq!(params.draw.bias, [(5, -100.0)]);
    assert!(read(json!({"logit_bias": {"x": 1}})).is_err());
    assert!(read(json!({"logit_bias": {"1": 101}})).is_err());
    assert!(read(json!({"stop": [1]})).is_err());
    assert!(read(json!({"stream_options": {"include_usage": 1}})).is_err());
}

#[test]
fn logprobs_are_asked_for_in_each_apis_own_way() {
    let job = parse_chat(json!({"logprobs": true, "top_logprobs": 3})).ok().unwrap();
    assert_eq!(job.draw.alternatives, Some(3));
    assert_eq!(refused(json!({"top_logprobs": 3})).param.as_deref(), Some("top_logprobs"));
    let legacy = map(json!({"prompt": "x", "logprobs": 0}));
    assert_eq!(completion::parse(&legacy, &LIMITS).ok().unwrap().draw.alternatives, Some(0));
}

#[test]
fn legacy_prompts_come_in_four_shapes() {
    let read = |prompt: Value| completion::parse(&map(json!({"prompt": prompt, "n": 2})), &LIMITS);
    let count = |prompt: Value| read(prompt).ok().map(|job| job.choices());
    assert_eq!(count(json!("a")), Some(2));
    assert_eq!(count(json!(["a", "b"])), Some(4));
    assert_eq!(count(json!([1, 2, 3])), Some(2));
    assert_eq!(count(json!([[1, 2], [3]])), Some(4));
    for wrong in [json!([]), json!(""), json!([[]]), json!(7), json!([-1]), json!([1.5])] {
        assert_eq!(count(wrong.clone()), None, "{wrong}");
    }
    assert_eq!(count(json!(["a", "b", "c", "d", "e"])), None, "more choices than are served");
    assert_eq!(read(json!("a")).ok().unwrap().tokens_max, 16);
}

#[test]
fn what_would_change_the_reply_and_is_not_served_is_refused() {
    let legacy = |extra: Value| {
        let mut body = extra;
        body["prompt"] = json!("a");
        completion::parse(&map(body), &LIMITS).err().map(|error| error.code)
    };
    assert_eq!(legacy(json!({"echo": true})), Some(Code::Unsupported));
    assert_eq!(legacy(json!({"echo": false, "suffix": null})), None);
    assert_eq!(legacy(json!({"best_of": 3})), Some(Code::InvalidValue));
    assert_eq!(refused(json!({"functions": []})).code, Code::Unsupported);
}
