//! `[round]` of a route: when a round starts and what it takes.
//!
//! Invariant: `samples_min` is at most `samples_max`, so that a round that is due can begin.

use serde::Deserialize;

use super::PolicyError;
use super::limits::Checker;

/// When a round starts and what it takes.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundPolicy {
    /// Samples that start a round.
    pub samples_min: usize,
    /// Samples that a round takes at most.
    pub samples_max: usize,
    /// Age of the oldest sample, ms, at which a round starts with fewer.
    pub age_ms_max: u64,
    /// Share of the samples kept for the gate.
    pub holdout_share: f64,
    /// Samples of one session.
    pub per_session_max: usize,
    /// Samples of one tenant.
    pub per_tenant_max: usize,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRound {
    samples_min: Option<f64>,
    samples_max: Option<f64>,
    age_ms_max: Option<f64>,
    holdout_share: Option<f64>,
    per_session_max: Option<f64>,
    per_tenant_max: Option<f64>,
}

impl RawRound {
    pub(super) fn check(self, check: &Checker<'_>) -> Result<RoundPolicy, PolicyError> {
        let round = RoundPolicy {
            samples_min: check.count("round.samples_min", self.samples_min)?,
            samples_max: check.count("round.samples_max", self.samples_max)?,
            age_ms_max: check.long("round.age_ms_max", self.age_ms_max)?,
            holdout_share: check.real("round.holdout_share", self.holdout_share)?,
            per_session_max: check.count("round.per_session_max", self.per_session_max)?,
            per_tenant_max: check.count("round.per_tenant_max", self.per_tenant_max)?,
        };
        let (min, max) = (round.samples_min as f64, round.samples_max as f64);
        check.ordered(("round.samples_min", min), ("round.samples_max", max))?;
        Ok(round)
    }
}
