//! A link index in memory: what [`LinkIndex`] means, in the fewest lines. For tests and small
//! tools.
//!
//! Invariant: behaves as the store does; the store's tests run against both.

use std::collections::BTreeMap;
use std::convert::Infallible;

use super::{Answers, Candidate, Entry, Hash, HashKind, Incoming, Link, LinkIndex, Resolution};
use crate::turn::TurnId;

#[derive(Debug, Clone)]
struct Turn {
    session_id: String,
    parent: Option<(TurnId, u32)>,
    started_ms: i64,
    person: String,
    client: String,
    answers: Answers,
}

/// Turns and their entries. Grows without bound.
#[derive(Debug, Clone, Default)]
pub struct MemoryIndex {
    turns: BTreeMap<TurnId, Turn>,
    entries: BTreeMap<(HashKind, Hash), Vec<(TurnId, u32)>>,
}

impl MemoryIndex {
    /// Stores a turn as resolved, with its entries.
    pub fn insert(
        &mut self,
        incoming: &Incoming<'_>,
        resolution: &Resolution,
        answers: Answers,
        entries: &[Entry],
    ) {
        let turn_id = incoming.turn_id;
        let turn = Turn {
            session_id: resolution.session_id.clone(),
            parent: resolution.link.as_ref().map(|Link { parent, choice, .. }| (*parent, *choice)),
            started_ms: incoming.started_ms,
            person: incoming.person.to_owned(),
            client: incoming.client.to_owned(),
            answers,
        };
        self.turns.insert(turn_id, turn);
        for entry in entries {
            let rows = self.entries.entry((entry.kind, entry.hash)).or_default();
            rows.push((turn_id, entry.choice));
        }
    }
}

impl LinkIndex for MemoryIndex {
    type Error = Infallible;

    fn find(
        &self,
        kind: HashKind,
        hash: &Hash,
        limit: usize,
    ) -> Result<Vec<Candidate>, Infallible> {
        let rows = self.entries.get(&(kind, *hash)).into_iter().flatten();
        let candidate = |&(turn_id, choice): &(TurnId, u32)| {
            let turn = self.turns.get(&turn_id)?;
            let mine = Some((turn_id, choice));
            let children = self.turns.values().filter(|other| other.parent == mine).count();
            Some(Candidate {
                turn_id,
                choice,
                session_id: turn.session_id.clone(),
                parent: turn.parent,
                children: u32::try_from(children).unwrap_or(u32::MAX),
                started_ms: turn.started_ms,
                outcome: turn.answers.outcome,
                person: turn.person.clone(),
                client: turn.client.clone(),
            })
        };
        let mut found: Vec<Candidate> = rows.filter_map(candidate).collect();
        found.sort_by_key(|c| std::cmp::Reverse((c.started_ms, c.turn_id)));
        found.truncate(limit);
        Ok(found)
    }

    fn answers(&self, turn: TurnId) -> Result<Option<Answers>, Infallible> {
        Ok(self.turns.get(&turn).map(|turn| turn.answers.clone()))
    }
}
