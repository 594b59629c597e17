//! `judges/<name>.toml`: how a turn is judged by what happened next.
//!
//! Rules first ([`rules`]): regular expressions over the user's words and the tools' output. Where
//! they are silent, an LLM is asked ([`llm`]); its prompt holds the conversation as fenced data.
//! Hints ([`hint`]) come from the user's own words or from the LLM.
//!
//! Invariant: a judge is checked as a whole: every expression compiles and every number is in range.

mod example;
mod feedback;
mod hint;
mod llm;
mod patterns;
mod phrases;
mod rules;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use example::Example;
pub use feedback::FeedbackPolicy;
pub use hint::{HintMode, HintPolicy};
pub use llm::LlmJudge;
pub use patterns::{Patterns, fold};
pub use phrases::{Phrases, RuleHit};
pub use rules::{AnswerPatterns, CallPatterns, RequestPatterns, ResultPatterns, RuleName, Rules};

use super::limits::Checker;
use super::{PolicyError, parse_toml, short_hash};
use feedback::RawFeedback;
use hint::RawHint;
use llm::RawLlm;
use rules::RawRules;

/// The name that a route gives instead of a judge's: the rubric of the detected kind.
pub const AUTO: &str = "auto";
/// Judges that one may rest upon, one above the other.
const EXTENDS_MAX: usize = 4;
/// Most examples of one file.
const EXAMPLES_MAX: usize = 200;

/// A checked judge.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgePolicy {
    /// Name: the file's name without `.toml`.
    pub name: String,
    /// Hash of the file and of those that it extends: verdicts say by which version they were made.
    pub version: String,
    /// What is decided without a model.
    pub rules: Rules,
    /// What a model is asked.
    pub llm: LlmJudge,
    /// Where hints come from.
    pub hint: HintPolicy,
    /// What explicit feedback means.
    pub feedback: FeedbackPolicy,
    /// Cases with what the rules say about them.
    pub examples: Vec<Example>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJudge {
    #[serde(rename = "extends")]
    _extends: Option<String>,
    #[serde(default)]
    rules: RawRules,
    #[serde(default)]
    llm: RawLlm,
    #[serde(default)]
    hint: RawHint,
    #[serde(default)]
    feedback: RawFeedback,
    #[serde(default)]
    examples: Vec<Example>,
}

impl JudgePolicy {
    /// Reads a file; `others` holds the text of every judge by name, for `extends`.
    pub(super) fn parse(
        file: &str,
        name: &str,
        text: &str,
        others: &BTreeMap<&str, &str>,
    ) -> Result<Self, PolicyError> {
        let check = Checker { file };
        if name == AUTO {
            let allowed = "another name: a route's `judge = \"auto\"` means the detected kind";
            return Err(check.refuse("name", "\"auto\"", allowed.to_owned()));
        }
        let raw: RawJudge = parse_toml(file, text)?;
        let examples = raw.examples;
        if examples.len() > EXAMPLES_MAX {
            let found = format!("a list of {}", examples.len());
            return Err(check.refuse("examples", &found, format!("at most {EXAMPLES_MAX}")));
        }
        let (table, versions) = merged(&check, text, others)?;
        let raw: RawJudge = table.try_into().map_err(|error: toml::de::Error| {
            let allowed = "what fits the judge that it extends".to_owned();
            check.refuse("extends", error.message(), allowed)
        })?;
        let judge = Self {
            name: name.to_owned(),
            version: short_hash(&versions),
            rules: raw.rules.check(&check)?,
            llm: raw.llm.check(&check)?,
            hint: raw.hint.check(&check)?,
            feedback: raw.feedback.check(&check)?,
            examples,
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

/// The tables of a file over those of the judge that it extends, and the text of all of them.
fn merged(
    check: &Checker<'_>,
    text: &str,
    others: &BTreeMap<&str, &str>,
) -> Result<(toml::Table, String), PolicyError> {
    let mut table: toml::Table = parse_toml(check.file, text)?;
    let mut versions = text.to_owned();
    for _ in 0..EXTENDS_MAX {
        let Some(base) = table.remove("extends") else { return Ok((table, versions)) };
        let base = base.as_str().unwrap_or_default();
        let Some(text) = others.get(base) else {
            let names: Vec<&str> = others.keys().copied().collect();
            let allowed = format!("the name of a file in judges/: {}", names.join(", "));
            return Err(check.refuse("extends", &format!("\"{base}\""), allowed));
        };
        let mut below: toml::Table = parse_toml(&format!("judges/{base}.toml"), text)?;
        lay_over(&mut below, table);
        table = below;
        versions.push('\0');
        versions.push_str(text);
    }
    let allowed = format!("at most {EXTENDS_MAX} judges one above the other, and no circle");
    Err(check.refuse("extends", "too deep", allowed))
}

/// Tables are joined key by key; every other value, lists too, replaces what was there.
fn lay_over(below: &mut toml::Table, above: toml::Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => lay_over(old, new),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}
