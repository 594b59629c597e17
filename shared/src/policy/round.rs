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
    /// Samples of a round, at least, that say that another answer would have been better.
    pub corrections_min: usize,
    /// Samples that a round takes at most.
    pub samples_max: usize,
    /// Age of the oldest sample, ms, at which a round starts with fewer.
    pub age_ms_max: u64,
    /// Time without a turn on any route, ms, after which a round starts with fewer; 0: never.
    pub idle_ms: u64,
    /// Share of the samples kept for the gate.
    pub holdout_share: f64,
    /// Samples of one session.
    pub per_session_max: usize,
    /// Samples of one person, where the client names one.
    pub per_user_max: usize,
    /// Samples of one tenant.
    pub per_tenant_max: usize,
    /// Share of the samples that one of several tenants may have.
    pub tenant_share_max: f64,
    /// Share of the rewards that may have one sign, where both are there.
    pub sign_share_max: f64,
    /// Generations that a reply may be behind the served one.
    pub generations_behind_max: usize,
    /// Weight of a step's own verdict against the outcome of its episode.
    pub step_coefficient: f64,
    /// Rate at which the running mean of rewards follows, to be taken off them; 0 = none is.
    pub baseline_rate: f64,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRound {
    samples_min: Option<f64>,
    corrections_min: Option<f64>,
    samples_max: Option<f64>,
    age_ms_max: Option<f64>,
    idle_ms: Option<f64>,
    holdout_share: Option<f64>,
    per_session_max: Option<f64>,
    per_user_max: Option<f64>,
    per_tenant_max: Option<f64>,
    tenant_share_max: Option<f64>,
    sign_share_max: Option<f64>,
    generations_behind_max: Option<f64>,
    step_coefficient: Option<f64>,
    baseline_rate: Option<f64>,
}

impl RawRound {
    pub(super) fn check(self, check: &Checker<'_>) -> Result<RoundPolicy, PolicyError> {
        let round = RoundPolicy {
            samples_min: check.count("round.samples_min", self.samples_min)?,
            corrections_min: check.count("round.corrections_min", self.corrections_min)?,
            samples_max: check.count("round.samples_max", self.samples_max)?,
            age_ms_max: check.long("round.age_ms_max", self.age_ms_max)?,
            idle_ms: check.long("round.idle_ms", self.idle_ms)?,
            holdout_share: check.real("round.holdout_share", self.holdout_share)?,
            per_session_max: check.count("round.per_session_max", self.per_session_max)?,
            per_user_max: check.count("round.per_user_max", self.per_user_max)?,
            per_tenant_max: check.count("round.per_tenant_max", self.per_tenant_max)?,
            tenant_share_max: check.real("round.tenant_share_max", self.tenant_share_max)?,
            sign_share_max: check.real("round.sign_share_max", self.sign_share_max)?,
            generations_behind_max: check
                .count("round.generations_behind_max", self.generations_behind_max)?,
            step_coefficient: check.real("round.step_coefficient", self.step_coefficient)?,
            baseline_rate: check.real("round.baseline_rate", self.baseline_rate)?,
        };
        let (min, max) = (round.samples_min as f64, round.samples_max as f64);
        check.ordered(("round.samples_min", min), ("round.samples_max", max))?;
        Ok(round)
    }
}
