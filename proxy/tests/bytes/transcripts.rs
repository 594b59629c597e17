//! Event streams in the shapes that engines send, written after the providers' references and what
//! vLLM, SGLang, llama.cpp, OpenRouter and Anthropic were seen to send.
//!
//! `mark` makes each use a conversation of its own.

use serde_json::{Value, json};

/// A stream and what it says.
#[derive(Debug, Clone)]
pub struct Transcript {
    pub name: &'static str,
    pub path: &'static str,
    pub bytes: Vec<u8>,
    /// The text of each answer.
    pub texts: Vec<String>,
    /// Whether the stream reports an error.
    pub error: bool,
}

const CHAT: &str = "/v1/chat/completions";
const LEGACY: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// The request body that such a stream answers.
pub fn request(path: &str, mark: &str) -> Vec<u8> {
    let mut body = json!({"model": "test", "stream": true, "max_tokens": 64});
    let said = json!([{"role": "user", "content": mark}]);
    let (key, value) = match path {
        LEGACY => ("prompt", json!(mark)),
        RESPONSES => ("input", said),
        _ => ("messages", said),
    };
    body[key] = value;
    body.to_string().into_bytes()
}

/// All transcripts.
pub fn all() -> Vec<Transcript> {
    let mut all = openai();
    all.extend(line_ends());
    all.extend(oddities());
    all.extend(anthropic());
    all.extend(responses());
    all
}

fn transcript(name: &'static str, path: &'static str, text: String, said: &[&str]) -> Transcript {
    let texts = said.iter().map(|&text| text.to_owned()).collect();
    Transcript { name, path, bytes: text.into_bytes(), texts, error: false }
}

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// A chunk with one choice.
fn chunk(index: u32, delta: &Value, finish: Option<&str>) -> String {
    data(&json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "test",
        "choices": [{"index": index, "delta": delta, "finish_reason": finish}],
    }))
}

fn say(index: u32, text: &str) -> String {
    chunk(index, &json!({"content": text}), None)
}

fn role(index: u32) -> String {
    chunk(index, &json!({"role": "assistant", "content": ""}), None)
}

fn end(index: u32, reason: &str) -> String {
    chunk(index, &json!({}), Some(reason))
}

const DONE: &str = "data: [DONE]\n\n";

fn usage() -> String {
    let tokens = json!({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8});
    data(&json!({"id": "chatcmpl-1", "choices": [], "usage": tokens}))
}

fn plain() -> String {
    [role(0), say(0, "Hel"), say(0, "lo"), end(0, "stop"), usage(), DONE.into()].concat()
}

fn call(at: u32, id: Option<&str>, name: Option<&str>, arguments: &str) -> String {
    let mut call = json!({"index": at, "function": {"arguments": arguments}});
    if let (Some(id), Some(name)) = (id, name) {
        call["id"] = json!(id);
        call["type"] = json!("function");
        call["function"]["name"] = json!(name);
    }
    chunk(0, &json!({"tool_calls": [call]}), None)
}

fn openai() -> Vec<Transcript> {
    let tools = [
        role(0),
        call(0, Some("call_a"), Some("get_weather"), ""),
        call(1, Some("call_b"), Some("get_time"), ""),
        call(0, None, None, "{\"city\":"),
        call(1, None, None, "{\"zone\":\"UT"),
        call(0, None, None, "\"Zürich\"}"),
        call(1, None, None, "C\"}"),
        end(0, "tool_calls"),
        DONE.into(),
    ];
    let several = [
        role(0),
        role(2),
        role(1),
        say(1, "b1"),
        say(0, "a1"),
        say(2, "c1"),
        say(0, "a2"),
        end(1, "stop"),
        say(2, "c2"),
        end(0, "length"),
        end(2, "stop"),
        DONE.into(),
    ];
    let thought = |text: &str| chunk(0, &json!({"reasoning_content": text}), None);
    let reasoning = [
        role(0),
        thought("first "),
        thought("think"),
        say(0, "then say"),
        end(0, "stop"),
        DONE.into(),
    ];
    let token = json!({"token": "x", "logprob": -0.25, "bytes": [120], "top_logprobs": []});
    let logprobs = data(&json!({"id": "c", "choices": [{"index": 0, "delta": {"content": "x"},
        "logprobs": {"content": [token]}}]}));
    let with_usage = data(&json!({"id": "c", "choices": [{"index": 0, "delta": {"content": "y"}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2}}));
    let text = |text: &str, finish: Option<&str>| {
        data(&json!({"id": "cmpl-1", "object": "text_completion",
            "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]}))
    };
    vec![
        transcript("plain", CHAT, plain(), &["Hello"]),
        transcript("parallel tool calls", CHAT, tools.concat(), &[""]),
        transcript("three answers interleaved", CHAT, several.concat(), &["a1a2", "b1", "c1c2"]),
        transcript("reasoning", CHAT, reasoning.concat(), &["then say"]),
        transcript(
            "log-probabilities and usage in each chunk",
            CHAT,
            [logprobs, with_usage, end(0, "stop"), DONE.into()].concat(),
            &["xy"],
        ),
        transcript(
            "legacy completion",
            LEGACY,
            [text("Once", None), text(" upon", None), text("", Some("length")), DONE.into()]
                .concat(),
            &["Once upon"],
        ),
    ]
}

fn line_ends() -> Vec<Transcript> {
    let mixed = plain().replacen("\n\n", "\r\n\r\n", 1).replacen("\n\n", "\r\r", 1);
    vec![
        transcript("CRLF", CHAT, plain().replace('\n', "\r\n"), &["Hello"]),
        transcript("CR", CHAT, plain().replace('\n', "\r"), &["Hello"]),
        transcript("mixed line ends", CHAT, mixed, &["Hello"]),
        transcript("byte order mark", CHAT, format!("\u{feff}{}", plain()), &["Hello"]),
        transcript("no blank line at the end", CHAT, plain().trim_end().to_owned(), &["Hello"]),
    ]
}

fn oddities() -> Vec<Transcript> {
    let comments = [
        ": OPENROUTER PROCESSING\n\n",
        ":\n\n",
        &role(0),
        "id: 7\nretry: 1000\n",
        &say(0, "ok"),
        ": keep-alive\n\n",
        "data\n\n",
        &end(0, "stop"),
        DONE,
    ];
    // The empty event is no JSON: it is counted, and the answer is whole all the same.
    let comments = comments.concat().replace("data\n\n", "");
    let lines = "data: {\"id\":\"c\",\ndata: \"choices\":[{\"index\":0,\ndata:\"delta\":{\
                 \"content\":\"lines\"},\"finish_reason\":\"stop\"}]}\n\n";
    let named =
        "event: completion.chunk\nid: 1\n".to_owned() + &say(0, "named") + &end(0, "stop") + DONE;
    let wide = ["a", "é", "漢", "🦀", "e\u{301}", "\u{200d}"];
    let unicode: String = wide.iter().map(|text| say(0, text)).collect();
    let failed = data(
        &json!({"error": {"message": "CUDA out of memory", "type": "server_error", "code": 500}}),
    );
    let after = ["data: {\"late\": true}\n\n", ": the connection stays open a little\n\n"].concat();
    let mut all = vec![
        transcript("comments and fields", CHAT, comments, &["ok"]),
        transcript("data in several lines", CHAT, lines.to_owned() + DONE, &["lines"]),
        transcript("named events", CHAT, named, &["named"]),
        transcript("UTF-8", CHAT, unicode + &end(0, "stop") + DONE, &[&wide.concat()]),
        transcript("no [DONE]", CHAT, plain().replace(DONE, ""), &["Hello"]),
        transcript("bytes after [DONE]", CHAT, plain() + &after, &["Hello"]),
        transcript("an error in the stream", CHAT, role(0) + &say(0, "par") + &failed, &["par"]),
    ];
    all.last_mut().unwrap().error = true;
    all
}

/// One event of 64 KB among short ones: too long for the cuts at every offset.
pub fn long_event() -> Transcript {
    let long = "long ".repeat(13_000);
    let text = [role(0), say(0, &long), end(0, "stop"), DONE.into()].concat();
    transcript("an event of 64 KB", CHAT, text, &[&long])
}

fn event(value: &Value) -> String {
    format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap_or_default())
}

fn anthropic() -> Vec<Transcript> {
    let start =
        event(&json!({"type": "message_start", "message": {"id": "msg_1", "type": "message",
        "role": "assistant", "model": "test", "content": [], "stop_reason": null,
        "usage": {"input_tokens": 5, "output_tokens": 1}}}));
    let block = |at: u32, block: Value| {
        event(&json!({"type": "content_block_start", "index": at, "content_block": block}))
    };
    let delta = |at: u32, delta: Value| {
        event(&json!({"type": "content_block_delta", "index": at, "delta": delta}))
    };
    let stop = |at: u32| event(&json!({"type": "content_block_stop", "index": at}));
    let end = |reason: &str| {
        event(&json!({"type": "message_delta", "usage": {"output_tokens": 4},
            "delta": {"stop_reason": reason, "stop_sequence": null}}))
            + &event(&json!({"type": "message_stop"}))
    };
    let ping = event(&json!({"type": "ping"}));
    let said = |text: &str| json!({"type": "text_delta", "text": text});
    let input = |text: &str| json!({"type": "input_json_delta", "partial_json": text});
    let text = [
        start.clone(),
        block(0, json!({"type": "text", "text": ""})),
        ping.clone(),
        delta(0, said("Gr")),
        delta(0, said("üezi")),
        stop(0),
        end("end_turn"),
    ];
    let tool = [
        start.clone(),
        block(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
        delta(0, json!({"type": "thinking_delta", "thinking": "hm"})),
        delta(0, json!({"type": "signature_delta", "signature": "EqQB"})),
        stop(0),
        block(1, json!({"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}})),
        delta(1, input("{\"city\":")),
        delta(1, input(" \"Bern\"}")),
        stop(1),
        end("tool_use"),
    ];
    let overloaded = json!({"type": "error",
        "error": {"type": "overloaded_error", "message": "Overloaded"}});
    let failed = [
        start,
        block(0, json!({"type": "text", "text": ""})),
        delta(0, said("par")),
        event(&overloaded),
    ];
    let mut all = vec![
        transcript("Anthropic text", MESSAGES, text.concat(), &["Grüezi"]),
        transcript("Anthropic thinking and tool", MESSAGES, tool.concat(), &[""]),
        transcript("Anthropic error", MESSAGES, failed.concat(), &["par"]),
    ];
    all.last_mut().unwrap().error = true;
    all
}

fn responses() -> Vec<Transcript> {
    let item = |content: Value, status: &str| {
        json!({"id": "msg_1", "type": "message", "role": "assistant", "status": status,
            "content": content})
    };
    let text = json!([{"type": "output_text", "text": "Salut", "annotations": []}]);
    let response = |status: &str, output: Value| {
        json!({"id": "resp_1", "object": "response", "model": "test", "status": status,
            "output": output,
            "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}})
    };
    let delta = |text: &str| {
        event(&json!({"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0,
            "content_index": 0, "delta": text}))
    };
    let stream = [
        event(&json!({"type": "response.created", "response": response("in_progress", json!([]))})),
        event(&json!({"type": "response.output_item.added", "output_index": 0,
            "item": item(json!([]), "in_progress")})),
        delta("Sal"),
        delta("ut"),
        event(&json!({"type": "response.output_item.done", "output_index": 0,
            "item": item(text.clone(), "completed")})),
        event(&json!({"type": "response.completed",
            "response": response("completed", json!([item(text, "completed")]))})),
    ];
    vec![transcript("Responses", RESPONSES, stream.concat(), &["Salut"])]
}
