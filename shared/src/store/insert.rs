//! Batches of turns from the ingest: one transaction with the spool position they came from.
//!
//! A turn id that is stored already is skipped, so a batch may be repeated after any failure. A
//! turn that cannot be stored by itself (a value that SQLite refuses) is counted as dropped; it
//! does not hold up the others.
//!
//! Invariant: exactly once. Turns, links, drops and position become durable together or not at all.

use rusqlite::{Connection, OptionalExtension, params};

use super::bodies::Body;
use super::counts::add_drop;
use super::facets::{Facet, UNJUDGED};
use super::forget::is_forgotten;
use super::restore::Placed;
use super::writing::Writing;
use super::{
    FeedbackInserted, Index, IngestFeedback, IngestTurn, Result, Store, feedback, int, pending,
};
use crate::clock::now_ms;
use crate::link::{self, LinkKind, Resolution};
use crate::turn::{DropReason, Gap, Headers, TurnId};

/// How far the spool of one process is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestPos {
    /// The name of the process's directory.
    pub boot: String,
    /// Segment of the first byte that is not stored.
    pub segment: u32,
    /// Offset of that byte.
    pub offset: u64,
}

/// What is committed together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Turns in the order in which they ended.
    pub turns: Vec<IngestTurn>,
    /// Turns that were not recorded.
    pub gaps: Vec<Gap>,
    /// What was said about turns.
    pub feedback: Vec<IngestFeedback>,
    /// Pieces of feedback that damage took.
    pub feedback_lost: u64,
    /// The position after all of them.
    pub pos: Option<IngestPos>,
}

/// What is committed with turns.
#[derive(Debug, Clone, Copy, Default)]
struct Beside<'a> {
    gaps: &'a [Gap],
    feedback: &'a [IngestFeedback],
    feedback_lost: u64,
}

/// What a batch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inserted {
    /// Turns that are new.
    pub stored: u64,
    /// Turns that were stored before.
    pub duplicates: u64,
    /// New turns with a parent.
    pub linked: u64,
    /// The same by how it was found, in the order of [`LinkKind::ALL`].
    pub linked_by: [u64; LinkKind::ALL.len()],
    /// Turns stored earlier that found their parent in this batch.
    pub relinked: u64,
    /// Turns that SQLite refused; counted in the drops as `undecodable`.
    pub refused: u64,
    /// What became of feedback.
    pub feedback: FeedbackInserted,
}

impl Store {
    /// Stores turns and the position they were read up to. See [`Store::commit`].
    pub fn insert_batch(&mut self, turns: &[IngestTurn], pos: &IngestPos) -> Result<Inserted> {
        self.commit(turns, Beside::default(), Some(pos))
    }

    /// Stores a batch. Errors: nothing of it was stored; where `is_passing()`, try again.
    pub fn commit_batch(&mut self, batch: &Batch) -> Result<Inserted> {
        let beside = Beside {
            gaps: &batch.gaps,
            feedback: &batch.feedback,
            feedback_lost: batch.feedback_lost,
        };
        self.commit(&batch.turns, beside, batch.pos.as_ref())
    }

    fn commit(
        &self,
        turns: &[IngestTurn],
        beside: Beside<'_>,
        pos: Option<&IngestPos>,
    ) -> Result<Inserted> {
        match self.commit_with(turns, beside, pos, false) {
            Err(error) => {
                // What was remembered of this transaction was rolled back with it.
                self.known.borrow_mut().clear();
                if error.is_passing() {
                    return Err(error);
                }
                tracing::warn!(%error, "a batch is stored turn by turn");
                let again = self.commit_with(turns, beside, pos, true);
                again.inspect_err(|_| self.known.borrow_mut().clear())
            }
            done => done,
        }
    }

    fn commit_with(
        &self,
        turns: &[IngestTurn],
        beside: Beside<'_>,
        pos: Option<&IngestPos>,
        one_by_one: bool,
    ) -> Result<Inserted> {
        let write = self.write()?;
        let mut known = self.known.borrow_mut();
        known.feedback_waits = feedback::any_waits(&write)?;
        let mut writing = Writing::begin(&write, &mut known)?;
        let mut inserted = match one_by_one {
            true => insert_singly(&mut writing, turns)?,
            false => insert_all(&mut writing, turns)?,
        };
        writing.finish()?;
        for gap in beside.gaps {
            add_drop(&write, gap)?;
        }
        // After the turns: what is about a turn of the same batch finds it.
        for item in beside.feedback {
            feedback::insert(&write, item, &mut inserted.feedback)?;
        }
        if inserted.feedback.waiting > 0 {
            inserted.feedback.evicted += feedback::make_room(&write, beside.feedback)?;
        }
        feedback::lost(&write, beside.feedback_lost)?;
        if let Some(pos) = pos {
            let mut put = write.prepare_cached(
                "INSERT INTO ingest_pos (boot, segment, offset) VALUES (?1, ?2, ?3)
                 ON CONFLICT (boot) DO UPDATE
                 SET segment = excluded.segment, offset = excluded.offset",
            )?;
            put.execute(params![pos.boot, pos.segment, int(pos.offset)])?;
        }
        write.commit()?;
        Ok(inserted)
    }

    /// How far a process's spool is stored; `None` when nothing of it is.
    pub fn ingest_pos(&self, boot: &str) -> Result<Option<IngestPos>> {
        let sql = "SELECT segment, offset FROM ingest_pos WHERE boot = ?1";
        let mut find = self.conn.prepare_cached(sql)?;
        let row = find
            .query_row([boot], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, i64>(1)?)))
            .optional()?;
        Ok(row.map(|(segment, offset)| IngestPos {
            boot: boot.to_owned(),
            segment,
            offset: super::uint(offset),
        }))
    }

    /// Forgets a position, once the process's directory is gone.
    pub fn forget_pos(&self, boot: &str) -> Result<()> {
        let write = self.write()?;
        write.execute("DELETE FROM ingest_pos WHERE boot = ?1", [boot])?;
        Ok(write.commit()?)
    }

    /// Whether a turn is stored.
    pub fn contains(&self, turn: TurnId) -> Result<bool> {
        Ok(row_of(&self.conn, turn)?.is_some())
    }
}

pub(super) const ROW_OF: &str = "SELECT id FROM turns WHERE turn_id = ?1";

/// The row of a turn.
pub(super) fn row_of(conn: &Connection, turn: TurnId) -> Result<Option<i64>> {
    let mut find = conn.prepare_cached(ROW_OF)?;
    Ok(find.query_row([turn.to_string()], |row| row.get(0)).optional()?)
}

fn insert_all(writing: &mut Writing<'_>, turns: &[IngestTurn]) -> Result<Inserted> {
    let mut inserted = Inserted::default();
    turns.iter().try_for_each(|turn| insert(writing, turn, &mut inserted))?;
    Ok(inserted)
}

/// Each turn in a savepoint of its own; what fails for good is counted as dropped.
fn insert_singly(writing: &mut Writing<'_>, turns: &[IngestTurn]) -> Result<Inserted> {
    let conn = writing.conn;
    let mut inserted = Inserted::default();
    for turn in turns {
        let last = "SELECT coalesce(max(id), 0) FROM turns";
        let last = conn.prepare_cached(last)?.query_row([], |row| row.get(0))?;
        conn.execute_batch("SAVEPOINT turn")?;
        let mut tried = inserted;
        match insert(writing, turn, &mut tried) {
            Ok(()) => inserted = tried,
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => {
                tracing::error!(turn = %turn.begin.turn_id, %error, "a turn cannot be stored");
                conn.execute_batch("ROLLBACK TO turn")?;
                writing.index.forget_after(last);
                writing.known.clear();
                inserted.refused += 1;
                let (route, reason) = (turn.begin.route.clone(), DropReason::Undecodable);
                let (from_ms, at_ms) = (now_ms(), now_ms());
                add_drop(conn, &Gap { route, reason, count: 1, from_ms, at_ms })?;
            }
        }
        conn.execute_batch("RELEASE turn")?;
    }
    Ok(inserted)
}

fn insert(writing: &mut Writing<'_>, turn: &IngestTurn, inserted: &mut Inserted) -> Result<()> {
    let (conn, id) = (writing.conn, turn.begin.turn_id);
    let forgotten = !writing.known.nothing_forgotten && is_forgotten(conn, id)?;
    if forgotten || writing.row_of(id)?.is_some() {
        inserted.duplicates += 1;
        return Ok(());
    }
    let resolution = resolve(&writing.index, turn)?;
    let parent = match &resolution.link {
        Some(link) => writing.row_of(link.parent)?,
        None => None,
    };
    let placed = Placed::of(conn, turn, resolution.link.as_ref(), parent)?;
    let id = insert_turn(writing, turn, &resolution, parent, &placed)?;
    insert_parts(writing, turn, id)?;
    inserted.stored += 1;
    if let Some(parent) = parent {
        inserted.linked += 1;
        let kind = resolution.link.as_ref().map(|link| link.kind);
        let at = LinkKind::ALL.iter().position(|known| Some(*known) == kind);
        if let Some(count) = at.and_then(|at| inserted.linked_by.get_mut(at)) {
            *count += 1;
        }
        if gives_next_state(conn, id)? && !repeats_next_state(conn, parent, id)? {
            add_next_states(conn, parent, 1)?;
        }
    }
    if writing.known.feedback_waits {
        inserted.feedback.attached += feedback::attach(conn, turn, id)?;
    }
    let link = resolution.link.as_ref().filter(|_| parent.is_some());
    writing.known.nothing_waits &= !pending::remember(conn, turn, id, link)?;
    if !writing.known.nothing_waits {
        inserted.relinked += pending::resolve(writing, turn, id, &resolution.session_id)?;
    }
    Ok(())
}

fn resolve(index: &Index<'_>, turn: &IngestTurn) -> Result<Resolution> {
    if turn.is_linkable() {
        return link::resolve(index, &turn.key, &turn.incoming());
    }
    let session_id = turn.begin.turn_id.to_string();
    Ok(Resolution { session_id, link: None, repeat_of: None, retry: turn.asked.retry })
}

/// What a child must have to say what became of its parent's answer: it adds messages, and the link
/// is sure enough. Turns with an identical history and answer are interchangeable, so ambiguity
/// does no harm to exact links.
pub(super) const GIVES: &str = "c.answer_at + 1 < c.prompt_len
    AND (c.link IN ('exact', 'tool_call_id', 'named') OR c.link_confidence >= 0.5)";

/// Whether a stored turn gives its parent a next state.
pub(super) fn gives_next_state(conn: &Connection, id: i64) -> Result<bool> {
    let sql = format!("SELECT 1 FROM turns c WHERE c.id = ?1 AND c.parent IS NOT NULL AND {GIVES}");
    Ok(conn.prepare_cached(&sql)?.exists([id])?)
}

/// Whether another child with the same prompt gives the parent that next state already: a retry or
/// a regeneration says nothing new.
pub(super) fn repeats_next_state(conn: &Connection, parent: i64, id: i64) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM turns c JOIN turns mine ON mine.id = ?2
         WHERE c.parent = ?1 AND c.id <> ?2 AND c.prompt = mine.prompt AND {GIVES}"
    );
    Ok(conn.prepare_cached(&sql)?.exists([parent, id])?)
}

/// Adds to how many children give a turn a next state.
pub(super) fn add_next_states(conn: &Connection, turn: i64, change: i64) -> Result<()> {
    let sql = "UPDATE turns SET next_states = max(0, next_states + ?2) WHERE id = ?1";
    conn.prepare_cached(sql)?.execute([turn, change])?;
    Ok(())
}

fn headers_json(headers: &Headers) -> String {
    serde_json::to_string(headers).unwrap_or_else(|_| "[]".to_owned())
}

pub(super) const INSERT_TURN: &str = "INSERT INTO turns (
    turn_id, session_id, parent, parent_choice, answer_at, link, link_confidence, repeat_of,
    route, mode, alias, tenant, method, path, model, generation, policy_version,
    started_ms, first_byte_ms, duration_ms, status, outcome, stream, attempts,
    prompt, prompt_len, params, request_headers, response_headers, request_bytes, response_bytes,
    raw_request, raw_response, prompt_tokens, completion_tokens, flags, judgeable,
    next_states, judged, response_id, person, client, retry, facet)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19,
    ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32, ?33, ?34, ?35, ?36,
    ?37, 0, 0, ?38, ?39, ?40, ?41, ?42)";

fn insert_turn(
    writing: &mut Writing<'_>,
    turn: &IngestTurn,
    resolution: &Resolution,
    parent: Option<i64>,
    placed: &Placed,
) -> Result<i64> {
    let (begin, done) = (&turn.begin, turn.done.as_ref());
    let link = resolution.link.as_ref().filter(|_| parent.is_some());
    let nodes = placed.nodes.as_ref().unwrap_or(&turn.nodes);
    let usage = turn.response.as_ref().and_then(|response| response.usage);
    let model = turn.request.as_ref().and_then(|request| request.model.as_deref());
    let facet = Facet {
        route: &begin.route,
        tenant: &begin.tenant,
        outcome: turn.outcome.as_str(),
        model: model.unwrap_or_default(),
        verdict: UNJUDGED,
    };
    let facet = writing.known.facets.id(writing.conn, &facet)?;
    let prompt = writing.put_chain(nodes)?;
    let mut put = |body: &Option<Body>| body.as_ref().map(|body| writing.put(body)).transpose();
    let (params, raw_request) = (put(&turn.params)?, put(&turn.raw_request)?);
    let raw_response = put(&turn.raw_response)?;
    Ok(writing.turn.insert(params![
        begin.turn_id.to_string(),
        resolution.session_id,
        parent,
        link.map_or(0, |link| link.choice),
        placed.answer_at.map(|at| int(at as u64)),
        link.map(|link| link.kind.as_str()),
        link.map_or(0.0, |link| link.confidence),
        resolution.repeat_of.map(|turn| turn.to_string()),
        begin.route,
        begin.mode.as_str(),
        begin.alias,
        begin.tenant,
        begin.method,
        begin.path,
        model,
        turn.generation.as_str(),
        begin.policy_version.cast_signed(),
        begin.started_ms,
        done.and_then(|done| done.first_byte_ms).map(int),
        done.map(|done| int(done.duration_ms)),
        done.map_or(0, |done| done.status),
        turn.outcome.as_str(),
        turn.request.as_ref().is_some_and(|request| request.stream),
        done.map_or(0, |done| done.attempts),
        prompt,
        int(nodes.len() as u64),
        params,
        headers_json(&begin.headers),
        done.map_or_else(|| "[]".to_owned(), |done| headers_json(&done.headers)),
        int(begin.body_len),
        done.map_or(0, |done| int(done.body_len)),
        raw_request,
        raw_response,
        usage.map(|usage| int(usage.prompt_tokens)),
        usage.map(|usage| int(usage.completion_tokens)),
        placed.flags,
        turn.judgeable(placed.flags),
        turn.response.as_ref().and_then(|response| response.id.as_deref()),
        turn.asked.person,
        begin.client,
        resolution.retry,
        facet,
    ])?)
}

/// The rows beside a turn's own: its answers and what it can be found by.
fn insert_parts(writing: &mut Writing<'_>, turn: &IngestTurn, id: i64) -> Result<()> {
    let answers = turn.response.as_ref().map_or(&[][..], |response| &response.choices);
    for (answer, body) in answers.iter().zip(&turn.choices) {
        let message = writing.put(body)?;
        writing.choice.execute(params![id, answer.index, message, answer.finish_reason])?;
    }
    for (rule, count) in &turn.redactions {
        let sql = "INSERT OR REPLACE INTO turn_redactions (turn, rule, count) VALUES (?1, ?2, ?3)";
        writing.conn.prepare_cached(sql)?.execute(params![id, rule, int(*count)])?;
    }
    writing.index.put(&turn.entries, id);
    Ok(())
}
