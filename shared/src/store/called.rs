//! Sessions by the names that their clients gave them.
//!
//! A stored name is `<tenant>/<source>:<id>`, and where redaction hid the id, a keyed hash of it. So
//! every name that an id can have is looked up, for every tenant: no part of a longer id fits.
//!
//! Invariant: one session or none; which of several was meant is never guessed.

use std::collections::BTreeSet;

use super::{Result, Store, StoreError};
use crate::link::{self, LinkKey};

/// Sessions of one name that an error lists.
const LISTED_MAX: usize = 9;

impl Store {
    /// The turns of a session: by its stored name, else by the client's own where only one session
    /// has it. Errors: several have it.
    pub(super) fn session_rows(&self, name: &str, secret: &[u8; 32]) -> Result<BTreeSet<i64>> {
        let of = "SELECT id FROM turns WHERE session_id = ?1";
        let exact = self.ids(of, &[&name])?;
        if !exact.is_empty() {
            return Ok(exact);
        }
        let mut is_there =
            self.conn.prepare_cached("SELECT 1 FROM turns WHERE session_id = ?1 LIMIT 1")?;
        let mut found = BTreeSet::new();
        for tenant in self.tenants()? {
            for stored in link::stored_names(&LinkKey::new(secret, &tenant), name) {
                if found.len() < LISTED_MAX && is_there.exists([&stored])? {
                    found.insert(stored);
                }
            }
        }
        match found.first() {
            None => Ok(BTreeSet::new()),
            Some(one) if found.len() == 1 => self.ids(of, &[one]),
            Some(_) => {
                let names: Vec<String> = found.into_iter().collect();
                let problem = format!("several sessions have this name: {}", names.join(", "));
                Err(StoreError::Malformed { what: "session", problem })
            }
        }
    }

    fn tenants(&self) -> Result<Vec<String>> {
        let mut find = self.conn.prepare_cached("SELECT DISTINCT tenant FROM turns")?;
        let rows = find.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
