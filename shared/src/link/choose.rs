//! Which of the turns that match equally well?
//!
//! In this order: the explicit session, the person, the client; then the parent that an identical
//! request took before (a retry must not move on to another twin), then a turn that nobody has
//! continued, then the newest.
//!
//! Invariant: each step only narrows; a turn of another named person is never chosen.

use std::ops::Range;

use super::resolve::Found;
use super::{Candidate, Link, LinkKind};
use crate::turn::TurnId;

/// Who asks, as far as known.
#[derive(Debug)]
pub(super) struct Asker<'a> {
    pub(super) session: Option<String>,
    pub(super) person: &'a str,
    pub(super) client: &'a str,
}

/// A match that is to become a link.
#[derive(Debug, Clone)]
pub(super) struct Match {
    pub(super) kind: LinkKind,
    /// Confidence when only one turn matches.
    pub(super) sure: f64,
    pub(super) answer_at: usize,
    pub(super) restores: Option<Range<usize>>,
}

impl Asker<'_> {
    /// Drops the turns of other named persons; then keeps those of the asker's own session, person
    /// and client, as far as any are.
    pub(super) fn narrow(&self, found: &mut Vec<Candidate>) {
        if !self.person.is_empty() {
            found.retain(|c| c.person.is_empty() || c.person == self.person);
        }
        let mut keep = |is_own: &dyn Fn(&Candidate) -> bool| {
            if found.iter().any(is_own) {
                found.retain(is_own);
            }
        };
        keep(&|c| self.session.as_ref() == Some(&c.session_id));
        keep(&|c| !self.person.is_empty() && c.person == self.person);
        keep(&|c| !self.client.is_empty() && c.client == self.client);
    }

    /// Whether a turn may have been asked for by the same one: nothing that is known differs.
    pub(super) fn may_be(&self, other: &Candidate) -> bool {
        let same =
            |mine: &str, theirs: &str| mine.is_empty() || theirs.is_empty() || mine == theirs;
        match &self.session {
            Some(session) => *session == other.session_id,
            None => same(self.person, &other.person) && same(self.client, &other.client),
        }
    }

    /// Picks one of the turns that match equally well, newest first in `found`. `before` is the
    /// parent that an identical request took.
    pub(super) fn choose(
        &self,
        mut found: Vec<Candidate>,
        before: Option<(TurnId, u32)>,
        matched: Match,
    ) -> Found {
        let candidates = u32::try_from(found.len()).unwrap_or(u32::MAX);
        self.narrow(&mut found);
        let again = found.iter().find(|c| before == Some((c.turn_id, c.choice)));
        let childless = found.iter().filter(|c| c.children == 0).count();
        let certainty = match (found.len(), again, childless) {
            (1, _, _) => 1.0,
            (_, None, 1) => 0.8,
            _ => 0.5,
        };
        let unanswered = found.iter().find(|c| c.children == 0);
        let chosen = again.or(unanswered).or(found.first())?;
        let Match { kind, sure, answer_at, restores } = matched;
        let link = Link {
            parent: chosen.turn_id,
            choice: chosen.choice,
            kind,
            confidence: sure * certainty,
            candidates,
            answer_at,
            restores,
        };
        Some((link, chosen.session_id.clone()))
    }
}
