//! Calls of an answer, and which message of the next state answers which.
//!
//! A call is a tool call, or an action that the answer states as text: one fenced shell block, or one
//! line such as `click(7)`.
//!
//! Invariant: each result belongs to at most one call; a result that names an unknown call is kept
//! and belongs to none.

use super::super::exchange::{role_of, sorted, text_of};
use regex::Regex;
use serde_json::Value;
use std::borrow::Cow;
use std::sync::LazyLock;

/// Calls of one answer that are looked at.
const CALLS_MAX: usize = 64;
/// Bytes of an answer's text in which an action is looked for.
const ACTION_BYTES_MAX: usize = 16 * 1024;

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call<'a> {
    /// The id that results name; empty where there is none.
    pub id: &'a str,
    /// The tool, the shell, or the action.
    pub name: &'a str,
    /// Arguments as they were written.
    pub arguments: Cow<'a, str>,
    command: Option<String>,
}

static BLOCK: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?s)```(?:sh|bash|shell|console|zsh)\s*\n(.*?)\n?```").ok());
static ACTION: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?m)\A\s*([a-z_]{2,24})\(([^\n]{0,400})\)").ok());

impl<'a> Call<'a> {
    fn tool(call: &'a Value) -> Option<Self> {
        let function = call.get("function")?;
        let name = function.get("name")?.as_str()?;
        let arguments = match function.get("arguments") {
            Some(Value::String(text)) => Cow::Borrowed(text.as_str()),
            Some(other) => Cow::Owned(other.to_string()),
            None => Cow::Borrowed(""),
        };
        let id = call.get("id").and_then(Value::as_str).unwrap_or_default();
        let command = command_of(&arguments);
        Some(Self { id, name, arguments, command })
    }

    fn stated(answer: &'a Value) -> Option<Self> {
        let Some(Value::String(text)) = answer.get("content") else { return None };
        if text.len() > ACTION_BYTES_MAX {
            return None;
        }
        if let Some(call) = Self::from_object(text) {
            return Some(call);
        }
        if text.contains("```") {
            let mut blocks = BLOCK.as_ref()?.captures_iter(text);
            let block = blocks.next()?.get(1)?.as_str().trim();
            if blocks.next().is_some() {
                return None;
            }
            let command = Some(block.to_owned());
            return Some(Self { id: "", name: "sh", arguments: Cow::Borrowed(block), command });
        }
        let action = ACTION.as_ref()?.captures(text)?;
        let (name, arguments) = (action.get(1)?.as_str(), action.get(2)?.as_str());
        Some(Self { id: "", name, arguments: Cow::Borrowed(arguments), command: None })
    }

    /// An answer that is one JSON object, as agents with a constrained format give it:
    /// `{"action": "click Save #2"}`, `{"command": "ls"}`, `{"search": "…", "replace": "…"}`.
    fn from_object(text: &'a str) -> Option<Self> {
        let trimmed = text.trim();
        if !(trimmed.starts_with('{') && trimmed.ends_with('}')) {
            return None;
        }
        let object: Value = serde_json::from_str(trimmed).ok()?;
        let arguments = Cow::Borrowed(trimmed);
        let is_text = |key: &str| object.get(key).is_some_and(Value::is_string);
        if is_text("search") && is_text("replace") {
            return Some(Self { id: "", name: "search_replace", arguments, command: None });
        }
        if let Some(command) = command_of(trimmed) {
            return Some(Self { id: "", name: "sh", arguments, command: Some(command) });
        }
        let action = object.get("action").and_then(Value::as_str)?;
        let name = action.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()?;
        // The name as it stands in the answer's own text, which outlives the parsed object.
        let at = trimmed.find(name).filter(|_| !name.is_empty())?;
        let name = trimmed.get(at..at + name.len())?;
        Some(Self { id: "", name, arguments, command: None })
    }

    /// The command line, where the call runs one.
    pub fn command(&self) -> Option<&str> {
        self.command.as_deref()
    }

    /// Whether the answer was one JSON object and no tool call.
    pub fn is_framed(&self) -> bool {
        self.id.is_empty() && self.name != "sh" && self.arguments.starts_with('{')
    }

    /// Whether the arguments of a tool call are cut off or no JSON at all.
    pub fn has_broken_arguments(&self) -> bool {
        let begun = !self.is_framed() && self.arguments.trim_start().starts_with(['{', '[']);
        begun && serde_json::from_str::<Value>(&self.arguments).is_err()
    }

    /// What patterns see: the command, or name and arguments.
    pub fn text(&self) -> Cow<'_, str> {
        match self.command() {
            Some(command) => Cow::Borrowed(command),
            None => Cow::Owned(format!("{} {}", self.name, self.canonical())),
        }
    }

    /// Arguments with their keys in order and no space between.
    fn canonical(&self) -> Cow<'_, str> {
        match serde_json::from_str::<Value>(&self.arguments) {
            Ok(parsed) => Cow::Owned(sorted(&parsed).to_string()),
            Err(_) => Cow::Borrowed(self.arguments.trim()),
        }
    }

    /// Whether both do the same.
    pub fn same_as(&self, other: &Call<'_>) -> bool {
        self.name == other.name
            && (self.arguments == other.arguments
                || match (self.command(), other.command()) {
                    (Some(a), Some(b)) => a.split_whitespace().eq(b.split_whitespace()),
                    _ => self.canonical() == other.canonical(),
                })
    }
}

/// The command line among the arguments of a shell tool.
fn command_of(arguments: &str) -> Option<String> {
    const KEYS: [&str; 5] = ["command", "cmd", "commands", "script", "bash_command"];
    if !KEYS.iter().any(|key| arguments.contains(key)) {
        return None;
    }
    let parsed: Value = serde_json::from_str(arguments).ok()?;
    let value = KEYS.iter().find_map(|key| parsed.get(key))?;
    match value {
        Value::String(text) => Some(text.clone()),
        // Codex: ["bash", "-lc", "…"].
        Value::Array(parts) => {
            let words: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
            Some(match words.as_slice() {
                [_, "-c" | "-lc", script] => (*script).to_owned(),
                words => words.join(" "),
            })
        }
        _ => None,
    }
}

/// The calls of an assistant's message.
pub fn of_answer(answer: &Value) -> Vec<Call<'_>> {
    let calls = answer.get("tool_calls").and_then(Value::as_array);
    let called: Vec<_> =
        calls.into_iter().flatten().filter_map(Call::tool).take(CALLS_MAX).collect();
    if called.is_empty() { Call::stated(answer).into_iter().collect() } else { called }
}

/// The tool messages among `messages` with the call that each answers, in the order of the calls:
/// by id; those without a known id take the calls that have no result yet, in order, unless they
/// name an id.
pub fn results<'m>(calls: &[Call<'_>], messages: &'m [Value]) -> Vec<(Option<usize>, &'m Value)> {
    let tools = messages.iter().filter(|m| matches!(role_of(m), "tool" | "function"));
    let id_of = |m: &'m Value| m.get("tool_call_id").and_then(Value::as_str).unwrap_or_default();
    let mut found: Vec<(Option<usize>, &Value)> = tools
        .map(|m| {
            let id = id_of(m);
            (calls.iter().position(|call| !id.is_empty() && call.id == id), m)
        })
        .collect();
    let mut free: Vec<usize> =
        (0..calls.len()).filter(|at| !found.iter().any(|(call, _)| *call == Some(*at))).collect();
    free.reverse();
    for (call, message) in &mut found {
        if call.is_none() && (id_of(message).is_empty() || calls.iter().all(|c| c.id.is_empty())) {
            *call = free.pop();
        }
    }
    found.sort_by_key(|(call, _)| call.unwrap_or(usize::MAX));
    found
}

/// The text of a message that answers a call, for comparing two of them: without durations, which
/// differ from run to run.
pub fn comparable(text: &str) -> String {
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let digits = bare.trim_end_matches("ms").trim_end_matches('s');
        let is_time = digits.len() < bare.len()
            && !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if !is_time {
            words.push(word);
        }
    }
    words.join(" ")
}

/// The texts of a step's results in order of its calls.
pub fn texts(calls: &[Call<'_>], messages: &[Value]) -> Vec<Option<String>> {
    let mut texts = vec![None; calls.len()];
    for (call, message) in results(calls, messages) {
        if let Some(slot) = call.and_then(|at| texts.get_mut(at)) {
            *slot = Some(text_of(message));
        }
    }
    texts
}
