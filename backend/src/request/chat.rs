//! `POST /v1/chat/completions`: messages, tools and response formats.

use either::Either;
use hone_model::chat::normalise;
use indexmap::IndexMap;
use mistralrs::core::{MessageContent, RequestMessage, Tool};
use serde_json::{Map, Value, json};

use super::params::{ALTERNATIVES_MAX, Params, refuse};
use super::{Fields, Job, Limits, Prompt, wrong};
use crate::error::{ApiError, Code};

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// Reads a chat request.
///
/// # Errors
/// The first field that is missing, wrong or not served.
pub fn parse(body: &Map<String, Value>, limits: &Limits) -> Result<Job, ApiError> {
    let mut params = Params::read(body, limits)?;
    refuse(body, &["functions", "function_call", "audio", "web_search_options", "prediction"])?;
    let fields = Fields(body);
    let asked = fields.count("top_logprobs", 0, ALTERNATIVES_MAX)?;
    params.draw.alternatives = match (fields.flag("logprobs")?, asked) {
        (true, asked) => Some(asked.unwrap_or(0)),
        (false, Some(count)) if count > 0 => {
            return Err(ApiError::value("top_logprobs", "`top_logprobs` needs `logprobs`: true."));
        }
        (false, _) => None,
    };
    let messages = messages(&fields, limits.tells_calls)?;
    let (tools, callable, forced) = tools(&fields)?;
    let schema = match (response_schema(&fields)?, forced) {
        (Some(_), Some(_)) => {
            let message = "`response_format` and a forced `tool_choice` exclude each other.";
            return Err(ApiError::value("response_format", message));
        }
        (schema, forced) => schema.or(forced),
    };
    Ok(Job {
        model: params.model,
        adapter: body.get("adapter").cloned().unwrap_or_default(),
        prompts: vec![Prompt::Chat(RequestMessage::Chat {
            messages,
            enable_thinking: None,
            reasoning_effort: None,
        })],
        n: params.n,
        tokens_max: params.tokens_max,
        draw: params.draw,
        stops: params.stops,
        tools,
        callable,
        schema,
        stream: params.stream,
        include_usage: params.include_usage,
    })
}

type Message = IndexMap<String, MessageContent>;

fn messages(fields: &Fields, tells_calls: bool) -> Result<Vec<Message>, ApiError> {
    let list = match fields.get("messages") {
        None => return Err(ApiError::value("messages", "`messages` is missing.")),
        Some(Value::Array(list)) if list.is_empty() => {
            return Err(ApiError::value("messages", "`messages` must not be empty."));
        }
        Some(Value::Array(list)) => list,
        Some(value) => return Err(wrong("messages", "an array", value)),
    };
    list.iter()
        .enumerate()
        .map(|(index, value)| {
            let place = format!("messages[{index}]");
            let map = value.as_object().ok_or_else(|| wrong(&place, "an object", value))?;
            message(map, &place, &normalise(value, tells_calls))
        })
        .collect()
}

/// Checks a message and makes it what the template sees: `shown` is its normal form, the one that
/// the trainer renders too, so that it learns from exactly the prompt that was served.
fn message(map: &Map<String, Value>, place: &str, shown: &Value) -> Result<Message, ApiError> {
    let role = map.get("role").and_then(Value::as_str).filter(|role| ROLES.contains(role));
    if role.is_none() {
        let name = format!("{place}.role");
        let message = format!("`{name}` must be one of {}.", ROLES.join(", "));
        return Err(ApiError::value(&name, message));
    }
    check_content(map.get("content"), &format!("{place}.content"))?;
    let calls = map.get("tool_calls").filter(|calls| !calls.is_null());
    if map.get("content").is_none_or(Value::is_null) && calls.is_none() {
        let name = format!("{place}.content");
        return Err(ApiError::value(&name, format!("`{name}` is missing.")));
    }
    let mut message = Message::new();
    for key in ["role", "content"] {
        let text = shown[key].as_str().unwrap_or_default();
        message.insert(key.to_owned(), Either::Left(text.to_owned()));
    }
    for key in ["name", "tool_call_id"] {
        if let Some(text) = Fields(map).text(key)? {
            message.insert(key.to_owned(), Either::Left(text.to_owned()));
        }
    }
    if let Some(calls) = calls {
        let calls = tool_calls(calls, &format!("{place}.tool_calls"))?;
        message.insert("tool_calls".to_owned(), Either::Right(calls));
    }
    Ok(message)
}

/// Refuses content that is neither text nor a list of text parts.
fn check_content(value: Option<&Value>, place: &str) -> Result<(), ApiError> {
    let parts = match value {
        None | Some(Value::Null | Value::String(_)) => return Ok(()),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(wrong(place, "a string or an array of parts", other)),
    };
    for (index, part) in parts.iter().enumerate() {
        match part["type"].as_str() {
            Some("text" | "input_text") if part["text"].is_string() => {}
            Some("refusal") if part["refusal"].is_string() => {}
            Some("text" | "input_text" | "refusal") => {
                return Err(wrong(&format!("{place}[{index}].text"), "a string", part));
            }
            Some(other) => {
                let message = format!("`{place}[{index}]`: this model reads text, not {other}.");
                return Err(ApiError::of(Code::Unsupported, place, message));
            }
            None => return Err(wrong(&format!("{place}[{index}]"), "a part with a `type`", part)),
        }
    }
    Ok(())
}

/// Calls as templates want them: the arguments an object, not text.
fn tool_calls(value: &Value, place: &str) -> Result<Vec<IndexMap<String, Value>>, ApiError> {
    let list = value.as_array().ok_or_else(|| wrong(place, "an array", value))?;
    list.iter()
        .map(|call| match hone_model::chat::call(call) {
            Value::Object(fields) => Ok(fields.into_iter().collect()),
            other => Err(wrong(place, "an array of objects", &other)),
        })
        .collect()
}

/// The tools to show, the names whose calls are looked for, and the schema of a forced call.
type Tools = (Vec<Tool>, Vec<String>, Option<Value>);

fn tools(fields: &Fields) -> Result<Tools, ApiError> {
    let list = match fields.get("tools") {
        None => return Ok((Vec::new(), Vec::new(), None)),
        Some(Value::Array(list)) => list,
        Some(value) => return Err(wrong("tools", "an array", value)),
    };
    let mut tools = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let tool: Tool = serde_json::from_value(value.clone()).map_err(|error| {
            ApiError::value(format!("tools[{index}]"), format!("`tools[{index}]`: {error}."))
        })?;
        tools.push(tool);
    }
    let names: Vec<String> = tools.iter().map(|tool| tool.function.name.clone()).collect();
    let choice = fields.get("tool_choice");
    if tools.is_empty() || choice.and_then(Value::as_str) == Some("none") {
        return Ok((Vec::new(), Vec::new(), None));
    }
    let forced: Vec<&Tool> = match choice {
        None => Vec::new(),
        Some(Value::String(word)) if word == "auto" => Vec::new(),
        Some(Value::String(word)) if word == "required" => tools.iter().collect(),
        Some(choice) => {
            let name = choice["function"]["name"].as_str();
            let tool = tools.iter().find(|tool| Some(tool.function.name.as_str()) == name);
            vec![tool.ok_or_else(|| {
                let form = "`tool_choice` must be none, auto, required, or a function of `tools`.";
                ApiError::value("tool_choice", form)
            })?]
        }
    };
    let schema = (!forced.is_empty()).then(|| {
        let calls: Vec<Value> = forced.iter().map(|tool| call_schema(tool)).collect();
        if calls.len() == 1 { calls[0].clone() } else { json!({"anyOf": calls}) }
    });
    Ok((tools, names, schema))
}

fn call_schema(tool: &Tool) -> Value {
    let arguments = match &tool.function.parameters {
        Some(parameters) => json!(parameters),
        None => json!({"type": "object"}),
    };
    json!({
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": false,
    })
}

fn response_schema(fields: &Fields) -> Result<Option<Value>, ApiError> {
    let Some(format) = fields.get("response_format") else { return Ok(None) };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(json!({"type": "object"}))),
        Some("json_schema") => match &format["json_schema"]["schema"] {
            schema @ Value::Object(_) => Ok(Some(schema.clone())),
            other => Err(wrong("response_format.json_schema.schema", "an object", other)),
        },
        _ => {
            let message = "`response_format.type` must be text, json_object or json_schema.";
            Err(ApiError::value("response_format", message))
        }
    }
}
