//! How a child finds its parent: the store as a [`LinkIndex`].
//!
//! Invariant: a probe costs the same however many turns share a text: at most `limit` rows are
//! touched.

use std::cell::RefCell;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::staged::Staged;
use super::{Result, Store, StoreError, flags, parse, turns};
use crate::link::{Answers, Candidate, Entry, Hash, HashKind, LinkIndex};
use crate::turn::TurnId;

/// The link index over one connection, inside or outside of a transaction.
pub struct Index<'a> {
    conn: &'a Connection,
    /// Entries that are not in the table yet.
    staged: RefCell<Staged>,
    /// The statements that find rows, once they were needed: by hash, by row.
    by_hash: RefCell<Option<CachedStatement<'a>>>,
    by_row: RefCell<Option<CachedStatement<'a>>>,
}

type Row = (i64, String, u32, String, Option<i64>, u32, i64, u32, String, String, String);

/// What a candidate is made of, where the choice is `$choice`. Of children, a thousand are as good
/// as more.
macro_rules! columns {
    ($choice:literal) => {
        concat!(
            "SELECT t.id, t.turn_id, ",
            $choice,
            ", t.session_id, t.parent, t.parent_choice, t.started_ms,
             (SELECT count(*) FROM (SELECT 1 FROM turns c
               WHERE c.parent = t.id AND c.parent_choice = ",
            $choice,
            " LIMIT 1000)), t.outcome, t.person, t.client FROM "
        )
    };
}

/// Newest rows first by the index itself: sorting by time would read all turns with the same text.
const BY_HASH: &str = concat!(
    columns!("i.choice"),
    "link_index i JOIN turns t ON t.id = i.turn
     WHERE i.kind = ?1 AND i.hash = ?2 AND t.flags & ?3 = 0 ORDER BY i.turn DESC"
);
const BY_ROW: &str = concat!(columns!("?2"), "turns t WHERE t.id = ?1 AND t.flags & ?3 = 0");

impl<'a> Index<'a> {
    pub(super) fn of(conn: &'a Connection) -> Self {
        let (by_hash, by_row) = (RefCell::default(), RefCell::default());
        Self { conn, staged: RefCell::default(), by_hash, by_row }
    }

    /// Adds what a turn can be found by; it is written with all others of the transaction.
    pub(super) fn put(&self, entries: &[Entry], turn: i64) {
        let mut staged = self.staged.borrow_mut();
        entries.iter().for_each(|entry| staged.put(entry, turn));
    }

    /// Takes back what was put since there were so many turns: they were not stored.
    pub(super) fn forget_after(&self, turn: i64) {
        self.staged.borrow_mut().forget_after(turn);
    }

    /// Writes what was put.
    pub(super) fn write(&self) -> Result<()> {
        self.staged.borrow_mut().write(self.conn)
    }

    fn rows(&self, kind: HashKind, hash: &Hash, limit: usize) -> Result<Vec<Row>> {
        let mut rows = self.staged_rows(kind, hash, limit)?;
        let mut by_hash = self.by_hash.borrow_mut();
        let find = match &mut *by_hash {
            Some(find) => find,
            none => none.insert(self.conn.prepare_cached(BY_HASH)?),
        };
        let values = params![kind.number(), &hash[..], flags::FORGOTTEN];
        let written = find.query_map(values, |row| row.try_into())?;
        // Taken here, not by a `LIMIT ?`: SQLite plans a statement anew for each bound limit.
        for row in written.take(limit.saturating_sub(rows.len())) {
            rows.push(row?);
        }
        Ok(rows)
    }

    fn staged_rows(&self, kind: HashKind, hash: &Hash, limit: usize) -> Result<Vec<Row>> {
        let (mut rows, staged) = (Vec::new(), self.staged.borrow());
        for (turn, choice) in staged.find(kind, hash).take(limit) {
            let mut by_row = self.by_row.borrow_mut();
            let find = match &mut *by_row {
                Some(find) => find,
                none => none.insert(self.conn.prepare_cached(BY_ROW)?),
            };
            let values = params![turn, choice, flags::FORGOTTEN];
            rows.extend(find.query_row(values, |row| row.try_into()).optional()?);
        }
        Ok(rows)
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
                Some(id) => Some((turns::turn_id(self.conn, id)?, parent_choice)),
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
        let mut find =
            self.conn.prepare_cached("SELECT id, outcome FROM turns WHERE turn_id = ?1")?;
        let row: Option<(i64, String)> =
            find.query_row([turn.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((id, outcome)) = row else { return Ok(None) };
        let choices = turns::choices(self.conn, id)?;
        Ok(Some(Answers { outcome: parse("outcome", &outcome)?, choices }))
    }
}

impl LinkIndex for Store {
    type Error = StoreError;

    fn find(&self, kind: HashKind, hash: &Hash, limit: usize) -> Result<Vec<Candidate>> {
        Index::of(&self.conn).find(kind, hash, limit)
    }

    fn answers(&self, turn: TurnId) -> Result<Option<Answers>> {
        Index::of(&self.conn).answers(turn)
    }
}
