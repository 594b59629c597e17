//! From a stored turn to token ids: the prompt as the engine saw it, and the reply.
//!
//! The prompt is the chat template over messages and tools with the generation prompt; legacy
//! completions are their raw text. A plain reply is its text's tokens plus the end token that the
//! template puts after an answer; a reply with tool calls is what the template renders for it.
//!
//! Invariant: a reply that was cut carries no end token, and none is ever appended to it.

use super::filter::Reason;
use crate::judge::exchange::{has_calls, text_of};
use hone_model::chat::{Asked, ChatError, ChatTemplate};
use hone_model::config::{ConfigError, ModelConfig};
use hone_model::tokenizer::{Tokenizer, TokenizerError};
use hone_shared::store::StoredTurn;
use serde_json::{Value, json};
use std::path::Path;

/// Why a model directory cannot be used for rendering.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `tokenizer.json`.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// No token ends a reply.
    #[error("the model names no end token (eos_token_id)")]
    NoEnd,
}

/// Tokenizer and template of the base model.
pub struct Renderer {
    /// Shapes and limits of the model.
    pub model: ModelConfig,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    end: u32,
}

/// Token ids of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The tokens, with the end token if it ended.
    pub tokens: Vec<u32>,
    /// It ended by itself and is whole.
    pub ended: bool,
}

impl Renderer {
    /// Reads a model directory.
    pub fn from_dir(dir: &Path) -> Result<Self, RenderError> {
        let model = ModelConfig::from_dir(dir)?;
        let tokenizer = Tokenizer::from_dir(dir)?;
        let template = ChatTemplate::from_dir(dir)?;
        let end = end_of_turn(&tokenizer, &template).ok_or(RenderError::NoEnd)?;
        Ok(Self { model, tokenizer, template, end })
    }

    /// Token ids that end a reply.
    pub fn eos(&self) -> &[u32] {
        self.tokenizer.eos_ids()
    }

    /// Token ids of the prompt; `path` tells chat from legacy completions.
    pub fn prompt(&self, path: &str, asked: &Asked<'_>) -> Result<Vec<u32>, Reason> {
        let text = if is_raw(path) {
            asked.messages.iter().map(text_of).collect()
        } else {
            self.chat(asked, true)?
        };
        let ids = self.tokenizer.encode(&text, true).map_err(|_| Reason::Unrenderable)?;
        if ids.is_empty() { Err(Reason::Unrenderable) } else { Ok(ids) }
    }

    /// Token ids of an answer, at most `tokens_max` of them.
    pub fn reply(
        &self,
        asked: &Asked<'_>,
        answer: &Value,
        finish_reason: Option<&str>,
        tokens_max: usize,
    ) -> Result<Reply, Reason> {
        if has_reasoning(answer) {
            return Err(Reason::ReasoningApart);
        }
        let mut tokens = if !has_calls(answer) {
            let text = text_of(answer);
            self.tokenizer.encode(&text, false).map_err(|_| Reason::Unrenderable)?
        } else {
            self.rendered_answer(asked, answer)?
        };
        let mut ended = matches!(finish_reason, Some("stop" | "tool_calls" | "function_call"));
        if ended {
            tokens.push(self.end);
        }
        if tokens.len() > tokens_max {
            tokens.truncate(tokens_max);
            ended = false;
        }
        Ok(Reply { tokens, ended })
    }

    /// The text of a reply's tokens, for logs and reports.
    pub fn text(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, true).unwrap_or_default()
    }

    /// The text of a prompt's tokens with its special tokens, for other trainers.
    pub fn whole_text(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, false).unwrap_or_default()
    }

    /// What the template renders for the answer, without the end token and what follows it.
    fn rendered_answer(&self, asked: &Asked<'_>, answer: &Value) -> Result<Vec<u32>, Reason> {
        let before = self.chat(asked, true)?;
        let mut all = asked.messages.to_vec();
        all.push(answer.clone());
        let after = self.chat(&Asked { messages: &all, ..*asked }, false)?;
        let said = after.strip_prefix(before.as_str()).ok_or(Reason::Unrenderable)?;
        let mut ids = self.tokenizer.encode(said, false).map_err(|_| Reason::Unrenderable)?;
        if let Some(at) = ids.iter().rposition(|id| *id == self.end) {
            ids.truncate(at);
        }
        Ok(ids)
    }

    fn chat(&self, asked: &Asked<'_>, generation_prompt: bool) -> Result<String, Reason> {
        self.template.render(asked, generation_prompt).map_err(|_| Reason::Unrenderable)
    }
}

/// What a turn's client asked, and when: the prompt that is trained is the one that was served,
/// on whatever day it is trained.
pub fn asked(turn: &StoredTurn) -> Asked<'_> {
    // Those that may not be called are not shown either.
    let shown = turn.params.get("tool_choice").and_then(Value::as_str) != Some("none");
    let tools = turn.params.get("tools").filter(|_| shown);
    Asked { messages: &turn.messages, tools, at_ms: turn.started_ms }
}

/// Legacy completions have no template.
fn is_raw(path: &str) -> bool {
    path.ends_with("/completions") && !path.ends_with("/chat/completions")
}

/// Where engines that take reasoning out of a reply put it, and hone's own readers of other APIs.
const REASONING: [&str; 5] =
    ["reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks"];

/// Whether the model also said something that is not in the text of its answer. The items of the
/// Responses API count too: their reasoning may be encrypted.
fn has_reasoning(answer: &Value) -> bool {
    let said = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    };
    let items = answer.get("items").and_then(Value::as_array);
    REASONING.iter().filter_map(|key| answer.get(key)).any(said)
        || items.is_some_and(|items| items.iter().any(|item| item["type"] == "reasoning"))
}

/// The end token that the template puts after an answer, or else the first that the model names.
fn end_of_turn(tokenizer: &Tokenizer, template: &ChatTemplate) -> Option<u32> {
    let user = json!({"role": "user", "content": "a"});
    let pair = [user, json!({"role": "assistant", "content": "b"})];
    let rendered = template.render(&Asked::undated(&pair), false).unwrap_or_default();
    let ids = tokenizer.encode(&rendered, false).unwrap_or_default();
    let ends = tokenizer.eos_ids();
    let last = ids.iter().rev().find(|id| ends.contains(id)).copied();
    last.or_else(|| ends.first().copied())
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
