//! What was said about turns, for the judge: turns with fresh feedback, and the verdicts it makes.
//!
//! Invariant: a verdict is replaced only while its turn is in no round's train split: what a
//! generation learned from stays as it was. Feedback that comes later is kept and marked as late; a
//! verdict is written in the same transaction that marks what it was made of, and only if all of
//! that is still there.

use rusqlite::{Connection, params};

use super::forget::is_forgotten;
use super::verdicts::put_verdict;
use super::{FeedbackRow, JudgeItem, Result, Store, StoredTurn, VerdictRow, facets, insert};
use crate::feedback::FeedbackId;
use crate::turn::TurnId;

/// A turn about which something was said that no verdict knows of.
#[derive(Debug, Clone)]
pub struct Said {
    /// The turn.
    pub turn: StoredTurn,
    /// What follows it, if anything does.
    pub next: Option<JudgeItem>,
    /// The verdict that stands.
    pub verdict: Option<VerdictRow>,
    /// All that counts of what was said about it, oldest first.
    pub said: Vec<FeedbackRow>,
    /// The rows that are new.
    fresh: Vec<i64>,
}

/// What became of a verdict by feedback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It stands now.
    Stands,
    /// There was none to write; the feedback is marked as seen.
    Nothing,
    /// A round has trained on the turn, or is about to; the feedback is kept and changes nothing.
    Late,
    /// The turn or the feedback was forgotten meanwhile.
    Forgotten,
}

/// Rounds that have used a turn up.
const ENDED: &str = "('promoted', 'refused', 'failed')";
/// Rounds that may yet.
const RUNNING: &str = "('sampling', 'training', 'gating', 'publishing')";

fn in_train_split(states: &str) -> String {
    format!(
        "EXISTS (SELECT 1 FROM round_turns rt JOIN rounds r ON r.round_id = rt.round_id
         WHERE rt.turn = t.id AND rt.split = 'train' AND r.state IN {states})"
    )
}

impl Store {
    /// Turns of a route with feedback that no verdict knows of, at most `limit`. Words alone wait
    /// until the rules have spoken, where something follows the turn; everything waits for a round
    /// that is using the turn.
    pub fn feedback_to_judge(&self, route: &str, limit: usize) -> Result<Vec<Said>> {
        let sql = format!(
            "SELECT DISTINCT t.id FROM feedback f INDEXED BY feedback_unsettled
             JOIN turns t ON t.id = f.turn
             WHERE f.settled = 0 AND f.turn IS NOT NULL AND f.weight > 0 AND t.route = ?1
               AND t.judgeable = 1
               AND (f.kind IN ('thumb', 'score') OR t.judged = 1 OR t.next_states = 0)
               AND NOT {} LIMIT ?2",
            in_train_split(RUNNING)
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut find = self.conn.prepare_cached(&sql)?;
        let ids = find
            .query_map(params![route, limit], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        ids.into_iter().map(|id| self.said(id)).collect()
    }

    fn said(&self, id: i64) -> Result<Said> {
        // First, so that what comes meanwhile is new the next time.
        let mut fresh = self.conn.prepare_cached(
            "SELECT id FROM feedback WHERE turn = ?1 AND settled = 0 AND weight > 0",
        )?;
        let fresh = fresh.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let turn = self.turn_row(id)?;
        let said = self.feedback_of_turn(turn.turn_id)?;
        let verdict = self.verdict(turn.turn_id)?;
        Ok(Said { turn, next: self.judge_item(id)?, verdict, said, fresh })
    }

    /// Settles what was said: writes `verdict`, in place of the one that stands, or notes that
    /// there is none to write.
    pub fn judge_by_feedback(&self, said: &Said, verdict: Option<&VerdictRow>) -> Result<Settled> {
        let write = self.write()?;
        let turn = said.turn.turn_id;
        let children = verdict.and_then(|row| row.child);
        for turn in std::iter::once(turn).chain(children) {
            if is_forgotten(&write, turn)? {
                return Ok(Settled::Forgotten);
            }
        }
        let Some(id) = insert::row_of(&write, turn)? else { return Ok(Settled::Forgotten) };
        let late = format!("SELECT {} FROM turns t WHERE t.id = ?1", in_train_split(ENDED));
        let late: bool = write.prepare_cached(&late)?.query_row([id], |row| row.get(0))?;
        let verdict = verdict.filter(|_| !late);
        if !settle(&write, &said.fresh, if verdict.is_some() { 1 } else { 2 })? {
            return Ok(Settled::Forgotten);
        }
        if let Some(row) = verdict {
            put_verdict(&write, id, row, true)?;
            write.execute("UPDATE turns SET judged = 1 WHERE id = ?1", [id])?;
            facets::judged(&write, id, row.verdict)?;
        }
        write.commit()?;
        Ok(match (late, verdict) {
            (true, _) => Settled::Late,
            (false, Some(_)) => Settled::Stands,
            (false, None) => Settled::Nothing,
        })
    }
}

/// Marks rows as seen. `false`: some of them are gone, so what was made of them may not be written.
fn settle(conn: &Connection, rows: &[i64], as_what: i64) -> Result<bool> {
    let mut mark =
        conn.prepare_cached("UPDATE feedback SET settled = ?2 WHERE id = ?1 AND settled = 0")?;
    for row in rows {
        if mark.execute([*row, as_what])? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What erased feedback had made: its verdict goes, and what else was said is looked at again.
pub(super) fn unsettle(conn: &Connection, turn: i64) -> Result<u64> {
    // A hint may be a comment's words, whoever gave the verdict.
    let sql = "DELETE FROM verdicts WHERE turn = ?1 AND (source = 'feedback' OR hints <> '[]')";
    let gone = conn.prepare_cached(sql)?.execute([turn])? as u64;
    if gone > 0 {
        facets::unjudge(conn, turn)?;
    }
    let sql = "UPDATE feedback SET settled = 0
               WHERE turn = ?1 AND settled = 1 AND of_session = 0 AND kind <> 'outcome'";
    conn.prepare_cached(sql)?.execute([turn])?;
    Ok(gone)
}

/// Turns whose feedback holds any of `needles`, and the feedback itself.
pub(super) fn holding(
    conn: &Connection,
    needle: &str,
) -> Result<Vec<(FeedbackId, Option<TurnId>)>> {
    let sql = "SELECT f.feedback_id, t.turn_id FROM feedback f LEFT JOIN turns t ON t.id = f.turn
               WHERE instr(coalesce(f.text, ''), ?1) OR instr(f.target, ?1)";
    let mut find = conn.prepare_cached(sql)?;
    let rows = find.query_map([needle], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?))
    })?;
    rows.map(|row| {
        let (id, turn) = row?;
        let turn = turn.map(|turn| super::parse("turn_id", &turn)).transpose()?;
        Ok((super::parse("feedback id", &id)?, turn))
    })
    .collect()
}
