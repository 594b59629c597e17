//! Children that were stored before their parent, as happens with two proxies.
//!
//! A turn remembers the prefixes of its prompt that end in an answer nobody has stored yet. When a
//! turn with such an answer is stored, the waiting turn becomes its child, and the waiting turn's
//! tree joins the session.
//!
//! Invariant: a link made here is exact, and only ever replaces a link to an earlier part of the
//! same history.

use rusqlite::{Connection, params};
use serde_json::Value;

use super::insert::{add_next_states, gives_next_state};
use super::{IngestTurn, Result, Store, int};
use crate::clock::now_ms;
use crate::link::{HashKind, LinkKind};

/// Most prefixes that one turn waits for: the youngest answers of its history.
const PREFIXES_MAX: usize = 8;
/// Most children that one answer can win back.
const CHILDREN_MAX: i64 = 64;
/// How long a turn waits, milliseconds.
const AGE_MS_MAX: i64 = 24 * 3600 * 1000;

/// Remembers the prefixes past `answer_at` (of the parent that was found) whose turn may yet come.
pub(super) fn remember(
    conn: &Connection,
    turn: &IngestTurn,
    id: i64,
    answer_at: Option<usize>,
) -> Result<()> {
    let first = answer_at.map_or(0, |at| at + 1);
    let answers = turn.messages().iter().enumerate().skip(first).rev();
    let answers =
        answers.filter(|(_, m)| m.get("role").and_then(Value::as_str) == Some("assistant"));
    let sql = "INSERT OR IGNORE INTO pending_parents (hash, turn, answer_at, made_ms)
               VALUES (?1, ?2, ?3, ?4)";
    for (at, _) in answers.take(PREFIXES_MAX) {
        let Some(hash) = turn.chain.prefixes.get(at + 1) else { continue };
        conn.prepare_cached(sql)?.execute(params![&hash[..], id, int(at as u64), now_ms()])?;
    }
    Ok(())
}

struct Waiting {
    id: i64,
    answer_at: usize,
    parent: Option<i64>,
    old_answer_at: Option<usize>,
    old_gave: bool,
    session_id: String,
    turn_id: String,
    messages: usize,
}

/// Makes a turn that was just stored the parent of those that wait for it. Returns how many.
pub(super) fn resolve(
    conn: &Connection,
    turn: &IngestTurn,
    id: i64,
    session_id: &str,
) -> Result<u64> {
    let mut relinked = 0;
    for entry in turn.entries.iter().filter(|entry| entry.kind == HashKind::Out) {
        for child in waiting(conn, &entry.hash, id, turn.begin.started_ms)? {
            if child.old_answer_at.is_some_and(|old| old >= child.answer_at) {
                continue;
            }
            adopt(conn, &child, id, entry.choice, session_id)?;
            relinked += 1;
        }
    }
    Ok(relinked)
}

fn waiting(conn: &Connection, hash: &[u8; 16], parent: i64, began: i64) -> Result<Vec<Waiting>> {
    let mut find = conn.prepare_cached(
        "SELECT t.id, p.answer_at, t.parent, t.answer_at, t.link, t.link_confidence, t.session_id,
                t.turn_id, t.prompt_len
         FROM pending_parents p JOIN turns t ON t.id = p.turn
         WHERE p.hash = ?1 AND t.id <> ?2 AND t.started_ms >= ?3 ORDER BY t.id LIMIT ?4",
    )?;
    let rows = find.query_map(params![&hash[..], parent, began, CHILDREN_MAX], |row| {
        let messages = row.get::<_, u32>(8)? as usize;
        let kind = row.get::<_, Option<String>>(4)?.and_then(|kind| kind.parse::<LinkKind>().ok());
        let old_answer_at = row.get::<_, Option<u32>>(3)?.map(|at| at as usize);
        let confidence = row.get(5)?;
        let gave = kind.zip(old_answer_at);
        Ok(Waiting {
            id: row.get(0)?,
            answer_at: row.get::<_, u32>(1)? as usize,
            parent: row.get(2)?,
            old_answer_at,
            old_gave: gave.is_some_and(|(k, at)| gives_next_state(k, confidence, at, messages)),
            session_id: row.get(6)?,
            turn_id: row.get(7)?,
            messages,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn adopt(conn: &Connection, child: &Waiting, id: i64, choice: u32, session: &str) -> Result<()> {
    if let Some(old) = child.parent.filter(|_| child.old_gave) {
        add_next_states(conn, old, -1)?;
    }
    if gives_next_state(LinkKind::Exact, 1.0, child.answer_at, child.messages) {
        add_next_states(conn, id, 1)?;
    }
    let sql = "UPDATE turns SET parent = ?2, parent_choice = ?3, answer_at = ?4, link = 'exact',
               link_confidence = 1.0 WHERE id = ?1";
    let at = int(child.answer_at as u64);
    conn.prepare_cached(sql)?.execute(params![child.id, id, choice, at])?;
    // A session named after this child was made because it had no parent: its whole tree moves.
    if child.session_id == child.turn_id {
        let sql = "UPDATE turns SET session_id = ?2 WHERE session_id = ?1";
        conn.prepare_cached(sql)?.execute([&child.session_id, session])?;
    }
    let sql = "DELETE FROM pending_parents WHERE turn = ?1 AND answer_at <= ?2";
    conn.prepare_cached(sql)?.execute([child.id, at])?;
    Ok(())
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
