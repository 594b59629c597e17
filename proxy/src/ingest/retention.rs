//! Expiry, as part of the ingest's upkeep: the ingest is the one writer that is always there.
//!
//! Invariant: one sweep deletes a bounded number of turns, so the ingest soon goes on.

use std::sync::Arc;

use hone_shared::clock::now_ms;
use hone_shared::policy::RoutePolicy;
use hone_shared::store::{AuditEntry, Store, StoreError};

/// Transactions of one sweep, over all routes.
const BATCHES_MAX: usize = 16;

/// Deletes what outlived its route's policy; the rest comes with the next sweep.
pub(super) fn sweep(store: &Store, routes: &[Arc<RoutePolicy>]) {
    let mut left = BATCHES_MAX;
    for route in routes {
        if let Err(error) = sweep_route(store, route, &mut left) {
            tracing::warn!(route = route.name, %error, "retention waits for the next sweep");
        }
    }
}

fn sweep_route(store: &Store, route: &RoutePolicy, left: &mut usize) -> Result<(), StoreError> {
    let (mut turns, mut more) = (0, true);
    while more && *left > 0 {
        let swept = store.sweep_route(route, now_ms())?;
        more = swept.more;
        turns += swept.erased.turns + swept.erased.provenance;
        *left -= usize::from(swept.erased.turns + swept.erased.provenance > 0);
    }
    if turns == 0 {
        return Ok(());
    }
    tracing::info!(route = route.name, turns, "retention: content deleted");
    let days = route.retention.days_max.unwrap_or(0);
    store.append_audit(&AuditEntry {
        actor: "retention".to_owned(),
        action: "retention".to_owned(),
        target: route.name.clone(),
        before: None,
        after: Some(format!("content of {turns} turns deleted")),
        reason: format!("older than {days} days"),
    })?;
    Ok(())
}
