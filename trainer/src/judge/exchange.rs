//! What a judge sees of a turn: request, answer, and *all* of the next state.
//!
//! Invariant: every text in here was written by clients, tools or the model. It is data to be
//! judged and never an instruction to the judge.

use hone_shared::store::JudgeItem;
use serde_json::Value;

/// One turn and what happened next.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// The request's messages.
    pub messages: Vec<Value>,
    /// The answer that the next request continued.
    pub answer: Value,
    /// Why generation ended, as the engine said.
    pub finish_reason: Option<String>,
    /// What the next request adds after the answer.
    pub next_state: Vec<Value>,
}

impl Exchange {
    /// Takes the choice that the child continued; `None` when the turn has no such choice.
    pub fn of(item: &JudgeItem, choice: u32) -> Option<Self> {
        let choices = &item.turn.choices;
        let chosen = choices.iter().find(|c| c.index == choice).or(match choices.as_slice() {
            [only] => Some(only),
            _ => None,
        })?;
        Some(Self {
            messages: item.turn.messages.clone(),
            answer: chosen.message.clone(),
            finish_reason: chosen.finish_reason.clone(),
            next_state: item.next_state.clone(),
        })
    }

    /// The answer's text.
    pub fn answer_text(&self) -> String {
        text_of(&self.answer)
    }

    /// Whether generation was cut at the token limit.
    pub fn truncated(&self) -> bool {
        self.finish_reason.as_deref() == Some("length")
    }
}

/// Role of a message, empty if it has none.
pub fn role_of(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

/// Text of a message: a string, or the text parts of a list joined by line breaks.
pub fn text_of(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|p| p.get("text").and_then(Value::as_str));
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// Whether a message calls a tool.
pub fn has_calls(message: &Value) -> bool {
    let calls = message.get("tool_calls").and_then(Value::as_array);
    calls.is_some_and(|calls| !calls.is_empty())
}

/// The same value with object keys in order, so that equal arguments have equal text.
pub(super) fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            entries.into_iter().map(|(k, v)| (k.clone(), sorted(v))).collect()
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_is_found_in_strings_and_in_parts() {
        assert_eq!(text_of(&json!({"content": "a"})), "a");
        let parts = json!({"content": [{"type": "text", "text": "a"}, {"type": "image_url"},
            {"type": "text", "text": "b"}]});
        assert_eq!(text_of(&parts), "a\nb");
        assert_eq!(text_of(&json!({"content": null})), "");
    }
}
