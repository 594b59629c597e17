//! Facets: the combinations of route, tenant, outcome, model and verdict that turns are listed by.
//!
//! There are far fewer of them than turns, so a turn's row names its facet and an index over
//! (facet, time) answers every list. Tenants and models are words that clients choose: past a cap,
//! new combinations share one facet per route, whose turns are looked at one by one.
//!
//! Invariant: every turn has the facet of its own columns and its verdict; after an erasure there is
//! no facet without a turn.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::Result;

/// Most combinations that are told apart.
const FACETS_MAX: i64 = 8_192;
/// Stands for "no verdict yet" in the column.
pub(super) const UNJUDGED: i8 = 9;

/// What a facet is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Facet<'a> {
    pub(super) route: &'a str,
    pub(super) tenant: &'a str,
    pub(super) outcome: &'a str,
    pub(super) model: &'a str,
    pub(super) verdict: i8,
}

/// The facets that a writer has seen, so that a turn of a known one costs no look-up.
#[derive(Debug, Default)]
pub(super) struct KnownFacets(HashMap<String, i64>);

impl KnownFacets {
    /// The row of a facet, made if need be.
    pub(super) fn id(&mut self, conn: &Connection, facet: &Facet<'_>) -> Result<i64> {
        let Facet { route, tenant, outcome, model, verdict } = facet;
        let key = format!("{route}\0{tenant}\0{outcome}\0{verdict}\0{model}");
        if let Some(id) = self.0.get(&key) {
            return Ok(*id);
        }
        let id = find_or_make(conn, facet)?;
        if self.0.len() >= usize::try_from(FACETS_MAX).unwrap_or(usize::MAX) {
            self.0.clear();
        }
        self.0.insert(key, id);
        Ok(id)
    }
}

fn find_or_make(conn: &Connection, facet: &Facet<'_>) -> Result<i64> {
    if let Some(id) = find(conn, facet, false)? {
        return Ok(id);
    }
    let count: i64 = conn.query_row("SELECT count(*) FROM facets", [], |row| row.get(0))?;
    if count < FACETS_MAX {
        return make(conn, facet, false);
    }
    let others = Facet { tenant: "", model: "", ..facet.clone() };
    match find(conn, &others, true)? {
        Some(id) => Ok(id),
        None => make(conn, &others, true),
    }
}

fn find(conn: &Connection, facet: &Facet<'_>, others: bool) -> Result<Option<i64>> {
    let mut find = conn.prepare_cached(
        "SELECT id FROM facets WHERE route = ?1 AND tenant = ?2 AND outcome = ?3 AND model = ?4
         AND verdict = ?5 AND others = ?6",
    )?;
    let Facet { route, tenant, outcome, model, verdict } = facet;
    let values = params![route, tenant, outcome, model, verdict, others];
    Ok(find.query_row(values, |row| row.get(0)).optional()?)
}

fn make(conn: &Connection, facet: &Facet<'_>, others: bool) -> Result<i64> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO facets (route, tenant, outcome, model, verdict, others)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let Facet { route, tenant, outcome, model, verdict } = facet;
    Ok(insert.insert(params![route, tenant, outcome, model, verdict, others])?)
}

/// Deletes facets that no turn has: they hold the name of a tenant and the text of a model. Whoever
/// remembers rows must distrust them then.
pub(super) fn drop_unused(conn: &Connection) -> Result<()> {
    let sql = "DELETE FROM facets WHERE NOT EXISTS (SELECT 1 FROM turns WHERE facet = facets.id)";
    conn.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// Takes a turn's verdict, which was deleted, from its flag and its facet: it waits to be judged.
pub(super) fn unjudge(conn: &Connection, turn: i64) -> Result<()> {
    conn.prepare_cached("UPDATE turns SET judged = 0 WHERE id = ?1")?.execute([turn])?;
    judged(conn, turn, UNJUDGED)
}

/// Moves a turn to the facet of its verdict.
pub(super) fn judged(conn: &Connection, turn: i64, verdict: i8) -> Result<()> {
    let sql = "SELECT route, tenant, outcome, coalesce(model, '') FROM turns WHERE id = ?1";
    let row: [String; 4] = conn
        .prepare_cached(sql)?
        .query_row([turn], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
    let [route, tenant, outcome, model] = &row;
    let facet = find_or_make(conn, &Facet { route, tenant, outcome, model, verdict })?;
    conn.prepare_cached("UPDATE turns SET facet = ?2 WHERE id = ?1")?.execute([turn, facet])?;
    Ok(())
}
