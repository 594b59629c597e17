//! How much each tenant may send on each route: a token bucket and a gauge per pair.
//!
//! Why here and not in pingora-limits: its estimators forget by time windows and may over-count a
//! tenant for another's traffic; a refusal must be exact and say when to come back.
//!
//! Invariant: what was counted as in flight is given back exactly once, however the request ends:
//! by the drop of its [`Permit`]. Memory is bounded: a full table shares one allowance per route
//! among all tenants that it does not know.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hone_shared::policy::TrafficPolicy;
use serde::Serialize;

/// Locks that requests of different tenants spread over.
const SHARDS: usize = 16;
/// Between two sweeps of a full shard, milliseconds: a flood of new tenants must not make every
/// request pay for one.
const SWEEP_MS: u64 = 1_000;
/// Longest `retry-after`, seconds.
const RETRY_AFTER_S_MAX: u8 = 60;

/// Why a request was refused, and when the next one may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The tenant's allowance is used up; the next request may come after so many seconds.
    Rate {
        /// Seconds, at least 1.
        retry_after_s: u8,
    },
    /// The tenant has as many requests in flight as it may.
    Concurrency,
}

/// What was refused on a route since the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// For `requests_per_minute_max`.
    pub rate: u64,
    /// For `concurrent_max`.
    pub concurrency: u64,
}

/// The figures of the limiter.
#[derive(Debug, Serialize)]
pub struct LimiterState {
    /// Tenants that are remembered, per route.
    pub tenants: usize,
    /// Requests that had to share an allowance because the table was full.
    pub crowded: u64,
    /// Refused requests by route.
    pub refused: BTreeMap<String, Refused>,
}

/// All buckets of the process.
#[derive(Debug)]
pub struct Limiter {
    shards: Vec<Mutex<Shard>>,
    shard_tenants_max: usize,
    keys: RandomState,
    started: Instant,
    crowded: AtomicU64,
    /// Touched only by refused requests.
    refused: Mutex<BTreeMap<String, Refused>>,
}

#[derive(Debug, Default)]
struct Shard {
    slots: HashMap<u64, Slot>,
    swept_ms: u64,
}

/// One tenant on one route.
#[derive(Debug)]
struct Slot {
    tokens: f64,
    refilled_ms: u64,
    /// When the bucket will be full again: from then on the slot says nothing that a new one would
    /// not.
    full_ms: u64,
    in_flight: u64,
}

/// A request's place among those in flight; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    limiter: Arc<Limiter>,
    key: u64,
}

impl Limiter {
    /// A limiter that remembers at most about `tenants_max` pairs of route and tenant.
    pub fn new(tenants_max: usize) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_tenants_max: tenants_max.div_ceil(SHARDS).max(1),
            keys: RandomState::new(),
            started: Instant::now(),
            crowded: AtomicU64::new(0),
            refused: Mutex::default(),
        })
    }

    /// Counts a request of `tenant` on `route` against `traffic`. `Ok(None)`: nothing has to be
    /// given back. Errors: why it may not pass.
    pub fn admit(
        self: &Arc<Self>,
        route: &str,
        tenant: &str,
        traffic: &TrafficPolicy,
    ) -> Result<Option<Permit>, Refusal> {
        if !traffic.limits() {
            return Ok(None);
        }
        let admitted = self.admit_at(route, tenant, traffic, self.now_ms());
        if let Err(refusal) = &admitted {
            self.count(route, refusal);
        }
        Ok(admitted?.map(|key| Permit { limiter: Arc::clone(self), key }))
    }

    fn admit_at(
        &self,
        route: &str,
        tenant: &str,
        traffic: &TrafficPolicy,
        now_ms: u64,
    ) -> Result<Option<u64>, Refusal> {
        let mut key = self.keys.hash_one((route, tenant));
        let mut shard = self.shard(key);
        if !shard.has_room_for(key, self.shard_tenants_max, now_ms) {
            drop(shard);
            self.crowded.fetch_add(1, Ordering::Relaxed);
            key = self.keys.hash_one((route, "", "crowd"));
            shard = self.shard(key);
        }
        let slot = shard.slots.entry(key).or_insert_with(|| Slot::full(traffic, now_ms));
        slot.take(traffic, now_ms)?;
        Ok((traffic.concurrent_max > 0).then(|| {
            slot.in_flight += 1;
            key
        }))
    }

    /// The figures now.
    pub fn snapshot(&self) -> LimiterState {
        LimiterState {
            tenants: self.shards.iter().map(|shard| lock(shard).slots.len()).sum(),
            crowded: self.crowded.load(Ordering::Relaxed),
            refused: lock(&self.refused).clone(),
        }
    }

    fn count(&self, route: &str, refusal: &Refusal) {
        let mut refused = lock(&self.refused);
        if !refused.contains_key(route) {
            refused.insert(route.to_owned(), Refused::default());
        }
        let Some(counts) = refused.get_mut(route) else { return };
        match refusal {
            Refusal::Rate { .. } => counts.rate += 1,
            Refusal::Concurrency => counts.concurrency += 1,
        }
    }

    fn give_back(&self, key: u64) {
        // A slot with a request in flight is never swept, so it is there.
        if let Some(slot) = self.shard(key).slots.get_mut(&key) {
            slot.in_flight = slot.in_flight.saturating_sub(1);
        }
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard> {
        // The lowest bits choose the bucket inside the map; the highest choose the map.
        lock(&self.shards[(key >> 32) as usize % SHARDS])
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here can leave a value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    /// Whether `key` is known or may become so, after throwing out slots that say nothing.
    fn has_room_for(&mut self, key: u64, max: usize, now_ms: u64) -> bool {
        if self.slots.len() < max || self.slots.contains_key(&key) {
            return true;
        }
        if now_ms < self.swept_ms + SWEEP_MS && self.swept_ms > 0 {
            return false;
        }
        self.swept_ms = now_ms.max(1);
        self.slots.retain(|_, slot| slot.in_flight > 0 || now_ms < slot.full_ms);
        self.slots.len() < max
    }
}

impl Slot {
    fn full(traffic: &TrafficPolicy, now_ms: u64) -> Self {
        Self { tokens: traffic.burst() as f64, refilled_ms: now_ms, full_ms: now_ms, in_flight: 0 }
    }

    /// Takes a request's token, if the gauge and the bucket allow. Limits that changed meanwhile
    /// apply at once.
    fn take(&mut self, traffic: &TrafficPolicy, now_ms: u64) -> Result<(), Refusal> {
        if traffic.concurrent_max > 0 && self.in_flight >= traffic.concurrent_max {
            return Err(Refusal::Concurrency);
        }
        if traffic.requests_per_minute_max == 0 {
            return Ok(());
        }
        let (burst, per_ms) =
            (traffic.burst() as f64, traffic.requests_per_minute_max as f64 / 60_000.0);
        let passed_ms = now_ms.saturating_sub(self.refilled_ms) as f64;
        self.tokens = (self.tokens + passed_ms * per_ms).min(burst);
        self.refilled_ms = now_ms;
        let missing = 1.0 - self.tokens;
        // A millisecond's rounding is no reason to refuse whoever waited as told.
        if missing > per_ms {
            let seconds = (missing / per_ms / 1000.0).ceil();
            let retry_after_s = seconds.clamp(1.0, f64::from(RETRY_AFTER_S_MAX)) as u8;
            return Err(Refusal::Rate { retry_after_s });
        }
        self.tokens -= 1.0;
        self.full_ms = now_ms + ((burst - self.tokens) / per_ms).ceil() as u64;
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limiter.give_back(self.key);
    }
}

#[cfg(test)]
mod tests;
