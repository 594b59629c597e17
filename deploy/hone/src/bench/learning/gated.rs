//! Rounds as a deployment has them: some sessions held out, and the gate decides over the candidate.
//!
//! Invariant: split, gate and its policy are the trainer's own; only the samples come from here.

use std::path::Path;
use std::time::Instant;

use hone_model::lora::Lora;
use hone_shared::policy::{GatePolicy, Precision, RoutePolicy};
use hone_trainer::gate::{self, Case};
use hone_trainer::sample::Sample;
use hone_trainer::sample::render::Renderer;
use hone_trainer::sample::split::{self, Session};
use hone_trainer::workshop::cpu_kernels;
use serde::{Deserialize, Serialize};

/// What a round was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundKind {
    /// What a user says who is not content yet.
    Honest,
    /// What a user says who has been content: stray draws are corrected that the model mostly gets
    /// right, so there may be nothing left to gain.
    Content,
    /// The opposite of what the user wants.
    Sabotaged,
}

/// What the gate said to one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What the round was trained on.
    pub kind: RoundKind,
    /// Whether the candidate was accepted.
    pub passed: bool,
    /// The objections, or that there was none.
    pub reason: String,
    /// Samples that taught.
    pub train: usize,
    /// Samples that tested.
    pub holdout: usize,
    /// Held-out turns with a hint.
    pub hinted_turns: usize,
    /// Nats per token gained on them.
    pub hinted_gain: f64,
    /// Held-out turns that were only approved.
    pub approved_turns: usize,
    /// Nats per token gained on them.
    pub approved_gain: f64,
    /// Nats per token away from the base on neutral prompts.
    pub neutral_kl: f64,
    /// Seconds that the gate took.
    pub seconds: f64,
}

/// The gate of a life.
pub struct Gate<'a> {
    /// The base model.
    pub model_dir: &'a Path,
    /// Its tokenizer and template.
    pub renderer: &'a Renderer,
    /// Threads; 0: all.
    pub threads: usize,
}

/// The samples that teach and those that test, as a round would part them.
pub fn parted(samples: Vec<Sample>, seed: u64, share: f64) -> (Vec<Sample>, Vec<Sample>) {
    let mut secret = [0; 32];
    secret[..8].copy_from_slice(&seed.to_le_bytes());
    let sessions: Vec<Session> =
        samples.iter().map(|s| ("tenant".to_owned(), s.session_id.clone())).collect();
    let corrects: Vec<bool> = samples.iter().map(Sample::corrects).collect();
    let held = split::hold_out(&secret, &sessions, &corrects, &Default::default(), share);
    let (mut train, mut holdout) = (Vec::new(), Vec::new());
    for (sample, held) in samples.into_iter().zip(held) {
        if held { holdout.push(sample) } else { train.push(sample) }
    }
    (train, holdout)
}

/// The opposite of what the scripted user asks for.
pub const OPPOSITE: &str = "Answer at length, as a list of many bullet points with bold text.";

/// Turns round what a sample teaches: its reward, and its hint. `opposite` is its prompt with
/// [`OPPOSITE`].
pub fn turn_round(sample: &mut Sample, opposite: Vec<u32>) {
    sample.reward = -sample.reward;
    sample.teachers = vec![opposite];
}

impl Gate<'_> {
    /// Examines a candidate against what answers now.
    pub fn examine(
        &self,
        (route, policy): (&RoutePolicy, &GatePolicy),
        (candidate, incumbent, teacher): (&Lora, Option<&Lora>, Option<&Lora>),
        (train, holdout): (usize, &[Sample]),
        kind: RoundKind,
    ) -> anyhow::Result<Verdict> {
        let begun = Instant::now();
        let mut compute =
            cpu_kernels()(self.model_dir, self.threads, Precision::F32, &route.train.memory)?;
        let case =
            Case { candidate, incumbent, teacher, holdout, train: &route.train, gate: policy };
        let report = gate::examine(compute.as_mut(), self.renderer, &case)?;
        Ok(Verdict {
            kind,
            passed: report.passed,
            reason: report.reason(),
            train,
            holdout: holdout.len(),
            hinted_turns: report.signal.hinted_turns,
            hinted_gain: report.signal.hinted_gain,
            approved_turns: report.signal.approved_turns,
            approved_gain: report.signal.approved_gain,
            neutral_kl: report.neutral.kl,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hone_shared::turn::{Generation, TurnId};

    #[test]
    fn every_sample_teaches_or_tests_and_the_share_is_the_policys() {
        let sample = |n: u32| Sample {
            turn_id: TurnId(uuid::Uuid::now_v7()),
            session_id: n.to_string(),
            generation: Generation::base(),
            prompt: vec![n],
            teachers: Vec::new(),
            response: vec![1],
            ended: true,
            reward: -1.0,
            demonstration: None,
        };
        let all: Vec<Sample> = (0..10).map(sample).collect();
        let (train, holdout) = parted(all.clone(), 7, 0.2);
        assert_eq!((train.len(), holdout.len()), (8, 2));
        assert!(train.iter().all(|s| !holdout.iter().any(|h| h.session_id == s.session_id)));
        let chosen = |seed| parted(all.clone(), seed, 0.2).1[0].session_id.clone();
        assert!(
            (0..20).any(|seed| chosen(seed) != holdout[0].session_id),
            "another seed parts otherwise"
        );
        let mut turned = all[0].clone();
        turn_round(&mut turned, vec![9]);
        assert_eq!((turned.reward, turned.teachers), (1.0, vec![vec![9]]));
    }
}
