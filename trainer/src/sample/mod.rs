//! Sample: from judged turns to token ids, rewards, hints and demonstrations, split into train and
//! holdout.
//!
//! ```text
//! trainable turns ─► what else is known: demonstration, outcome, task     notes.rs
//!                 ─► what each is worth: verdict, or a step's advantage   reward.rs
//!                 ─► dispatch by what is there, render, filter            draw.rs render.rs hint.rs filter.rs
//!                 ─► caps per session, person, tenant, round; balance     caps.rs
//!                 ─► hold out whole sessions, the same in every round     split.rs
//! ```
//! The student sees the turn's messages; the teacher sees the same with a hint appended to the last
//! user message; both continue with the same reply tokens. `preview.rs` shows all of it without
//! changing anything.
//!
//! Invariant: every sample names its turn and the generation that produced its reply, and that
//! generation is in the registry; a turn that misses something is dropped and counted, never
//! filled.

mod caps;
mod draw;
pub mod filter;
pub mod hint;
mod notes;
pub mod preview;
pub mod render;
mod reward;
pub mod split;

use crate::compute::Sequence;
use crate::train::teach::Lesson;
use hone_shared::store::Split;
use hone_shared::turn::{Generation, TurnId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub use caps::balance;
pub use draw::{Drawn, Fate, HINTS_MAX, Sampler, corrections};

/// One judged reply as the trainer uses it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Where it comes from.
    pub turn_id: TurnId,
    /// Its session.
    pub session_id: String,
    /// What produced the reply.
    pub generation: Generation,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Token ids of the prompt with each hint, shortest hint first.
    pub teachers: Vec<Vec<u32>>,
    /// Token ids of the live reply, with the end token if it ended.
    pub response: Vec<u32>,
    /// The live reply ended by itself.
    pub ended: bool,
    /// The advantage of the live reply: +1, −1 or a step's; 0 when it is not judged.
    pub reward: f64,
    /// Token ids of what a person would have answered, with the end token.
    pub demonstration: Option<Vec<u32>>,
}

impl Sample {
    /// Prompt and live reply.
    pub fn plain(&self) -> Sequence {
        self.plain_with(&self.response)
    }

    /// Prompt and another reply.
    pub fn plain_with(&self, response: &[u32]) -> Sequence {
        Sequence { prompt: self.prompt.clone(), response: response.to_vec() }
    }

    /// The live reply to be taught about, if there is a hint.
    pub fn lesson(&self) -> Option<Lesson> {
        self.lesson_with(&self.response)
    }

    /// Another reply to be taught about, if there is a hint.
    pub fn lesson_with(&self, response: &[u32]) -> Option<Lesson> {
        if self.teachers.is_empty() {
            return None;
        }
        let with =
            |prompt: &Vec<u32>| Sequence { prompt: prompt.clone(), response: response.to_vec() };
        let hinted = self.teachers.iter().map(with).collect();
        Some(Lesson { plain: self.plain_with(response), hinted })
    }

    /// Whether the live reply itself says something: by a reward, or by what a hint makes of it.
    pub fn judges_the_reply(&self) -> bool {
        self.reward != 0.0 || !self.teachers.is_empty()
    }

    /// Whether it says that another answer would have been better.
    pub fn corrects(&self) -> bool {
        self.reward < 0.0 || !self.teachers.is_empty() || self.demonstration.is_some()
    }

    /// Whether its live reply is all there is to anchor.
    pub fn has_only_a_reward(&self) -> bool {
        self.reward != 0.0 && self.teachers.is_empty()
    }
}

/// What a round learns from: frozen, so that a resumed round has the same.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Learned from.
    pub train: Vec<Sample>,
    /// Tested on, never learned from in this round.
    pub holdout: Vec<Sample>,
    /// Turns that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Turns with a reward beyond what the balance of signs lets count: their hints still teach.
    #[serde(default)]
    pub muted: u64,
    /// Mean reward of the turns that were judged for themselves, for the route's baseline.
    #[serde(default)]
    pub reward_mean: Option<f64>,
    /// Turns that this round has looked at and that shall not start another one by themselves.
    pub seen: Vec<TurnId>,
}

impl Batch {
    /// Samples that say that another answer would have been better, in both parts.
    pub fn corrections(&self) -> usize {
        self.train.iter().chain(&self.holdout).filter(|sample| sample.corrects()).count()
    }

    /// Provenance for the store: which turn is in which part.
    pub fn provenance(&self) -> Vec<(TurnId, Split)> {
        let of = |samples: &[Sample], split: Split| {
            samples.iter().map(|s| (s.turn_id, split)).collect::<Vec<_>>()
        };
        let mut all = of(&self.train, Split::Train);
        all.extend(of(&self.holdout, Split::Holdout));
        all
    }
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "poison_tests.rs"]
mod poison;
