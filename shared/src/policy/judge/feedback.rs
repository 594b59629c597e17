//! `[feedback]` of a judge: what a number that somebody gave means.
//!
//! Invariant: with the default, a thumb always decides, and a lukewarm score never does.

use serde::Deserialize;

use crate::policy::PolicyError;
use crate::policy::limits::Checker;

/// How feedback becomes a verdict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeedbackPolicy {
    /// Numbers nearer to 0 than this, of −1…1, mean verdict 0.
    pub dead_band: f64,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFeedback {
    dead_band: Option<f64>,
}

impl RawFeedback {
    pub(super) fn check(self, check: &Checker<'_>) -> Result<FeedbackPolicy, PolicyError> {
        Ok(FeedbackPolicy { dead_band: check.real("judge.feedback.dead_band", self.dead_band)? })
    }
}
