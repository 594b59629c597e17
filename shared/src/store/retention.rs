//! Expiry: turns of a route that are older than its policy allows lose their content.
//!
//! Small transactions, the oldest of each facet first, so that the ingest never waits for long;
//! freed pages go back to the file system. Turns that a round used keep an empty row, and session and tenant in it, so
//! that a later erasure still reaches what was trained on them.
//!
//! Invariant: a turn goes only when it is old by the clock *and* by the newest turn of all: a clock
//! that jumps ahead deletes nothing young, and a route that nobody uses any more expires all the same.

use rusqlite::params;
use serde::Serialize;

use super::erase::{Erased, erase};
use super::{Result, Store, facets, flags};
use crate::policy::RoutePolicy;

/// Most turns of one transaction.
pub const BATCH_TURNS_MAX: usize = 1_000;
/// Pages that one sweep gives back at most.
const VACUUM_PAGES_MAX: i64 = 4_096;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// What was deleted.
    pub erased: Erased,
    /// Whether there is more to delete.
    pub more: bool,
}

impl Store {
    /// Deletes at most [`BATCH_TURNS_MAX`] turns that outlived `route`'s policy at `now_ms`.
    pub fn sweep_route(&self, route: &RoutePolicy, now_ms: i64) -> Result<Swept> {
        let Some(days) = route.retention.days_max else { return Ok(Swept::default()) };
        let age_ms = i64::try_from(days).unwrap_or(i64::MAX).saturating_mul(DAY_MS);
        let newest = "SELECT max(started_ms) FROM turns";
        let newest: Option<i64> =
            self.conn.prepare_cached(newest)?.query_row([], |row| row.get(0))?;
        let Some(newest) = newest else { return Ok(Swept::default()) };
        let before_ms = now_ms.min(newest).saturating_sub(age_ms);
        self.sweep_before(&route.name, before_ms, BATCH_TURNS_MAX)
    }

    fn sweep_before(&self, route: &str, before_ms: i64, limit: usize) -> Result<Swept> {
        let mut find = self.conn.prepare_cached(
            "SELECT t.id FROM facets f CROSS JOIN turns t ON t.facet = f.id
             WHERE f.route = ?1 AND t.started_ms < ?2 AND t.flags & ?3 = 0 LIMIT ?4",
        )?;
        let count = i64::try_from(limit).unwrap_or(i64::MAX);
        let old = find
            .query_map(params![route, before_ms, flags::FORGOTTEN, count], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        if old.is_empty() {
            return Ok(Swept::default());
        }
        self.delete_securely()?;
        let mut erased = Erased::default();
        let write = self.write()?;
        for id in &old {
            erase(&write, *id, true, &mut erased)?;
        }
        facets::drop_unused(&write)?;
        write.commit()?;
        self.known.borrow_mut().distrust();
        self.drop_links(&old)?;
        let sql = format!("PRAGMA incremental_vacuum({VACUUM_PAGES_MAX})");
        let mut vacuum = self.conn.prepare(&sql)?;
        let mut freed = vacuum.query([])?;
        while freed.next()?.is_some() {}
        Ok(Swept { erased, more: old.len() >= limit })
    }
}
