//! Rounds: judge → sample → train → gate → publish, and which turns each one used.
//!
//! Invariant: a round's row is its progress; whoever reads it after a crash knows where to go on.

use std::fmt;
use std::str::FromStr;

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Result, Store, StoreError, parse, parse_json};
use crate::turn::{Generation, TurnId};

/// Where a round stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundState {
    /// Its samples are being drawn.
    Sampling,
    /// The candidate is being trained.
    Training,
    /// The candidate is being tested.
    Gating,
    /// The candidate passed and is being made the serving generation.
    Publishing,
    /// The candidate serves. Final.
    Promoted,
    /// The candidate did not pass. Final.
    Refused,
    /// The round was stopped by an anomaly or an error. Final.
    Failed,
    /// The round could not go on and used nothing up: its turns are free again. Final.
    Abandoned,
}

impl RoundState {
    /// All states, in order.
    pub const ALL: &'static [Self] = &[
        Self::Sampling,
        Self::Training,
        Self::Gating,
        Self::Publishing,
        Self::Promoted,
        Self::Refused,
        Self::Failed,
        Self::Abandoned,
    ];

    /// The word as it stands in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sampling => "sampling",
            Self::Training => "training",
            Self::Gating => "gating",
            Self::Publishing => "publishing",
            Self::Promoted => "promoted",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
        }
    }

    /// Whether nothing more happens in this round.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Promoted | Self::Refused | Self::Failed | Self::Abandoned)
    }
}

impl fmt::Display for RoundState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for RoundState {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|state| state.as_str() == text);
        let problem = || StoreError::Malformed { what: "round state", problem: text.to_owned() };
        found.copied().ok_or_else(problem)
    }
}

/// What a turn is used for in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Trained on.
    Train,
    /// Kept back for the gate.
    Holdout,
}

impl Split {
    /// The word as it stands in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Holdout => "holdout",
        }
    }
}

impl FromStr for Split {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "train" => Ok(Self::Train),
            "holdout" => Ok(Self::Holdout),
            _ => Err(StoreError::Malformed { what: "split", problem: text.to_owned() }),
        }
    }
}

/// One round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRow {
    /// A UUIDv7.
    pub round_id: String,
    /// The route whose turns it learns from.
    pub route: String,
    /// Where it stands.
    pub state: RoundState,
    /// When it began, milliseconds since 1970.
    pub started_ms: i64,
    /// When it reached a final state.
    pub finished_ms: Option<i64>,
    /// The generation that served when it began.
    pub incumbent: Generation,
    /// What it produced.
    pub candidate: Option<Generation>,
    /// Why it ended as it did.
    pub reason: String,
    /// Numbers for people and for the next round.
    pub metrics: Value,
}

const COLUMNS: &str =
    "round_id, route, state, started_ms, finished_ms, incumbent, candidate, reason, metrics";

/// In no final state.
const OPEN: &str = "state IN ('sampling', 'training', 'gating', 'publishing')";

type Raw = (String, String, String, i64, Option<i64>, String, Option<String>, String, String);

fn finish(raw: Raw) -> Result<RoundRow> {
    let (round_id, route, state, started_ms, finished_ms, incumbent, candidate, reason, metrics) =
        raw;
    Ok(RoundRow {
        round_id,
        route,
        state: parse("round state", &state)?,
        started_ms,
        finished_ms,
        incumbent: parse("incumbent", &incumbent)?,
        candidate: candidate.map(|text| parse("candidate", &text)).transpose()?,
        reason,
        metrics: parse_json("round metrics", metrics.as_bytes())?,
    })
}

impl Store {
    /// When the youngest turn ended, milliseconds since 1970; `None` in an empty store.
    pub fn last_turn_ended_ms(&self) -> Result<Option<i64>> {
        let sql =
            "SELECT started_ms + coalesce(duration_ms, 0) FROM turns ORDER BY id DESC LIMIT 1";
        Ok(self.conn.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?)
    }

    /// Records a round that begins. Errors: its id is taken.
    pub fn begin_round(&self, row: &RoundRow) -> Result<()> {
        let sql =
            format!("INSERT INTO rounds ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)");
        self.put_round(&sql, row).map(|_| ())
    }

    /// Overwrites the row of a round that has not ended. Errors: there is none, or
    /// [`StoreError::RoundEnded`]: what was ended (by `forget`, say) stays ended.
    pub fn update_round(&self, row: &RoundRow) -> Result<()> {
        let sql = format!(
            "UPDATE rounds SET ({COLUMNS}) = (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             WHERE round_id = ?1 AND {OPEN}"
        );
        let id = || row.round_id.clone();
        match self.put_round(&sql, row)? {
            0 if self.round(&row.round_id)?.is_some() => Err(StoreError::RoundEnded(id())),
            0 => Err(StoreError::Missing { what: "round", id: id() }),
            _ => Ok(()),
        }
    }

    /// Whether a round is there and in no final state.
    pub fn round_is_open(&self, round_id: &str) -> Result<bool> {
        let sql = format!("SELECT 1 FROM rounds WHERE round_id = ?1 AND {OPEN}");
        Ok(self.conn.prepare_cached(&sql)?.exists([round_id])?)
    }

    fn put_round(&self, sql: &str, row: &RoundRow) -> Result<usize> {
        let write = self.write()?;
        let changed = write.execute(
            sql,
            params![
                row.round_id,
                row.route,
                row.state.as_str(),
                row.started_ms,
                row.finished_ms,
                row.incumbent.as_str(),
                row.candidate.as_ref().map(Generation::as_str),
                row.reason,
                row.metrics.to_string()
            ],
        )?;
        write.commit()?;
        Ok(changed)
    }

    /// One round.
    pub fn round(&self, round_id: &str) -> Result<Option<RoundRow>> {
        self.rounds_where("round_id = ?1", &[&round_id], 1).map(|rows| rows.into_iter().next())
    }

    /// The youngest round of a route.
    pub fn last_round(&self, route: &str) -> Result<Option<RoundRow>> {
        self.rounds_where("route = ?1", &[&route], 1).map(|rows| rows.into_iter().next())
    }

    /// Rounds that are in no final state, oldest first.
    pub fn unfinished_rounds(&self) -> Result<Vec<RoundRow>> {
        let mut rows = self.rounds_where(OPEN, &[], 1000)?;
        rows.reverse();
        Ok(rows)
    }

    /// The youngest rounds, newest first.
    pub fn recent_rounds(&self, limit: usize) -> Result<Vec<RoundRow>> {
        self.rounds_where("TRUE", &[], limit)
    }

    fn rounds_where(
        &self,
        condition: &str,
        values: &[&dyn rusqlite::ToSql],
        limit: usize,
    ) -> Result<Vec<RoundRow>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM rounds WHERE {condition}
             ORDER BY started_ms DESC, round_id DESC LIMIT {limit}"
        );
        let mut find = self.conn.prepare_cached(&sql)?;
        let rows = find
            .query_map(values, |row| Raw::try_from(row))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        rows.into_iter().map(finish).collect()
    }

    /// Records which turns a round uses, in place of what was recorded before. Errors: a turn is
    /// not stored.
    pub fn set_round_turns(&self, round_id: &str, turns: &[(TurnId, Split)]) -> Result<()> {
        let write = self.write()?;
        write.execute("DELETE FROM round_turns WHERE round_id = ?1", [round_id])?;
        for (turn, split) in turns {
            let changed = write.execute(
                "INSERT OR REPLACE INTO round_turns (round_id, turn, split)
                 SELECT ?1, id, ?3 FROM turns WHERE turn_id = ?2",
                params![round_id, turn.to_string(), split.as_str()],
            )?;
            if changed == 0 {
                return Err(StoreError::Missing { what: "turn", id: turn.to_string() });
            }
        }
        Ok(write.commit()?)
    }

    /// Which turns a round uses, oldest first.
    pub fn round_turns(&self, round_id: &str) -> Result<Vec<(TurnId, Split)>> {
        let mut find = self.conn.prepare_cached(
            "SELECT t.turn_id, rt.split FROM round_turns rt JOIN turns t ON t.id = rt.turn
             WHERE rt.round_id = ?1 ORDER BY rt.turn",
        )?;
        let rows = find
            .query_map([round_id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let both = |(turn, split): (String, String)| {
            Ok((parse("turn_id", &turn)?, parse("split", &split)?))
        };
        rows.into_iter().map(both).collect()
    }

    /// Whether a finished round of a route has tested on a turn.
    pub fn was_held_out(&self, route: &str, turn: TurnId) -> Result<bool> {
        let mut find = self.conn.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM turns t JOIN round_turns rt ON rt.turn = t.id
             JOIN rounds r ON r.round_id = rt.round_id
             WHERE t.turn_id = ?1 AND r.route = ?2 AND rt.split = 'holdout'
               AND r.state IN ('promoted', 'refused', 'failed'))",
        )?;
        Ok(find.query_row([turn.to_string().as_str(), route], |row| row.get(0))?)
    }

    /// Where a session fell in the finished rounds of a route. One that taught in any of them
    /// counts as such; `None`: it was in none.
    pub fn session_split(
        &self,
        route: &str,
        tenant: &str,
        session_id: &str,
    ) -> Result<Option<Split>> {
        let mut find = self.conn.prepare_cached(
            "SELECT rt.split FROM turns t JOIN round_turns rt ON rt.turn = t.id
             JOIN rounds r ON r.round_id = rt.round_id
             WHERE t.session_id = ?1 AND t.tenant = ?2 AND r.route = ?3
               AND r.state IN ('promoted', 'refused', 'failed')
             ORDER BY rt.split = 'holdout' LIMIT 1",
        )?;
        let found: Option<String> =
            find.query_row([session_id, tenant, route], |row| row.get(0)).optional()?;
        found.map(|text| parse("split", &text)).transpose()
    }
}
