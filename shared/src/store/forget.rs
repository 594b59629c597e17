//! Erasure on demand, the store's part: whose turns, what they taught, and the marks that make an
//! interrupted erasure go on.
//!
//! Before anything is deleted, the ids of all turns concerned are written down in one transaction
//! with the job. Whoever comes next, after a crash or not, finishes the open jobs first.
//!
//! Invariant: a job is finished in the same transaction that writes its audit row; a finished job
//! left no content behind.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, params};

use super::audit::{self, AuditEntry};
use super::erase::{Erased, erase};
use super::retention::BATCH_TURNS_MAX;
use super::{Result, RoundState, Store, bodies, facets, flags, parse, said};
use crate::clock::now_ms;
use crate::feedback::FeedbackId;
use crate::turn::{Generation, TurnId};

/// Whose content is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// All turns of a session: its stored name, or the client's own.
    Session(String),
    /// All turns of a tenant, by the keyed hash.
    Tenant(String),
    /// A turn and all that continue it, because they repeat its text.
    Turn(TurnId),
    /// All turns that hold a text, and all that continue them.
    Text(String),
}

impl Subject {
    /// The word for the audit trail.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Session(_) => "session",
            Self::Tenant(_) => "tenant",
            Self::Turn(_) => "turn",
            Self::Text(_) => "text",
        }
    }
}

/// An erasure that is begun and not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgetJob {
    /// Its number.
    pub id: i64,
    /// Who asked for it.
    pub actor: String,
    /// Kind of subject.
    pub kind: String,
    /// Why.
    pub reason: String,
}

/// The turns of a subject, and what was learned from them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Concerned {
    /// Turns whose content goes.
    pub turns: BTreeSet<TurnId>,
    /// Turns that stay, but whose hint was taken from a turn, or from feedback, that goes.
    pub hinted: BTreeSet<TurnId>,
    /// Feedback that goes.
    pub feedback: BTreeSet<FeedbackId>,
}

impl Concerned {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &TurnId> {
        self.turns.iter().chain(&self.hinted)
    }
}

/// A round that used turns that are to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundUse {
    /// The round.
    pub round_id: String,
    /// Where it stands.
    pub state: RoundState,
    /// What it produced.
    pub candidate: Option<Generation>,
    /// Whether a turn was trained on; otherwise they were only tested on.
    pub trained: bool,
}

impl Store {
    /// Finds the turns of a subject. Errors: a session's short name that several sessions have.
    /// `secret` is the one of the data directory: redaction may have hidden the name.
    pub fn concerned(&self, subject: &Subject, secret: &[u8; 32]) -> Result<Concerned> {
        let rows = match subject {
            Subject::Session(name) => self.session_rows(name, secret)?,
            Subject::Tenant(tenant) => {
                self.ids("SELECT id FROM turns WHERE tenant = ?1", &[tenant])?
            }
            Subject::Turn(turn) => self.ids(SUBTREE, &[&turn.to_string()])?,
            Subject::Text(text) => self.text_rows(text)?,
        };
        let mut concerned = Concerned::default();
        for row in rows {
            concerned.turns.insert(super::turns::turn_id(&self.conn, row)?);
        }
        let mut quoted = self.conn.prepare_cached(
            "SELECT t.turn_id FROM verdicts v JOIN turns t ON t.id = v.turn
             WHERE v.child = ?1 AND v.hints <> '[]'",
        )?;
        for turn in &concerned.turns {
            for row in quoted.query_map([turn.to_string()], |row| row.get::<_, String>(0))? {
                concerned.hinted.insert(parse("turn_id", &row?)?);
            }
        }
        self.concern_feedback(subject, &mut concerned)?;
        concerned.hinted.retain(|turn| !concerned.turns.contains(turn));
        Ok(concerned)
    }

    /// What was said about the turns, by the tenant, or in the words.
    fn concern_feedback(&self, subject: &Subject, concerned: &mut Concerned) -> Result<()> {
        let find = |sql: &str, value: &str| -> Result<Vec<FeedbackId>> {
            let mut find = self.conn.prepare_cached(sql)?;
            let rows = find.query_map([value], |row| row.get::<_, String>(0))?;
            rows.map(|id| parse("feedback id", &id?)).collect()
        };
        let about = "SELECT f.feedback_id FROM feedback f JOIN turns t ON t.id = f.turn
                     WHERE t.turn_id = ?1";
        for turn in &concerned.turns {
            concerned.feedback.extend(find(about, &turn.to_string())?);
        }
        match subject {
            Subject::Tenant(tenant) => {
                let own = "SELECT feedback_id FROM feedback WHERE tenant = ?1";
                concerned.feedback.extend(find(own, tenant)?);
            }
            Subject::Text(text) => {
                for needle in &Needles::of(text).0 {
                    for (id, turn) in said::holding(&self.conn, needle)? {
                        concerned.feedback.insert(id);
                        concerned.hinted.extend(turn);
                    }
                }
            }
            Subject::Session(_) | Subject::Turn(_) => {}
        }
        Ok(())
    }

    pub(super) fn ids(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<BTreeSet<i64>> {
        let mut find = self.conn.prepare_cached(sql)?;
        let rows = find.query_map(values, |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Turns that hold a text in a message, an answer, a parameter, a raw body or their own row;
    /// with all that continue them.
    fn text_rows(&self, text: &str) -> Result<BTreeSet<i64>> {
        let needles = Needles::of(text);
        let (mut rows, mut at) = (BTreeSet::new(), 0);
        loop {
            let page = self.bodies_after(at)?;
            let Some((last, _)) = page.last() else { break };
            at = *last;
            for (id, bytes) in &page {
                if needles.are_in(&bodies::unpack(bytes)?) {
                    rows.extend(self.ids(USERS_OF_BODY, &[id])?);
                }
            }
        }
        // Headers, paths and names are not JSON bodies of their own.
        for sql in [
            "SELECT id FROM turns WHERE instr(request_headers, ?1) OR instr(response_headers, ?1)
             OR instr(path, ?1) OR instr(coalesce(model, ''), ?1) OR instr(session_id, ?1)",
            "SELECT turn FROM verdicts WHERE instr(reason, ?1) OR instr(votes, ?1)
             OR instr(hints, ?1)",
        ] {
            for needle in &needles.0 {
                rows.extend(self.ids(sql, &[needle])?);
            }
        }
        let mut all = BTreeSet::new();
        for row in &rows {
            let turn = super::turns::turn_id(&self.conn, *row)?;
            all.extend(self.ids(SUBTREE, &[&turn.to_string()])?);
        }
        Ok(all)
    }

    fn bodies_after(&self, at: i64) -> Result<Vec<(i64, Vec<u8>)>> {
        let sql = "SELECT id, bytes FROM bodies WHERE id > ?1 ORDER BY id LIMIT 256";
        let mut find = self.conn.prepare_cached(sql)?;
        let rows = find.query_map([at], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The rounds that used any of `turns`.
    pub fn rounds_using<'a>(
        &self,
        turns: impl Iterator<Item = &'a TurnId>,
    ) -> Result<Vec<RoundUse>> {
        let mut find = self.conn.prepare_cached(
            "SELECT r.round_id, r.state, r.candidate, rt.split FROM round_turns rt
             JOIN rounds r ON r.round_id = rt.round_id JOIN turns t ON t.id = rt.turn
             WHERE t.turn_id = ?1",
        )?;
        let mut found: Vec<RoundUse> = Vec::new();
        for turn in turns {
            let rows = find.query_map([turn.to_string()], |row| {
                let (state, candidate) = (row.get::<_, String>(1)?, row.get(2)?);
                Ok((row.get::<_, String>(0)?, state, candidate, row.get::<_, String>(3)?))
            })?;
            for row in rows {
                let (round_id, state, candidate, split): (_, _, Option<String>, _) = row?;
                let trained = split == super::Split::Train.as_str();
                if let Some(known) = found.iter_mut().find(|round| round.round_id == round_id) {
                    known.trained |= trained;
                    continue;
                }
                let candidate = candidate.map(|name| parse("candidate", &name)).transpose()?;
                let state = parse("round state", &state)?;
                found.push(RoundUse { round_id, state, candidate, trained });
            }
        }
        Ok(found)
    }

    /// Writes down what is to be forgotten, before anything is deleted.
    pub fn begin_forget(
        &self,
        kind: &str,
        actor: &str,
        reason: &str,
        concerned: &Concerned,
    ) -> Result<ForgetJob> {
        let write = self.write()?;
        let sql = "INSERT INTO forget_jobs (began_ms, actor, kind, reason, options)
                   VALUES (?1, ?2, ?3, ?4, '')";
        let id = write.prepare_cached(sql)?.insert(params![now_ms(), actor, kind, reason])?;
        {
            let mut mark = write.prepare_cached(
                "INSERT OR IGNORE INTO forgotten (turn_id, role, job) VALUES (?1, ?2, ?3)",
            )?;
            for turn in &concerned.turns {
                mark.execute(params![turn.to_string(), 0, id])?;
            }
            for turn in &concerned.hinted {
                mark.execute(params![turn.to_string(), 1, id])?;
            }
            for said in &concerned.feedback {
                mark.execute(params![said.to_string(), 2, id])?;
            }
        }
        write.commit()?;
        let own = str::to_owned;
        Ok(ForgetJob { id, actor: own(actor), kind: own(kind), reason: own(reason) })
    }

    /// Erasures that were begun and not finished, oldest first.
    pub fn open_forget_jobs(&self) -> Result<Vec<ForgetJob>> {
        let mut find = self.conn.prepare_cached(
            "SELECT id, actor, kind, reason FROM forget_jobs WHERE finished_ms IS NULL ORDER BY id",
        )?;
        let rows = find.query_map([], |row| {
            let (id, actor) = (row.get(0)?, row.get(1)?);
            Ok(ForgetJob { id, actor, kind: row.get(2)?, reason: row.get(3)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The turns of a job.
    pub fn forget_marks(&self, job: i64) -> Result<Concerned> {
        let sql = "SELECT turn_id, role FROM forgotten WHERE job = ?1";
        let mut find = self.conn.prepare_cached(sql)?;
        let rows = find
            .query_map([job], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut concerned = Concerned::default();
        for (id, role) in rows {
            match role {
                0 => concerned.turns.insert(parse("turn_id", &id)?),
                1 => concerned.hinted.insert(parse("turn_id", &id)?),
                _ => concerned.feedback.insert(parse("feedback id", &id)?),
            };
        }
        Ok(concerned)
    }

    /// The newest erasure up to which all are finished; 0: none. What is read of the store from now
    /// on holds nothing that these took.
    pub fn forgets_done(&self) -> Result<i64> {
        let sql = "SELECT coalesce(
            (SELECT min(id) - 1 FROM forget_jobs WHERE finished_ms IS NULL),
            (SELECT max(id) FROM forget_jobs), 0)";
        Ok(self.conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    }

    /// The first of `turns` whose text was forgotten, or whose hint was by an erasure after
    /// `drawn_after` ([`Store::forgets_done`] when they were drawn); nothing may be made of it.
    /// A turn that stays may be judged, and drawn, anew.
    pub fn first_forgotten(&self, turns: &[TurnId], drawn_after: i64) -> Result<Option<TurnId>> {
        let mut find = self.conn.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM forgotten
             WHERE turn_id = ?1 AND (role = 0 OR role = 1 AND job > ?2))",
        )?;
        for turn in turns {
            if find.query_row(params![turn.to_string(), drawn_after], |row| row.get(0))? {
                return Ok(Some(*turn));
            }
        }
        Ok(None)
    }

    /// Deletes the content of turns in small transactions. Turns that are gone are skipped.
    pub fn erase_turns(&self, turns: &BTreeSet<TurnId>) -> Result<Erased> {
        self.delete_securely()?;
        let mut erased = Erased::default();
        let all: Vec<&TurnId> = turns.iter().collect();
        for batch in all.chunks(BATCH_TURNS_MAX) {
            let write = self.write()?;
            let mut ids = Vec::new();
            for turn in batch {
                let Some(id) = super::insert::row_of(&write, **turn)? else { continue };
                ids.push(id);
                let sql = "SELECT flags & ?2 = 0 OR tenant <> 'forgotten' FROM turns WHERE id = ?1";
                let whole: bool = write
                    .prepare_cached(sql)?
                    .query_row(params![id, flags::FORGOTTEN], |row| row.get(0))?;
                if whole {
                    erase(&write, id, false, &mut erased)?;
                }
            }
            facets::drop_unused(&write)?;
            write.commit()?;
            self.known.borrow_mut().distrust();
            self.drop_links(&ids)?;
        }
        Ok(erased)
    }

    /// Deletes verdicts whose words came from turns that were forgotten. Returns how many went.
    pub fn erase_hints(&self, hinted: &BTreeSet<TurnId>) -> Result<u64> {
        let mut erased = 0;
        let all: Vec<&TurnId> = hinted.iter().collect();
        for batch in all.chunks(BATCH_TURNS_MAX) {
            let write = self.write()?;
            for turn in batch {
                // The verdict that named a forgotten child is gone with it; one that was made since
                // from another child is not.
                let sql =
                    "DELETE FROM verdicts WHERE turn = (SELECT id FROM turns WHERE turn_id = ?1)
                           AND child IN (SELECT turn_id FROM forgotten WHERE role = 0)
                     RETURNING turn";
                let mut delete = write.prepare_cached(sql)?;
                let id = delete.query_row([turn.to_string()], |row| row.get::<_, i64>(0));
                let Some(id) = id.optional()? else { continue };
                facets::unjudge(&write, id)?;
                erased += 1;
            }
            write.commit()?;
        }
        Ok(erased)
    }

    /// Deletes feedback, and the verdicts that may have been made of it.
    pub fn erase_feedback(&self, ids: &BTreeSet<FeedbackId>) -> Result<Erased> {
        self.delete_securely()?;
        let mut erased = Erased::default();
        let all: Vec<&FeedbackId> = ids.iter().collect();
        for batch in all.chunks(BATCH_TURNS_MAX) {
            let write = self.write()?;
            for id in batch {
                let id = id.to_string();
                let sql = "SELECT DISTINCT turn FROM feedback
                           WHERE feedback_id = ?1 AND turn IS NOT NULL";
                let turns = self.ids(sql, &[&id])?;
                let sql = "DELETE FROM feedback WHERE feedback_id = ?1";
                erased.feedback += write.prepare_cached(sql)?.execute([&id])? as u64;
                for turn in turns {
                    erased.verdicts += said::unsettle(&write, turn)?;
                }
            }
            write.commit()?;
        }
        Ok(erased)
    }

    /// Ends a round that is still running: what it drew must not be used. `false`: it has ended.
    pub fn stop_round(&self, round_id: &str, reason: &str) -> Result<bool> {
        let write = self.write()?;
        let sql = "UPDATE rounds SET state = 'abandoned', reason = ?2, finished_ms = ?3
                   WHERE round_id = ?1 AND state IN ('sampling', 'training', 'gating', 'publishing')";
        let stopped = write.execute(sql, params![round_id, reason, now_ms()])?;
        write.commit()?;
        Ok(stopped > 0)
    }

    /// Finishes a job, and says so in the audit trail, at once.
    pub fn finish_forget(&self, job: &ForgetJob, counts: &str) -> Result<()> {
        let write = self.write()?;
        let sql = "UPDATE forget_jobs SET finished_ms = ?2 WHERE id = ?1 AND finished_ms IS NULL";
        if write.execute(sql, params![job.id, now_ms()])? == 1 {
            let entry = AuditEntry {
                actor: job.actor.clone(),
                action: "forget".to_owned(),
                target: job.kind.clone(),
                before: None,
                after: Some(counts.to_owned()),
                reason: job.reason.clone(),
            };
            audit::append(&write, &entry)?;
        }
        Ok(write.commit()?)
    }

    /// Rewrites the whole file, so that nothing deleted is left in it or in its log. Returns
    /// whether the log is empty; a reader that holds on to an old state prevents that.
    pub fn vacuum(&self) -> Result<bool> {
        self.delete_securely()?;
        self.checkpoint()?;
        self.conn.execute_batch("VACUUM")?;
        Ok(self.checkpoint()? == 0)
    }
}

/// Whether a turn was forgotten itself.
pub(super) fn is_forgotten(conn: &Connection, turn: TurnId) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM forgotten WHERE turn_id = ?1 AND role = 0)";
    let mut find = conn.prepare_cached(sql)?;
    Ok(find.query_row([turn.to_string()], |row| row.get(0))?)
}

/// A turn and all that continue it.
const SUBTREE: &str = "WITH RECURSIVE tree(id) AS (
    SELECT id FROM turns WHERE turn_id = ?1
    UNION SELECT c.id FROM turns c JOIN tree ON c.parent = tree.id)
    SELECT id FROM tree";

/// The turns that use a body, anywhere.
const USERS_OF_BODY: &str = "WITH RECURSIVE below(id) AS (
    SELECT id FROM nodes WHERE message = ?1
    UNION SELECT n.id FROM nodes n JOIN below ON n.parent = below.id)
    SELECT t.id FROM turns t JOIN below ON t.prompt = below.id
    UNION SELECT turn FROM choices WHERE message = ?1
    UNION SELECT id FROM turns WHERE params = ?1
    UNION SELECT id FROM turns WHERE raw_request = ?1
    UNION SELECT id FROM turns WHERE raw_response = ?1";

/// A text as it stands in plain bodies, in JSON, and in JSON inside of JSON.
struct Needles(Vec<String>);

impl Needles {
    fn of(text: &str) -> Self {
        let escaped = |text: &str| {
            let json = serde_json::Value::from(text).to_string();
            json.get(1..json.len().saturating_sub(1)).unwrap_or_default().to_owned()
        };
        let once = escaped(text);
        let mut all = vec![text.to_owned(), escaped(&once), once];
        all.sort_unstable();
        all.dedup();
        Self(all)
    }

    fn are_in(&self, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes);
        self.0.iter().any(|needle| text.contains(needle.as_str()))
    }
}
