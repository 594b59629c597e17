//! Finds tool calls in the model's text, whole or as it comes.
//!
//! Forms: `<tool_call>{…}</tool_call>` (several), `[TOOL_CALLS][…]`, `<|python_tag|>{…}`, and a
//! bare JSON object or array. mistral.rs 0.8.1 parses them too, but looks at each streamed delta by
//! itself (so a marker that is not one token is sent as text) and keeps the first call only.
//!
//! Invariant: text is either sent as content or becomes a call, never both, never neither; and a
//! call names a tool that the request offered.

use serde_json::Value;

use crate::text::partial_suffix;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const MARKERS: [&str; 3] = [OPEN, "[TOOL_CALLS]", "<|python_tag|>"];

/// One call that the model makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Unique within the process.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// The arguments, a JSON object as text.
    pub arguments: String,
}

/// Splits a reply into content and calls while it comes.
#[derive(Debug, Default)]
pub struct Scanner {
    names: Vec<String>,
    held: String,
    holding: bool,
    started: bool,
}

impl Scanner {
    /// Looks for calls of these tools; of none if the list is empty.
    pub fn new(names: Vec<String>) -> Self {
        Self { names, ..Self::default() }
    }

    /// Takes text, gives what is certainly content.
    pub fn push(&mut self, text: &str) -> String {
        if self.names.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        if self.holding {
            return String::new();
        }
        if !self.started {
            let trimmed = self.held.trim_start();
            if trimmed.is_empty() {
                return String::new();
            }
            if trimmed.starts_with(['{', '[']) {
                self.holding = true;
                return String::new();
            }
        }
        let marker = MARKERS.iter().filter_map(|marker| self.held.find(marker)).min();
        let keep = match marker {
            Some(at) => self.held.len() - at,
            None => partial_suffix(&self.held, MARKERS.into_iter()),
        };
        self.holding = marker.is_some();
        let tail = self.held.split_off(self.held.len() - keep);
        let content = std::mem::replace(&mut self.held, tail);
        self.started |= !content.trim().is_empty();
        content
    }

    /// Whether a bare JSON call stands complete, so that nothing useful can follow.
    pub fn complete(&self) -> bool {
        let bare = self.held.trim();
        self.holding
            && bare.ends_with(['}', ']'])
            && !calls_in(bare, &self.names).is_empty()
            && !bare.starts_with(OPEN)
    }

    /// The end: the calls, or the held text as content if it holds none.
    pub fn finish(&mut self) -> (String, Vec<Call>) {
        let held = std::mem::take(&mut self.held);
        if self.names.is_empty() || !self.holding {
            return (held, Vec::new());
        }
        let calls = calls_in(held.trim(), &self.names);
        if calls.is_empty() { (held, calls) } else { (String::new(), calls) }
    }
}

/// The calls in `text`, which begins with a marker or with JSON; none if any part is no call.
fn calls_in(text: &str, names: &[String]) -> Vec<Call> {
    let mut calls = Vec::new();
    if text.starts_with(OPEN) {
        for part in text.split(OPEN).skip(1) {
            let json = part.split(CLOSE).next().unwrap_or_default();
            if !read(json, names, &mut calls) {
                return Vec::new();
            }
        }
        return calls;
    }
    let json = MARKERS.iter().find_map(|marker| text.strip_prefix(marker)).unwrap_or(text);
    if read(json, names, &mut calls) { calls } else { Vec::new() }
}

fn read(json: &str, names: &[String], calls: &mut Vec<Call>) -> bool {
    // Small models go on talking after the call: the first JSON value counts.
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
    match values.next() {
        Some(Ok(Value::Array(list))) => {
            !list.is_empty() && list.iter().all(|value| take(value, names, calls))
        }
        Some(Ok(value)) => take(&value, names, calls),
        _ => false,
    }
}

fn take(value: &Value, names: &[String], calls: &mut Vec<Call>) -> bool {
    let value = if value["function"].is_object() { &value["function"] } else { value };
    let name = value["name"].as_str().or_else(|| value["function"].as_str());
    let Some(name) = name.filter(|name| names.iter().any(|known| known == name)) else {
        return false;
    };
    let arguments = match (&value["arguments"], &value["parameters"]) {
        (Value::Null, Value::Null) => "{}".to_owned(),
        (Value::String(text), _) | (Value::Null, Value::String(text)) => text.clone(),
        (Value::Null, object) | (object, _) => object.to_string(),
    };
    if serde_json::from_str::<serde_json::Map<String, Value>>(&arguments).is_err() {
        return false;
    }
    let id = format!("call_{}", uuid::Uuid::new_v4().simple());
    calls.push(Call { id, name: name.to_owned(), arguments });
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let mut scanner = Scanner::new(vec!["weather".into(), "time".into()]);
        let mut content: String = pieces.iter().map(|piece| scanner.push(piece)).collect();
        let (rest, calls) = scanner.finish();
        content.push_str(&rest);
        (content, calls.into_iter().map(|call| (call.name, call.arguments)).collect())
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn all_forms_are_understood() {
        let oslo = call("weather", r#"{"city":"Oslo"}"#);
        for text in [
            r#"{"name": "weather", "arguments": {"city": "Oslo"}}"#,
            r#"[{"name": "weather", "parameters": {"city": "Oslo"}}]"#,
            r#"[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}}]"#,
            r#"<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}"#,
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\":\"Oslo\"}}</tool_call>",
            r#"{"type":"function","function":{"name":"weather","arguments":{"city":"Oslo"}}}"#,
            r#"{"name": "weather", "arguments": "{\"city\":\"Oslo\"}"} And so on."#,
        ] {
            assert_eq!(scan(&[text]), (String::new(), vec![oslo.clone()]), "{text}");
        }
    }

    #[test]
    fn several_calls_and_the_text_before_them_are_kept() {
        let text = "Let me look.<tool_call>{\"name\":\"weather\",\"arguments\":{\"city\":\"Rome\"}}\
                    </tool_call>\n<tool_call>{\"name\":\"time\"}</tool_call>";
        let expected = vec![call("weather", r#"{"city":"Rome"}"#), call("time", "{}")];
        assert_eq!(scan(&[text]), ("Let me look.".to_owned(), expected.clone()));
        let pieces: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        assert_eq!(scan(&pieces), ("Let me look.".to_owned(), expected));
    }

    #[test]
    fn what_is_no_call_is_content() {
        for text in [
            "Plain words.",
            "{\"a\": 1}",
            "[1, 2, 3]",
            "{\"name\": \"unknown\", \"arguments\": {}}",
            "<tool_call>nonsense",
            "a < b <tool",
            "  ",
            "{",
        ] {
            assert_eq!(scan(&[text]), (text.to_owned(), vec![]), "{text}");
            let pieces: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(scan(&pieces).0, text, "{text}");
        }
    }

    #[test]
    fn without_tools_nothing_is_held_back() {
        let mut scanner = Scanner::default();
        assert_eq!(scanner.push("{\"name\":"), "{\"name\":");
    }

    #[test]
    fn a_complete_bare_call_ends_the_reply() {
        let mut scanner = Scanner::new(vec!["time".into()]);
        scanner.push("{\"name\": \"time\", \"arguments\": {\"a\": {}");
        assert!(!scanner.complete());
        scanner.push("}}");
        assert!(scanner.complete());
    }
}
