//! `[feedback]` of `proxy.toml`: whether hone answers feedback itself, on which paths, and what
//! unauthenticated feedback weighs.
//!
//! Invariant: unless an operator says otherwise, nothing is taken from the engine while no route
//! learns, and what comes without a credential weighs nothing.

use std::collections::BTreeMap;

use hone_shared::feedback::Scales;
use serde::Deserialize;

/// Most paths that can be set.
const PATHS_MAX: usize = 16;
/// Most scales that can be set.
const SCALES_MAX: usize = 1_000;

/// When hone answers feedback itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// While any route learns (`shadow` or `learn`): until an operator wants to learn, an engine's
    /// own path of that name is reached as before, and nobody's words are kept.
    #[default]
    Learning,
    /// Always.
    Always,
    /// Never: such requests pass on like any other. The admin listener still takes feedback.
    Never,
}

/// How feedback is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedbackConfig {
    /// When.
    pub answer: Answer,
    /// Exact paths whose `POST` is feedback.
    pub paths: Vec<String>,
    /// What feedback without any credential weighs, 0 to 1.
    pub anonymous_weight: f64,
    /// Scales of metrics whose bodies name none.
    pub scales: Scales,
}

impl Default for FeedbackConfig {
    fn default() -> Self {
        let paths = ["/v1/feedback", "/feedback", "/api/public/scores"].map(str::to_owned).into();
        let (answer, scales) = (Answer::default(), Scales::default());
        Self { answer, paths, anonymous_weight: 0.0, scales }
    }
}

/// The section as written. What is not given has its default.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the keys are those of FeedbackConfig, which describes them")]
pub struct FeedbackFile {
    pub answer: Answer,
    pub paths: Option<Vec<String>>,
    pub anonymous_weight: Option<f64>,
    pub scales: BTreeMap<String, [f64; 2]>,
}

impl FeedbackFile {
    /// What it says; what cannot be goes to `problems`.
    pub(super) fn build(self, problems: &mut Vec<String>) -> FeedbackConfig {
        let default = FeedbackConfig::default();
        let paths = self.paths.unwrap_or(default.paths);
        let bad = |path: &&String| !path.starts_with('/') || path.contains(['?', '#', '*']);
        if let Some(path) = paths.iter().find(bad) {
            problems
                .push(format!("feedback.paths: `{path}` is no exact path such as /v1/feedback"));
        }
        if paths.len() > PATHS_MAX {
            problems.push(format!("feedback.paths: at most {PATHS_MAX} paths"));
        }
        let anonymous_weight = self.anonymous_weight.unwrap_or(default.anonymous_weight);
        if !(0.0..=1.0).contains(&anonymous_weight) {
            problems.push("feedback.anonymous_weight is from 0 to 1".to_owned());
        }
        let whole = |[from, to]: &[f64; 2]| from.is_finite() && to.is_finite() && from != to;
        if let Some((name, _)) = self.scales.iter().find(|(_, scale)| !whole(scale)) {
            problems.push(format!(
                "feedback.scales.{name}: two different numbers, the worst value and the best"
            ));
        }
        if self.scales.len() > SCALES_MAX {
            problems.push(format!("feedback.scales: at most {SCALES_MAX} metrics"));
        }
        let scales = Scales(self.scales);
        FeedbackConfig { answer: self.answer, paths, anonymous_weight, scales }
    }
}
