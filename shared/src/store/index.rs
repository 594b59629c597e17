//! How a child finds its parent: the store as a [`LinkIndex`].
//!
//! Invariant: a probe costs the same however many turns share a text: at most `limit` rows are
//! touched.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Result, Store, StoreError, flags, parse, turns};
use crate::link::{Answers, Candidate, Hash, HashKind, LinkIndex};
use crate::turn::TurnId;

/// The link index over one connection, inside or outside of a transaction.
#[derive(Debug)]
pub struct Index<'a>(pub(super) &'a Connection);

type Row = (i64, String, u32, String, Option<i64>, u32, i64, u32, String, String, String);

impl Index<'_> {
    fn rows(&self, kind: HashKind, hash: &Hash, limit: usize) -> Result<Vec<Row>> {
        // Newest rows first by the index itself: sorting by time would read all turns with the same
        // text. Of children, a thousand are as good as more.
        let mut find = self.0.prepare_cached(
            "SELECT t.id, t.turn_id, i.choice, t.session_id, t.parent, t.parent_choice,
                    t.started_ms,
                    (SELECT count(*) FROM (SELECT 1 FROM turns c
                      WHERE c.parent = t.id AND c.parent_choice = i.choice LIMIT 1000)),
                    t.outcome, t.person, t.client
             FROM link_index i JOIN turns t ON t.id = i.turn
             WHERE i.kind = ?1 AND i.hash = ?2 AND t.flags & ?3 = 0 ORDER BY i.turn DESC",
        )?;
        let values = params![kind.number(), &hash[..], flags::FORGOTTEN];
        let rows = find.query_map(values, |row| row.try_into())?;
        // Taken here, not by a `LIMIT ?`: SQLite plans a statement anew for each bound limit.
        Ok(rows.take(limit).collect::<rusqlite::Result<_>>()?)
    }
}

impl LinkIndex for Index<'_> {
    type Error = StoreError;

    fn find(&self, kind: HashKind, hash: &Hash, limit: usize) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        for row in self.rows(kind, hash, limit)? {
            let (_, turn_id, choice, session_id, parent, parent_choice, started_ms, children, ..) =
                row;
            let (.., outcome, person, client) = row;
            let parent = match parent {
                Some(id) => Some((turns::turn_id(self.0, id)?, parent_choice)),
                None => None,
            };
            let turn_id = parse("turn_id", &turn_id)?;
            candidates.push(Candidate {
                turn_id,
                choice,
                session_id,
                parent,
                children,
                started_ms,
                outcome: parse("outcome", &outcome)?,
                person,
                client,
            });
        }
        candidates.sort_by_key(|c| std::cmp::Reverse((c.started_ms, c.turn_id)));
        Ok(candidates)
    }

    fn answers(&self, turn: TurnId) -> Result<Option<Answers>> {
        let mut find = self.0.prepare_cached("SELECT id, outcome FROM turns WHERE turn_id = ?1")?;
        let row: Option<(i64, String)> =
            find.query_row([turn.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((id, outcome)) = row else { return Ok(None) };
        let choices = turns::choices(self.0, id)?;
        Ok(Some(Answers { outcome: parse("outcome", &outcome)?, choices }))
    }
}

impl LinkIndex for Store {
    type Error = StoreError;

    fn find(&self, kind: HashKind, hash: &Hash, limit: usize) -> Result<Vec<Candidate>> {
        Index(&self.conn).find(kind, hash, limit)
    }

    fn answers(&self, turn: TurnId) -> Result<Option<Answers>> {
        Index(&self.conn).answers(turn)
    }
}
