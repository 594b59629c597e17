//! Sample: from judged turns to token ids, rewards and hints, split into train and holdout.
//!
//! ```text
//! trainable turns ─► dispatch by what is there: reward · hint · both
//!                 ─► render prompt, hinted prompt, reply       render.rs hint.rs
//!                 ─► filter, each reason counted               filter.rs
//!                 ─► caps per session, tenant, round
//!                 ─► hold out whole sessions                   split.rs
//! ```
//! The student sees the turn's messages; the teacher sees the same with the hint appended to the
//! last user message; both continue with the same reply tokens.
//!
//! Invariant: every sample names its turn and the generation that produced its reply, and that
//! generation is in the registry; a turn that misses something is dropped and counted, never
//! filled.

pub mod filter;
pub mod hint;
pub mod render;
pub mod split;

use crate::compute::Sequence;
use crate::train::teach::Lesson;
use filter::{Reason, garbage};
use hone_shared::policy::{RoundPolicy, TrainPolicy};
use hone_shared::store::{Split, Store, StoreError, StoredTurn, VerdictRow};
use hone_shared::turn::{Generation, Outcome, TurnId};
use render::Renderer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Extra tokens a hinted prompt may have beyond `prompt_tokens_max`.
const HINT_TOKENS_MAX: usize = 256;
/// Hints of a turn that teach.
pub const HINTS_MAX: usize = 3;

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
    /// Turns that this round has looked at and that shall not start another one by themselves.
    pub seen: Vec<TurnId>,
}

impl Batch {
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

/// What sampling needs beside the turns.
pub struct Sampler<'a> {
    /// Tokenizer and template.
    pub renderer: &'a Renderer,
    /// Caps.
    pub round: &'a RoundPolicy,
    /// Limits and weights.
    pub train: &'a TrainPolicy,
    /// The line above the hint.
    pub hint_label: &'a str,
    /// Whether a generation's files are at hand.
    pub has_generation: &'a dyn Fn(&Generation) -> bool,
    /// Key of the split.
    pub secret: &'a [u8; 32],
    /// The round.
    pub round_id: &'a str,
}

impl Sampler<'_> {
    /// Draws a round's batch from `pool` (oldest first).
    pub fn draw(
        &self,
        store: &Store,
        pool: &[(StoredTurn, VerdictRow)],
    ) -> Result<Batch, StoreError> {
        let mut batch = Batch::default();
        let mut chosen: Vec<Sample> = Vec::new();
        let mut sessions: BTreeMap<&str, usize> = BTreeMap::new();
        let mut tenants: BTreeMap<&str, usize> = BTreeMap::new();
        for (turn, verdict) in pool {
            let in_session = sessions.entry(turn.session_id.as_str()).or_default();
            let in_tenant = tenants.entry(turn.tenant.as_str()).or_default();
            let fate = if chosen.len() >= self.round.samples_max {
                Err(Reason::RoundFull)
            } else if *in_session >= self.round.per_session_max {
                Err(Reason::SessionCap)
            } else if *in_tenant >= self.round.per_tenant_max {
                Err(Reason::TenantCap)
            } else {
                let child = verdict.child.map(|child| store.turn(child)).transpose()?.flatten();
                self.sample(turn, verdict, child.map_or(0, |child| child.parent_choice))
            };
            match fate {
                Ok(sample) => {
                    *in_session += 1;
                    *in_tenant += 1;
                    batch.seen.push(turn.turn_id);
                    chosen.push(sample);
                }
                Err(reason) => {
                    *batch.dropped.entry(reason.to_string()).or_default() += 1;
                    if reason != Reason::RoundFull {
                        batch.seen.push(turn.turn_id);
                    }
                }
            }
        }
        let names: Vec<&str> = chosen.iter().map(|s| s.session_id.as_str()).collect();
        let held = split::hold_out(self.secret, self.round_id, &names, self.round.holdout_share);
        for (sample, held) in chosen.into_iter().zip(held) {
            if held { batch.holdout.push(sample) } else { batch.train.push(sample) }
        }
        Ok(batch)
    }

    /// One turn's sample, or why not. `choice` is the answer that the child continued.
    fn sample(
        &self,
        turn: &StoredTurn,
        verdict: &VerdictRow,
        choice: u32,
    ) -> Result<Sample, Reason> {
        if turn.outcome != Outcome::Complete {
            return Err(Reason::NotComplete);
        }
        let of_index = turn.choices.iter().find(|c| c.index == choice);
        let only = || if turn.choices.len() == 1 { turn.choices.first() } else { None };
        let answer = of_index.or_else(only).ok_or(Reason::MissingProvenance)?;
        if turn.messages.is_empty() || !(self.has_generation)(&turn.generation) {
            return Err(Reason::MissingProvenance);
        }
        let reward = if self.train.weight_rl > 0.0 { f64::from(verdict.verdict) } else { 0.0 };
        let wanted = if self.train.weight_opd > 0.0 { HINTS_MAX } else { 0 };
        let hints = &verdict.hints[..verdict.hints.len().min(wanted)];
        if reward == 0.0 && hints.is_empty() {
            return Err(Reason::NoSignal);
        }
        let tools = turn.params.get("tools");
        let prompt = self.renderer.prompt(&turn.path, &turn.messages, tools)?;
        let mut teachers = Vec::new();
        for hint in hints {
            let hinted = hint::enhance(&turn.messages, self.hint_label, hint);
            teachers.push(self.renderer.prompt(&turn.path, &hinted, tools)?);
        }
        self.check_length(&prompt, &teachers)?;
        let (message, finish) = (&answer.message, answer.finish_reason.as_deref());
        let limit = self.train.reply_tokens_max;
        let reply = self.renderer.reply(&turn.messages, tools, message, finish, limit)?;
        let said = reply.tokens.len() - usize::from(reply.ended);
        if let Some(reason) = garbage(&reply.tokens[..said]) {
            return Err(reason);
        }
        Ok(Sample {
            turn_id: turn.turn_id,
            session_id: turn.session_id.clone(),
            generation: turn.generation.clone(),
            prompt,
            teachers,
            response: reply.tokens,
            ended: reply.ended,
            reward,
            demonstration: None,
        })
    }

    /// A truncated prompt is not what the model saw, so a long one is dropped and not cut.
    fn check_length(&self, prompt: &[u32], teachers: &[Vec<u32>]) -> Result<(), Reason> {
        let limit = self.train.prompt_tokens_max;
        let longest = teachers.iter().map(Vec::len).fold(prompt.len(), usize::max);
        let room = self.renderer.model.max_positions;
        let too_long = prompt.len() > limit
            || longest > limit + HINT_TOKENS_MAX
            || longest + self.train.reply_tokens_max > room;
        if too_long { Err(Reason::PromptTooLong) } else { Ok(()) }
    }
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
