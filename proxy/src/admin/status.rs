//! The state of the proxy as JSON: what `hone status` prints and what the metrics are made of.
//!
//! Invariant: `requests = stored + dropped + pending` in every answer; figures are read in an order
//! in which a turn that moves on meanwhile is counted as pending, never twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hone_shared::policy::{ModeOverride, RoutePolicy};
use hone_shared::turn::Mode;
use serde::Serialize;

use super::health::Reason;
use super::{Operator, health};
use crate::ingest::FeedbackStats;
use crate::limit::LimiterState;
use crate::listen::tls::TlsState;
use crate::upstream::EngineTlsState;
use crate::upstream::snapshot::EngineState;
use crate::upstream::tunnel::TunnelState;

/// Answer of `GET /v1/status`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Process id.
    pub pid: u32,
    /// Version of hone.
    pub version: &'static str,
    /// Whether a shutdown has begun.
    pub draining: bool,
    /// Version of the policies in force.
    pub policy_version: u64,
    /// Why changed policy files were not taken, if so.
    pub policy_problem: Option<String>,
    /// Everything that needs an operator; see [`super::health`].
    pub reasons: Vec<Reason>,
    /// All routes, in the order in which they are matched.
    pub routes: Vec<Route>,
    /// Turns of this process.
    pub counters: Turns,
    /// Feedback of this process.
    pub feedback: Feedback,
    /// Requests of this process, recorded or not.
    pub http: Http,
    /// The TLS listener, if there is one.
    pub tls: Option<TlsState>,
    /// TLS to engines.
    pub engine_tls: EngineTlsState,
    /// All engines.
    pub engines: Vec<EngineState>,
    /// Attempts that went to another engine than the one that their conversation belongs to.
    pub engines_spilled: u64,
    /// Requests refused for their tenant's limits.
    pub traffic: LimiterState,
    /// WebSockets.
    pub tunnels: TunnelState,
    /// Bytes of the spool on disk.
    pub spool_bytes: u64,
    /// Whether the spool cannot be written or has used up its quota; turns are dropped then.
    pub spool_degraded: bool,
    /// Age of the oldest record that the store does not have yet, milliseconds.
    pub ingest_lag_ms: u64,
}

/// One route.
#[derive(Debug, Serialize)]
pub struct Route {
    /// Name of its policy.
    pub name: String,
    /// Learning mode in force.
    pub mode: Mode,
    /// Learning mode of its file.
    pub file_mode: Mode,
    /// What was set at run time, if anything was.
    #[serde(rename = "override")]
    pub overridden: Option<ModeOverride>,
    /// The alias that it serves in mode `learn`.
    pub alias: String,
    /// The generation that new requests are pinned to.
    pub generation: String,
}

/// The books: `requests = stored + sum(dropped) + pending`.
#[derive(Debug, Serialize)]
pub struct Turns {
    /// Requests that a policy wanted recorded.
    pub requests: u64,
    /// Turns in the store.
    pub stored: u64,
    /// Turns that were not recorded, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Turns in flight, in the spool's queue, in the spool or in the ingest.
    pub pending: u64,
    /// Of those, exchanges that have not ended.
    pub in_flight: u64,
    /// Turns stored without the body of their answer, for want of room.
    pub responses_cut: u64,
    /// Turns of dead proxies that this process adopted into the store.
    pub adopted: u64,
}

/// Pieces of feedback: `accepted = stored + duplicates + sum(dropped)` and what is on its way.
/// Pieces of dead proxies are among what arrived.
#[derive(Debug, Serialize)]
pub struct Feedback {
    /// Answered with 202.
    pub accepted: u64,
    /// In the store.
    pub stored: u64,
    /// Of those, the ones that waited for their turn when they were stored.
    pub waiting: u64,
    /// Sent again.
    pub duplicates: u64,
    /// Not kept, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Given up, because their turn did not come.
    pub given_up: u64,
}

/// Requests on the data listener.
#[derive(Debug, Serialize)]
pub struct Http {
    /// Since the start.
    pub requests: u64,
    /// Now.
    pub in_flight: u64,
    /// Sent to the engine again.
    pub retries: u64,
    /// Ended, by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Answered by the proxy itself, by error code.
    pub faults: BTreeMap<&'static str, u64>,
}

/// Reads everything now.
pub fn of(operator: &Operator) -> Status {
    let (ingest, spool) = (operator.ingest.stats(), operator.recorder.spool());
    Status {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION"),
        draining: operator.draining.load(Ordering::Acquire),
        policy_version: operator.watches.snapshot().policies.version,
        policy_problem: operator.watches.policy_problem(),
        reasons: health::reasons(operator),
        routes: routes(operator),
        counters: turns(operator),
        feedback: feedback(operator, ingest.feedback),
        http: Http {
            requests: operator.counters.requests(),
            in_flight: operator.counters.in_flight(),
            retries: operator.counters.retries(),
            outcomes: operator.counters.outcomes().collect(),
            faults: operator.counters.faults().filter(|(_, n)| *n > 0).collect(),
        },
        tls: operator.tls.as_ref().map(|tls| tls.snapshot()),
        engine_tls: operator.engines.tls_state(),
        engines: operator.engines.snapshot(),
        engines_spilled: operator.engines.spilled(),
        traffic: operator.limiter.snapshot(),
        tunnels: operator.tunnels.snapshot(),
        spool_bytes: spool.disk_bytes,
        spool_degraded: spool.degraded || spool.disk_full,
        ingest_lag_ms: ingest.lag_ms,
    }
}

fn feedback(operator: &Operator, ingest: FeedbackStats) -> Feedback {
    let FeedbackStats { stored, waiting, duplicates, dropped, given_up } = ingest;
    let accepted = operator.feedback.counts.accepted();
    Feedback { accepted, stored, waiting, duplicates, dropped, given_up }
}

/// All routes, in the order in which they are matched.
pub fn routes(operator: &Operator) -> Vec<Route> {
    let snapshot = operator.watches.snapshot();
    let route = |policy: &Arc<RoutePolicy>| {
        let overridden = snapshot.policies.overridden.get(&policy.name);
        Route {
            name: policy.name.clone(),
            mode: policy.mode,
            file_mode: overridden.map_or(policy.mode, |over| over.file_mode),
            overridden: overridden.map(|over| over.by.clone()),
            alias: policy.alias.clone(),
            generation: match policy.mode.serves() {
                true => snapshot.serving(&policy.alias).as_str().to_owned(),
                false => "base".to_owned(),
            },
        }
    };
    snapshot.policies.routes.iter().map(route).collect()
}

/// The books. Ends of the way are read before its beginning, so that nothing is counted at both.
fn turns(operator: &Operator) -> Turns {
    let ingest = operator.ingest.stats();
    let spool = operator.recorder.spool();
    let mut dropped: BTreeMap<&'static str, u64> = BTreeMap::new();
    for (reason, count) in ingest.dropped.iter().chain(&spool.dropped) {
        *dropped.entry(reason.as_str()).or_default() += count;
    }
    let requests = operator.recorder.opened_total();
    let gone = ingest.stored + dropped.values().sum::<u64>();
    Turns {
        requests,
        stored: ingest.stored,
        dropped,
        pending: requests.saturating_sub(gone),
        in_flight: operator.recorder.in_flight(),
        responses_cut: spool.bodies_cut,
        adopted: ingest.adopted,
    }
}
