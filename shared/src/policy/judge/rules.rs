//! `[rules]`: what is decided without a model.
//!
//! Invariant: a text is matched in linear time, and at most [`TEXT_BYTES_MAX`] of it.

use std::fmt;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use crate::policy::PolicyError;
use crate::policy::limits::Checker;

/// Most patterns of one kind.
const PATTERNS_MAX: usize = 200;

/// Compiled size of one pattern, bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Most bytes of one text that rules look at: corrections stand at the beginning, errors at either
/// end.
const TEXT_BYTES_MAX: usize = 64 * 1024;

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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRules {
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

impl RawRules {
    pub(super) fn check(self, check: &Checker<'_>) -> Result<Rules, PolicyError> {
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
