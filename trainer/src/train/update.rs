//! One update: fresh replies → teacher and base scores → gradient.
//!
//! For every hinted prompt the current student draws `replies` fresh answers; the live reply is
//! always among the samples. Shapes: all lists are one `ln p` per response token, temperature 1.
//!
//! Invariant: the seed depends on the policy's seed and the update's index only, so an update that
//! was interrupted and is done again draws the same replies.

use super::hybrid::{Evidence, Sums, Weights, gradient};
use super::teach::{Lesson, teach};
use super::{Plan, TrainError};
use crate::compute::{Compute, Gradient, Look, Rollout, SampleParams, Sequence, Sight};
use hone_model::lora::Lora;
use serde::{Deserialize, Serialize};

/// What one update measured: a line of `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Index of the update, from 0.
    pub update: u64,
    /// Mean loss per token.
    pub loss: f64,
    /// Euclidean norm of the gradient before it is bounded.
    pub grad_norm: f64,
    /// Mean distance to the teacher per token that has one, in nats: |ln π_T − ln π_θ|, or the
    /// divergence where the loss is one.
    pub log_ratio: f64,
    /// Mean k3 to the base per token that has a base value, in nats.
    pub kl: f64,
    /// Mean −ln p of the fresh replies' tokens, in nats: a proxy of the student's entropy.
    pub entropy: f64,
    /// Number of fresh replies.
    pub fresh_replies: usize,
    /// Mean length of the fresh replies in tokens.
    pub reply_tokens_mean: f64,
    /// Share of the fresh replies that ended by themselves.
    pub ended_share: f64,
    /// Tokens that carried a loss.
    pub tokens: f64,
    /// Wall time of the update in seconds.
    pub seconds: f64,
    /// CPU time of the process during the update in seconds.
    #[serde(default)]
    pub cpu_seconds: f64,
    /// Length of the round's whole change of the adapter after this update, as a part of the adapter's
    /// length before the round.
    #[serde(default)]
    pub update_norm: f64,
}

/// The sequences of an update and what is known about each.
struct Work {
    sequences: Vec<Sequence>,
    evidence: Vec<Evidence>,
}

/// The gradient of one update, not yet applied. `None`: asked to stop in between.
pub fn measure(
    compute: &mut dyn Compute,
    plan: &Plan,
    student: &Lora,
    live: &[Evidence],
    update: u64,
    stop: &dyn Fn() -> bool,
) -> Result<Option<(Lora, Measured)>, TrainError> {
    let fresh = draw(compute, plan, student, update)?;
    if stop() {
        return Ok(None);
    }
    let work = assemble(compute, plan, student, live, &fresh)?;
    if stop() {
        return Ok(None);
    }
    let (weights, mut sums) = (Weights::of(&plan.policy), Sums::default());
    let total: f64 = work.sequences.iter().map(|s| s.response.len() as f64).sum();
    let looks: Vec<Look> = work.evidence.iter().map(Evidence::look).collect();
    let Gradient { lora, .. } =
        compute.differentiate(student, &work.sequences, &looks, &mut |i, seen: &Sight| {
            gradient(seen, &work.evidence[i], &weights, total, &mut sums)
        })?;
    let measured = summarise(update, &lora, &sums, &fresh);
    Ok(Some((lora, measured)))
}

/// `replies` fresh answers of the current student to every hinted prompt, or more where there are
/// few prompts, by sample index: the noise of two draws must not decide an update.
fn draw(
    compute: &mut dyn Compute,
    plan: &Plan,
    student: &Lora,
    update: u64,
) -> Result<Vec<(usize, Rollout)>, TrainError> {
    let hinted: Vec<usize> =
        (0..plan.samples.len()).filter(|i| !plan.samples[*i].teachers.is_empty()).collect();
    if hinted.is_empty() || plan.policy.replies == 0 {
        return Ok(Vec::new());
    }
    let prompts: Vec<Vec<u32>> = hinted.iter().map(|i| plan.samples[*i].prompt.clone()).collect();
    let params = SampleParams {
        temperature: plan.policy.temperature as f32,
        tokens_max: plan.policy.reply_tokens_max,
        eos: plan.eos.clone(),
        seed: seed(plan.policy.seed, update),
    };
    let replies = plan.policy.replies.max(plan.policy.replies_min.div_ceil(hinted.len()));
    let groups = compute.sample(Some(student), &prompts, replies, &params)?;
    if groups.len() != hinted.len() {
        return Err(TrainError::Scores { what: "rollouts", want: hinted.len(), got: groups.len() });
    }
    let pairs = hinted.into_iter().zip(groups);
    let flat = pairs.flat_map(|(i, group)| group.into_iter().map(move |rollout| (i, rollout)));
    Ok(flat.filter(|(_, rollout)| !rollout.tokens.is_empty()).collect())
}

/// Live and fresh replies and demonstrations, grouped by prompt so that the kernels can share the
/// prefix, with the teacher's and the base's view of the fresh ones.
fn assemble(
    compute: &mut dyn Compute,
    plan: &Plan,
    student: &Lora,
    live: &[Evidence],
    fresh: &[(usize, Rollout)],
) -> Result<Work, TrainError> {
    let own: Vec<Sequence> =
        fresh.iter().map(|(i, r)| plan.samples[*i].plain_with(&r.tokens)).collect();
    let lessons: Vec<Lesson> =
        fresh.iter().filter_map(|(i, r)| plan.samples[*i].lesson_with(&r.tokens)).collect();
    let taught = teach(compute, &plan.policy, plan.teacher.as_ref(), Some(student), &lessons)?;
    let base = match plan.policy.kl_beta {
        0.0 => vec![None; own.len()],
        _ => compute.score(None, &own)?.into_iter().map(Some).collect(),
    };
    let mut drawn = own.into_iter().zip(taught).zip(base);
    let mut work = Work { sequences: Vec::new(), evidence: Vec::new() };
    let mut at = 0;
    for (i, sample) in plan.samples.iter().enumerate() {
        if sample.judges_the_reply() {
            work.push(sample.plain(), live[i].clone())?;
        }
        if let Some(demonstration) = &sample.demonstration {
            let evidence = Evidence { demonstration: true, ..Evidence::default() };
            work.push(sample.plain_with(demonstration), evidence)?;
        }
        while fresh.get(at).is_some_and(|(of, _)| *of == i) {
            let want = fresh.len();
            let missing = TrainError::Scores { what: "fresh replies", want, got: at };
            let ((sequence, teaching), base) = drawn.next().ok_or(missing)?;
            let teacher = Some(teaching);
            work.push(sequence, Evidence { teacher, base, ..Evidence::default() })?;
            at += 1;
        }
    }
    Ok(work)
}

impl Work {
    /// Adds a reply with what is known about it, if that fits.
    fn push(&mut self, sequence: Sequence, evidence: Evidence) -> Result<(), TrainError> {
        evidence.check(sequence.response.len())?;
        self.sequences.push(sequence);
        self.evidence.push(evidence);
        Ok(())
    }
}

fn summarise(update: u64, lora: &Lora, sums: &Sums, fresh: &[(usize, Rollout)]) -> Measured {
    let mean = |sum: f64, n: f64| if n > 0.0 { sum / n } else { 0.0 };
    let replies = fresh.len() as f64;
    let tokens: f64 = fresh.iter().map(|(_, r)| r.tokens.len() as f64).sum();
    let surprise: f64 = fresh.iter().flat_map(|(_, r)| &r.logprobs).map(|p| -f64::from(*p)).sum();
    let ended = fresh.iter().filter(|(_, r)| r.ended).count() as f64;
    Measured {
        update,
        loss: mean(sums.loss, sums.tokens),
        grad_norm: lora.norm(),
        log_ratio: mean(sums.log_ratio, sums.teacher_tokens),
        kl: mean(sums.kl, sums.kl_tokens),
        entropy: mean(surprise, tokens),
        fresh_replies: fresh.len(),
        reply_tokens_mean: mean(tokens, replies),
        ended_share: mean(ended, replies),
        tokens: sums.tokens,
        ..Measured::default()
    }
}

/// A seed of its own for each update (the golden-ratio step of SplitMix64).
pub fn seed(base: u64, index: u64) -> u64 {
    base.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}
