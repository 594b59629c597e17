//! Deleting the content of a turn, and what nothing else uses any more.
//!
//! Bodies and nodes are shared: they go with their last user. A turn that a round used keeps its
//! row, empty, as provenance; so does the newest turn, so that no row number is ever given twice.
//! Rows of the link index may dangle for a while: they hold keyed hashes only, and the index
//! ignores them.
//!
//! Invariant: after a turn was erased, no row holds text of it that another turn does not hold too.

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::insert::{GIVES, add_next_states, repeats_next_state};
use super::{Result, Store, facets, flags};

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// Turns whose rows are gone.
    pub turns: u64,
    /// Turns of which an empty row is kept.
    pub provenance: u64,
    /// Verdicts, also those that quote an erased turn.
    pub verdicts: u64,
    /// Bodies that nothing used any more.
    pub bodies: u64,
    /// What was said about turns: rows, one for each part.
    pub feedback: u64,
}

/// A turn's row as it is needed to take it apart.
struct Taken {
    turn_id: String,
    parent: Option<i64>,
    gave: bool,
    prompt: Option<i64>,
    bodies: [Option<i64>; 3],
}

fn take(conn: &Connection, id: i64) -> Result<Option<Taken>> {
    let sql = format!(
        "SELECT c.turn_id, c.parent, c.prompt, c.params, c.raw_request, c.raw_response,
                c.parent IS NOT NULL AND {GIVES} FROM turns c WHERE c.id = ?1"
    );
    let mut find = conn.prepare_cached(&sql)?;
    let taken = find.query_row([id], |row| {
        Ok(Taken {
            turn_id: row.get(0)?,
            parent: row.get(1)?,
            prompt: row.get(2)?,
            bodies: [row.get(3)?, row.get(4)?, row.get(5)?],
            gave: row.get::<_, Option<bool>>(6)?.unwrap_or(false),
        })
    });
    Ok(taken.optional()?)
}

/// Erases the turn in a row. `keep_subject`: an empty row keeps session and tenant, so that it can
/// still be found by them.
pub(super) fn erase(
    conn: &Connection,
    id: i64,
    keep_subject: bool,
    erased: &mut Erased,
) -> Result<()> {
    let Some(taken) = take(conn, id)? else { return Ok(()) };
    let mut loose: Vec<i64> = taken.bodies.into_iter().flatten().collect();
    let mut choices = conn.prepare_cached("SELECT message FROM choices WHERE turn = ?1")?;
    for message in choices.query_map([id], |row| row.get(0))? {
        loose.push(message?);
    }
    for sql in [
        "DELETE FROM choices WHERE turn = ?1",
        "DELETE FROM turn_redactions WHERE turn = ?1",
        "DELETE FROM pending_parents WHERE turn = ?1",
    ] {
        conn.prepare_cached(sql)?.execute([id])?;
    }
    let said = "DELETE FROM feedback WHERE turn = ?1";
    erased.feedback += conn.prepare_cached(said)?.execute([id])? as u64;
    erased.verdicts += erase_verdicts(conn, id, &taken.turn_id)?;
    if let (Some(parent), true) = (taken.parent, taken.gave)
        && !repeats_next_state(conn, parent, id)?
    {
        add_next_states(conn, parent, -1)?;
    }
    let kept: bool = conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM round_turns WHERE turn = ?1)
                 OR ?1 = (SELECT max(id) FROM turns)",
        )?
        .query_row([id], |row| row.get(0))?;
    match kept {
        true => empty(conn, id, keep_subject)?,
        false => {
            let orphan = "UPDATE turns SET parent = NULL, parent_choice = 0, answer_at = NULL,
                          link = NULL, link_confidence = 0 WHERE parent = ?1";
            conn.prepare_cached(orphan)?.execute([id])?;
            conn.prepare_cached("DELETE FROM turns WHERE id = ?1")?.execute([id])?;
        }
    }
    *(if kept { &mut erased.provenance } else { &mut erased.turns }) += 1;
    for body in loose {
        erased.bodies += free_body(conn, body)?;
    }
    erased.bodies += free_nodes(conn, taken.prompt)?;
    Ok(())
}

/// The verdict of a turn, and those of other turns that were made from its words.
fn erase_verdicts(conn: &Connection, id: i64, turn_id: &str) -> Result<u64> {
    let mut others = conn.prepare_cached("SELECT turn FROM verdicts WHERE child = ?1")?;
    let others = others
        .query_map([turn_id], |row| row.get::<_, i64>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let said = "UPDATE feedback SET settled = 0
                WHERE settled = 1 AND turn IN (SELECT turn FROM verdicts WHERE child = ?1)";
    conn.prepare_cached(said)?.execute([turn_id])?;
    let answers = "DELETE FROM judge_answers WHERE turn = ?1 OR child = ?1";
    conn.prepare_cached(answers)?.execute([turn_id])?;
    let sql = "DELETE FROM verdicts WHERE turn = ?1 OR child = ?2";
    let gone = conn.prepare_cached(sql)?.execute(params![id, turn_id])? as u64;
    for other in others {
        facets::unjudge(conn, other)?;
    }
    Ok(gone)
}

/// Leaves provenance only: which turn it was, when, on which route, by which generation.
fn empty(conn: &Connection, id: i64, keep_subject: bool) -> Result<()> {
    let sql = "UPDATE turns SET prompt = NULL, prompt_len = 0, params = NULL, raw_request = NULL,
               raw_response = NULL, request_headers = '[]', response_headers = '[]', model = NULL,
               path = '', response_id = NULL, person = '', client = '', flags = flags | ?2,
               judgeable = 0, judged = 0, next_states = 0 WHERE id = ?1";
    conn.prepare_cached(sql)?.execute(params![id, flags::FORGOTTEN])?;
    if !keep_subject {
        let sql = "UPDATE turns SET session_id = turn_id, tenant = 'forgotten' WHERE id = ?1";
        conn.prepare_cached(sql)?.execute([id])?;
    }
    facets::judged(conn, id, facets::UNJUDGED)
}

/// Deletes a body unless something uses it. Returns how many went.
fn free_body(conn: &Connection, id: i64) -> Result<u64> {
    let sql = "DELETE FROM bodies WHERE id = ?1
        AND NOT EXISTS (SELECT 1 FROM nodes WHERE message = ?1)
        AND NOT EXISTS (SELECT 1 FROM choices WHERE message = ?1)
        AND NOT EXISTS (SELECT 1 FROM turns WHERE params = ?1)
        AND NOT EXISTS (SELECT 1 FROM turns WHERE raw_request = ?1)
        AND NOT EXISTS (SELECT 1 FROM turns WHERE raw_response = ?1)";
    Ok(conn.prepare_cached(sql)?.execute([id])? as u64)
}

/// Deletes nodes from a leaf upwards, up to the first that something uses.
fn free_nodes(conn: &Connection, leaf: Option<i64>) -> Result<u64> {
    let mut freed = 0;
    let mut next = leaf;
    while let Some(id) = next {
        let mut find = conn.prepare_cached(
            "SELECT parent, message FROM nodes WHERE id = ?1
             AND NOT EXISTS (SELECT 1 FROM turns WHERE prompt = ?1)
             AND NOT EXISTS (SELECT 1 FROM nodes WHERE parent = ?1)",
        )?;
        let unused: Option<(Option<i64>, i64)> =
            find.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((parent, message)) = unused else { break };
        conn.prepare_cached("DELETE FROM nodes WHERE id = ?1")?.execute([id])?;
        freed += free_body(conn, message)?;
        next = parent;
    }
    Ok(freed)
}

impl Store {
    /// Forgets what erased turns could be found by. One pass over the index, a slice at a time.
    pub(super) fn drop_links(&self, erased: &[i64]) -> Result<()> {
        if erased.is_empty() {
            return Ok(());
        }
        self.conn.execute_batch(
            "CREATE TEMP TABLE IF NOT EXISTS erased (id INTEGER PRIMARY KEY);
             DELETE FROM temp.erased",
        )?;
        let mut add = self.conn.prepare_cached("INSERT OR IGNORE INTO temp.erased VALUES (?1)")?;
        for id in erased {
            add.execute([id])?;
        }
        for kind in 1..=KINDS_MAX {
            let write = self.write()?;
            let sql = "DELETE FROM link_index WHERE kind = ?1
                       AND turn IN (SELECT id FROM temp.erased)";
            write.prepare_cached(sql)?.execute([kind])?;
            write.commit()?;
        }
        Ok(())
    }

    /// Overwrites what is deleted from now on with zeros, instead of only unlinking it.
    pub(super) fn delete_securely(&self) -> Result<()> {
        let sql = "PRAGMA secure_delete = ON";
        Ok(self.conn.query_row(sql, [], |_| Ok(()))?)
    }
}

/// Kinds of link hashes that there may be: [`crate::link::HashKind`].
const KINDS_MAX: i64 = 32;
