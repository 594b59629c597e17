//! Drawing a round's batch from the pool of judged turns.
//!
//! Invariant: the same pool, policy and history give the same batch; every turn of the pool has
//! exactly one fate.

use super::caps::{Caps, balance};
use super::filter::{Reason, garbage, is_refusal};
use super::notes::{self, Note};
use super::render::{self, Renderer};
use super::reward::{self, Worth};
use super::{Batch, Sample, hint, split};
use crate::judge::exchange::text_of;
use hone_model::chat::Asked;
use hone_shared::policy::{RoundPolicy, RoutePolicy, TrainPolicy};
use hone_shared::store::{Split, Store, StoreError, StoredTurn, VerdictRow};
use hone_shared::turn::{Generation, Outcome, TurnId};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};

/// Extra tokens a hinted prompt may have beyond `prompt_tokens_max`.
const HINT_TOKENS_MAX: usize = 256;
/// Hints of a turn that teach.
pub const HINTS_MAX: usize = 3;

/// What sampling needs beside the turns.
pub struct Sampler<'a> {
    /// Tokenizer and template.
    pub renderer: &'a Renderer,
    /// The route, whose earlier rounds say what was held out.
    pub route: &'a str,
    /// Caps.
    pub round: &'a RoundPolicy,
    /// Limits and weights.
    pub train: &'a TrainPolicy,
    /// The line above the hint.
    pub hint_label: &'a str,
    /// How many generations behind the served one this one is; `None`: its files are not at hand.
    pub behind: &'a dyn Fn(&Generation) -> Option<usize>,
    /// The route's running baseline.
    pub baseline: f64,
    /// Key of the split.
    pub secret: &'a [u8; 32],
}

/// What became of one turn of the pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fate {
    /// The turn.
    pub turn_id: TurnId,
    /// Its session.
    pub session_id: String,
    /// Its tenant.
    pub tenant: String,
    /// What produced its reply.
    pub generation: Generation,
    /// The verdict.
    pub verdict: i8,
    /// What said so.
    pub source: String,
    /// Its part in the round; `None`: dropped.
    pub split: Option<Split>,
    /// Why it was dropped.
    pub dropped: Option<Reason>,
    /// The advantage that it is trained with.
    pub reward: f64,
    /// Hints that teach.
    pub hints: usize,
    /// Whether a person wrote the answer anew.
    pub demonstration: bool,
    /// The outcome of its episode.
    pub outcome: Option<f64>,
    /// The task, as the client names it.
    pub task: Option<String>,
}

/// A batch and how it came about.
#[derive(Debug, Clone, Default)]
pub struct Drawn {
    /// What the round learns from.
    pub batch: Batch,
    /// One per turn of the pool, in its order.
    pub fates: Vec<Fate>,
}

impl Sampler<'_> {
    /// Draws a round's batch from `pool` (oldest first).
    pub fn draw(
        &self,
        store: &Store,
        pool: &[(StoredTurn, VerdictRow)],
    ) -> Result<Drawn, StoreError> {
        let notes = notes::take(store, pool)?;
        let worth = reward::worth(pool, &notes, self.round.step_coefficient, self.baseline);
        let mut caps = Caps::new(self.round, pool);
        let mut known: HashSet<(String, Vec<u32>, Vec<u32>)> = HashSet::new();
        let mut fates: Vec<Fate> =
            pool.iter().zip(&notes).map(|((turn, v), note)| fate(turn, v, note)).collect();
        let mut chosen: Vec<(usize, Sample)> = Vec::new();
        // Praise must not take the room of what it is there to hold: corrections first.
        let corrects = |i: &usize| corrects(self.train, &pool[*i].1, &notes[*i], worth[*i]);
        let (first, then): (Vec<usize>, Vec<usize>) = (0..pool.len()).partition(corrects);
        for i in first.into_iter().chain(then) {
            let (turn, verdict) = &pool[i];
            let fits = caps.room(turn);
            let made = match fits {
                Ok(()) => {
                    let child = verdict.child.map(|child| store.turn(child)).transpose()?.flatten();
                    let choice = child.map_or(0, |child| child.parent_choice);
                    self.sample((turn, verdict), &notes[i], worth[i], choice)
                }
                Err(reason) => Err(reason),
            };
            let made = made.and_then(|sample| {
                let key = (turn.session_id.clone(), sample.prompt.clone(), sample.response.clone());
                if known.insert(key) { Ok(sample) } else { Err(Reason::Duplicate) }
            });
            match made {
                Ok(sample) => {
                    caps.take(turn);
                    chosen.push((i, sample));
                }
                Err(reason) => fates[i].dropped = Some(reason),
            }
        }
        chosen.sort_by_key(|(i, _)| *i);
        let muted = self.balance(&mut chosen, &mut fates);
        let mut drawn = self.split(store, pool, chosen, fates)?;
        drawn.batch.muted = muted;
        drawn.batch.reward_mean = reward::mean_of_verdicts(pool, &notes);
        Ok(drawn)
    }

    /// Takes the rewards of too many samples of one sign away, and the samples that have nothing
    /// else. Returns how many rewards.
    fn balance(&self, chosen: &mut Vec<(usize, Sample)>, fates: &mut [Fate]) -> u64 {
        let muted = balance(self.round, chosen.iter_mut().map(|(_, sample)| sample));
        chosen.retain(|(i, sample)| {
            let teaches = sample.judges_the_reply() || sample.demonstration.is_some();
            if !teaches {
                fates[*i].dropped = Some(Reason::SignCap);
            }
            teaches
        });
        muted
    }

    fn split(
        &self,
        store: &Store,
        pool: &[(StoredTurn, VerdictRow)],
        chosen: Vec<(usize, Sample)>,
        mut fates: Vec<Fate>,
    ) -> Result<Drawn, StoreError> {
        let mut before = BTreeMap::new();
        let session = |i: usize| (pool[i].0.tenant.clone(), pool[i].0.session_id.clone());
        for (i, _) in &chosen {
            if let std::collections::btree_map::Entry::Vacant(new) = before.entry(session(*i)) {
                let (tenant, session) = new.key().clone();
                new.insert(store.session_split(self.route, &tenant, &session)?);
            }
        }
        let names: Vec<(String, String)> = chosen.iter().map(|(i, _)| session(*i)).collect();
        let corrects: Vec<bool> = chosen.iter().map(|(_, sample)| sample.corrects()).collect();
        let share = self.round.holdout_share;
        let mut held = split::hold_out(self.secret, &names, &corrects, &before, share);
        let tested = chosen.iter().map(|(i, _)| store.was_held_out(self.route, pool[*i].0.turn_id));
        let tested = tested.collect::<Result<Vec<bool>, _>>()?;
        split::keep_testing(&mut held, &tested, &corrects);
        let key = |(i, sample): &(usize, Sample)| {
            (pool[*i].0.tenant.clone(), sample.prompt.clone(), sample.response.clone())
        };
        let keys: Vec<_> = chosen.iter().map(key).collect();
        let twins = split::twins(&held, &keys, &corrects);
        let mut batch = Batch::default();
        for (((i, sample), held), twin) in chosen.into_iter().zip(held).zip(twins) {
            let fate = &mut fates[i];
            if twin {
                fate.dropped = Some(Reason::Duplicate);
                continue;
            }
            (fate.reward, fate.hints) = (sample.reward, sample.teachers.len());
            fate.demonstration = sample.demonstration.is_some();
            fate.split = Some(if held { Split::Holdout } else { Split::Train });
            if held { batch.holdout.push(sample) } else { batch.train.push(sample) }
        }
        for fate in &fates {
            if let Some(reason) = fate.dropped {
                *batch.dropped.entry(reason.to_string()).or_default() += 1;
            }
            if !fate.dropped.is_some_and(Reason::is_untouched) {
                batch.seen.push(fate.turn_id);
            }
        }
        Ok(Drawn { batch, fates })
    }

    /// One turn's sample, or why not. `choice` is the answer that the child continued.
    fn sample(
        &self,
        (turn, verdict): (&StoredTurn, &VerdictRow),
        note: &Note,
        worth: Worth,
        choice: u32,
    ) -> Result<Sample, Reason> {
        if turn.outcome != Outcome::Complete {
            return Err(Reason::NotComplete);
        }
        let of_index = turn.choices.iter().find(|c| c.index == choice);
        let only = || if turn.choices.len() == 1 { turn.choices.first() } else { None };
        let answer = of_index.or_else(only).ok_or(Reason::MissingProvenance)?;
        let behind = (self.behind)(&turn.generation).ok_or(Reason::MissingProvenance)?;
        if turn.messages.is_empty() {
            return Err(Reason::MissingProvenance);
        }
        if behind > self.round.generations_behind_max {
            return Err(Reason::Stale);
        }
        let wanted = if self.train.weight_opd > 0.0 { HINTS_MAX } else { 0 };
        let hints = &verdict.hints[..verdict.hints.len().min(wanted)];
        let shown = note.demonstration.as_ref().filter(|_| self.train.weight_sft > 0.0);
        let reward = match worth {
            Worth::Advantage(advantage) if self.train.weight_rl > 0.0 => advantage,
            _ => 0.0,
        };
        if reward == 0.0 && hints.is_empty() && shown.is_none() {
            let constant = worth == Worth::Constant;
            return Err(if constant { Reason::ConstantGroup } else { Reason::NoSignal });
        }
        let asked = render::asked(turn);
        let prompt = self.renderer.prompt(&turn.path, &asked)?;
        let mut teachers = Vec::new();
        for hint in hints {
            let hinted = hint::enhance(&turn.messages, self.hint_label, hint);
            let hinted = Asked { messages: &hinted, ..asked };
            teachers.push(self.renderer.prompt(&turn.path, &hinted)?);
        }
        self.check_length(&prompt, &teachers)?;
        let (message, finish) = (&answer.message, answer.finish_reason.as_deref());
        let limit = self.train.reply_tokens_max;
        let ending = finish.filter(|_| !has_stop_strings(&turn.params));
        let reply = self.renderer.reply(&asked, message, ending, limit)?;
        let said = reply.tokens.len() - usize::from(reply.ended);
        if let Some(reason) = garbage(&reply.tokens[..said]) {
            return Err(reason);
        }
        // Praise for half an answer, or for none, teaches to give half an answer or none.
        if reward > 0.0 && finish == Some("length") {
            return Err(Reason::Truncated);
        }
        if reward > 0.0 && is_refusal(&text_of(message)) {
            return Err(Reason::Refusal);
        }
        let demonstration = match shown {
            None => None,
            Some(shown) => Some(self.demonstration(turn, shown)?),
        };
        Ok(Sample {
            turn_id: turn.turn_id,
            session_id: turn.session_id.clone(),
            generation: turn.generation.clone(),
            prompt,
            teachers,
            response: reply.tokens,
            ended: reply.ended,
            reward,
            demonstration,
        })
    }

    /// What a person would have answered, as tokens.
    fn demonstration(&self, turn: &StoredTurn, message: &Value) -> Result<Vec<u32>, Reason> {
        let (asked, limit) = (render::asked(turn), self.train.reply_tokens_max);
        let reply = self.renderer.reply(&asked, message, Some("stop"), limit)?;
        let said = reply.tokens.len() - usize::from(reply.ended);
        match garbage(&reply.tokens[..said]) {
            // A person may well mean a word or two.
            Some(Reason::TooShort) | None if said > 0 => Ok(reply.tokens),
            reason => Err(reason.unwrap_or(Reason::TooShort)),
        }
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

/// Which turns of `pool` ask for another answer, under the route's weights.
pub fn corrections(
    store: &Store,
    pool: &[(StoredTurn, VerdictRow)],
    route: &RoutePolicy,
    baseline: f64,
) -> Result<Vec<bool>, StoreError> {
    let notes = notes::take(store, pool)?;
    let worth = reward::worth(pool, &notes, route.round.step_coefficient, baseline);
    let asks = |i: usize| corrects(&route.train, &pool[i].1, &notes[i], worth[i]);
    Ok((0..pool.len()).map(asks).collect())
}

/// Whether a turn asks for another answer, as [`Sample::corrects`] will say.
fn corrects(train: &TrainPolicy, verdict: &VerdictRow, note: &Note, worth: Worth) -> bool {
    let hinted = train.weight_opd > 0.0 && !verdict.hints.is_empty();
    let shown = train.weight_sft > 0.0 && note.demonstration.is_some();
    let rejected = matches!(worth, Worth::Advantage(a) if train.weight_rl > 0.0 && a < 0.0);
    hinted || shown || rejected
}

/// What is known before anything is decided.
fn fate(turn: &StoredTurn, verdict: &VerdictRow, note: &Note) -> Fate {
    Fate {
        turn_id: turn.turn_id,
        session_id: turn.session_id.clone(),
        tenant: turn.tenant.clone(),
        generation: turn.generation.clone(),
        verdict: verdict.verdict,
        source: verdict.source.clone(),
        split: None,
        dropped: None,
        reward: 0.0,
        hints: 0,
        demonstration: false,
        outcome: note.outcome,
        task: note.task.clone(),
    }
}

/// Whether a string of the client's may have ended the answer; then nobody knows whether the model
/// would have, and no end token is learned.
fn has_stop_strings(params: &Value) -> bool {
    let given = |key| match params.get(key) {
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        _ => false,
    };
    given("stop") || given("stop_sequences")
}
