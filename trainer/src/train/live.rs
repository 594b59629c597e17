//! What is constant about the live replies during a round, scored once at its start.
//!
//! `π_old` of a live reply is recomputed by the trainer with the generation that served the turn
//! (the engine's own numbers come from other kernels; OpenClaw-RL #69, #85). The teacher's view of
//! a live reply does not change either, because the teacher does not.
//!
//! The k3 of the anchor estimates a KL only as far as the replies were drawn at temperature 1.
//!
//! Invariant: a sample whose generation is not at hand is an error here; sampling drops such turns
//! beforehand, with a count.

use super::hybrid::Evidence;
use super::teach::{Lesson, teach};
use super::{Plan, TrainError};
use crate::compute::{Compute, Sequence};
use hone_model::lora::Lora;
use hone_shared::turn::Generation;
use std::collections::BTreeMap;

/// Evidence for each train sample's live reply, in the order of the plan's samples. A sample with
/// nothing but a demonstration has none.
pub fn evidence(compute: &mut dyn Compute, plan: &Plan) -> Result<Vec<Evidence>, TrainError> {
    let mut out: Vec<Evidence> =
        plan.samples.iter().map(|s| Evidence { reward: s.reward, ..Evidence::default() }).collect();
    let mut by_generation: BTreeMap<&Generation, Vec<usize>> = BTreeMap::new();
    for (i, sample) in plan.samples.iter().enumerate().filter(|(_, s)| s.judges_the_reply()) {
        by_generation.entry(&sample.generation).or_default().push(i);
    }
    for (generation, indices) in by_generation {
        let adapter = served_by(plan, generation)?;
        let sequences = indices.iter().map(|i| plan.samples[*i].plain()).collect::<Vec<_>>();
        for (i, scores) in indices.iter().zip(compute.score(adapter, &sequences)?) {
            out[*i].old = Some(scores);
        }
        let hinted = indices.iter().filter_map(|i| Some((*i, plan.samples[*i].lesson()?)));
        let (hinted, lessons): (Vec<usize>, Vec<Lesson>) = hinted.unzip();
        let taught = teach(compute, &plan.policy, plan.teacher.as_ref(), adapter, &lessons)?;
        for (i, teaching) in hinted.into_iter().zip(taught) {
            out[i].teacher = Some(teaching);
        }
    }
    anchor_rewarded(compute, plan, &mut out)?;
    for (evidence, sample) in out.iter().zip(&plan.samples) {
        evidence.check(sample.response.len())?;
    }
    Ok(out)
}

/// The anchor acts on the student's own samples, where k3 estimates a KL. A hinted prompt has fresh
/// replies that carry it; a prompt with only a reward has nothing but its live reply.
fn anchor_rewarded(
    compute: &mut dyn Compute,
    plan: &Plan,
    out: &mut [Evidence],
) -> Result<(), TrainError> {
    if plan.policy.kl_beta == 0.0 {
        return Ok(());
    }
    let rewarded: Vec<usize> =
        (0..plan.samples.len()).filter(|i| plan.samples[*i].has_only_a_reward()).collect();
    let sequences: Vec<Sequence> = rewarded.iter().map(|i| plan.samples[*i].plain()).collect();
    for (i, scores) in rewarded.iter().zip(compute.score(None, &sequences)?) {
        out[*i].base = Some(scores);
    }
    Ok(())
}

/// The adapter that produced a live reply; `None` for the base.
fn served_by<'a>(plan: &'a Plan, generation: &Generation) -> Result<Option<&'a Lora>, TrainError> {
    if generation.is_base() {
        return Ok(None);
    }
    match plan.servers.get(generation) {
        Some(adapter) => Ok(Some(adapter)),
        None => Err(TrainError::Provenance { generation: generation.clone() }),
    }
}
