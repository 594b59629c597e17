//! Reading turns, their children, and what there is to judge.
//!
//! Invariant: every read is a short statement; no snapshot is held while the caller works.

use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;
use serde_json::Value;

use super::{Result, Store, VerdictRow, bodies, insert, parse, parse_json, uint};
use crate::link::LinkKind;
use crate::turn::{Generation, Mode, Outcome, TurnId};
use crate::wire::Choice;

/// A turn as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredTurn {
    /// Identity of the turn.
    pub turn_id: TurnId,
    /// The session: the client's own name for it, else the id of the tree's root.
    pub session_id: String,
    /// The turn that this one continues.
    pub parent: Option<TurnId>,
    /// Which of the parent's answers it continues.
    pub parent_choice: u32,
    /// How the parent was found.
    pub link: Option<LinkKind>,
    /// How sure that is, 0 to 1; 0 for a root.
    pub link_confidence: f64,
    /// The newest earlier turn with the same prompt.
    pub repeat_of: Option<TurnId>,
    /// Whether the request was sent before: no regeneration, and no second next state.
    pub retry: bool,
    /// The engine's id of the response.
    pub response_id: Option<String>,
    /// The route that it took.
    pub route: String,
    /// Learning mode of the route at that time.
    pub mode: Mode,
    /// The alias that the route served.
    pub alias: String,
    /// Keyed hash of the client's credentials.
    pub tenant: String,
    /// Keyed hash of the person that the client names; empty: it names none.
    pub person: String,
    /// Request path.
    pub path: String,
    /// The model that was asked for.
    pub model: Option<String>,
    /// The generation that answered.
    pub generation: Generation,
    /// When it began, milliseconds since 1970.
    pub started_ms: i64,
    /// From its beginning to the first byte of the body, milliseconds.
    pub first_byte_ms: Option<u64>,
    /// From its beginning to its end, milliseconds.
    pub duration_ms: Option<u64>,
    /// HTTP status; 0 when none was sent.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether an event stream was asked for.
    pub stream: bool,
    /// The request body without its messages.
    pub params: Value,
    /// The messages of the request, oldest first.
    pub messages: Vec<Value>,
    /// The answers, by index.
    pub choices: Vec<Choice>,
    /// Tokens of the prompt, as the engine counted.
    pub prompt_tokens: Option<u64>,
    /// Tokens of all answers, as the engine counted.
    pub completion_tokens: Option<u64>,
}

/// A turn with what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgeItem {
    /// The turn.
    pub turn: StoredTurn,
    /// The child that continues it; the oldest, when there are several.
    pub child: TurnId,
    /// The messages that the child adds after the turn's answer.
    pub next_state: Vec<Value>,
}

const SELECT: &str = "SELECT t.turn_id, t.session_id, p.turn_id, t.parent_choice, t.link,
    t.link_confidence, t.route, t.mode, t.alias, t.tenant, t.path, t.model, t.generation,
    t.started_ms, t.first_byte_ms, t.duration_ms, t.status, t.outcome, t.stream, t.params,
    t.prompt, t.prompt_tokens, t.completion_tokens, t.repeat_of, t.retry, t.response_id,
    t.person
    FROM turns t LEFT JOIN turns p ON p.id = t.parent WHERE t.id = ?1";

/// The columns that need no parsing are in `turn` already; the rest as text and row numbers.
struct Raw {
    turn: StoredTurn,
    ids: (String, Option<String>),
    link: Option<String>,
    repeat_of: Option<String>,
    words: (String, String, String),
    bodies: (Option<i64>, Option<i64>),
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok(Raw {
        ids: (row.get(0)?, row.get(2)?),
        link: row.get(4)?,
        repeat_of: row.get(23)?,
        words: (row.get(7)?, row.get(12)?, row.get(17)?),
        bodies: (row.get(19)?, row.get(20)?),
        turn: StoredTurn {
            turn_id: TurnId(uuid::Uuid::nil()),
            session_id: row.get(1)?,
            parent: None,
            parent_choice: row.get(3)?,
            link: None,
            link_confidence: row.get(5)?,
            repeat_of: None,
            retry: row.get(24)?,
            response_id: row.get(25)?,
            route: row.get(6)?,
            mode: Mode::Off,
            alias: row.get(8)?,
            tenant: row.get(9)?,
            person: row.get(26)?,
            path: row.get(10)?,
            model: row.get(11)?,
            generation: Generation::base(),
            started_ms: row.get(13)?,
            first_byte_ms: row.get::<_, Option<i64>>(14)?.map(uint),
            duration_ms: row.get::<_, Option<i64>>(15)?.map(uint),
            status: row.get(16)?,
            outcome: Outcome::ProxyCrash,
            stream: row.get(18)?,
            params: Value::Null,
            messages: Vec::new(),
            choices: Vec::new(),
            prompt_tokens: row.get::<_, Option<i64>>(21)?.map(uint),
            completion_tokens: row.get::<_, Option<i64>>(22)?.map(uint),
        },
    })
}

/// The id of the turn in a row.
pub(super) fn turn_id(conn: &Connection, id: i64) -> Result<TurnId> {
    let mut find = conn.prepare_cached("SELECT turn_id FROM turns WHERE id = ?1")?;
    let text: String = find.query_row([id], |row| row.get(0))?;
    parse("turn_id", &text)
}

/// The answers of the turn in a row, by index.
pub(super) fn choices(conn: &Connection, id: i64) -> Result<Vec<Choice>> {
    let mut find = conn.prepare_cached(
        "SELECT idx, message, finish_reason FROM choices WHERE turn = ?1 ORDER BY idx",
    )?;
    let rows = find
        .query_map([id], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let choice = |(index, message, finish_reason)| {
        let message = parse_json("an answer", &bodies::get(conn, message)?)?;
        Ok(Choice { index, message, finish_reason })
    };
    rows.into_iter().map(choice).collect()
}

impl Store {
    /// One turn.
    pub fn turn(&self, turn: TurnId) -> Result<Option<StoredTurn>> {
        insert::row_of(&self.conn, turn)?.map(|id| self.turn_row(id)).transpose()
    }

    /// The newest turn of a tenant whose response has this id.
    pub fn turn_of_response(&self, tenant: &str, response_id: &str) -> Result<Option<TurnId>> {
        let sql = "SELECT turn_id FROM turns WHERE response_id = ?1 AND tenant = ?2
                   ORDER BY started_ms DESC LIMIT 1";
        let mut find = self.conn.prepare_cached(sql)?;
        let found: Option<String> =
            find.query_row([response_id, tenant], |row| row.get(0)).optional()?;
        found.map(|text| parse("turn_id", &text)).transpose()
    }

    /// The turns that continue a turn, oldest first.
    pub fn children(&self, turn: TurnId) -> Result<Vec<StoredTurn>> {
        let sql = "SELECT c.id FROM turns c JOIN turns p ON p.id = c.parent
                   WHERE p.turn_id = ?1 ORDER BY c.started_ms, c.turn_id";
        let mut find = self.conn.prepare_cached(sql)?;
        let rows = find.query_map([turn.to_string()], |row| row.get(0))?;
        let ids = rows.collect::<rusqlite::Result<Vec<i64>>>()?;
        ids.into_iter().map(|id| self.turn_row(id)).collect()
    }

    /// The turn in a row that exists.
    pub(super) fn turn_row(&self, id: i64) -> Result<StoredTurn> {
        let raw = self.conn.prepare_cached(SELECT)?.query_row([id], from_row)?;
        let params = match raw.bodies.0 {
            Some(body) => parse_json("params", &bodies::get(&self.conn, body)?)?,
            None => Value::Null,
        };
        Ok(StoredTurn {
            turn_id: parse("turn_id", &raw.ids.0)?,
            parent: raw.ids.1.map(|text| parse("parent", &text)).transpose()?,
            repeat_of: raw.repeat_of.map(|text| parse("repeat_of", &text)).transpose()?,
            link: raw.link.map(|text| parse("link", &text)).transpose()?,
            mode: parse("mode", &raw.words.0)?,
            generation: parse("generation", &raw.words.1)?,
            outcome: parse("outcome", &raw.words.2)?,
            params,
            messages: bodies::get_chain(&self.conn, raw.bodies.1)?,
            choices: choices(&self.conn, id)?,
            ..raw.turn
        })
    }

    /// Whole turns of a mode that trains, with a next state and no verdict yet; oldest first, at
    /// most `limit`.
    pub fn unjudged(&self, limit: usize) -> Result<Vec<JudgeItem>> {
        let rows = self.unjudged_rows(0, limit)?.into_iter();
        rows.filter_map(|row| self.unjudged_item(row).transpose()).collect()
    }

    /// The rows of such turns after row `after`, in order; reads an index alone.
    pub fn unjudged_rows(&self, after: i64, limit: usize) -> Result<Vec<i64>> {
        let mut find = self.conn.prepare_cached(
            "SELECT id FROM turns INDEXED BY turns_to_judge
             WHERE judgeable = 1 AND judged = 0 AND next_states > 0 AND id > ?1
             ORDER BY id LIMIT ?2",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = find.query_map([after, limit], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The turn in such a row with its next state; `None`: it was judged or erased meanwhile.
    pub fn unjudged_item(&self, row: i64) -> Result<Option<JudgeItem>> {
        let mut waits = self.conn.prepare_cached(
            "SELECT 1 FROM turns WHERE id = ?1 AND judgeable = 1 AND judged = 0
             AND next_states > 0",
        )?;
        if waits.exists([row])? { self.judge_item(row) } else { Ok(None) }
    }

    /// Turns that have a verdict, newest first, with their next state if it is still there; of one
    /// route or of all, those before a mark of an earlier call. Returns the mark for the next call.
    #[allow(clippy::type_complexity)] // A page and its mark.
    pub fn judged(
        &self,
        route: Option<&str>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<(Vec<(Option<JudgeItem>, VerdictRow)>, i64)> {
        let mut find = self.conn.prepare_cached(
            "SELECT v.turn, t.turn_id FROM verdicts v JOIN turns t ON t.id = v.turn
             WHERE v.turn < ?1 AND (?2 IS NULL OR t.route = ?2) ORDER BY v.turn DESC LIMIT ?3",
        )?;
        let (before, limit) =
            (before.unwrap_or(i64::MAX), i64::try_from(limit).unwrap_or(i64::MAX));
        let rows = find.query_map(rusqlite::params![before, route, limit], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        let mut mark = 0;
        let mut found = Vec::new();
        for row in rows.collect::<rusqlite::Result<Vec<_>>>()? {
            mark = row.0;
            if let Some(verdict) = self.verdict(parse("turn_id", &row.1)?)? {
                found.push((self.judge_item(row.0)?, verdict));
            }
        }
        Ok((found, mark))
    }

    pub(super) fn judge_item(&self, id: i64) -> Result<Option<JudgeItem>> {
        let sql = format!(
            "SELECT turn_id, prompt, answer_at FROM turns c WHERE c.parent = ?1 AND {}
             ORDER BY started_ms, turn_id LIMIT 1",
            insert::GIVES
        );
        let mut find = self.conn.prepare_cached(&sql)?;
        let child = find
            .query_row([id], |row| {
                let answer_at = row.get::<_, u32>(2)? as usize;
                Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?, answer_at))
            })
            .optional()?;
        let Some((child, prompt, answer_at)) = child else { return Ok(None) };
        let mut messages = bodies::get_chain(&self.conn, prompt)?;
        let next_state = messages.split_off((answer_at + 1).min(messages.len()));
        let child = parse("turn_id", &child)?;
        Ok(Some(JudgeItem { turn: self.turn_row(id)?, child, next_state }))
    }
}
