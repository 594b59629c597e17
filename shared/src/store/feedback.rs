//! Feedback in the store: finding the turn that it is about, or waiting for it.
//!
//! Feedback may be spooled by another proxy than its turn, and so come first: it waits by what it
//! names, for a day, and is attached when the turn is stored. Of a session, it is attached to the
//! session's newest turn; who asks for a session's outcome looks through its turns.
//!
//! Invariant: feedback of one tenant is never attached to a turn of another; only an operator's may
//! be. What names two turns at once is dropped, and counted.

use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params, params_from_iter};
use serde::Serialize;
use serde_json::Value;

use super::redacted::Redaction;
use super::{IngestTurn, Result, Store, flags, int, parse, parse_json};
use crate::clock::now_ms;
use crate::feedback::{ANY_TENANT, Feedback, FeedbackId, FeedbackKind, Part, Target};
use crate::link::{self, LinkKey};
use crate::policy::RedactionPolicy;
use crate::turn::TurnId;

/// Most pieces of feedback that wait for their turns: of one tenant, and of all. The oldest goes.
pub const WAITING_MAX: [usize; 2] = [1_000, 20_000];
/// How long feedback waits, milliseconds.
const WAITING_AGE_MS_MAX: i64 = 24 * 3600 * 1000;
/// Most rows that are read of one turn or session.
const ROWS_MAX: usize = 256;

/// One part of feedback, attached to its turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeedbackRow {
    /// Its identity; parts that came together share it.
    pub id: FeedbackId,
    /// The tenant of the turn.
    pub tenant: String,
    /// The turn that it is about.
    pub turn_id: TurnId,
    /// Whether it is about the whole session of that turn.
    pub of_session: bool,
    /// What it is.
    pub kind: FeedbackKind,
    /// Of a thumb, a score or an outcome: −1 to 1.
    pub value: Option<f64>,
    /// Of a comment: its words.
    pub text: Option<String>,
    /// Of a demonstration: an assistant's message.
    pub message: Option<Value>,
    /// How much it counts: above 0 to 1; 0 where nobody was authenticated.
    pub weight: f64,
    /// When it came, milliseconds since 1970.
    pub made_ms: i64,
    /// Whether it made or changed a verdict; `None` while the judge has not seen it. What came after
    /// training, weighs nothing, or is about a session did not.
    pub used: Option<bool>,
}

/// What became of feedback in a batch. `stored + duplicates + forgotten + ambiguous` = all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FeedbackInserted {
    /// New pieces, those that wait included.
    pub stored: u64,
    /// Of those, the ones that wait for their turn.
    pub waiting: u64,
    /// Pieces that were stored before.
    pub duplicates: u64,
    /// About turns that were forgotten, or forgotten themselves.
    pub forgotten: u64,
    /// About more than one turn with the same id.
    pub ambiguous: u64,
    /// Parts that waited and found their turn in this batch.
    pub attached: u64,
    /// Pieces that waited and were given up for newer ones.
    pub evicted: u64,
}

/// Feedback that is ready to be inserted: redacted, with the names that its session may have.
#[derive(Debug)]
pub struct IngestFeedback {
    given: Feedback,
    sessions: Vec<String>,
    waits_for: String,
}

impl IngestFeedback {
    /// Prepares what the spool held. `redactions`: what its texts go through.
    pub fn prepare(
        secret: &[u8; 32],
        mut given: Feedback,
        redactions: &[Arc<RedactionPolicy>],
    ) -> Self {
        let mut redaction = Redaction::new(redactions);
        given.parts.iter_mut().for_each(|part| redaction.feedback(part));
        let key = LinkKey::new(secret, &given.tenant);
        let (mut sessions, waits_for) = match &given.target {
            Target::Response(id) => (Vec::new(), format!("response:{id}")),
            Target::Turn(id) => (Vec::new(), format!("turn:{id}")),
            Target::Session(id) if given.tenant == ANY_TENANT => {
                (Vec::new(), format!("stored:{id}"))
            }
            Target::Session(id) => (link::stored_names(&key, id), session_sent(&key, id)),
        };
        if let Target::Session(id) = &given.target {
            sessions.push(id.clone());
        }
        Self { given, sessions, waits_for }
    }

    /// Its identity.
    pub fn id(&self) -> FeedbackId {
        self.given.id
    }
}

/// What feedback waits for that names a session: the name itself may not be stored.
fn session_sent(key: &LinkKey, id: &str) -> String {
    format!("session:{}", key.pseudonym(&format!("session {}", id.trim())))
}

/// What feedback may be about.
enum Found {
    Turn(i64),
    Nothing,
    Forgotten,
    Ambiguous,
}

/// Stores one piece, attached to its turn or waiting for it.
pub(super) fn insert(
    conn: &Connection,
    item: &IngestFeedback,
    done: &mut FeedbackInserted,
) -> Result<()> {
    let id = item.given.id.to_string();
    let known = "SELECT 1 FROM feedback WHERE feedback_id = ?1";
    if conn.prepare_cached(known)?.exists([&id])? {
        done.duplicates += 1;
        return Ok(());
    }
    let marked = "SELECT 1 FROM forgotten WHERE turn_id = ?1";
    let found = match conn.prepare_cached(marked)?.exists([&id])? {
        true => Found::Forgotten,
        false => find(conn, item)?,
    };
    let turn = match found {
        Found::Turn(turn) => Some(turn),
        Found::Nothing => None,
        Found::Forgotten => {
            done.forgotten += 1;
            return add_drop(conn, "forgotten", 1);
        }
        Found::Ambiguous => {
            done.ambiguous += 1;
            return add_drop(conn, "ambiguous", 1);
        }
    };
    put(conn, item, &id, turn)?;
    done.stored += 1;
    if turn.is_none() {
        done.waiting += 1;
    }
    Ok(())
}

fn put(conn: &Connection, item: &IngestFeedback, id: &str, turn: Option<i64>) -> Result<()> {
    let given = &item.given;
    let of_session = matches!(given.target, Target::Session(_));
    let (tenant, judgeable): (String, bool) = match turn {
        Some(turn) => conn
            .prepare_cached("SELECT tenant, judgeable FROM turns WHERE id = ?1")?
            .query_row([turn], |row| Ok((row.get(0)?, row.get(1)?)))?,
        None => (given.tenant.clone(), true),
    };
    let target = if turn.is_some() { "" } else { item.waits_for.as_str() };
    let mut insert = conn.prepare_cached(
        "INSERT OR IGNORE INTO feedback (feedback_id, kind, shape, tenant, turn, of_session, target,
         value, text, weight, made_ms, stored_ms, settled)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;
    for part in &given.parts {
        let text = match part {
            Part::Comment(text) => Some(text.clone()),
            Part::Demonstration(message) => Some(message.to_string()),
            _ => None,
        };
        let of_answer = !of_session && part.kind() != FeedbackKind::Outcome;
        let judged = judgeable && of_answer && given.weight > 0.0;
        insert.execute(params![
            id,
            part.kind().as_str(),
            given.shape.as_str(),
            tenant,
            turn,
            of_session,
            target,
            part.value(),
            text,
            given.weight,
            given.made_ms,
            now_ms(),
            if judged { 0 } else { 2 },
        ])?;
    }
    Ok(())
}

fn find(conn: &Connection, item: &IngestFeedback) -> Result<Found> {
    let tenant = item.given.tenant.as_str();
    match &item.given.target {
        Target::Turn(id) => by_turn(conn, *id, tenant),
        Target::Response(id) => match by_response(conn, id, tenant)? {
            Found::Nothing => match id.parse() {
                Ok(id) => by_turn(conn, id, tenant),
                Err(_) => Ok(Found::Nothing),
            },
            found => Ok(found),
        },
        Target::Session(_) => by_session(conn, &item.sessions, tenant),
    }
}

/// `?2` stands for the tenant in all of these.
const MINE: &str = "(?2 = '*' OR tenant = ?2)";

fn by_turn(conn: &Connection, id: TurnId, tenant: &str) -> Result<Found> {
    let sql = format!("SELECT id, flags & {GONE} FROM turns WHERE turn_id = ?1 AND {MINE}");
    let mut find = conn.prepare_cached(&sql)?;
    let row: Option<(i64, i64)> = find
        .query_row(params![id.to_string(), tenant], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match row {
        Some((id, 0)) => Ok(Found::Turn(id)),
        Some(_) => Ok(Found::Forgotten),
        None if super::forget::is_forgotten(conn, id)? => Ok(Found::Forgotten),
        None => Ok(Found::Nothing),
    }
}

fn by_response(conn: &Connection, id: &str, tenant: &str) -> Result<Found> {
    let sql = format!("SELECT id FROM turns WHERE response_id = ?1 AND {MINE}");
    let mut find = conn.prepare_cached(&sql)?;
    let rows = find.query_map([id, tenant], |row| row.get(0))?;
    one(rows.take(2).collect::<rusqlite::Result<_>>()?)
}

/// The newest turn of the session; of an operator's, of the one session with that name.
fn by_session(conn: &Connection, names: &[String], tenant: &str) -> Result<Found> {
    let mut sessions = Vec::new();
    let sql = format!("SELECT DISTINCT tenant FROM turns WHERE session_id = ?1 AND {MINE}");
    let mut find = conn.prepare_cached(&sql)?;
    for name in names {
        for owner in find.query_map([name.as_str(), tenant], |row| row.get::<_, String>(0))? {
            sessions.push((name, owner?));
        }
    }
    let newest = format!(
        "SELECT id, started_ms FROM turns WHERE session_id = ?1 AND tenant = ?2
         AND flags & {GONE} = 0 ORDER BY started_ms DESC LIMIT 1"
    );
    if tenant == ANY_TENANT && sessions.len() > 1 {
        return Ok(Found::Ambiguous);
    }
    let mut find = conn.prepare_cached(&newest)?;
    let mut best: Option<(i64, i64)> = None;
    for (name, owner) in sessions {
        let row = find
            .query_row([name.as_str(), &owner], |row| Ok((row.get(1)?, row.get(0)?)))
            .optional()?;
        best = best.max(row);
    }
    Ok(best.map_or(Found::Nothing, |(_, id)| Found::Turn(id)))
}

const GONE: u32 = flags::FORGOTTEN;

fn one(rows: Vec<i64>) -> Result<Found> {
    Ok(match rows.as_slice() {
        [] => Found::Nothing,
        [id] => Found::Turn(*id),
        _ => Found::Ambiguous,
    })
}

/// Whether any feedback waits: usually none does, and turns are stored without looking.
pub(super) fn any_waits(conn: &Connection) -> Result<bool> {
    let sql = "SELECT 1 FROM feedback INDEXED BY feedback_waiting WHERE turn IS NULL LIMIT 1";
    Ok(conn.prepare_cached(sql)?.exists([])?)
}

/// Attaches what waits for a turn that was just stored. Returns how many parts did.
pub(super) fn attach(conn: &Connection, turn: &IngestTurn, id: i64) -> Result<u64> {
    let begin = &turn.begin;
    let session = "SELECT session_id FROM turns WHERE id = ?1";
    let session: String = conn.prepare_cached(session)?.query_row([id], |row| row.get(0))?;
    let mut targets = vec![
        format!("turn:{}", begin.turn_id),
        format!("response:{}", begin.turn_id),
        format!("stored:{session}"),
        session_sent(&turn.key, &session),
    ];
    let response = turn.response.as_ref().and_then(|response| response.id.as_ref());
    targets.extend(response.map(|id| format!("response:{id}")));
    targets.extend(turn.session_sent.as_ref().map(|name| session_sent(&turn.key, name)));
    let mut attach = conn.prepare_cached(
        "UPDATE feedback SET turn = ?1, tenant = ?2, target = '',
         settled = CASE (SELECT judgeable FROM turns WHERE id = ?1) WHEN 1 THEN settled ELSE 2 END
         WHERE turn IS NULL AND target = ?3 AND tenant IN (?2, '*')",
    )?;
    let mut attached = 0;
    for target in targets {
        attached += attach.execute(params![id, begin.tenant, target])? as u64;
    }
    Ok(attached)
}

/// Gives up the oldest that wait, beyond what may wait of the tenants of `items` and of all. Once
/// per batch: it counts what waits. Returns how many pieces went.
pub(super) fn make_room(conn: &Connection, items: &[IngestFeedback]) -> Result<u64> {
    let [own, all] = WAITING_MAX;
    let tenants: BTreeSet<&str> = items.iter().map(|item| item.given.tenant.as_str()).collect();
    let mut evicted = 0;
    for tenant in tenants {
        evicted += give_up(conn, "feedback_waiting_by_tenant", "tenant = ?1", tenant, own)?;
    }
    evicted += give_up(conn, "feedback_waiting_by_age", "?1 IS NOT NULL", "", all)?;
    if evicted > 0 {
        add_drop(conn, "waiting_full", evicted)?;
    }
    Ok(evicted)
}

fn give_up(conn: &Connection, by: &str, scope: &str, tenant: &str, most: usize) -> Result<u64> {
    // Rows and not pieces: a piece has at most five.
    let waiting = format!("FROM feedback INDEXED BY {by} WHERE turn IS NULL AND {scope}");
    let count = format!("SELECT count(*) {waiting}");
    let count: i64 = conn.prepare_cached(&count)?.query_row([tenant], |row| row.get(0))?;
    let excess = count.saturating_sub(int(most as u64));
    if excess <= 0 {
        return Ok(0);
    }
    let oldest = format!("SELECT feedback_id {waiting} ORDER BY stored_ms, id LIMIT ?2");
    let pieces = format!("SELECT count(DISTINCT feedback_id) FROM ({oldest})");
    let pieces: i64 =
        conn.prepare_cached(&pieces)?.query_row(params![tenant, excess], |row| row.get(0))?;
    let delete = format!("DELETE FROM feedback WHERE feedback_id IN ({oldest})");
    conn.prepare_cached(&delete)?.execute(params![tenant, excess])?;
    Ok(super::uint(pieces))
}

/// Counts pieces that damage in the spool took.
pub(super) fn lost(conn: &Connection, count: u64) -> Result<()> {
    if count > 0 { add_drop(conn, "undecodable", count) } else { Ok(()) }
}

fn add_drop(conn: &Connection, reason: &str, count: u64) -> Result<()> {
    let sql = "INSERT INTO feedback_drops (reason, count, last_ms) VALUES (?1, ?2, ?3)
               ON CONFLICT (reason) DO UPDATE
               SET count = count + excluded.count, last_ms = excluded.last_ms";
    conn.prepare_cached(sql)?.execute(params![reason, int(count), now_ms()])?;
    Ok(())
}

const COLUMNS: &str = "f.feedback_id, f.tenant, t.turn_id, f.of_session, f.kind, f.value, f.text,
    f.weight, f.made_ms, f.settled";

type Raw = (String, String, String, bool, String, Option<f64>, Option<String>, f64, i64, i64);

fn finish(raw: Raw) -> Result<FeedbackRow> {
    let (id, tenant, turn_id, of_session, kind, value, text, weight, made_ms, settled) = raw;
    let kind = parse("feedback kind", &kind)?;
    let (text, message) = match (kind, text) {
        (FeedbackKind::Demonstration, Some(json)) => {
            (None, Some(parse_json("a demonstration", json.as_bytes())?))
        }
        (_, text) => (text, None),
    };
    let (id, turn_id) = (parse("feedback id", &id)?, parse("turn_id", &turn_id)?);
    Ok(FeedbackRow {
        id,
        tenant,
        turn_id,
        of_session,
        kind,
        value,
        text,
        message,
        weight,
        made_ms,
        used: (settled > 0).then_some(settled == 1),
    })
}

impl Store {
    /// What counts of all that was said about a turn, oldest first: nothing of weight 0, and nothing
    /// that is about its session.
    pub fn feedback_of_turn(&self, turn: TurnId) -> Result<Vec<FeedbackRow>> {
        let condition = "t.turn_id = ?1 AND f.weight > 0 AND f.of_session = 0
            AND f.kind <> 'outcome'";
        self.feedback_where(condition, &[&turn.to_string()])
    }

    /// All that was said about a turn and, through it, about its session, oldest first; whatever
    /// weight it has.
    pub fn feedback_given(&self, turn: TurnId) -> Result<Vec<FeedbackRow>> {
        self.feedback_where("t.turn_id = ?1", &[&turn.to_string()])
    }

    /// How the newest word on it says that an episode ended. `session_id` as it is stored.
    pub fn outcome_of_session(
        &self,
        tenant: &str,
        session_id: &str,
    ) -> Result<Option<FeedbackRow>> {
        let condition = "t.session_id = ?1 AND t.tenant = ?2 AND f.kind = 'outcome'
            AND f.weight > 0";
        Ok(self.feedback_where(condition, &[&session_id, &tenant])?.pop())
    }

    /// The newest [`ROWS_MAX`] of them, oldest first.
    fn feedback_where(
        &self,
        condition: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<FeedbackRow>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM turns t JOIN feedback f ON f.turn = t.id WHERE {condition}
             ORDER BY f.made_ms DESC, f.id DESC"
        );
        let mut find = self.conn.prepare_cached(&sql)?;
        let rows = find.query_map(params_from_iter(values), |row| Raw::try_from(row))?;
        let mut rows = rows.take(ROWS_MAX).map(|raw| finish(raw?)).collect::<Result<Vec<_>>>()?;
        rows.reverse();
        Ok(rows)
    }

    /// The turn that feedback names, if it is stored: its route says what texts go through.
    pub fn route_of_feedback(&self, item: &Feedback, secret: &[u8; 32]) -> Result<Option<String>> {
        let item = IngestFeedback::prepare(secret, Feedback { parts: vec![], ..item.clone() }, &[]);
        let Found::Turn(id) = find(&self.conn, &item)? else { return Ok(None) };
        let mut find = self.conn.prepare_cached("SELECT route FROM turns WHERE id = ?1")?;
        Ok(Some(find.query_row([id], |row| row.get(0))?))
    }

    /// Gives up feedback that has waited for a day. Returns how many pieces.
    pub fn sweep_feedback(&self, at_ms: i64) -> Result<u64> {
        let write = self.write()?;
        let old = "turn IS NULL AND stored_ms < ?1";
        let count = format!("SELECT count(DISTINCT feedback_id) FROM feedback WHERE {old}");
        let before = at_ms - WAITING_AGE_MS_MAX;
        let swept: i64 = write.query_row(&count, [before], |row| row.get(0))?;
        if swept > 0 {
            write.execute(&format!("DELETE FROM feedback WHERE {old}"), [before])?;
            add_drop(&write, "expired", super::uint(swept))?;
        }
        write.commit()?;
        Ok(super::uint(swept))
    }

    /// How much accepted feedback is not kept, by reason.
    pub fn feedback_drops(&self) -> Result<std::collections::BTreeMap<String, u64>> {
        let mut find = self.conn.prepare_cached("SELECT reason, count FROM feedback_drops")?;
        let rows = find.query_map([], |row| Ok((row.get(0)?, super::uint(row.get(1)?))))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether a piece of feedback is stored, attached or waiting.
    pub fn has_feedback(&self, id: FeedbackId) -> Result<bool> {
        let sql = "SELECT 1 FROM feedback WHERE feedback_id = ?1";
        Ok(self.conn.prepare_cached(sql)?.exists([id.to_string()])?)
    }
}
