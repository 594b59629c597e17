//! Gate: a candidate is published only if it proves, on turns it has not learned from, that it is
//! better at what it was trained for, and on neutral prompts that it is still itself. Where no more
//! than one session had anything to correct, only approved turns are held out, and it must prove
//! that it has kept them.
//!
//! Invariant: fails closed. No held-out turns, no neutral prompts, a number that is not finite: the
//! candidate is refused, with the reason and every number. An error of the machine is no verdict.

mod neutral;
pub mod plot;
mod signal;

pub use neutral::{EMPTY_SHARE_MAX, Neutral};
pub use signal::{Contest, Signal};

use crate::compute::{Compute, ComputeError, SampleParams};
use crate::sample::Sample;
use crate::sample::render::Renderer;
use crate::train::update::seed;
use hone_model::chat::Asked;
use hone_model::lora::Lora;
use hone_shared::policy::{GatePolicy, TrainPolicy};
use serde::Serialize;
use serde_json::json;

/// An incumbent that answers shorter than this counts as if it answered so: one word more is no drift.
const SHORT_TOKENS: f64 = 16.0;

/// Why the gate could not measure.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The kernels failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// There was nothing to measure.
    #[error("{0}")]
    Nothing(&'static str),
}

/// The gate's findings: everything it measured, and every objection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// No objection.
    pub passed: bool,
    /// What speaks against the candidate, one sentence each.
    pub objections: Vec<String>,
    /// The trained signal, on held-out turns.
    pub signal: Signal,
    /// The neutral set.
    pub neutral: Neutral,
    /// Name of the gate policy.
    pub policy: String,
}

impl Report {
    /// A refusal without measurements.
    pub fn refused(policy: &GatePolicy, why: String) -> Self {
        Self {
            passed: false,
            objections: vec![why],
            signal: Signal::default(),
            neutral: Neutral::default(),
            policy: policy.name.clone(),
        }
    }

    /// The objections in one line.
    pub fn reason(&self) -> String {
        if self.passed { "passed the gate".into() } else { self.objections.join("; ") }
    }
}

/// Who stands before the gate.
pub struct Case<'a> {
    /// The adapter under test.
    pub candidate: &'a Lora,
    /// What is served now; `None`: the base.
    pub incumbent: Option<&'a Lora>,
    /// The teacher's adapter; `None`: the base.
    pub teacher: Option<&'a Lora>,
    /// Turns the candidate has not learned from.
    pub holdout: &'a [Sample],
    /// The route's recipe.
    pub train: &'a TrainPolicy,
    /// The route's gate.
    pub gate: &'a GatePolicy,
}

/// Examines a candidate. What cannot be measured is refused; kernels that fail are an error, because
/// that says nothing about the candidate.
pub fn examine(
    compute: &mut dyn Compute,
    renderer: &Renderer,
    case: &Case<'_>,
) -> Result<Report, ComputeError> {
    if case.holdout.is_empty() {
        return Ok(Report::refused(case.gate, "no held-out turns to test on".into()));
    }
    let prompts = neutral_prompts(renderer, case.gate);
    if prompts.is_empty() {
        let why = "the gate policy has no usable neutral prompts";
        return Ok(Report::refused(case.gate, why.into()));
    }
    let params = |index: u64| SampleParams {
        temperature: case.train.temperature as f32,
        tokens_max: case.gate.reply_tokens_max,
        eos: renderer.eos().to_vec(),
        seed: seed(case.train.seed ^ 0x6761_7465, index),
    };
    let contest = Contest {
        candidate: case.candidate,
        incumbent: case.incumbent,
        teacher: case.teacher,
        replies: case.gate.replies,
        replies_min: case.gate.signal_replies_min,
        params: params(0),
    };
    let replies = case.gate.replies.max(1);
    let measured = signal::measure(compute, &contest, case.holdout).and_then(|signal| {
        let neutral = neutral::measure(
            compute,
            renderer,
            case.candidate,
            case.incumbent,
            &prompts,
            replies,
            &params(1),
        );
        Ok((signal, neutral?))
    });
    match measured {
        Ok((signal, neutral)) => Ok(judge(case.gate, signal, neutral)),
        // That is the candidate's doing.
        Err(GateError::Compute(ComputeError::NotFinite(what))) => {
            Ok(Report::refused(case.gate, format!("{what} is not finite")))
        }
        Err(GateError::Compute(error)) => Err(error),
        Err(error) => {
            Ok(Report::refused(case.gate, format!("the gate could not measure: {error}")))
        }
    }
}

/// Compares the numbers with the policy.
pub fn judge(policy: &GatePolicy, signal: Signal, neutral: Neutral) -> Report {
    let mut objections = Vec::new();
    if signal.hinted_turns > 0 {
        let what = "gain on held-out hinted turns (nats/token)";
        objections.extend(under(what, signal.hinted_gain, policy.margin));
    }
    if signal.rejected_turns > 0 {
        let what = "gain on held-out rejected turns (nats/token)";
        objections.extend(under(what, signal.rejected_gain, policy.margin));
    }
    if signal.approved_turns > 0 {
        let what = "loss on held-out approved turns (nats/token)";
        objections.extend(over(what, -signal.approved_gain, policy.approved_loss_max));
    }
    if signal.demonstrated_turns > 0 {
        let what = "gain on held-out demonstrations (nats/token)";
        objections.extend(under(what, signal.demonstrated_gain, policy.margin));
    }
    // A base model that hardly ever ends within the cap must not keep every candidate out.
    let ended_min = policy.ended_share_min.min(neutral.ended_share_incumbent);
    let limits = [
        under("share of neutral replies that end", neutral.ended_share, ended_min),
        over("KL to the base on neutral replies", neutral.kl, policy.neutral_kl_max),
        over("repetition in neutral replies", neutral.repetition, policy.repetition_max),
        over(
            "share of neutral replies that refuse",
            neutral.refusal_share,
            policy.refusal_share_max.max(neutral.refusal_share_incumbent),
        ),
        over(
            "share of neutral replies with one phrase in common",
            neutral.phrase_share,
            policy.phrase_share_max.max(neutral.phrase_share_incumbent),
        ),
        under(
            "mean length of neutral replies (tokens)",
            neutral.tokens_mean,
            policy.length_ratio_min * neutral.tokens_mean_incumbent,
        ),
        over(
            "mean length of neutral replies (tokens)",
            neutral.tokens_mean,
            policy.length_ratio_max * neutral.tokens_mean_incumbent.max(SHORT_TOKENS),
        ),
        over("share of empty neutral replies", neutral.empty_share, EMPTY_SHARE_MAX),
    ];
    objections.extend(limits.into_iter().flatten());
    if signal.turns() == 0 {
        objections.push("no held-out turn carries a signal".into());
    }
    let passed = objections.is_empty();
    Report { passed, objections, signal, neutral, policy: policy.name.clone() }
}

/// An objection unless `got ≥ limit`; not a number is an objection.
fn under(what: &str, got: f64, limit: f64) -> Option<String> {
    let fine = got.partial_cmp(&limit).is_some_and(|order| order.is_ge());
    (!fine).then(|| format!("{what} is {got:.4}, the policy asks for at least {limit}"))
}

/// An objection unless `got ≤ limit`; not a number is an objection.
fn over(what: &str, got: f64, limit: f64) -> Option<String> {
    let fine = got.partial_cmp(&limit).is_some_and(|order| order.is_le());
    (!fine).then(|| format!("{what} is {got:.4}, the policy allows at most {limit}"))
}

fn neutral_prompts(renderer: &Renderer, policy: &GatePolicy) -> Vec<Vec<u32>> {
    let render = |text: &String| {
        let messages = [json!({"role": "user", "content": text})];
        renderer.prompt("/v1/chat/completions", &Asked::undated(&messages)).ok()
    };
    policy.neutral_prompts.iter().filter_map(render).collect()
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "planted_tests.rs"]
mod planted;
