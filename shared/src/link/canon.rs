//! Canonical forms of messages: two messages that mean the same to a model have the same bytes.
//!
//! * null, empty text, empty lists and objects, and absent keys are equal;
//! * a string and a list of text parts with the same text are equal;
//! * arguments of tool calls are compared as JSON, keys sorted; text that is no JSON as text;
//! * reasoning, annotations, log-probabilities and item ids are left out: most clients do not send
//!   them back.
//!
//! Invariant: fields are tagged and length-prefixed, so no two different messages share an
//! encoding.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use super::ASSISTANT_CHARS_MIN;

/// Keys that never take part in linking.
/// They come with an answer and are sent back by some clients only.
const IGNORED: [&str; 12] = [
    "reasoning",
    "reasoning_content",
    "thinking",
    "thinking_blocks",
    "items",
    "item_ids",
    "phase",
    "instructions",
    "annotations",
    "logprobs",
    "cache_control",
    "index",
];

/// The canonical bytes of a message.
pub fn canon(message: &Value) -> Vec<u8> {
    let text = message.get("content").and_then(Value::as_str).map_or(0, str::len);
    let mut out = Vec::with_capacity(64 + text);
    let Value::Object(fields) = message else {
        put(&mut out, "raw", json(message).as_bytes());
        return out;
    };
    // Sorted, so that the order of keys does not matter.
    let sorted: BTreeMap<&str, &Value> = fields.iter().map(|(k, v)| (k.as_str(), v)).collect();
    for (key, value) in sorted {
        if IGNORED.contains(&key) || is_empty(value) {
            continue;
        }
        match (key, value) {
            ("content", _) => match plain_text(value) {
                Some(text) if text.is_empty() => {}
                Some(text) => put(&mut out, "content", text.as_bytes()),
                None => put(&mut out, "parts", json(value).as_bytes()),
            },
            ("tool_calls", Value::Array(calls)) => {
                calls.iter().for_each(|call| put(&mut out, "call", &canon_call(call)));
            }
            // A spoken answer is sent back by its id only.
            ("audio", Value::Object(audio)) => {
                put(&mut out, "audio", json(audio.get("id").unwrap_or(&Value::Null)).as_bytes());
            }
            ("function_call", _) => put(&mut out, "function_call", &canon_function(value)),
            _ => put(&mut out, key, json(value).as_bytes()),
        }
    }
    out
}

/// The loose form of a message, and what it takes part in linking by.
pub(super) struct Loose {
    /// Role, folded text and tool calls.
    pub(super) bytes: Vec<u8>,
    /// Whether the text is long enough to say by itself which answer it is.
    pub(super) is_telling: bool,
}

impl Loose {
    /// `None` for system messages, which clients change freely.
    pub(super) fn of(message: &Value) -> Option<Self> {
        let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
        if matches!(role, "system" | "developer") {
            return None;
        }
        let text = loose_text(message);
        let mut out = Vec::with_capacity(64 + text.len());
        put(&mut out, "role", role.as_bytes());
        put(&mut out, "content", text.as_bytes());
        for call in message.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            put(&mut out, "call", &canon_call(call));
        }
        if let Some(call) = message.get("function_call").filter(|call| !is_empty(call)) {
            put(&mut out, "function_call", &canon_function(call));
        }
        let is_telling = text.chars().nth(ASSISTANT_CHARS_MIN - 1).is_some();
        Some(Self { bytes: out, is_telling })
    }
}

/// [`Loose::bytes`].
pub(super) fn canon_loose(message: &Value) -> Option<Vec<u8>> {
    Loose::of(message).map(|loose| loose.bytes)
}

/// The text of a message, folded, without a leading `<think>…</think>` block. Parts that are no
/// text stay as JSON.
pub fn loose_text(message: &Value) -> Cow<'_, str> {
    let content = message.get("content").unwrap_or(&Value::Null);
    let without_thoughts = |text: &str| {
        let trimmed = text.trim_start();
        let after = trimmed.strip_prefix("<think>").and_then(|rest| rest.split_once("</think>"));
        text.len() - after.map_or(trimmed, |(_, answer)| answer).len()
    };
    match plain_text(content).unwrap_or_else(|| Cow::Owned(json(content))) {
        Cow::Borrowed(text) => fold(text.get(without_thoughts(text)..).unwrap_or_default()),
        Cow::Owned(text) => {
            let rest = text.get(without_thoughts(&text)..).unwrap_or_default();
            Cow::Owned(fold(rest).into_owned())
        }
    }
}

/// White space runs become one space; none at the ends.
pub fn fold(text: &str) -> Cow<'_, str> {
    let text = text.trim();
    if is_folded(text.as_bytes()) {
        return Cow::Borrowed(text);
    }
    if text.is_ascii() {
        return Cow::Owned(fold_ascii(text.as_bytes()));
    }
    let mut folded = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !folded.is_empty() {
            folded.push(' ');
        }
        folded.push_str(word);
    }
    Cow::Owned(folded)
}

/// As [`fold`], byte by byte: what most texts with several lines are.
fn fold_ascii(text: &[u8]) -> String {
    let mut folded = Vec::with_capacity(text.len());
    for word in text.split(|byte| matches!(byte, 9..=13 | b' ')) {
        if !word.is_empty() {
            folded.extend_from_slice(if folded.is_empty() { b"" } else { b" " });
            folded.extend_from_slice(word);
        }
    }
    // It was ASCII before, so it is now.
    String::from_utf8(folded).unwrap_or_default()
}

/// Whether folding is certain to change nothing: most texts are so, and looking at bytes costs a
/// fiftieth of looking at words.
fn is_folded(text: &[u8]) -> bool {
    let edge = |byte: Option<&u8>| byte == Some(&b' ');
    // Other white space than the space: ASCII's, and what the lead bytes of all others begin.
    let other = |byte: &u8| matches!(byte, 9..=13 | 0xc2 | 0xe1..=0xe3);
    let two = |(a, b): (&u8, &u8)| *a == b' ' && *b == b' ';
    let pairs = text.iter().zip(text.iter().skip(1));
    // Without leaving early, and in bytes: so the compiler looks at sixteen at once.
    let odd = text.iter().fold(0u8, |odd, byte| odd | u8::from(other(byte)))
        | pairs.fold(0u8, |odd, pair| odd | u8::from(two(pair)));
    odd == 0 && !edge(text.first()) && !edge(text.last())
}

fn canon_call(call: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, "id", call.get("id").and_then(Value::as_str).unwrap_or_default().as_bytes());
    put(&mut out, "function", &canon_function(call.get("function").unwrap_or(&Value::Null)));
    let custom = call.get("custom").filter(|custom| !is_empty(custom));
    put(&mut out, "custom", custom.map(json).unwrap_or_default().as_bytes());
    out
}

fn canon_function(function: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    put(&mut out, "name", name.as_bytes());
    let arguments = match function.get("arguments") {
        Some(Value::String(text)) => match serde_json::from_str::<Value>(text) {
            Ok(parsed) => json(&parsed),
            Err(_) if text.trim().is_empty() => String::new(),
            Err(_) => text.clone(),
        },
        Some(value) if !is_empty(value) => json(value),
        _ => String::new(),
    };
    // No arguments and an empty object are the same call.
    let arguments = if arguments == "{}" { "" } else { &arguments };
    put(&mut out, "arguments", arguments.as_bytes());
    out
}

/// The text of a content: a string, or parts that are all text, joined.
fn plain_text(content: &Value) -> Option<Cow<'_, str>> {
    match content {
        Value::Null => Some(Cow::Borrowed("")),
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match (part, part.get("type").and_then(Value::as_str)) {
                (Value::String(text), _) => Some(text.as_str()),
                (_, None | Some("text" | "input_text" | "output_text")) => {
                    part.get("text").and_then(Value::as_str)
                }
                _ => None,
            })
            .collect::<Option<String>>()
            .map(Cow::Owned),
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn put(out: &mut Vec<u8>, tag: &str, bytes: &[u8]) {
    for part in [tag.as_bytes(), bytes] {
        out.extend_from_slice(&(part.len() as u64).to_le_bytes());
        out.extend_from_slice(part);
    }
}

/// JSON text with sorted keys and without cache marks; whole floats are written as integers, as
/// JavaScript does.
fn json(value: &Value) -> String {
    let mut out = String::new();
    write_json(value, &mut out);
    out
}

fn write_json(value: &Value, out: &mut String) {
    match value {
        Value::Array(list) => {
            out.push('[');
            for (at, item) in list.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_json(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(key, _)| key.as_str() != "cache_control");
            let sorted: BTreeMap<&str, &Value> = kept.map(|(k, v)| (k.as_str(), v)).collect();
            out.push('{');
            for (at, (key, item)) in sorted.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key).to_string());
                out.push(':');
                write_json(item, out);
            }
            out.push('}');
        }
        Value::Number(number) => match number.as_f64() {
            // Exact below 2^53.
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 9e15 => {
                out.push_str(&(float as i64).to_string());
            }
            _ => out.push_str(&number.to_string()),
        },
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_left_alone_is_what_folding_makes_of_it() {
        let slowly = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        for text in [
            "",
            " ",
            "a",
            "a b",
            " a",
            "a ",
            "a  b",
            "a\tb",
            "a\u{b}b",
            "a\nb",
            "\u{a0}",
            "a\u{85}b",
            "a\u{1680}b",
            "a\u{2003}b",
            "a\u{2028}b",
            "a\u{205f}b",
            "a\u{3000}b",
            "caf\u{e9} \u{1F44D}",
            "\u{4f60}\u{597d} a",
        ] {
            assert_eq!(fold(text), slowly(text), "{text:?}");
        }
        for c in (0..=0x10_ffff).filter_map(char::from_u32).filter(|c| c.is_whitespace()) {
            assert_eq!(fold(&format!("a{c}{c}b")), "a b", "{c:?}");
        }
    }
}
