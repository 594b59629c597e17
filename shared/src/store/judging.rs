//! What a judge's model has cost and what it said before.
//!
//! Both are kept here so that a restart resets neither the cap nor the cache, and so that what a
//! model said about a turn is erased with the turn.
//!
//! Invariant: both tables are bounded; an answer about a forgotten turn is not kept.

use rusqlite::{OptionalExtension, params};

use super::forget::is_forgotten;
use super::{Result, Store, int, uint};
use crate::turn::TurnId;

const HOUR_MS: i64 = 3_600_000;
/// Hours of spending that are kept.
const HOURS_KEPT: i64 = 48;

/// Tokens that a judge has spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Since the hour began (UTC).
    pub hour: u64,
    /// In this hour and the 23 before it.
    pub day: u64,
}

/// A model's answer that may be used again.
#[derive(Debug, Clone, Copy)]
pub struct AnswerKey<'a> {
    /// Hash of all that was asked.
    pub key: &'a [u8],
    /// The turn that was judged.
    pub turn: TurnId,
    /// The child that held its next state.
    pub child: TurnId,
}

impl Store {
    /// What a judge has spent up to `now_ms`.
    pub fn judge_spent(&self, judge: &str, now_ms: i64) -> Result<Spent> {
        let hour = now_ms.div_euclid(HOUR_MS);
        let sql = "SELECT coalesce(sum(tokens) FILTER (WHERE hour = ?2), 0),
                          coalesce(sum(tokens), 0)
                   FROM judge_spend WHERE judge = ?1 AND hour > ?2 - 24 AND hour <= ?2";
        let mut find = self.conn.prepare_cached(sql)?;
        let read =
            |row: &rusqlite::Row<'_>| Ok(Spent { hour: uint(row.get(0)?), day: uint(row.get(1)?) });
        Ok(find.query_row(params![judge, hour], read)?)
    }

    /// Adds to what a judge has spent.
    pub fn add_judge_spend(&self, judge: &str, now_ms: i64, tokens: u64) -> Result<()> {
        let hour = now_ms.div_euclid(HOUR_MS);
        let write = self.write()?;
        write
            .prepare_cached(
                "INSERT INTO judge_spend (judge, hour, tokens) VALUES (?1, ?2, ?3)
                 ON CONFLICT (judge, hour) DO UPDATE SET tokens = tokens + excluded.tokens",
            )?
            .execute(params![judge, hour, int(tokens)])?;
        write
            .prepare_cached("DELETE FROM judge_spend WHERE hour < ?1")?
            .execute([hour - HOURS_KEPT])?;
        write.commit()?;
        Ok(())
    }

    /// What was answered to the same question before.
    pub fn judge_answer(&self, key: &[u8]) -> Result<Option<String>> {
        let mut find =
            self.conn.prepare_cached("SELECT answer FROM judge_answers WHERE key = ?1")?;
        Ok(find.query_row([key], |row| row.get(0)).optional()?)
    }

    /// Keeps an answer, and at most `kept_max` of them; the oldest go first.
    pub fn keep_judge_answer(
        &self,
        asked: AnswerKey<'_>,
        answer: &str,
        now_ms: i64,
        kept_max: usize,
    ) -> Result<()> {
        let write = self.write()?;
        for turn in [asked.turn, asked.child] {
            // Answered before it was forgotten, written after: its words must not come back.
            if is_forgotten(&write, turn)? {
                return Ok(());
            }
        }
        write
            .prepare_cached(
                "INSERT INTO judge_answers (key, turn, child, answer, made_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (key) DO NOTHING",
            )?
            .execute(params![
                asked.key,
                asked.turn.to_string(),
                asked.child.to_string(),
                answer,
                now_ms
            ])?;
        write
            .prepare_cached(
                "DELETE FROM judge_answers WHERE rowid IN (SELECT rowid FROM judge_answers
                 ORDER BY made_ms DESC, rowid DESC LIMIT -1 OFFSET ?1)",
            )?
            .execute([int(kept_max as u64)])?;
        write.commit()?;
        Ok(())
    }

    /// Hints of a session's verdicts, newest first.
    pub fn session_hints(
        &self,
        tenant: &str,
        session_id: &str,
        limit: usize,
    ) -> Result<Vec<String>> {
        let mut find = self.conn.prepare_cached(
            "SELECT v.hints FROM turns t JOIN verdicts v ON v.turn = t.id
             WHERE t.session_id = ?1 AND t.tenant = ?2 AND v.hints <> '[]'
             ORDER BY v.judged_ms DESC, t.id DESC LIMIT ?3",
        )?;
        let rows = find.query_map(params![session_id, tenant, int(limit as u64)], |row| {
            row.get::<_, String>(0)
        })?;
        let mut hints: Vec<String> = Vec::new();
        for row in rows {
            hints.extend(serde_json::from_str::<Vec<String>>(&row?).unwrap_or_default());
        }
        hints.truncate(limit);
        Ok(hints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.sqlite")).unwrap();
        (dir, store)
    }

    #[test]
    fn spending_is_counted_by_hour_and_day_and_survives_a_restart() {
        let (dir, store) = store();
        let at = 1_000 * HOUR_MS;
        store.add_judge_spend("chat", at - 24 * HOUR_MS, 7).unwrap();
        store.add_judge_spend("chat", at - 1, 20).unwrap();
        store.add_judge_spend("chat", at, 300).unwrap();
        store.add_judge_spend("chat", at + 5, 4_000).unwrap();
        store.add_judge_spend("code", at, 50_000).unwrap();
        drop(store);
        let store = Store::open(&dir.path().join("store.sqlite")).unwrap();
        assert_eq!(store.judge_spent("chat", at).unwrap(), Spent { hour: 4_300, day: 4_320 });
        let later = store.judge_spent("chat", at + 23 * HOUR_MS).unwrap();
        assert_eq!(later, Spent { hour: 0, day: 4_300 });
    }

    #[test]
    fn the_newest_answers_are_kept() {
        let (_dir, store) = store();
        for at in 0..5u8 {
            let asked = AnswerKey { key: &[at], turn: TurnId::now(), child: TurnId::now() };
            store.keep_judge_answer(asked, &format!("a{at}"), i64::from(at), 3).unwrap();
        }
        let kept: Vec<_> = (0..5u8).map(|at| store.judge_answer(&[at]).unwrap()).collect();
        assert_eq!(kept[..2], [None, None]);
        assert_eq!(kept[4].as_deref(), Some("a4"));
    }
}
