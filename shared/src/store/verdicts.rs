//! Verdicts: what became of a turn, judged by its next state.
//!
//! Invariant: one verdict per turn; the first one stands, unless feedback replaces it (`said`).

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::Value;

use super::forget::is_forgotten;
use super::{Result, Store, StoreError, StoredTurn, facets, int, parse, parse_json, uint};
use crate::next_state::StateKind;
use crate::turn::TurnId;

/// The judgement of one turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerdictRow {
    /// The turn that is judged.
    pub turn_id: TurnId,
    /// The child whose messages were the next state; `None` where feedback alone decided.
    pub child: Option<TurnId>,
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
    /// Kind of the next state; `None` when none was looked at.
    pub kind: Option<StateKind>,
    /// What asking a model took; `None` when none was asked.
    pub llm: Option<LlmTrace>,
}

/// What asking a model took, for replay and for the bill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LlmTrace {
    /// The model that was named to the endpoint.
    pub model: String,
    /// Version of the prompt.
    pub prompt: String,
    /// Tokens of all prompts together.
    pub prompt_tokens: u64,
    /// Tokens of all votes together.
    pub completion_tokens: u64,
    /// From the first question to the last answer, milliseconds.
    pub duration_ms: u64,
}

/// The columns of a verdict in the order that `from_row` reads them, after the turn's id.
const COLUMNS: &str =
    "t.turn_id, v.child, v.verdict, v.source, v.reason, v.votes, v.hints, v.judge, v.judged_ms,
    v.kind, v.llm_model, v.llm_prompt, v.llm_prompt_tokens, v.llm_completion_tokens, v.llm_ms";

struct Raw {
    turn_id: String,
    child: Option<String>,
    votes: String,
    hints: String,
    kind: Option<String>,
    row: VerdictRow,
}

fn from_row(row: &Row<'_>, first: usize) -> rusqlite::Result<Raw> {
    let nil = TurnId(uuid::Uuid::nil());
    Ok(Raw {
        turn_id: row.get(first)?,
        child: row.get(first + 1)?,
        votes: row.get(first + 5)?,
        hints: row.get(first + 6)?,
        kind: row.get(first + 9)?,
        row: VerdictRow {
            turn_id: nil,
            child: None,
            verdict: row.get(first + 2)?,
            source: row.get(first + 3)?,
            reason: row.get(first + 4)?,
            votes: Value::Null,
            hints: Vec::new(),
            judge: row.get(first + 7)?,
            judged_ms: row.get(first + 8)?,
            kind: None,
            llm: llm_trace(row, first + 10)?,
        },
    })
}

fn llm_trace(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<LlmTrace>> {
    let Some(model) = row.get(first)? else { return Ok(None) };
    let count = |at: usize| row.get::<_, Option<i64>>(at).map(|n| uint(n.unwrap_or(0)));
    Ok(Some(LlmTrace {
        model,
        prompt: row.get::<_, Option<String>>(first + 1)?.unwrap_or_default(),
        prompt_tokens: count(first + 2)?,
        completion_tokens: count(first + 3)?,
        duration_ms: count(first + 4)?,
    }))
}

impl Raw {
    fn finish(self) -> Result<VerdictRow> {
        Ok(VerdictRow {
            turn_id: parse("turn_id", &self.turn_id)?,
            child: self.child.map(|child| parse("child", &child)).transpose()?,
            votes: parse_json("votes", self.votes.as_bytes())?,
            hints: parse_json("hints", self.hints.as_bytes())?,
            kind: self.kind.map(|kind| parse("kind", &kind)).transpose()?,
            ..self.row
        })
    }
}

impl Store {
    /// Records a verdict. `false`: one stands already, the turn or its child was forgotten, or the
    /// turn was judged from nothing that is stored.
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
        for turn in std::iter::once(row.turn_id).chain(row.child) {
            if is_forgotten(&write, turn)? {
                return Ok(false);
            }
        }
        let new = put_verdict(&write, id, row, false)?;
        write.execute("UPDATE turns SET judged = 1 WHERE id = ?1", [id])?;
        if new {
            facets::judged(&write, id, row.verdict)?;
        }
        write.commit()?;
        Ok(new)
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
    /// hints, a demonstration or an outcome of its episode; not yet in the train split of a
    /// finished round, nor held out in three of them. Where there are more than `limit`, the newest,
    /// because turns that no round can use must not hide the ones that come after them; but half of
    /// the room is for those that ask for another answer, so that praise does not hide an old one.
    pub fn trainable(&self, route: &str, limit: usize) -> Result<Vec<(StoredTurn, VerdictRow)>> {
        let asking = format!("{CORRECTS} AND {TRAINABLE}");
        let mut pool: BTreeMap<i64, Raw> =
            self.newest_verdicts(route, &asking, limit / 2)?.into_iter().collect();
        for (id, raw) in self.newest_verdicts(route, TRAINABLE, limit)? {
            if pool.len() >= limit {
                break;
            }
            pool.entry(id).or_insert(raw);
        }
        pool.into_iter().map(|(id, raw)| Ok((self.turn_row(id)?, raw.finish()?))).collect()
    }

    /// Verdicts of a route's turns of which `wanted` is true, newest first.
    fn newest_verdicts(&self, route: &str, wanted: &str, limit: usize) -> Result<Vec<(i64, Raw)>> {
        let sql = format!(
            "SELECT v.turn, {COLUMNS} FROM verdicts v JOIN turns t ON t.id = v.turn
             WHERE t.route = ?1 AND {wanted} ORDER BY t.id DESC LIMIT ?2"
        );
        let mut find = self.conn.prepare_cached(&sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows =
            find.query_map(params![route, limit], |row| Ok((row.get(0)?, from_row(row, 1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// Writes a verdict's row. `replace`: also where one stands. Returns whether it was written.
pub(super) fn put_verdict(
    conn: &Connection,
    turn: i64,
    row: &VerdictRow,
    replace: bool,
) -> Result<bool> {
    let or = if replace { "REPLACE" } else { "IGNORE" };
    let sql = format!(
        "INSERT OR {or} INTO verdicts
         (turn, child, verdict, source, reason, votes, hints, judge, judged_ms, kind,
          llm_model, llm_prompt, llm_prompt_tokens, llm_completion_tokens, llm_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
    );
    let written = conn.prepare_cached(&sql)?.execute(params![
        turn,
        row.child.map(|child| child.to_string()),
        row.verdict,
        row.source,
        row.reason,
        row.votes.to_string(),
        Value::from(row.hints.clone()).to_string(),
        row.judge,
        row.judged_ms,
        row.kind.map(StateKind::as_str),
        row.llm.as_ref().map(|llm| &llm.model),
        row.llm.as_ref().map(|llm| &llm.prompt),
        row.llm.as_ref().map(|llm| int(llm.prompt_tokens)),
        row.llm.as_ref().map(|llm| int(llm.completion_tokens)),
        row.llm.as_ref().map(|llm| int(llm.duration_ms)),
    ])?;
    Ok(written == 1)
}

/// Which verdicts `v` of turns `t` ask for another answer.
const CORRECTS: &str = "(v.verdict < 0 OR v.hints <> '[]' OR EXISTS (
        SELECT 1 FROM feedback f WHERE f.turn = t.id AND f.kind = 'demonstration' AND f.weight > 0
    ))";

/// Which verdicts `v` of turns `t` can be learned from. What was held out tests the next two rounds
/// as well; then it goes, so that old tests do not fill the pool.
pub(super) const TRAINABLE: &str = "(v.verdict <> 0 OR v.hints <> '[]' OR EXISTS (
        SELECT 1 FROM feedback f WHERE f.turn = t.id AND f.kind = 'demonstration' AND f.weight > 0
    ) OR EXISTS (
        SELECT 1 FROM turns s JOIN feedback f ON f.turn = s.id
        WHERE s.session_id = t.session_id AND s.tenant = t.tenant
          AND f.kind = 'outcome' AND f.weight > 0
    )) AND t.judgeable = 1
    AND NOT EXISTS (
        SELECT 1 FROM round_turns rt JOIN rounds r ON r.round_id = rt.round_id
        WHERE rt.turn = t.id AND rt.split = 'train'
          AND r.state IN ('promoted', 'refused', 'failed'))
    AND (SELECT count(*) FROM round_turns rt JOIN rounds r ON r.round_id = rt.round_id
         WHERE rt.turn = t.id AND rt.split = 'holdout'
           AND r.state IN ('promoted', 'refused', 'failed')) < 3";
