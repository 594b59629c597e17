//! `judges/<name>.toml`: how a turn is judged by what happened next.
//!
//! Rules first: regular expressions over the user's words and the tools' output. Where they are
//! silent, an LLM is asked; its prompt holds the conversation as fenced data. Hints come from the
//! user's own words or from the LLM.
//!
//! Invariant: text of a conversation cannot close its fence: the fence is a hash that depends on
//! that text.

use std::fmt;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use super::limits::Checker;
use super::{PolicyError, parse_toml, short_hash};

/// Most patterns of one kind.
const PATTERNS_MAX: usize = 200;
/// Compiled size of one pattern, bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// Most bytes of one text that rules look at: corrections stand at the beginning, errors at either
/// end.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// A checked judge.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgePolicy {
    /// Name: the file's name without `.toml`.
    pub name: String,
    /// Hash of the file: verdicts say by which version they were made.
    pub version: String,
    /// What is decided without a model.
    pub rules: Rules,
    /// What a model is asked.
    pub llm: LlmJudge,
    /// Where hints come from.
    pub hint: HintPolicy,
}

/// A regular expression: case-insensitive, `^` and `$` at line ends, matched in linear time.
#[derive(Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles an expression. Error: what the compiler says.
    pub fn new(source: &str) -> Result<Self, String> {
        let mut builder = RegexBuilder::new(source);
        builder.case_insensitive(true).multi_line(true).size_limit(PATTERN_BYTES_MAX);
        builder.build().map(Self).map_err(|error| error.to_string())
    }

    /// Whether it occurs in a text.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// The expression as written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

/// What is decided without a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// In a user's next message: the answer was not right. Wins over `approval`.
    pub correction: Vec<Pattern>,
    /// In a user's next message: the answer was right.
    pub approval: Vec<Pattern>,
    /// In a tool result: the call failed.
    pub tool_error: Vec<Pattern>,
    /// Whether a non-zero exit code in a tool result is negative.
    pub exit_code: bool,
    /// Identical tool calls in a row that are still fine.
    pub repeat_calls_max: usize,
    /// Whether an answer that was cut at its token limit is negative.
    pub truncated_is_negative: bool,
}

/// What a rule found in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleHit<'a> {
    /// +1 or −1.
    pub verdict: i8,
    /// `correction`, `approval`, `tool_error` or `exit_code`; a verdict's source is `rule:<this>`.
    pub rule: &'static str,
    /// The expression that matched, or `exit code N`.
    pub reason: &'a str,
}

impl Rules {
    /// What a user's next message says about the answer before it; `None` when the rules are
    /// silent. A correction inside an approval ("thanks, but shorter please") is a correction.
    pub fn judge_user(&self, text: &str) -> Option<RuleHit<'_>> {
        let correction = first_match(&self.correction, text);
        if let Some(reason) = correction {
            return Some(RuleHit { verdict: -1, rule: "correction", reason });
        }
        let reason = first_match(&self.approval, text)?;
        Some(RuleHit { verdict: 1, rule: "approval", reason })
    }

    /// What a tool's output says about the call; `None` when the rules are silent. An exit code
    /// decides alone: a command that succeeded may well print the word "error".
    pub fn judge_tool(&self, text: &str) -> Option<RuleHit<'_>> {
        match self.exit_code.then(|| exit_code(text)).flatten() {
            Some(0) => Some(RuleHit { verdict: 1, rule: "exit_code", reason: "exit code 0" }),
            Some(_) => {
                Some(RuleHit { verdict: -1, rule: "exit_code", reason: "exit code is not 0" })
            }
            None => {
                let reason = first_match(&self.tool_error, text)?;
                Some(RuleHit { verdict: -1, rule: "tool_error", reason })
            }
        }
    }
}

fn first_match<'a>(patterns: &'a [Pattern], text: &str) -> Option<&'a str> {
    let parts = ends(text);
    let found = patterns.iter().find(|p| parts.iter().any(|part| p.is_match(part)));
    found.map(Pattern::as_str)
}

/// The beginning and the end of a text, together at most [`TEXT_BYTES_MAX`]; the whole of a short
/// one.
fn ends(text: &str) -> [&str; 2] {
    if text.len() <= TEXT_BYTES_MAX {
        return [text, ""];
    }
    let head = (0..=TEXT_BYTES_MAX / 2).rev().find_map(|at| text.get(..at));
    let tail = (text.len() - TEXT_BYTES_MAX / 2..text.len()).find_map(|at| text.get(at..));
    [head.unwrap_or_default(), tail.unwrap_or_default()]
}

/// The last `exit code N`, `exit_code: N`, `"exitCode": N`, `exited with status N` of a text.
fn exit_code(text: &str) -> Option<i64> {
    let [head, tail] = ends(text);
    let part = if tail.is_empty() { head } else { tail };
    let lower = part.to_ascii_lowercase();
    let mut found = None;
    for (at, _) in lower.match_indices("exit") {
        let rest = lower.get(at + 4..).unwrap_or_default();
        let rest = rest.strip_prefix("ed").unwrap_or(rest);
        let rest = rest.strip_prefix(" with").unwrap_or(rest);
        let rest = rest.trim_start_matches([' ', '_', '-']);
        let Some(rest) = rest.strip_prefix("code").or_else(|| rest.strip_prefix("status")) else {
            continue;
        };
        let rest = rest.trim_start_matches(['"', '\'', ':', '=', ' ']);
        let sign = usize::from(rest.starts_with('-'));
        let digits = rest.bytes().skip(sign).take_while(u8::is_ascii_digit).count();
        let number = rest.get(..sign + digits).and_then(|number| number.parse().ok());
        found = number.or(found);
    }
    found
}

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

/// Where hints come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HintMode {
    /// No hints: reward only.
    Off,
    /// The user's own correction is the hint.
    #[default]
    Verbatim,
    /// The LLM judge writes them; a correction that it gives no hint for is taken verbatim.
    Llm,
}

/// Where hints come from, and which are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct HintPolicy {
    /// Where they come from.
    pub mode: HintMode,
    /// Shorter ones are dropped.
    pub chars_min: usize,
    /// Longer ones are dropped.
    pub chars_max: usize,
    /// Kept per turn, shortest first.
    pub count_max: usize,
    /// The line above the hint in the teacher's prompt.
    pub label: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJudge {
    #[serde(default)]
    rules: RawRules,
    llm: RawLlm,
    #[serde(default)]
    hint: RawHint,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRules {
    #[serde(default)]
    correction: Vec<String>,
    #[serde(default)]
    approval: Vec<String>,
    #[serde(default)]
    tool_error: Vec<String>,
    exit_code: Option<bool>,
    repeat_calls_max: Option<f64>,
    truncated_is_negative: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLlm {
    enabled: bool,
    endpoint: Option<String>,
    model: Option<String>,
    api_key_env: Option<String>,
    votes: Option<f64>,
    votes_valid_min: Option<f64>,
    temperature: Option<f64>,
    tokens_max: Option<f64>,
    timeout_ms: Option<f64>,
    #[serde(default)]
    prompt: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHint {
    #[serde(default)]
    mode: HintMode,
    chars_min: Option<f64>,
    chars_max: Option<f64>,
    count_max: Option<f64>,
    label: Option<String>,
}

impl JudgePolicy {
    pub(super) fn parse(file: &str, name: &str, text: &str) -> Result<Self, PolicyError> {
        let raw: RawJudge = parse_toml(file, text)?;
        let check = Checker { file };
        let judge = Self {
            name: name.to_owned(),
            version: short_hash(text),
            rules: raw.rules.check(&check)?,
            llm: raw.llm.check(&check)?,
            hint: raw.hint.check(&check)?,
        };
        if judge.hint.mode == HintMode::Llm && !judge.llm.enabled {
            let allowed = "\"off\" or \"verbatim\" while llm.enabled is false".to_owned();
            return Err(check.refuse("hint.mode", "\"llm\"", allowed));
        }
        Ok(judge)
    }

    /// `name@version`, as it stands on verdicts.
    pub fn label(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

impl RawRules {
    fn check(self, check: &Checker<'_>) -> Result<Rules, PolicyError> {
        let compile = |key: &str, sources: Vec<String>| {
            if sources.len() > PATTERNS_MAX {
                let found = format!("a list of {}", sources.len());
                return Err(check.refuse(key, &found, format!("at most {PATTERNS_MAX} patterns")));
            }
            let one = |source: String| {
                Pattern::new(&source).map_err(|problem| {
                    let found = format!("'{source}'");
                    check.refuse(key, &found, format!("a regular expression ({problem})"))
                })
            };
            sources.into_iter().map(one).collect::<Result<Vec<_>, _>>()
        };
        Ok(Rules {
            correction: compile("rules.correction", self.correction)?,
            approval: compile("rules.approval", self.approval)?,
            tool_error: compile("rules.tool_error", self.tool_error)?,
            exit_code: self.exit_code.unwrap_or(true),
            repeat_calls_max: check.count("judge.rules.repeat_calls_max", self.repeat_calls_max)?,
            truncated_is_negative: self.truncated_is_negative.unwrap_or(false),
        })
    }
}

impl RawLlm {
    fn check(self, check: &Checker<'_>) -> Result<LlmJudge, PolicyError> {
        let needed = ["{answer}", "{next_state}"];
        if self.enabled && needed.iter().any(|name| !self.prompt.contains(name)) {
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
            enabled: self.enabled,
            endpoint: self.endpoint,
            model: self.model,
            api_key_env: self.api_key_env,
            votes: check.count("judge.llm.votes", self.votes)?,
            votes_valid_min: check.count("judge.llm.votes_valid_min", self.votes_valid_min)?,
            temperature: check.real("judge.llm.temperature", self.temperature)?,
            tokens_max: check.count("judge.llm.tokens_max", self.tokens_max)?,
            timeout_ms: check.long("judge.llm.timeout_ms", self.timeout_ms)?,
            prompt: self.prompt,
        };
        let (min, votes) = (judge.votes_valid_min as f64, judge.votes as f64);
        check.ordered(("llm.votes_valid_min", min), ("llm.votes", votes))?;
        Ok(judge)
    }
}

impl RawHint {
    fn check(self, check: &Checker<'_>) -> Result<HintPolicy, PolicyError> {
        let hint = HintPolicy {
            mode: self.mode,
            chars_min: check.count("judge.hint.chars_min", self.chars_min)?,
            chars_max: check.count("judge.hint.chars_max", self.chars_max)?,
            count_max: check.count("judge.hint.count_max", self.count_max)?,
            label: self.label.unwrap_or_else(|| "[user's hint / instruction]".to_owned()),
        };
        let (min, max) = (hint.chars_min as f64, hint.chars_max as f64);
        check.ordered(("hint.chars_min", min), ("hint.chars_max", max))?;
        Ok(hint)
    }
}
