//! Link entries of a transaction that are not in their table yet.
//!
//! Why: they are hashes, so each lies at a random place of its index. Written together at the end,
//! in the order of the index, neighbours are written by one statement and share a page.
//!
//! Invariant: whoever probes inside of the transaction sees them as if they were written.

use std::collections::HashMap;

use rusqlite::Connection;

use super::Result;
use crate::link::{Entry, Hash, HashKind};

/// Rows of one statement.
const ROWS: usize = 16;
/// Columns of the table.
const COLUMNS: usize = 4;

type Key = (HashKind, Hash);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    key: Key,
    turn: i64,
    choice: u32,
}

/// The entries, oldest first.
#[derive(Debug, Default)]
pub(super) struct Staged {
    rows: Vec<Row>,
    /// For each row the one with the same key before it.
    before: Vec<Option<usize>>,
    newest: HashMap<Key, usize>,
}

impl Staged {
    /// Adds an entry of the turn in a row.
    pub(super) fn put(&mut self, entry: &Entry, turn: i64) {
        let key = (entry.kind, entry.hash);
        let before = self.newest.insert(key, self.rows.len());
        self.rows.push(Row { key, turn, choice: entry.choice });
        self.before.push(before);
    }

    /// Rows of turns and choices with an entry, newest first.
    pub(super) fn find(&self, kind: HashKind, hash: &Hash) -> impl Iterator<Item = (i64, u32)> {
        let newest = self.newest.get(&(kind, *hash)).copied();
        let at = std::iter::successors(newest, |at| self.before.get(*at).copied().flatten());
        at.filter_map(|at| self.rows.get(at)).map(|row| (row.turn, row.choice))
    }

    /// Takes the entries of all turns after this one back: they were not stored.
    pub(super) fn forget_after(&mut self, last: i64) {
        let rows = std::mem::take(self).rows;
        for Row { key: (kind, hash), turn, choice } in rows.into_iter().filter(|r| r.turn <= last) {
            self.put(&Entry { kind, hash, choice }, turn);
        }
    }

    /// Writes all of them.
    pub(super) fn write(&mut self, conn: &Connection) -> Result<()> {
        let mut rows = std::mem::take(self).rows;
        rows.sort_unstable();
        rows.dedup();
        let (whole, rest) = rows.as_chunks::<ROWS>();
        let mut insert =
            conn.prepare_cached(&insert_sql(if whole.is_empty() { 1 } else { ROWS }))?;
        for chunk in whole {
            bind(&mut insert, chunk)?;
            insert.raw_execute()?;
        }
        if !whole.is_empty() {
            insert = conn.prepare_cached(&insert_sql(1))?;
        }
        for row in rest {
            bind(&mut insert, std::slice::from_ref(row))?;
            insert.raw_execute()?;
        }
        Ok(())
    }
}

fn bind(insert: &mut rusqlite::Statement<'_>, rows: &[Row]) -> Result<()> {
    for (at, row) in rows.iter().enumerate() {
        let first = at * COLUMNS + 1;
        insert.raw_bind_parameter(first, row.key.0.number())?;
        insert.raw_bind_parameter(first + 1, &row.key.1[..])?;
        insert.raw_bind_parameter(first + 2, row.turn)?;
        insert.raw_bind_parameter(first + 3, row.choice)?;
    }
    Ok(())
}

fn insert_sql(rows: usize) -> String {
    let values = vec!["(?, ?, ?, ?)"; rows].join(", ");
    format!("INSERT OR IGNORE INTO link_index (kind, hash, turn, choice) VALUES {values}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(hash: u8) -> Entry {
        Entry { kind: HashKind::Out, hash: [hash; 16], choice: 0 }
    }

    #[test]
    fn entries_are_found_newest_first_and_only_under_their_key() {
        let mut staged = Staged::default();
        for turn in 1..=3 {
            staged.put(&entry(7), turn);
            staged.put(&entry(8), turn + 10);
        }
        let found: Vec<i64> = staged.find(HashKind::Out, &[7; 16]).map(|row| row.0).collect();
        assert_eq!(found, [3, 2, 1]);
        assert_eq!(staged.find(HashKind::Prompt, &[7; 16]).count(), 0);
        staged.forget_after(11);
        let found: Vec<i64> = staged.find(HashKind::Out, &[8; 16]).map(|row| row.0).collect();
        assert_eq!(found, [11], "a turn that was not stored is not found");
        assert_eq!(staged.find(HashKind::Out, &[7; 16]).count(), 3);
    }

    #[test]
    fn all_are_written_once_however_many_there_are() {
        let conn = Connection::open_in_memory().unwrap();
        let table = "CREATE TABLE link_index (kind, hash, turn, choice,
                     PRIMARY KEY (kind, hash, turn, choice)) WITHOUT ROWID";
        conn.execute_batch(table).unwrap();
        for count in [0, 1, ROWS, ROWS + 1, ROWS * 3 - 1] {
            conn.execute("DELETE FROM link_index", []).unwrap();
            let mut staged = Staged::default();
            for turn in 0..count {
                staged.put(&entry(turn as u8), turn as i64);
                staged.put(&entry(turn as u8), turn as i64);
            }
            staged.write(&conn).unwrap();
            let sql = "SELECT count(*), coalesce(sum(turn), 0) FROM link_index";
            let found: (i64, i64) =
                conn.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            assert_eq!(found, (count as i64, (0..count as i64).sum()));
            assert_eq!(staged.find(HashKind::Out, &[0; 16]).count(), 0, "they are in the table");
        }
    }
}
