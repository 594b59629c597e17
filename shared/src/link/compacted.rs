//! Requests whose history was replaced by a summary: the summary is an earlier turn's answer.
//!
//! Clients quote it whole, inside of tags, or with words of their own around it. Quoted whole, its
//! hash finds it; else the answers of the explicit session's newest turns are looked for in the
//! request's first messages.
//!
//! Invariant: nothing shorter than [`SUMMARY_CHARS_MIN`] is evidence; the work is bounded by a
//! fixed number of messages and answers.

use std::borrow::Cow;

use serde_json::json;

use super::canon::loose_text;
use super::chain::is_assistant;
use super::choose::Match;
use super::entries::{assistant_hashes, session_hash};
use super::resolve::{Found, Probe};
use super::{HashKind, LinkIndex, LinkKind, SUMMARY_CHARS_MIN};

/// Messages at the beginning of a request that may hold a summary.
const MESSAGES_MAX: usize = 4;
/// Newest turns of the session whose answers are looked for.
const TURNS_MAX: usize = 8;

impl<I: LinkIndex> Probe<'_, I> {
    /// The turn whose answer the request has in place of its history.
    pub(super) fn compacted(&self) -> Result<Found, I::Error> {
        let first = self.incoming.messages.iter().enumerate().take(MESSAGES_MAX);
        let texts: Vec<(usize, Cow<'_, str>)> = first
            .filter(|(_, message)| !is_assistant(message))
            .map(|(at, message)| (at, loose_text(message)))
            .filter(|(_, text)| is_long(text))
            .collect();
        for (at, text) in &texts {
            for quote in pieces(text) {
                let answer = json!({"role": "assistant", "content": quote});
                let Some(hashes) = assistant_hashes(self.key, &answer) else { continue };
                let found = self.find_recent(HashKind::Assistant, &hashes)?;
                if let Some(link) = self.only(found, matched(*at, 0.7)) {
                    return Ok(Some(link));
                }
            }
        }
        // Stored answers are compared with what is stored of the request.
        let shown = texts
            .into_iter()
            .filter_map(|(at, _)| Some((at, loose_text(self.incoming.shown.get(at)?))));
        self.quoted(&shown.collect::<Vec<_>>())
    }

    /// An answer of the session that one of the texts contains.
    fn quoted(&self, texts: &[(usize, Cow<'_, str>)]) -> Result<Found, I::Error> {
        let session = self.incoming.explicit_session.filter(|_| !texts.is_empty());
        let Some(session) = session else { return Ok(None) };
        let turns = self.find(HashKind::Session, &session_hash(self.key, session))?;
        for turn in turns.into_iter().take(TURNS_MAX) {
            let Some(stored) = self.index.answers(turn.turn_id)? else { continue };
            for choice in &stored.choices {
                let answer = loose_text(&choice.message);
                let is_in = |text: &str| pieces(&answer).any(|piece| text.contains(piece));
                let Some((at, _)) = texts.iter().find(|(_, text)| is_in(text)) else { continue };
                let candidate = super::Candidate { choice: choice.index, ..turn };
                return Ok(self.choose(vec![candidate], matched(*at, 0.6)));
            }
        }
        Ok(None)
    }
}

fn matched(answer_at: usize, sure: f64) -> Match {
    Match { kind: LinkKind::Compacted, sure, answer_at, restores: None }
}

fn is_long(text: &str) -> bool {
    text.chars().nth(SUMMARY_CHARS_MIN - 1).is_some()
}

/// A folded text, and what stands between its tags (`<summary>` and the like); long ones only.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let between = text.split(['<', '>']).map(str::trim);
    std::iter::once(text).chain(between).filter(|piece| is_long(piece))
}
