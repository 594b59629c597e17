//! Verdicts: what became of a turn, judged by its next state.
//!
//! Invariant: one verdict per turn; the first one stands.

use rusqlite::{OptionalExtension, Row, params};
use serde_json::Value;

use super::forget::is_forgotten;
use super::{Result, Store, StoreError, StoredTurn, facets, parse, parse_json};
use crate::turn::TurnId;

/// The judgement of one turn.
#[derive(Debug, Clone, PartialEq)]
pub struct VerdictRow {
    /// The turn that is judged.
    pub turn_id: TurnId,
    /// The child whose messages were the next state.
    pub child: TurnId,
    /// +1, 0 or −1.
    pub verdict: i8,
    /// `rule:<name>`, `llm` or `feedback`.
    pub source: String,
    /// Why, in words.
    pub reason: String,
    /// The single votes.
    pub votes: Value,
    /// What should have been different.
    pub hints: Vec<String>,
    /// Name of the judge policy and hash of its version.
    pub judge: String,
    /// When, milliseconds since 1970.
    pub judged_ms: i64,
}

/// The columns of a verdict in the order that `from_row` reads them, after the turn's id.
const COLUMNS: &str =
    "t.turn_id, v.child, v.verdict, v.source, v.reason, v.votes, v.hints, v.judge, v.judged_ms";

struct Raw {
    turn_id: String,
    child: String,
    votes: String,
    hints: String,
    row: VerdictRow,
}

fn from_row(row: &Row<'_>, first: usize) -> rusqlite::Result<Raw> {
    let nil = TurnId(uuid::Uuid::nil());
    Ok(Raw {
        turn_id: row.get(first)?,
        child: row.get(first + 1)?,
        votes: row.get(first + 5)?,
        hints: row.get(first + 6)?,
        row: VerdictRow {
            turn_id: nil,
            child: nil,
            verdict: row.get(first + 2)?,
            source: row.get(first + 3)?,
            reason: row.get(first + 4)?,
            votes: Value::Null,
            hints: Vec::new(),
            judge: row.get(first + 7)?,
            judged_ms: row.get(first + 8)?,
        },
    })
}

impl Raw {
    fn finish(self) -> Result<VerdictRow> {
        Ok(VerdictRow {
            turn_id: parse("turn_id", &self.turn_id)?,
            child: parse("child", &self.child)?,
            votes: parse_json("votes", self.votes.as_bytes())?,
            hints: parse_json("hints", self.hints.as_bytes())?,
            ..self.row
        })
    }
}

impl Store {
    /// Records a verdict. `false`: one stands already, the turn or its child was forgotten, or the turn was judged from nothing that is
    /// stored.
    pub fn insert_verdict(&self, row: &VerdictRow) -> Result<bool> {
        let write = self.write()?;
        let id: Option<i64> = write
            .query_row("SELECT id FROM turns WHERE turn_id = ?1", [row.turn_id.to_string()], |r| {
                r.get(0)
            })
            .optional()?;
        let missing = || StoreError::Missing { what: "turn", id: row.turn_id.to_string() };
        let id = id.ok_or_else(missing)?;
        // Judged before it was forgotten, written after: its words must not come back.
        if is_forgotten(&write, row.turn_id, false)? || is_forgotten(&write, row.child, false)? {
            return Ok(false);
        }
        let new = write.execute(
            "INSERT INTO verdicts
             (turn, child, verdict, source, reason, votes, hints, judge, judged_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (turn) DO NOTHING",
            params![
                id,
                row.child.to_string(),
                row.verdict,
                row.source,
                row.reason,
                row.votes.to_string(),
                Value::from(row.hints.clone()).to_string(),
                row.judge,
                row.judged_ms
            ],
        )?;
        write.execute("UPDATE turns SET judged = 1 WHERE id = ?1", [id])?;
        if new == 1 {
            facets::judged(&write, id, row.verdict)?;
        }
        write.commit()?;
        Ok(new == 1)
    }

    /// The verdict of a turn, if there is one.
    pub fn verdict(&self, turn: TurnId) -> Result<Option<VerdictRow>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM verdicts v JOIN turns t ON t.id = v.turn WHERE t.turn_id = ?1"
        );
        let mut find = self.conn.prepare_cached(&sql)?;
        let raw = find.query_row([turn.to_string()], |row| from_row(row, 0)).optional()?;
        raw.map(Raw::finish).transpose()
    }

    /// Turns of a route that a round can learn from, oldest first: a verdict that is not 0, or
    /// hints, and not yet in the train split of a finished round.
    pub fn trainable(&self, route: &str, limit: usize) -> Result<Vec<(StoredTurn, VerdictRow)>> {
        let sql = format!(
            "SELECT v.turn, {COLUMNS} FROM verdicts v JOIN turns t ON t.id = v.turn
             WHERE t.route = ?1 AND {TRAINABLE} ORDER BY t.id LIMIT ?2"
        );
        let mut find = self.conn.prepare_cached(&sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = find
            .query_map(params![route, limit], |row| Ok((row.get::<_, i64>(0)?, from_row(row, 1)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        rows.into_iter().map(|(id, raw)| Ok((self.turn_row(id)?, raw.finish()?))).collect()
    }
}

/// Which verdicts `v` of turns `t` can be learned from.
pub(super) const TRAINABLE: &str = "(v.verdict <> 0 OR v.hints <> '[]') AND t.judgeable = 1
    AND NOT EXISTS (
        SELECT 1 FROM round_turns rt JOIN rounds r ON r.round_id = rt.round_id
        WHERE rt.turn = t.id AND rt.split = 'train'
          AND r.state IN ('promoted', 'refused', 'failed'))";
