//! What of a request a chat template gets to see, in the engine and in the trainer alike: the messages,
//! calls and tools as mistral.rs 0.8.1 hands them over.
//!
//! Invariant: two requests that differ only in what the engine does not show render alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ChatError;

/// Fields of a message that templates see, beside its role, content and calls.
const TEXTS: [&str; 2] = ["name", "tool_call_id"];
/// Tools that Llama 3 and GPT-OSS have built in, by name.
const BUILTIN: [&str; 6] =
    ["browser", "python", "code_interpreter", "web_search", "brave_search", "wolfram_alpha"];

/// A tool: these fields, in this order, and no others. A missing description is `null`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tool {
    #[serde(rename = "type")]
    kind: Kind,
    function: Function,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Function,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Function {
    description: Option<String>,
    name: String,
    #[serde(alias = "arguments")]
    parameters: Option<BTreeMap<String, Value>>,
}

/// A request's `tools`. Errors: the engine would have refused them.
pub(super) fn tools(value: &Value) -> Result<Vec<Tool>, ChatError> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    Vec::deserialize(value).map_err(|error| ChatError::Template(format!("tools: {error}")))
}

/// Names of those that models have built in.
pub(super) fn builtin(tools: &[Tool]) -> Vec<&str> {
    let names = tools.iter().map(|tool| tool.function.name.as_str());
    names.filter(|name| BUILTIN.contains(name)).collect()
}

/// A call as templates want it: the arguments an object, not text.
#[must_use]
pub fn call(call: &Value) -> Value {
    let mut call = call.clone();
    if let Some(function) = call.get_mut("function").and_then(Value::as_object_mut)
        && let Some(Value::String(text)) = function.get("arguments")
        && let Ok(object @ Value::Object(_)) = serde_json::from_str(text)
    {
        function.insert("arguments".to_owned(), object);
    }
    call
}

/// A message as templates see it. Content is a string. `developer`, OpenAI's newer word, becomes
/// `system`. Text parts are joined by line breaks. A message that only calls tools gets an empty
/// content where the template renders `tool_calls` (`tells_calls`), else the calls as JSON, which is
/// all that such a template could show.
#[must_use]
pub fn normalise(message: &Value, tells_calls: bool) -> Value {
    let role = match message.get("role").and_then(Value::as_str) {
        Some("developer") => "system",
        role => role.unwrap_or_default(),
    };
    let calls = message.get("tool_calls").and_then(Value::as_array);
    let content = match (message.get("content"), calls) {
        (Some(Value::String(text)), _) => text.clone(),
        (Some(Value::Array(parts)), _) => {
            let text = |part: &Value| {
                let text = part.get("text").or_else(|| part.get("refusal"));
                text.and_then(Value::as_str).map(str::to_owned)
            };
            parts.iter().filter_map(text).collect::<Vec<_>>().join("\n")
        }
        (_, Some(calls)) if !tells_calls => {
            let functions: Vec<_> = calls.iter().filter_map(|c| c.get("function")).collect();
            serde_json::to_string(&functions).unwrap_or_default()
        }
        _ => String::new(),
    };
    let mut shown = Map::new();
    shown.insert("role".to_owned(), role.into());
    shown.insert("content".to_owned(), content.into());
    for key in TEXTS {
        if let Some(text @ Value::String(_)) = message.get(key) {
            shown.insert(key.to_owned(), text.clone());
        }
    }
    if let Some(calls) = calls {
        shown.insert("tool_calls".to_owned(), calls.iter().map(call).collect());
    }
    Value::Object(shown)
}
