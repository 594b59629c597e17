//! The signal the candidate was trained for, on turns it was not trained on.
//!
//! Hinted turns: the hinted teacher answers afresh; the gain is how much more likely the candidate
//! finds those answers *without* the hint than the incumbent does, mean ln p per token. Turns with
//! a reward only: the same difference on the live reply, times a negative reward; what was rejected
//! and what was approved apart, because only the first can be won. A live reply was drawn from the incumbent
//! or one before it, so any other model is expected to find it less likely, by the divergence of the
//! two (Gibbs' inequality): of an approved one a candidate can only lose little. A turn with hint and
//! reward counts as hinted; its reward gain is reported but not tested (the hint says more).
//!
//! Demonstrated turns: how much more likely the candidate finds what a person would have answered.
//!
//! Invariant: both adapters are measured on the same tokens.

use super::GateError;
use crate::compute::{Compute, SampleParams, Sequence};
use crate::sample::Sample;
use hone_model::lora::Lora;
use serde::Serialize;

/// Gains in nats per token, candidate minus incumbent; mean over turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Signal {
    /// Held-out turns with a hint.
    pub hinted_turns: usize,
    /// Mean ln p of the teacher's replies under the incumbent.
    pub hinted_incumbent: f64,
    /// Mean ln p of the teacher's replies under the candidate.
    pub hinted_candidate: f64,
    /// Candidate minus incumbent.
    pub hinted_gain: f64,
    /// Replies of the teacher that it was measured on.
    pub teacher_replies: usize,
    /// Mean length of the teacher's replies in tokens.
    pub teacher_tokens_mean: f64,
    /// Held-out turns with a negative reward and no hint.
    pub rejected_turns: usize,
    /// Mean of reward × (candidate − incumbent) on their live replies.
    pub rejected_gain: f64,
    /// Held-out turns with a positive reward and no hint.
    pub approved_turns: usize,
    /// Mean of candidate − incumbent on their live replies, whatever the size of the reward: what
    /// is lost is counted in nats.
    pub approved_gain: f64,
    /// The same over the turns that have a hint as well; reported only.
    pub rewarded_gain_of_hinted: f64,
    /// Held-out turns that a person answered anew.
    pub demonstrated_turns: usize,
    /// Mean gain in ln p of those answers.
    pub demonstrated_gain: f64,
}

impl Signal {
    /// Held-out turns that say anything.
    pub fn turns(&self) -> usize {
        self.hinted_turns + self.rejected_turns + self.approved_turns + self.demonstrated_turns
    }
}

/// Who is compared, and how the teacher draws.
pub struct Contest<'a> {
    /// The adapter under test.
    pub candidate: &'a Lora,
    /// What is served now; `None`: the base.
    pub incumbent: Option<&'a Lora>,
    /// The teacher's adapter; `None`: the base.
    pub teacher: Option<&'a Lora>,
    /// Fresh teacher replies per prompt.
    pub replies: usize,
    /// Fresh teacher replies in all, at least: one held-out turn shall not hang on two draws.
    pub replies_min: usize,
    /// How they are drawn.
    pub params: SampleParams,
}

/// Measures both gains on the held-out samples.
pub fn measure(
    compute: &mut dyn Compute,
    contest: &Contest<'_>,
    holdout: &[Sample],
) -> Result<Signal, GateError> {
    let mut out = Signal::default();
    let hinted: Vec<&Sample> = holdout.iter().filter(|s| !s.teachers.is_empty()).collect();
    let (approved, rejected): (Vec<&Sample>, Vec<&Sample>) =
        holdout.iter().filter(|s| s.has_only_a_reward()).partition(|s| s.reward > 0.0);
    if !hinted.is_empty() {
        let prompts: Vec<Vec<u32>> =
            hinted.iter().filter_map(|s| s.teachers.first().cloned()).collect();
        let each = contest.replies_min.div_ceil(prompts.len().max(1));
        let (replies, params) = (contest.replies.max(each).max(1), &contest.params);
        let groups = compute.sample(contest.teacher, &prompts, replies, params)?;
        let mut sequences = Vec::new();
        for (sample, group) in hinted.iter().zip(&groups) {
            sequences.extend(group.iter().map(|reply| sample.plain_with(&reply.tokens)));
        }
        out.teacher_replies = sequences.len();
        let lengths: usize = sequences.iter().map(|s| s.response.len()).sum();
        out.teacher_tokens_mean = lengths as f64 / sequences.len().max(1) as f64;
        let (candidate, incumbent) = both(compute, contest, &sequences)?;
        out.hinted_turns = hinted.len();
        out.hinted_candidate = mean(&candidate);
        out.hinted_incumbent = mean(&incumbent);
        out.hinted_gain = out.hinted_candidate - out.hinted_incumbent;
        out.rewarded_gain_of_hinted = gain(compute, contest, &hinted, |sample| sample.reward)?;
    }
    out.rejected_turns = rejected.len();
    out.rejected_gain = gain(compute, contest, &rejected, |sample| sample.reward)?;
    out.approved_turns = approved.len();
    out.approved_gain = gain(compute, contest, &approved, |_| 1.0)?;
    let shown = |s: &Sample| Some(s.plain_with(s.demonstration.as_ref()?));
    let demonstrated: Vec<Sequence> = holdout.iter().filter_map(shown).collect();
    out.demonstrated_turns = demonstrated.len();
    if !demonstrated.is_empty() {
        let (candidate, incumbent) = both(compute, contest, &demonstrated)?;
        out.demonstrated_gain = mean(&candidate) - mean(&incumbent);
    }
    Ok(out)
}

/// Mean of weight × gain in ln p per token of the live replies; 0 without samples.
fn gain(
    compute: &mut dyn Compute,
    contest: &Contest<'_>,
    samples: &[&Sample],
    weight: impl Fn(&Sample) -> f64,
) -> Result<f64, GateError> {
    if samples.is_empty() {
        return Ok(0.0);
    }
    let sequences: Vec<Sequence> = samples.iter().map(|s| s.plain()).collect();
    let (candidate, incumbent) = both(compute, contest, &sequences)?;
    let gains = candidate.iter().zip(&incumbent).zip(samples);
    Ok(mean(&gains.map(|((c, i), sample)| weight(sample) * (c - i)).collect::<Vec<_>>()))
}

/// Mean ln p per token of each sequence, under candidate and incumbent.
fn both(
    compute: &mut dyn Compute,
    contest: &Contest<'_>,
    sequences: &[Sequence],
) -> Result<(Vec<f64>, Vec<f64>), GateError> {
    let candidate = compute.score(Some(contest.candidate), sequences)?;
    let incumbent = compute.score(contest.incumbent, sequences)?;
    let per_token = |scores: Vec<Vec<f32>>| -> Vec<f64> {
        let filled = scores.iter().filter(|s| !s.is_empty());
        filled.map(|s| mean(&s.iter().map(|p| f64::from(*p)).collect::<Vec<_>>())).collect()
    };
    let (candidate, incumbent) = (per_token(candidate), per_token(incumbent));
    if candidate.is_empty() || candidate.len() != incumbent.len() {
        return Err(GateError::Nothing("no held-out reply could be scored"));
    }
    Ok((candidate, incumbent))
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}
