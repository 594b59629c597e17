//! Counts over the whole store, for `hone status` and for tests of "nothing was lost".
//!
//! Invariant: one read transaction, so the numbers belong to the same moment.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde::Serialize;

use super::{Result, RoundState, Store, parse, uint, verdicts};
use crate::turn::{DropReason, Gap};

/// Most single notes about turns that were not recorded; the counters hold for ever.
const GAPS_MAX: i64 = 10_000;

/// How many of everything there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Turns.
    pub turns: u64,
    /// Turns whose response reached the client whole.
    pub complete: u64,
    /// Turns with a parent.
    pub linked: u64,
    /// Sessions.
    pub sessions: u64,
    /// Turns with a verdict.
    pub judged: u64,
    /// Verdicts +1.
    pub positive: u64,
    /// Verdicts 0.
    pub neutral: u64,
    /// Verdicts −1.
    pub negative: u64,
    /// Verdicts with at least one hint.
    pub with_hint: u64,
    /// Turns that have a next state and no verdict.
    pub to_judge: u64,
    /// Turns that the next round may learn from.
    pub trainable: u64,
    /// Feedback, in parts.
    pub feedback: FeedbackCounts,
    /// Rounds by state.
    pub rounds: BTreeMap<RoundState, u64>,
    /// Turns that were not recorded, by reason.
    pub dropped: BTreeMap<DropReason, u64>,
    /// When the youngest turn began, milliseconds since 1970.
    pub last_turn_ms: Option<i64>,
}

/// What became of feedback, in parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FeedbackCounts {
    /// Parts that wait for their turn.
    pub waiting: u64,
    /// Parts that the judge has not looked at.
    pub to_judge: u64,
    /// Parts that made or changed a verdict.
    pub used: u64,
    /// Parts that did not: too late, without weight, of a session, or of a turn that is not judged.
    pub kept: u64,
}

impl Counts {
    /// Rounds in a final state.
    pub fn rounds_finished(&self) -> u64 {
        self.rounds.iter().filter(|(state, _)| state.is_final()).map(|(_, count)| count).sum()
    }
}

impl Store {
    /// Counts everything. Reads the whole table of turns: for people, not for a loop.
    pub fn counts(&self) -> Result<Counts> {
        let read = self.conn.unchecked_transaction()?;
        let one = |sql: &str| -> Result<u64> {
            Ok(uint(read.query_row(sql, [], |row| row.get::<_, i64>(0))?))
        };
        let verdicts =
            |condition: &str| one(&format!("SELECT count(*) FROM verdicts WHERE {condition}"));
        let said = |condition: &str| {
            one(&format!("SELECT count(*) FROM feedback WHERE turn IS NOT NULL AND {condition}"))
        };
        let trainable = format!(
            "SELECT count(*) FROM verdicts v JOIN turns t ON t.id = v.turn WHERE {}",
            verdicts::TRAINABLE
        );
        Ok(Counts {
            turns: one("SELECT count(*) FROM turns")?,
            complete: one("SELECT count(*) FROM turns WHERE outcome = 'complete'")?,
            linked: one("SELECT count(*) FROM turns WHERE parent IS NOT NULL")?,
            sessions: one("SELECT count(DISTINCT session_id) FROM turns")?,
            judged: verdicts("TRUE")?,
            positive: verdicts("verdict = 1")?,
            neutral: verdicts("verdict = 0")?,
            negative: verdicts("verdict = -1")?,
            with_hint: verdicts("hints <> '[]'")?,
            to_judge: one(
                "SELECT count(*) FROM turns WHERE judgeable = 1 AND judged = 0 AND next_states > 0",
            )?,
            trainable: one(&trainable)?,
            feedback: FeedbackCounts {
                waiting: one("SELECT count(*) FROM feedback WHERE turn IS NULL")?,
                to_judge: said("settled = 0")?,
                used: said("settled = 1")?,
                kept: said("settled = 2")?,
            },
            rounds: grouped(&read, "SELECT state, count(*) FROM rounds GROUP BY state")?,
            dropped: grouped(&read, "SELECT reason, sum(count) FROM drops GROUP BY reason")?,
            last_turn_ms: read.query_row("SELECT max(started_ms) FROM turns", [], |r| r.get(0))?,
        })
    }

    /// The latest notes about turns that were not recorded, newest first.
    pub fn gaps(&self, limit: usize) -> Result<Vec<Gap>> {
        let sql = "SELECT route, reason, count, from_ms, to_ms FROM gaps ORDER BY id DESC";
        let mut find = self.conn.prepare_cached(sql)?;
        let rows = find.query_map([], |row| {
            Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })?;
        let gap = |(route, reason, count, from_ms, at_ms): (_, String, i64, _, _)| {
            Ok(Gap { route, reason: parse("reason", &reason)?, count: uint(count), from_ms, at_ms })
        };
        rows.take(limit).map(|row| gap(row?)).collect()
    }

    /// Adds turns that were not recorded to the durable counters.
    pub fn add_drop(&self, gap: &Gap) -> Result<()> {
        let write = self.write()?;
        add_drop(&write, gap)?;
        Ok(write.commit()?)
    }
}

/// Adds to the counters within a transaction.
pub(super) fn add_drop(conn: &Connection, gap: &Gap) -> Result<()> {
    if gap.count == 0 {
        return Ok(()); // What a forgotten record in the spool became.
    }
    let mut add = conn.prepare_cached(
        "INSERT INTO drops (route, reason, count, last_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (route, reason) DO UPDATE
         SET count = count + excluded.count, last_ms = max(last_ms, excluded.last_ms)",
    )?;
    add.execute((&gap.route, gap.reason.as_str(), super::int(gap.count), gap.at_ms))?;
    let mut note = conn.prepare_cached(
        "INSERT INTO gaps (route, reason, count, from_ms, to_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let from_ms = if gap.from_ms > 0 { gap.from_ms } else { gap.at_ms };
    let (reason, count) = (gap.reason.as_str(), super::int(gap.count));
    let id = note.insert((&gap.route, reason, count, from_ms, gap.at_ms))?;
    conn.prepare_cached("DELETE FROM gaps WHERE id <= ?1")?.execute([id - GAPS_MAX])?;
    Ok(())
}

fn grouped<K>(conn: &Connection, sql: &str) -> Result<BTreeMap<K, u64>>
where
    K: Ord + std::str::FromStr<Err: std::fmt::Display>,
{
    let mut find = conn.prepare(sql)?;
    let rows = find.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
    let mut counts = BTreeMap::new();
    for row in rows {
        let (word, count) = row?;
        counts.insert(parse("a counted word", &word)?, uint(count));
    }
    Ok(counts)
}
