//! The audit trail: who changed what, when and why.
//!
//! One row per act of an operator or of an automatic rule that changes what is learned, served or
//! kept: learning toggles, forgetting, retention, rollbacks.
//!
//! Invariant: rows are only ever added; none holds text of a turn, a credential or a subject's name.

use rusqlite::{Connection, params};
use serde::Serialize;

use super::{Result, Store};
use crate::clock::now_ms;

/// Longest actor, action and target, characters; longer ones are cut.
pub const NAME_CHARS_MAX: usize = 200;
/// Longest `before`, `after` and reason, characters; longer ones are cut.
pub const TEXT_CHARS_MAX: usize = 4_000;
/// Most rows that one listing returns.
pub const AUDIT_LIST_MAX: usize = 1_000;

/// What is to be recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditEntry {
    /// Who: `cli:alice`, `admin`, `policy`, `retention`.
    pub actor: String,
    /// What was done: `learning.set`, `forget`, `retention`.
    pub action: String,
    /// To what: a route, an alias, a kind of subject.
    pub target: String,
    /// How it was before, where that makes sense.
    pub before: Option<String>,
    /// How it is now, or what was done in numbers.
    pub after: Option<String>,
    /// Why, in the actor's words.
    pub reason: String,
}

/// A recorded act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    /// Its number; later acts have larger ones.
    pub id: i64,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// Who.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub target: String,
    /// How it was before.
    pub before: Option<String>,
    /// How it is now.
    pub after: Option<String>,
    /// Why.
    pub reason: String,
}

impl Store {
    /// Records an act, durably. Returns its number.
    pub fn append_audit(&self, entry: &AuditEntry) -> Result<i64> {
        let write = self.write()?;
        let id = append(&write, entry)?;
        write.commit()?;
        Ok(id)
    }

    /// Acts, newest first; those before number `before`, when given. At most `limit` and
    /// [`AUDIT_LIST_MAX`].
    pub fn audit(&self, limit: usize, before: Option<i64>) -> Result<Vec<AuditRow>> {
        let mut find = self.conn.prepare_cached(
            "SELECT id, at_ms, actor, action, target, before, after, reason FROM audit
             WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
        )?;
        let limit = i64::try_from(limit.min(AUDIT_LIST_MAX)).unwrap_or(0);
        let rows = find.query_map(params![before.unwrap_or(i64::MAX), limit], |row| {
            Ok(AuditRow {
                id: row.get(0)?,
                at_ms: row.get(1)?,
                actor: row.get(2)?,
                action: row.get(3)?,
                target: row.get(4)?,
                before: row.get(5)?,
                after: row.get(6)?,
                reason: row.get(7)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// Records an act within a transaction.
pub(super) fn append(conn: &Connection, entry: &AuditEntry) -> Result<i64> {
    let name = |text: &str| cut(text, NAME_CHARS_MAX);
    let text = |text: &str| cut(text, TEXT_CHARS_MAX);
    let mut insert = conn.prepare_cached(
        "INSERT INTO audit (at_ms, actor, action, target, before, after, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    Ok(insert.insert(params![
        now_ms(),
        name(&entry.actor),
        name(&entry.action),
        name(&entry.target),
        entry.before.as_deref().map(text),
        entry.after.as_deref().map(text),
        text(&entry.reason),
    ])?)
}

fn cut(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(action: &str) -> AuditEntry {
        AuditEntry { actor: "cli:test".into(), action: action.into(), ..AuditEntry::default() }
    }

    #[test]
    fn acts_are_listed_newest_first_and_survive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.sqlite");
        let store = Store::open(&path).unwrap();
        for action in ["a", "b", "c"] {
            store.append_audit(&act(action)).unwrap();
        }
        drop(store);
        let store = Store::open_read_only(&path).unwrap();
        let actions = |rows: &[AuditRow]| rows.iter().map(|r| r.action.clone()).collect::<String>();
        let newest = store.audit(2, None).unwrap();
        assert_eq!(actions(&newest), "cb");
        assert!(newest[0].at_ms >= newest[1].at_ms && newest[1].at_ms > 0);
        assert_eq!(actions(&store.audit(9, Some(newest[1].id)).unwrap()), "a");
    }

    #[test]
    fn long_texts_are_cut_and_whole_values_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.sqlite")).unwrap();
        let entry = AuditEntry {
            target: "chat".into(),
            before: Some("learn".into()),
            after: None,
            reason: "é".repeat(TEXT_CHARS_MAX + 1),
            ..act("learning.set")
        };
        store.append_audit(&entry).unwrap();
        let row = store.audit(1, None).unwrap().remove(0);
        assert_eq!(row.before.as_deref(), Some("learn"));
        assert_eq!((row.target.as_str(), row.after), ("chat", None));
        assert_eq!(row.reason.chars().count(), TEXT_CHARS_MAX);
    }
}
