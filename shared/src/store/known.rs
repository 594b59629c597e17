//! What a writer remembers of the rows it wrote lately, so that resent history is found without an
//! index on disk.
//!
//! Why: an index over hashes is written at random places. On a store of a million turns that was
//! most of what a batch wrote, and it grew with the store. Conversations that go on are recent, so
//! memory is enough; what is not remembered is stored once more, which costs space and nothing else.
//!
//! Invariant: a remembered row may be gone or be another one by now (another process may delete);
//! whoever uses it checks its hash first, once until somebody may have deleted again.

use std::collections::HashMap;

use rusqlite::Connection;

use super::Result;
use super::bodies::Key;
use super::facets::KnownFacets;

/// Most rows remembered per table: two generations of half as many, about 5 MiB each table.
const ROWS_MAX: usize = 1 << 17;
/// How far back a writer reads when it starts, rows. Bodies are large, and most are found by their
/// node.
const NODES_READ_MAX: i64 = 1 << 16;
const BODIES_READ_MAX: i64 = 1 << 12;

/// Everything that one writer remembers.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) bodies: Recent,
    pub(super) nodes: Recent,
    pub(super) facets: KnownFacets,
    /// Whether some feedback waits for its turn, as of this transaction's beginning.
    pub(super) feedback_waits: bool,
    /// In this transaction nothing is marked as forgotten.
    pub(super) nothing_forgotten: bool,
    /// In this transaction no turn waits for its parent.
    pub(super) nothing_waits: bool,
    /// SQLite's count of what other connections have changed.
    version: i64,
}

impl Known {
    /// Learns what others have written since the last transaction. Call at the beginning of one.
    pub(super) fn refresh(&mut self, conn: &Connection) -> Result<()> {
        let one = |sql: &str| -> Result<i64> {
            Ok(conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
        };
        let version = one("PRAGMA data_version")?;
        if std::mem::replace(&mut self.version, version) != version {
            self.distrust();
        }
        self.nothing_forgotten = one("SELECT NOT EXISTS (SELECT 1 FROM forgotten)")? == 1;
        self.nothing_waits = one("SELECT NOT EXISTS (SELECT 1 FROM pending_parents)")? == 1;
        self.nodes.refresh(conn, "nodes", NODES_READ_MAX)?;
        self.bodies.refresh(conn, "bodies", BODIES_READ_MAX)
    }

    /// Rows may have been deleted: each is to be checked again.
    pub(super) fn distrust(&mut self) {
        self.nodes.era += 1;
        self.bodies.era += 1;
        self.facets = KnownFacets::default();
    }

    /// Forgets everything: what was remembered was rolled back.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A row, and the era in which it was last seen to be there.
#[derive(Debug, Clone, Copy)]
struct Row {
    id: i64,
    era: u32,
}

/// Hash → row of the youngest rows of one table.
#[derive(Debug, Default)]
pub(super) struct Recent {
    young: HashMap<Key, Row>,
    old: HashMap<Key, Row>,
    era: u32,
    /// Rows up to this one are known, as far as they are remembered at all.
    upto: i64,
}

impl Recent {
    /// The row of a key, and whether it is certain to be there still.
    pub(super) fn get(&self, key: &Key) -> Option<(i64, bool)> {
        let row = self.young.get(key).or_else(|| self.old.get(key))?;
        Some((row.id, row.era == self.era))
    }

    pub(super) fn put(&mut self, key: Key, row: i64) {
        if self.young.len() >= ROWS_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, Row { id: row, era: self.era });
        self.upto = self.upto.max(row);
    }

    pub(super) fn forget(&mut self, key: &Key) {
        self.young.remove(key);
        self.old.remove(key);
    }

    fn refresh(&mut self, conn: &Connection, table: &str, read_max: i64) -> Result<()> {
        let last = format!("SELECT coalesce(max(id), 0) FROM {table}");
        let last: i64 = conn.prepare_cached(&last)?.query_row([], |row| row.get(0))?;
        if last <= self.upto {
            return Ok(());
        }
        let first = self.upto.max(last - read_max);
        let rows = format!("SELECT hash, id FROM {table} WHERE id > ?1 ORDER BY id");
        let mut rows = conn.prepare_cached(&rows)?;
        let mut rows = rows.query([first])?;
        while let Some(row) = rows.next()? {
            // A hash of another length is none of ours.
            if let Ok(key) = row.get_ref(0)?.as_blob().unwrap_or_default().try_into() {
                self.put(key, row.get(1)?);
            }
        }
        self.upto = last;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_rows_are_remembered_and_the_number_is_bounded() {
        let mut recent = Recent::default();
        let key = |n: usize| (n as u128).to_le_bytes();
        (0..ROWS_MAX * 2).for_each(|n| recent.put(key(n), n as i64));
        assert!(recent.young.len() + recent.old.len() <= ROWS_MAX);
        assert_eq!(recent.get(&key(0)), None);
        let youngest = ROWS_MAX * 2 - ROWS_MAX / 2;
        assert_eq!(recent.get(&key(youngest)), Some((youngest as i64, true)));
        recent.era += 1;
        assert_eq!(recent.get(&key(youngest)), Some((youngest as i64, false)));
        recent.forget(&key(youngest));
        assert_eq!(recent.get(&key(youngest)), None);
    }
}
