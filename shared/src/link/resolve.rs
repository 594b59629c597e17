//! From a request to its parent: probe the request's own history, surest evidence first.
//!
//! All kinds of evidence are tried at the last answer of the history; only then exact matches
//! further back, because a next state that begins at an older answer says less about it. Among
//! turns that match equally well, the explicit session decides, then the parent that an identical
//! request took before (a retry must not move on to another twin), then a turn that nobody has
//! continued, then the newest.
//!
//! Invariant: a link never names the request itself, nor a turn that the tenant's key could not
//! have hashed.

use serde_json::Value;

use super::canon::{canon_loose, loose_text, similarity};
use super::chain::{Chain, LinkKey, assistant_hash, call_hash, is_assistant};
use super::{
    CANDIDATES_MAX, Candidate, HashKind, Incoming, Link, LinkIndex, LinkKind, PROBES_MAX,
    Resolution, SIMILARITY_MIN, TRUNCATED_AGE_MS_MAX,
};
use crate::turn::Outcome;

/// Finds where a request belongs. Errors: those of the index.
pub fn resolve<I: LinkIndex>(
    index: &I,
    key: &LinkKey,
    incoming: &Incoming<'_>,
) -> Result<Resolution, I::Error> {
    let chain = Chain::of(key, incoming.route, incoming.messages);
    let session = incoming.explicit_session.map(|explicit| key.session(explicit));
    let mut probe = Probe { index, key, incoming, session, twin: None };
    // Requests of another session with the same words are other conversations, not retries.
    let twins = probe.find(HashKind::Prompt, &chain.last())?;
    probe.twin = twins
        .into_iter()
        .find(|twin| probe.session.as_ref().is_none_or(|session| *session == twin.session_id));
    let found = probe.search(&chain)?;
    let (link, parents_session) = found.unzip();
    let own = || incoming.turn_id.to_string();
    let session_id = probe.session.clone().or(parents_session).unwrap_or_else(own);
    Ok(Resolution { session_id, link, repeat_of: probe.twin.map(|twin| twin.turn_id) })
}

struct Probe<'a, I> {
    index: &'a I,
    key: &'a LinkKey,
    incoming: &'a Incoming<'a>,
    session: Option<String>,
    twin: Option<Candidate>,
}

type Found = Option<(Link, String)>;

impl<I: LinkIndex> Probe<'_, I> {
    fn search(&self, chain: &Chain) -> Result<Found, I::Error> {
        let messages = self.incoming.messages;
        // An answer at the very end (a prefill) has no next state.
        let ends = messages.len().saturating_sub(1);
        let answers = (0..ends).rev().filter(|at| messages.get(*at).is_some_and(is_assistant));
        let mut answers = answers.take(PROBES_MAX);
        let Some(last) = answers.next() else { return Ok(None) };
        if let Some(found) = self.exact(chain, last, 1.0)? {
            return Ok(Some(found));
        }
        if let Some(found) = self.tool_call(last)? {
            return Ok(Some(found));
        }
        if let Some(found) = self.loose(last)? {
            return Ok(Some(found));
        }
        if let Some(found) = self.changed(last)? {
            return Ok(Some(found));
        }
        if let Some(found) = self.truncated(last)? {
            return Ok(Some(found));
        }
        for at in answers {
            if let Some(found) = self.exact(chain, at, 0.5)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn exact(&self, chain: &Chain, at: usize, sure: f64) -> Result<Found, I::Error> {
        let Some(hash) = chain.prefixes.get(at + 1) else { return Ok(None) };
        let found = self.find(HashKind::Out, hash)?;
        Ok(self.choose(found, LinkKind::Exact, sure, at))
    }

    /// Tool results after the last answer that name a call of the parent. The turn with the most of
    /// them wins.
    fn tool_call(&self, last: usize) -> Result<Found, I::Error> {
        let after = self.incoming.messages.get(last + 1..).unwrap_or_default();
        let ids = after.iter().filter_map(|m| m.get("tool_call_id").and_then(Value::as_str));
        let mut found: Vec<(Candidate, usize)> = Vec::new();
        for hash in ids.take(PROBES_MAX).filter_map(|id| call_hash(self.key, id)) {
            for candidate in self.find(HashKind::ToolCall, &hash)? {
                let same =
                    |c: &Candidate| (c.turn_id, c.choice) == (candidate.turn_id, candidate.choice);
                match found.iter_mut().find(|(known, _)| same(known)) {
                    Some((_, count)) => *count += 1,
                    None => found.push((candidate, 1)),
                }
            }
        }
        let most = found.iter().map(|(_, count)| *count).max().unwrap_or(0);
        let best = found.into_iter().filter(|(_, count)| *count == most).map(|(c, _)| c).collect();
        Ok(self.choose(best, LinkKind::ToolCallId, 0.98, last))
    }

    fn loose(&self, last: usize) -> Result<Found, I::Error> {
        let messages = self.incoming.messages.get(..=last).unwrap_or_default();
        let hash = Chain::loose(self.key, self.incoming.route, messages).last();
        let found = self.find(HashKind::LooseOut, &hash)?;
        Ok(self.choose(found, LinkKind::Loose, 0.95, last))
    }

    /// The same words of the user, with an answer that was aborted or edited.
    fn changed(&self, last: usize) -> Result<Found, I::Error> {
        let (before, Some(answer)) =
            (self.incoming.messages.get(..last), self.incoming.shown.get(last))
        else {
            return Ok(None);
        };
        let before = before.unwrap_or_default();
        let hash = Chain::skeleton(self.key, self.incoming.route, before).last();
        let text = loose_text(answer);
        let mut aborted = Vec::new();
        let mut edited: Vec<(Candidate, f64)> = Vec::new();
        for turn in self.find(HashKind::Skeleton, &hash)? {
            let Some(stored) = self.index.answers(turn.turn_id)? else { continue };
            for choice in &stored.choices {
                let candidate = Candidate { choice: choice.index, ..turn.clone() };
                let original = loose_text(&choice.message);
                if canon_loose(answer) == canon_loose(&choice.message) {
                    // Answers further back were changed, this one was not.
                    edited.push((candidate, 1.0));
                } else if stored.outcome == Outcome::ClientAbort && prefix(&text, &original) {
                    aborted.push(candidate);
                } else if !text.is_empty() && calls(answer) == calls(&choice.message) {
                    edited.push((candidate, similarity(&text, &original)));
                }
            }
        }
        if !aborted.is_empty() {
            return Ok(self.choose(aborted, LinkKind::Loose, 0.85, last));
        }
        let best = edited.iter().map(|(_, similar)| *similar).fold(0.0, f64::max);
        if best < SIMILARITY_MIN {
            return Ok(None);
        }
        let closest = edited.into_iter().filter(|(_, s)| *s >= best).map(|(c, _)| c).collect();
        Ok(self.choose(closest, LinkKind::Edited, 0.8 * best, last))
    }

    /// The last answer by itself: of the same explicit session, or of only one turn of the last
    /// day.
    fn truncated(&self, last: usize) -> Result<Found, I::Error> {
        let answer = self.incoming.messages.get(last);
        let Some(hash) = answer.and_then(|answer| assistant_hash(self.key, answer)) else {
            return Ok(None);
        };
        let mut found = self.find(HashKind::Assistant, &hash)?;
        if let Some(session) = &self.session
            && found.iter().any(|c| c.session_id == *session)
        {
            found.retain(|c| c.session_id == *session);
            return Ok(self.choose(found, LinkKind::Truncated, 0.8, last));
        }
        let now = self.incoming.started_ms;
        found.retain(|c| now.saturating_sub(c.started_ms) <= TRUNCATED_AGE_MS_MAX);
        if found.len() > 1 {
            return Ok(None);
        }
        Ok(self.choose(found, LinkKind::Truncated, 0.6, last))
    }

    fn find(&self, kind: HashKind, hash: &super::Hash) -> Result<Vec<Candidate>, I::Error> {
        let mut found = self.index.find(kind, hash, CANDIDATES_MAX)?;
        found.retain(|candidate| candidate.turn_id != self.incoming.turn_id);
        Ok(found)
    }

    /// Picks one of the turns that match equally well, newest first in `found`.
    fn choose(&self, mut found: Vec<Candidate>, kind: LinkKind, sure: f64, at: usize) -> Found {
        let candidates = u32::try_from(found.len()).unwrap_or(u32::MAX);
        let mut certainty = if found.len() > 1 { 0.5 } else { 1.0 };
        if let Some(session) = &self.session
            && found.iter().any(|c| c.session_id == *session)
        {
            found.retain(|c| c.session_id == *session);
            certainty = if found.len() > 1 { 0.5 } else { 1.0 };
        }
        let before = self.twin.as_ref().and_then(|twin| twin.parent);
        let again = found.iter().find(|c| before == Some((c.turn_id, c.choice)));
        let unanswered = found.iter().find(|c| c.children == 0);
        if found.len() > 1
            && again.is_none()
            && found.iter().filter(|c| c.children == 0).count() == 1
        {
            certainty = 0.8;
        }
        let chosen = again.or(unanswered).or(found.first())?;
        let link = Link {
            parent: chosen.turn_id,
            choice: chosen.choice,
            kind,
            confidence: sure * certainty,
            candidates,
            answer_at: at,
        };
        Some((link, chosen.session_id.clone()))
    }
}

/// Whether a client shows the beginning of an aborted answer: what it received may be less than
/// what was recorded.
fn prefix(shown: &str, recorded: &str) -> bool {
    !shown.is_empty() && recorded.starts_with(shown)
}

/// Names of an answer's tool calls, in order.
fn calls(message: &Value) -> Vec<&str> {
    let calls = message.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    calls.filter_map(|call| call.pointer("/function/name").and_then(Value::as_str)).collect()
}
