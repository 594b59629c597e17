//! `[hint]`: where hints come from, and which are kept.
//!
//! Invariant: `chars_min` is at most `chars_max`.

use serde::Deserialize;

use crate::policy::PolicyError;
use crate::policy::limits::Checker;

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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHint {
    #[serde(default)]
    mode: HintMode,
    chars_min: Option<f64>,
    chars_max: Option<f64>,
    count_max: Option<f64>,
    label: Option<String>,
}

impl RawHint {
    pub(super) fn check(self, check: &Checker<'_>) -> Result<HintPolicy, PolicyError> {
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
