//! `judges/<name>.toml`: how a turn is judged by what happened next.
//!
//! Rules first ([`rules`]): regular expressions over the user's words and the tools' output. Where
//! they are silent, an LLM is asked ([`llm`]); its prompt holds the conversation as fenced data.
//! Hints ([`hint`]) come from the user's own words or from the LLM.
//!
//! Invariant: a judge is checked as a whole: every expression compiles and every number is in range.

mod feedback;
mod hint;
mod llm;
mod rules;

use serde::Deserialize;

pub use feedback::FeedbackPolicy;
pub use hint::{HintMode, HintPolicy};
pub use llm::LlmJudge;
pub use rules::{Pattern, RuleHit, Rules};

use super::limits::Checker;
use super::{PolicyError, parse_toml, short_hash};
use feedback::RawFeedback;
use hint::RawHint;
use llm::RawLlm;
use rules::RawRules;

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
    /// What explicit feedback means.
    pub feedback: FeedbackPolicy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJudge {
    #[serde(default)]
    rules: RawRules,
    llm: RawLlm,
    #[serde(default)]
    hint: RawHint,
    #[serde(default)]
    feedback: RawFeedback,
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
            feedback: raw.feedback.check(&check)?,
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
