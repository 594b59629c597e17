//! `[llm]`: what a model is asked where the rules are silent.
//!
//! Invariant: text of a conversation cannot close its fence: the fence is a hash that depends on
//! that text.

use serde::Deserialize;

use crate::policy::PolicyError;
use crate::policy::limits::Checker;

/// What a model is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct LlmJudge {
    /// Whether a model is asked at all where the rules are silent.
    pub enabled: bool,
    /// Base URL of an OpenAI-compatible API; `None` = the engine, base model.
    pub endpoint: Option<String>,
    /// Model name; `None` = the first that the endpoint lists.
    pub model: Option<String>,
    /// Environment variable that holds the API key.
    pub api_key_env: Option<String>,
    /// Votes asked for.
    pub votes: usize,
    /// Readable votes needed; fewer mean verdict 0.
    pub votes_valid_min: usize,
    /// Sampling temperature.
    pub temperature: f64,
    /// Tokens of one vote.
    pub tokens_max: usize,
    /// Milliseconds after which a vote is lost.
    pub timeout_ms: u64,
    /// Repeats of a vote that met a busy or failing endpoint.
    pub retries_max: usize,
    /// Characters of request, answer and next state each that are shown.
    pub piece_chars_max: usize,
    /// Characters of the history that are shown.
    pub history_chars_max: usize,
    /// Tokens per hour; 0 = unlimited.
    pub tokens_per_hour_max: usize,
    /// Tokens in 24 hours; 0 = unlimited.
    pub tokens_per_day_max: usize,
    /// Turns of a route in the model's queue; more stay in the store until there is room.
    pub waiting_max: usize,
    /// Answers kept for the same question; 0 = none.
    pub answers_kept_max: usize,
    /// The prompt, with `{request} {history} {answer} {next_state} {fence}`.
    pub prompt: String,
}

/// Placeholders of the judge's prompt; the first four hold untrusted text.
const PLACEHOLDERS: [&str; 5] = ["{request}", "{history}", "{answer}", "{next_state}", "{fence}"];

impl LlmJudge {
    /// The prompt for one turn. Placeholders are replaced in one pass, so text that looks like one
    /// stays text; `{fence}` becomes 16 hex digits that depend on all four texts, so none of them
    /// can contain it on purpose.
    pub fn render(&self, request: &str, history: &str, answer: &str, next_state: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        for text in [request, history, answer, next_state] {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        let fence: String = hasher.finalize().to_hex().chars().take(16).collect();
        let values = [request, history, answer, next_state, fence.as_str()];
        let mut rendered = String::with_capacity(self.prompt.len() + 1024);
        let mut rest = self.prompt.as_str();
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            rendered.push_str(before);
            let known = PLACEHOLDERS.iter().zip(values).find(|(name, _)| from.starts_with(**name));
            let (text, used) = known.map_or(("{", 1), |(name, value)| (value, name.len()));
            rendered.push_str(text);
            rest = from.get(used..).unwrap_or_default();
        }
        rendered.push_str(rest);
        rendered
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLlm {
    enabled: Option<bool>,
    endpoint: Option<String>,
    model: Option<String>,
    api_key_env: Option<String>,
    votes: Option<f64>,
    votes_valid_min: Option<f64>,
    temperature: Option<f64>,
    tokens_max: Option<f64>,
    timeout_ms: Option<f64>,
    retries_max: Option<f64>,
    piece_chars_max: Option<f64>,
    history_chars_max: Option<f64>,
    tokens_per_hour_max: Option<f64>,
    tokens_per_day_max: Option<f64>,
    waiting_max: Option<f64>,
    answers_kept_max: Option<f64>,
    #[serde(default)]
    prompt: String,
}

impl RawLlm {
    pub(super) fn check(self, check: &Checker<'_>) -> Result<LlmJudge, PolicyError> {
        let Some(enabled) = self.enabled else {
            let allowed = "true or false, here or in the judge that it extends".to_owned();
            return Err(check.refuse("llm.enabled", "missing", allowed));
        };
        let needed = ["{answer}", "{next_state}"];
        // One that is written down is checked, for `hone judge eval --llm` asks by it.
        let is_used = enabled || !self.prompt.is_empty();
        if is_used && needed.iter().any(|name| !self.prompt.contains(name)) {
            let allowed =
                format!("a text with {}; also {}", needed.join(", "), PLACEHOLDERS.join(" "));
            return Err(check.refuse("llm.prompt", "missing a placeholder", allowed));
        }
        if let Some(endpoint) = &self.endpoint
            && !endpoint.starts_with("http://")
            && !endpoint.starts_with("https://")
        {
            let allowed =
                "a URL such as http://127.0.0.1:8000/v1, or no endpoint at all for the engine";
            return Err(check.refuse(
                "llm.endpoint",
                &format!("\"{endpoint}\""),
                allowed.to_owned(),
            ));
        }
        let judge = LlmJudge {
            enabled,
            endpoint: self.endpoint,
            model: self.model,
            api_key_env: self.api_key_env,
            votes: check.count("judge.llm.votes", self.votes)?,
            votes_valid_min: check.count("judge.llm.votes_valid_min", self.votes_valid_min)?,
            temperature: check.real("judge.llm.temperature", self.temperature)?,
            tokens_max: check.count("judge.llm.tokens_max", self.tokens_max)?,
            timeout_ms: check.long("judge.llm.timeout_ms", self.timeout_ms)?,
            retries_max: check.count("judge.llm.retries_max", self.retries_max)?,
            piece_chars_max: check.count("judge.llm.piece_chars_max", self.piece_chars_max)?,
            history_chars_max: check
                .count("judge.llm.history_chars_max", self.history_chars_max)?,
            tokens_per_hour_max: check
                .count("judge.llm.tokens_per_hour_max", self.tokens_per_hour_max)?,
            tokens_per_day_max: check
                .count("judge.llm.tokens_per_day_max", self.tokens_per_day_max)?,
            waiting_max: check.count("judge.llm.waiting_max", self.waiting_max)?,
            answers_kept_max: check.count("judge.llm.answers_kept_max", self.answers_kept_max)?,
            prompt: self.prompt,
        };
        let (min, votes) = (judge.votes_valid_min as f64, judge.votes as f64);
        check.ordered(("llm.votes_valid_min", min), ("llm.votes", votes))?;
        Ok(judge)
    }
}
