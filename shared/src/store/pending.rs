//! Children that were stored before their parent, as happens with two proxies.
//!
//! A turn remembers the prefixes of its prompt that end in an answer nobody has stored yet, and the
//! response that it names. When a turn with such an answer is stored, the waiting turn becomes its
//! child, and the waiting turn's tree joins the session.
//!
//! Invariant: a link made here only ever replaces one to an earlier part of the same history, or
//! looser evidence for the same part.

use rusqlite::{Connection, params};

use super::insert::{add_next_states, gives_next_state, repeats_next_state};
use super::restore::restore;
use super::writing::Writing;
use super::{IngestTurn, Result, Store, bodies, flags, int};
use crate::clock::now_ms;
use crate::link::{Hash, HashKind, Link, LinkKind};

/// Most prefixes that one turn waits for: the youngest answers of its history.
const PREFIXES_MAX: usize = 8;
/// Most children that one answer can win back.
const CHILDREN_MAX: usize = 64;
/// How long a turn waits, milliseconds.
const AGE_MS_MAX: i64 = 24 * 3600 * 1000;

/// Remembers what the turn may yet be found by, past the parent that was found. Returns whether
/// there is anything.
pub(super) fn remember(
    conn: &Connection,
    turn: &IngestTurn,
    id: i64,
    link: Option<&Link>,
) -> Result<bool> {
    let wait = |hash: &Hash, at: usize| -> Result<()> {
        let sql = "INSERT OR IGNORE INTO pending_parents (hash, turn, answer_at, made_ms)
                   VALUES (?1, ?2, ?3, ?4)";
        conn.prepare_cached(sql)?.execute(params![&hash[..], id, int(at as u64), now_ms()])?;
        Ok(())
    };
    if let Some(response) = &turn.asked.named.response {
        // What comes before the named history's place: the request's own instructions.
        let before = turn.messages().iter().take_while(|m| m.get("instructions").is_some());
        return match link {
            None => wait(&turn.key.named(response), before.count()).map(|()| true),
            Some(_) => Ok(false),
        };
    }
    // A surer parent may yet come for an answer that was found by looser evidence.
    let first = link.map_or(0, |link| link.answer_at + usize::from(link.kind.is_sure()));
    let answers = turn.messages().iter().enumerate().skip(first).rev();
    let answers = answers.filter(|(_, message)| message["role"] == "assistant");
    let (exact, loose) = (&turn.asked.history.exact.prefixes, &turn.asked.history.loose.prefixes);
    let mut waits = false;
    for (at, _) in answers.take(PREFIXES_MAX) {
        for prefix in [exact.get(at + 1), loose.get(at + 1)].into_iter().flatten() {
            wait(prefix, at)?;
            waits = true;
        }
    }
    Ok(waits)
}

struct Waiting {
    id: i64,
    answer_at: usize,
    parent: Option<i64>,
    old_answer_at: Option<usize>,
    old_kind: Option<LinkKind>,
    session_id: String,
    turn_id: String,
    prompt: Option<i64>,
}

impl Waiting {
    /// Whether the parent that the child has is nearer, or as near and as sure.
    fn has_better_than(&self, kind: LinkKind) -> bool {
        let (Some(at), Some(old)) = (self.old_answer_at, self.old_kind) else { return false };
        kind != LinkKind::Named && (at > self.answer_at || at == self.answer_at && old <= kind)
    }
}

/// Makes a turn that was just stored the parent of those that wait for it. Returns how many.
pub(super) fn resolve(
    writing: &mut Writing<'_>,
    turn: &IngestTurn,
    id: i64,
    session_id: &str,
) -> Result<u64> {
    let mut relinked = 0;
    for entry in &turn.entries {
        let kind = match entry.kind {
            HashKind::Out => (LinkKind::Exact, 1.0),
            HashKind::LooseOut => (LinkKind::Loose, 0.95),
            HashKind::ResponseId => (LinkKind::Named, 1.0),
            _ => continue,
        };
        for child in waiting(writing.conn, &entry.hash, id, turn.begin.started_ms)? {
            if !child.has_better_than(kind.0) {
                adopt(writing, turn, &child, (id, entry.choice, session_id), kind)?;
                relinked += 1;
            }
        }
    }
    Ok(relinked)
}

fn waiting(conn: &Connection, hash: &Hash, parent: i64, began: i64) -> Result<Vec<Waiting>> {
    let mut find = conn.prepare_cached(
        "SELECT t.id, p.answer_at, t.parent, t.answer_at, t.link, t.session_id, t.turn_id, t.prompt
         FROM pending_parents p JOIN turns t ON t.id = p.turn
         WHERE p.hash = ?1 AND t.id <> ?2 AND t.started_ms >= ?3 ORDER BY t.id",
    )?;
    let rows = find.query_map(params![&hash[..], parent, began], |row| {
        let old_kind = row.get::<_, Option<String>>(4)?.and_then(|kind| kind.parse().ok());
        Ok(Waiting {
            id: row.get(0)?,
            answer_at: row.get::<_, u32>(1)? as usize,
            parent: row.get(2)?,
            old_answer_at: row.get::<_, Option<u32>>(3)?.map(|at| at as usize),
            old_kind,
            session_id: row.get(5)?,
            turn_id: row.get(6)?,
            prompt: row.get(7)?,
        })
    })?;
    Ok(rows.take(CHILDREN_MAX).collect::<rusqlite::Result<_>>()?)
}

/// `parent`: its row, the choice, and its session.
fn adopt(
    writing: &mut Writing<'_>,
    turn: &IngestTurn,
    child: &Waiting,
    parent: (i64, u32, &str),
    (kind, confidence): (LinkKind, f64),
) -> Result<()> {
    let conn = writing.conn;
    let (id, choice, session) = parent;
    if let Some(old) = child.parent
        && gives_next_state(conn, child.id)?
        && !repeats_next_state(conn, old, child.id)?
    {
        add_next_states(conn, old, -1)?;
    }
    let mut answer_at = child.answer_at;
    if kind == LinkKind::Named {
        answer_at = bring_history(writing, turn, child, id, choice)?;
    }
    let sql = "UPDATE turns SET parent = ?2, parent_choice = ?3, answer_at = ?4, link = ?5,
               link_confidence = ?6 WHERE id = ?1";
    let at = int(answer_at as u64);
    conn.prepare_cached(sql)?.execute(params![
        child.id,
        id,
        choice,
        at,
        kind.as_str(),
        confidence
    ])?;
    if gives_next_state(conn, child.id)? && !repeats_next_state(conn, id, child.id)? {
        add_next_states(conn, id, 1)?;
    }
    // A session named after this child was made because it had no parent: its whole tree moves.
    if child.session_id == child.turn_id {
        let sql = "UPDATE turns SET session_id = ?2 WHERE session_id = ?1";
        conn.prepare_cached(sql)?.execute([&child.session_id, session])?;
    }
    let sql = "DELETE FROM pending_parents WHERE turn = ?1 AND answer_at <= ?2";
    // Looser evidence leaves the exact prefix waiting.
    let upto = int(child.answer_at as u64) - i64::from(!kind.is_sure());
    conn.prepare_cached(sql)?.execute([child.id, upto])?;
    Ok(())
}

/// Completes the prompt of a child that only names its history. Returns where the parent's answer
/// is.
fn bring_history(
    writing: &mut Writing<'_>,
    turn: &IngestTurn,
    child: &Waiting,
    parent: i64,
    choice: u32,
) -> Result<usize> {
    let conn = writing.conn;
    let messages = bodies::get_chain(conn, child.prompt)?;
    let at = child.answer_at;
    let Some((whole, answer_at)) = restore(conn, messages, at..at, parent, choice)? else {
        return Ok(at);
    };
    let nodes = bodies::chain(&turn.begin.tenant, &whole);
    let prompt = writing.put_chain(&nodes)?;
    let sql = "UPDATE turns SET prompt = ?2, prompt_len = ?3, flags = flags & ~?4 WHERE id = ?1";
    let len = int(nodes.len() as u64);
    conn.prepare_cached(sql)?.execute(params![child.id, prompt, len, flags::HISTORY_MISSING])?;
    let sql = "UPDATE turns SET judgeable = 1 WHERE id = ?1 AND flags = 0
               AND mode IN ('shadow', 'learn') AND outcome = 'complete'
               AND EXISTS (SELECT 1 FROM choices WHERE turn = ?1)";
    conn.prepare_cached(sql)?.execute([child.id])?;
    Ok(answer_at)
}

impl Store {
    /// Forgets waiting turns that are older than a day. Returns how many prefixes were forgotten.
    pub fn sweep_pending(&self, at_ms: i64) -> Result<usize> {
        let write = self.write()?;
        let sql = "DELETE FROM pending_parents WHERE made_ms < ?1";
        let swept = write.execute(sql, [at_ms - AGE_MS_MAX])?;
        write.commit()?;
        Ok(swept)
    }
}
