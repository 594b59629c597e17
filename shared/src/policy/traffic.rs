//! `[traffic]` of a route: how much one tenant may send.
//!
//! Why: one noisy tenant must not take the engine from all others. The proxy keeps the count per
//! route and tenant, and answers 429 beyond it.
//!
//! Invariant: 0 means unlimited, and is the default; nobody is limited by surprise.

use serde::Deserialize;

use super::PolicyError;
use super::limits::Checker;

/// What one tenant may send on a route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// Requests per minute; 0 = unlimited.
    pub requests_per_minute_max: u64,
    /// Requests that may come at once, of those; 0 = a minute's worth.
    pub burst: u64,
    /// Requests at the same time; 0 = unlimited.
    pub concurrent_max: u64,
}

impl TrafficPolicy {
    /// Whether anything is limited.
    pub fn limits(&self) -> bool {
        self.requests_per_minute_max > 0 || self.concurrent_max > 0
    }

    /// Requests that may come at once, with the default filled in.
    pub fn burst(&self) -> u64 {
        if self.burst > 0 { self.burst } else { self.requests_per_minute_max }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTraffic {
    requests_per_minute_max: Option<f64>,
    burst: Option<f64>,
    concurrent_max: Option<f64>,
}

impl RawTraffic {
    pub(super) fn check(self, check: &Checker<'_>) -> Result<TrafficPolicy, PolicyError> {
        Ok(TrafficPolicy {
            requests_per_minute_max: check
                .long("traffic.requests_per_minute_max", self.requests_per_minute_max)?,
            burst: check.long("traffic.burst", self.burst)?,
            concurrent_max: check.long("traffic.concurrent_max", self.concurrent_max)?,
        })
    }
}
