//! From a request to its parent: probe the request's own history, surest evidence first.
//!
//! History that the request names is looked up by its name. Then all kinds of evidence are tried at
//! the last answer of the history; only then exact matches further back, because a next state that
//! begins at an older answer says less about it. Who of several matches is meant: [`choose`].
//!
//! Invariant: a link never names the request itself, nor a turn that the tenant's key could not
//! have hashed.
//!
//! [`choose`]: super::choose

use serde_json::Value;

use super::canon::{canon_loose, loose_text};
use super::chain::{LinkKey, instructions, is_assistant, references};
use super::choose::{Asker, Match};
use super::entries::{assistant_hashes, call_hash, idempotency_hash, scoped_call_hash};
use super::similar::Grams;
use super::{
    CANDIDATES_MAX, Candidate, Hash, HashKind, Incoming, Link, LinkIndex, LinkKind, PROBES_MAX,
    RETRY_AGE_MS_MAX, Resolution, SIMILARITY_MIN, TRUNCATED_AGE_MS_MAX,
};
use crate::turn::Outcome;

/// Most turns whose answers are compared as text.
const COMPARED_MAX: usize = 16;

/// Finds where a request belongs. Errors: those of the index.
pub fn resolve<I: LinkIndex>(
    index: &I,
    key: &LinkKey,
    incoming: &Incoming<'_>,
) -> Result<Resolution, I::Error> {
    let session = incoming.explicit_session.map(|explicit| key.session(explicit));
    let asker = Asker { session, person: incoming.person, client: incoming.client };
    let mut probe = Probe { index, key, incoming, asker, twin: None };
    let (repeat_of, retry) = probe.repeat()?;
    let (link, parents_session) = probe.search()?.unzip();
    let own = || incoming.turn_id.to_string();
    let session_id = probe.asker.session.or(parents_session).unwrap_or_else(own);
    Ok(Resolution { session_id, link, repeat_of: repeat_of.map(|twin| twin.turn_id), retry })
}

pub(super) struct Probe<'a, I> {
    pub(super) index: &'a I,
    pub(super) key: &'a LinkKey,
    pub(super) incoming: &'a Incoming<'a>,
    asker: Asker<'a>,
    /// A turn with the same prompt.
    twin: Option<Candidate>,
}

/// A link with the session of its parent.
pub(super) type Found = Option<(Link, String)>;

impl<I: LinkIndex> Probe<'_, I> {
    /// The newest earlier turn that the same one asked for with the same prompt, and whether this
    /// is a retry.
    fn repeat(&mut self) -> Result<(Option<Candidate>, bool), I::Error> {
        let began = (self.incoming.started_ms, self.incoming.turn_id);
        let earlier = |turn: &Candidate| (turn.started_ms, turn.turn_id) < began;
        if let Some(hash) = idempotency_hash(self.key, self.incoming) {
            let same = self.find(HashKind::Idempotency, &hash)?;
            if let Some(first) = same.into_iter().find(earlier) {
                self.twin = Some(first.clone());
                return Ok((Some(first), true));
            }
        }
        // A conversation that the engine keeps goes on: the same words later are not the same
        // prompt.
        if self.incoming.named.conversation.is_some() && !self.incoming.retry {
            return Ok((None, false));
        }
        let mut twins = self.find(HashKind::Prompt, &self.incoming.history.exact.last())?;
        twins.retain(|twin| self.asker.may_be(twin));
        self.twin = twins.first().cloned();
        let Some(twin) = twins.into_iter().find(earlier) else {
            return Ok((None, self.incoming.retry));
        };
        let age_ms = self.incoming.started_ms.saturating_sub(twin.started_ms);
        let failed = twin.outcome != Outcome::Complete && age_ms <= RETRY_AGE_MS_MAX;
        Ok((Some(twin), self.incoming.retry || failed))
    }

    fn search(&self) -> Result<Found, I::Error> {
        if let Some(found) = self.named()? {
            return Ok(Some(found));
        }
        let messages = self.incoming.messages;
        // An answer at the very end (a prefill) has no next state.
        let ends = messages.len().saturating_sub(1);
        let answers = (0..ends).rev().filter(|at| messages.get(*at).is_some_and(is_assistant));
        let mut answers = answers.take(PROBES_MAX);
        if let Some(last) = answers.next() {
            if let Some(found) = self.at_last(last)? {
                return Ok(Some(found));
            }
            for at in answers {
                if let Some(found) = self.exact(at, 0.5)? {
                    return Ok(Some(found));
                }
            }
        }
        self.compacted()
    }

    /// All evidence that the last answer of the history gives.
    fn at_last(&self, last: usize) -> Result<Found, I::Error> {
        if let Some(found) = self.exact(last, 1.0)? {
            return Ok(Some(found));
        }
        if let Some(found) = self.tool_call(last)? {
            return Ok(Some(found));
        }
        if let Some(found) = self.loose(last)? {
            return Ok(Some(found));
        }
        match self.changed(last)? {
            Some(found) => Ok(Some(found)),
            None => self.truncated(last),
        }
    }

    /// What the request names: a response, items of one, or a conversation.
    fn named(&self) -> Result<Found, I::Error> {
        let (named, messages) = (self.incoming.named, self.incoming.messages);
        let first = instructions(messages);
        let matched = |sure: f64, end: usize| Match {
            kind: LinkKind::Named,
            sure,
            answer_at: end.saturating_sub(1),
            restores: Some(first..end),
        };
        if let Some(id) = &named.response {
            let found = self.find(HashKind::ResponseId, &self.key.named(id))?;
            return Ok(self.choose(found, matched(1.0, first)));
        }
        let last = messages.iter().rposition(|message| references(message).next().is_some());
        if let Some((at, message)) = last.and_then(|at| Some((at, messages.get(at)?))) {
            let hashes = references(message).map(|id| self.key.named(id));
            let found = self.most_of(HashKind::ResponseId, hashes)?;
            if let Some(found) = self.choose(found, matched(1.0, at + 1)) {
                return Ok(Some(found));
            }
        }
        let Some(id) = &named.conversation else { return Ok(None) };
        let began = (self.incoming.started_ms, self.incoming.turn_id);
        let turns = self.find(HashKind::Conversation, &self.key.named(id))?;
        // The engine adds to a conversation what was answered whole.
        let before = turns.into_iter().find(|turn| {
            turn.outcome == Outcome::Complete && (turn.started_ms, turn.turn_id) < began
        });
        Ok(self.choose(before.into_iter().collect(), matched(0.9, first)))
    }

    fn exact(&self, at: usize, sure: f64) -> Result<Found, I::Error> {
        let Some(hash) = self.incoming.history.exact.of_first(at + 1) else { return Ok(None) };
        let found = self.find(HashKind::Out, hash)?;
        Ok(self.choose(found, at_answer(LinkKind::Exact, sure, at)))
    }

    /// Tool results after the last answer that name a call of the parent. The turn with the most of
    /// them wins. Predictable ids count within a session, person or client, and for a day.
    fn tool_call(&self, last: usize) -> Result<Found, I::Error> {
        let after = self.incoming.messages.get(last + 1..).unwrap_or_default();
        let ids = after.iter().filter_map(|m| m.get("tool_call_id").and_then(Value::as_str));
        let ids: Vec<&str> = ids.take(PROBES_MAX).collect();
        let random = ids.iter().filter_map(|id| call_hash(self.key, id));
        let found = self.most_of(HashKind::ToolCall, random)?;
        if !found.is_empty() {
            return Ok(self.choose(found, at_answer(LinkKind::ToolCallId, 0.98, last)));
        }
        let counted = ids.iter().filter(|id| call_hash(self.key, id).is_none());
        let counted = counted.filter_map(|id| scoped_call_hash(self.key, self.incoming, id));
        let mut found = self.most_of(HashKind::ScopedCall, counted)?;
        found.retain(|turn| self.is_recent(turn));
        Ok(self.choose(found, at_answer(LinkKind::ToolCallId, 0.8, last)))
    }

    /// The turns that have the most of these hashes.
    fn most_of(
        &self,
        kind: HashKind,
        hashes: impl Iterator<Item = Hash>,
    ) -> Result<Vec<Candidate>, I::Error> {
        let mut found: Vec<(Candidate, usize)> = Vec::new();
        for hash in hashes.take(PROBES_MAX) {
            for candidate in self.find(kind, &hash)? {
                let same =
                    |c: &Candidate| (c.turn_id, c.choice) == (candidate.turn_id, candidate.choice);
                let room = found.len() < PROBES_MAX;
                match found.iter_mut().find(|(known, _)| same(known)) {
                    Some((_, count)) => *count += 1,
                    None if room => found.push((candidate, 1)),
                    None => {}
                }
            }
        }
        let most = found.iter().map(|(_, count)| *count).max().unwrap_or(0);
        Ok(found.into_iter().filter(|(_, count)| *count == most).map(|(c, _)| c).collect())
    }

    fn loose(&self, last: usize) -> Result<Found, I::Error> {
        let Some(hash) = self.incoming.history.loose.of_first(last + 1) else { return Ok(None) };
        let found = self.find(HashKind::LooseOut, hash)?;
        Ok(self.choose(found, at_answer(LinkKind::Loose, 0.95, last)))
    }

    /// The same words of the user, with an answer that was aborted or edited.
    fn changed(&self, last: usize) -> Result<Found, I::Error> {
        let skeleton = self.incoming.history.skeleton.of_first(last);
        let (Some(hash), Some(answer)) = (skeleton, self.incoming.shown.get(last)) else {
            return Ok(None);
        };
        let (text, form) = (loose_text(answer), canon_loose(answer));
        let grams = Grams::of(&text);
        let mut turns = self.find(HashKind::Skeleton, hash)?;
        self.asker.narrow(&mut turns);
        let mut aborted = Vec::new();
        let mut edited: Vec<(Candidate, f64)> = Vec::new();
        for turn in turns.into_iter().take(COMPARED_MAX) {
            let Some(stored) = self.index.answers(turn.turn_id)? else { continue };
            for choice in &stored.choices {
                let candidate = Candidate { choice: choice.index, ..turn.clone() };
                let original = loose_text(&choice.message);
                if form == canon_loose(&choice.message) {
                    // Answers further back were changed, this one was not.
                    edited.push((candidate, 1.0));
                } else if stored.outcome == Outcome::ClientAbort && prefix(&text, &original) {
                    aborted.push(candidate);
                } else if may_be_similar(&text, &original)
                    && calls(answer) == calls(&choice.message)
                {
                    edited.push((candidate, grams.dice(&Grams::of(&original))));
                }
            }
        }
        if !aborted.is_empty() {
            return Ok(self.choose(aborted, at_answer(LinkKind::Loose, 0.85, last)));
        }
        let best = edited.iter().map(|(_, similar)| *similar).fold(0.0, f64::max);
        if best < SIMILARITY_MIN {
            return Ok(None);
        }
        let closest = edited.into_iter().filter(|(_, s)| *s >= best).map(|(c, _)| c).collect();
        Ok(self.choose(closest, at_answer(LinkKind::Edited, 0.8 * best, last)))
    }

    /// The last answer by itself: of the asker's own turns, or of only one turn of the last day.
    fn truncated(&self, last: usize) -> Result<Found, I::Error> {
        let answer = self.incoming.messages.get(last);
        let Some(hashes) = answer.and_then(|answer| assistant_hashes(self.key, answer)) else {
            return Ok(None);
        };
        let found = self.find_any(HashKind::Assistant, &hashes)?;
        let own = |turn: &Candidate| self.asker.session.as_ref() == Some(&turn.session_id);
        if found.iter().any(own) {
            let found = found.into_iter().filter(own).collect();
            return Ok(self.choose(found, at_answer(LinkKind::Truncated, 0.8, last)));
        }
        let found = found.into_iter().filter(|turn| self.is_recent(turn)).collect();
        Ok(self.only(found, at_answer(LinkKind::Truncated, 0.6, last)))
    }

    fn is_recent(&self, turn: &Candidate) -> bool {
        self.incoming.started_ms.saturating_sub(turn.started_ms) <= TRUNCATED_AGE_MS_MAX
    }

    /// As [`Self::find_any`], of the last day.
    pub(super) fn find_recent(
        &self,
        kind: HashKind,
        hashes: &[Hash],
    ) -> Result<Vec<Candidate>, I::Error> {
        let mut found = self.find_any(kind, hashes)?;
        found.retain(|turn| self.is_recent(turn));
        Ok(found)
    }

    /// Turns with any of these hashes.
    fn find_any(&self, kind: HashKind, hashes: &[Hash]) -> Result<Vec<Candidate>, I::Error> {
        let found: Result<Vec<_>, _> = hashes.iter().map(|hash| self.find(kind, hash)).collect();
        Ok(found?.concat())
    }

    pub(super) fn find(&self, kind: HashKind, hash: &Hash) -> Result<Vec<Candidate>, I::Error> {
        let mut found = self.index.find(kind, hash, CANDIDATES_MAX)?;
        found.retain(|candidate| candidate.turn_id != self.incoming.turn_id);
        Ok(found)
    }

    /// The link, if who asks leaves only one turn.
    pub(super) fn only(&self, mut found: Vec<Candidate>, matched: Match) -> Found {
        self.asker.narrow(&mut found);
        if found.len() == 1 { self.choose(found, matched) } else { None }
    }

    pub(super) fn choose(&self, found: Vec<Candidate>, matched: Match) -> Found {
        let before = self.twin.as_ref().and_then(|twin| twin.parent);
        self.asker.choose(found, before, matched)
    }
}

fn at_answer(kind: LinkKind, sure: f64, answer_at: usize) -> Match {
    Match { kind, sure, answer_at, restores: None }
}

/// Whether a client shows the beginning of an aborted answer: what it received may be less than
/// what was recorded.
fn prefix(shown: &str, recorded: &str) -> bool {
    !shown.is_empty() && recorded.starts_with(shown)
}

/// Whether the lengths alone allow texts to be similar enough.
fn may_be_similar(a: &str, b: &str) -> bool {
    // Dice of at least s needs the shorter side to have s / (2 - s) of the longer one's trigrams;
    // characters may take up to four bytes, so this is only a cheap first look.
    let (short, long) = (a.len().min(b.len()) as f64, a.len().max(b.len()) as f64);
    short > 0.0 && short * 4.0 >= long * SIMILARITY_MIN / (2.0 - SIMILARITY_MIN)
}

/// Names of an answer's tool calls, in order.
fn calls(message: &Value) -> Vec<&str> {
    let calls = message.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    calls.filter_map(|call| call.pointer("/function/name").and_then(Value::as_str)).collect()
}
