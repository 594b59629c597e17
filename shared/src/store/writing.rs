//! What one transaction of the ingest holds: its statements, looked up once and not once per row,
//! and what the writer remembers of earlier ones.
//!
//! Invariant: lives as long as its transaction, and [`Writing::finish`] comes before the commit.

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use uuid::Uuid;

use super::bodies::{self, Body, Key, Node};
use super::known::{Known, Recent};
use super::{Index, Result};
use crate::turn::TurnId;

const IS_BODY: &str = "SELECT 1 FROM bodies WHERE id = ?1 AND hash = ?2";
const IS_NODE: &str = "SELECT 1 FROM nodes n JOIN bodies b ON b.id = n.message
                       WHERE n.id = ?1 AND n.hash = ?2";

/// One transaction of the ingest.
pub(super) struct Writing<'a> {
    pub(super) conn: &'a Connection,
    pub(super) known: &'a mut Known,
    /// What turns are found by, those of this transaction included.
    pub(super) index: Index<'a>,
    pub(super) turn: CachedStatement<'a>,
    pub(super) choice: CachedStatement<'a>,
    row: CachedStatement<'a>,
    body: CachedStatement<'a>,
    node: CachedStatement<'a>,
}

impl<'a> Writing<'a> {
    pub(super) fn begin(conn: &'a Connection, known: &'a mut Known) -> Result<Self> {
        known.refresh(conn)?;
        let prepare = |sql: &str| conn.prepare_cached(sql);
        Ok(Self {
            conn,
            known,
            index: Index::of(conn),
            turn: prepare(super::insert::INSERT_TURN)?,
            choice: prepare(
                "INSERT OR IGNORE INTO choices (turn, idx, message, finish_reason)
                 VALUES (?1, ?2, ?3, ?4)",
            )?,
            row: prepare(super::insert::ROW_OF)?,
            body: prepare("INSERT INTO bodies (hash, bytes) VALUES (?1, ?2)")?,
            node: prepare("INSERT INTO nodes (hash, parent, message) VALUES (?1, ?2, ?3)")?,
        })
    }

    /// Writes what was held back for the end of the transaction.
    pub(super) fn finish(self) -> Result<()> {
        self.index.write()
    }

    /// The row of a turn.
    pub(super) fn row_of(&mut self, turn: TurnId) -> Result<Option<i64>> {
        let mut text = Uuid::encode_buffer();
        let text: &str = turn.0.hyphenated().encode_lower(&mut text);
        Ok(self.row.query_row([text], |row| row.get(0)).optional()?)
    }

    /// Stores a body unless it is known; returns its row.
    pub(super) fn put(&mut self, body: &Body) -> Result<i64> {
        if let Some(id) = find(self.conn, IS_BODY, &mut self.known.bodies, &body.key)? {
            return Ok(id);
        }
        let id = self.body.insert(params![&body.key[..], bodies::pack(&body.bytes)])?;
        self.known.bodies.put(body.key, id);
        Ok(id)
    }

    /// Stores the nodes of a prompt that are not known; returns the row of the last one. `None` for
    /// an empty prompt.
    pub(super) fn put_chain(&mut self, nodes: &[Node]) -> Result<Option<i64>> {
        let mut stored = nodes.len();
        let mut above = None;
        // Resent history is there already, so the longest known prefix is near the end.
        while let Some(node) = stored.checked_sub(1).and_then(|last| nodes.get(last)) {
            above = find(self.conn, IS_NODE, &mut self.known.nodes, &node.key)?;
            if above.is_some() {
                break;
            }
            stored -= 1;
        }
        for node in nodes.iter().skip(stored) {
            let message = self.put(&node.message)?;
            let id = self.node.insert(params![&node.key[..], above, message])?;
            self.known.nodes.put(node.key, id);
            above = Some(id);
        }
        Ok(above)
    }
}

/// The row that is remembered for a key, if it is still the one: it may have been deleted, and its
/// number given to another.
fn find(conn: &Connection, is: &str, recent: &mut Recent, key: &Key) -> Result<Option<i64>> {
    let Some((id, certain)) = recent.get(key) else { return Ok(None) };
    if certain {
        return Ok(Some(id));
    }
    if conn.prepare_cached(is)?.exists(params![id, &key[..]])? {
        recent.put(*key, id);
        return Ok(Some(id));
    }
    recent.forget(key);
    Ok(None)
}
