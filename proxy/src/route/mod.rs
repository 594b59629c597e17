//! Which policy a request falls under, and which generation serves it: decided once, at admission.
//!
//! Invariant: everything about a turn is decided by one snapshot of the policies and one of the
//! aliases. A swap or a policy change while the request is in flight changes nothing about it.

use std::sync::Arc;

use hone_shared::policy::RoutePolicy;
use hone_shared::turn::{Generation, Mode};
use http::HeaderMap;

use crate::swap::Snapshot;

/// The decision, for the life of the request.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// The policy that matched.
    pub policy: Arc<RoutePolicy>,
    /// Its learning mode, after the client's opt-out.
    pub mode: Mode,
    /// The generation to serve: the alias's in mode `learn`, else the base.
    pub generation: Generation,
    /// Version of the policy set.
    pub policy_version: u64,
}

/// The policy that a request falls under, if any.
pub fn find(
    snapshot: &Snapshot,
    path: &str,
    headers: &HeaderMap,
    tenant: &str,
) -> Option<Arc<RoutePolicy>> {
    let header =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    snapshot.policies.route_for(path, &header, tenant).map(Arc::clone)
}

/// Decides about a request under `policy`. `None`: its mode is `off`; such a request passes through
/// and leaves no trace.
pub fn pin(snapshot: &Snapshot, policy: Arc<RoutePolicy>) -> Option<Pinned> {
    let mode = policy.mode;
    if !mode.captures() {
        return None;
    }
    let generation = match mode.serves() {
        true => snapshot.serving(&policy.alias),
        false => Generation::base(),
    };
    Some(Pinned { policy, mode, generation, policy_version: snapshot.policies.version })
}
