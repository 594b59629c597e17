//! What is counted about requests, apart from turns: relaxed atomics, one object for the process.
//!
//! Invariant: every label is bounded: outcomes, fault codes and bucket limits are fixed lists.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hone_shared::turn::Outcome;

use crate::admit::reply::Fault;
use crate::listen::gate::Refusal;

/// Upper limits of the latency buckets, milliseconds.
pub const BUCKETS_MS: [u64; 12] =
    [1, 5, 20, 50, 100, 250, 500, 1_000, 2_500, 10_000, 60_000, 300_000];

/// All answers of the proxy's own, in the order in which they are counted.
pub const FAULTS: [Fault; 20] = [
    Fault::ADMIN_ROUTE,
    Fault::PATH_NOT_ALLOWED,
    Fault::BODY_TOO_LARGE,
    Fault::ENGINE_UNAVAILABLE,
    Fault::ENGINE_TIMEOUT,
    Fault::ENGINE_TLS,
    Fault::RATE_LIMITED,
    Fault::CONCURRENCY_LIMITED,
    Fault::BAD_REQUEST,
    Fault::CLIENT_TIMEOUT,
    Fault::CAPTURE_FULL,
    Fault::FEEDBACK_INVALID,
    Fault::FEEDBACK_TOO_LARGE,
    Fault::FEEDBACK_UNAVAILABLE,
    Fault::INTERNAL,
    Fault::TARGET_TOO_LONG,
    Fault::HEADERS_TOO_LARGE,
    Fault::EXPECTATION,
    Fault::NOT_IMPLEMENTED,
    Fault::VERSION,
];

/// How a request ended that the proxy answered itself, instead of passing it on. It is no turn, and
/// so no [`Outcome`].
pub const REFUSED: &str = "refused";

/// Counts durations in fixed buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_MS.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some(at) = BUCKETS_MS.iter().position(|limit| us <= limit * 1000) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// `(upper limit in ms, count up to it)` cumulatively, the number of observations and their sum
    /// in seconds.
    pub fn read(&self) -> (Vec<(u64, u64)>, u64, f64) {
        let mut below = 0;
        let cumulative = BUCKETS_MS.iter().zip(&self.buckets).map(|(limit, bucket)| {
            below += bucket.load(Ordering::Relaxed);
            (*limit, below)
        });
        let seconds = Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64();
        (cumulative.collect(), self.count.load(Ordering::Relaxed), seconds)
    }
}

/// The counters of the process.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    in_flight: AtomicU64,
    retries: AtomicU64,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    refused: AtomicU64,
    faults: [AtomicU64; FAULTS.len()],
    refusals: [AtomicU64; Refusal::ALL.len()],
    readers_cut: AtomicU64,
    /// From arrival to the engine's response head.
    pub first_byte: Histogram,
    /// From arrival to the end.
    pub duration: Histogram,
}

impl Counters {
    /// Counts a request, until the guard is dropped as one in flight.
    pub fn request(self: &Arc<Self>) -> InFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { counters: Arc::clone(self), started: Instant::now(), status: 0 }
    }

    /// Counts a request that was sent to the engine again.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request or connection that broke a rule at the door; most are no request of
    /// [`Self::request`].
    pub fn refused(&self, refusal: Refusal) {
        self.refusals[refusal.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answer of the proxy's own.
    pub fn answered(&self, fault: Fault) {
        // Messages differ within a code.
        if let Some(at) = FAULTS.iter().position(|f| f.code == fault.code) {
            self.faults[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a client that was cut because it did not read.
    pub fn reader_cut(&self) {
        self.readers_cut.fetch_add(1, Ordering::Relaxed);
    }

    /// Refusals at the door, by rule.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self.refusals.iter().map(|n| n.load(Ordering::Relaxed));
        Refusal::ALL.iter().map(|r| r.as_str()).zip(counts)
    }

    /// Clients that were cut because they did not read.
    pub fn readers_cut(&self) -> u64 {
        self.readers_cut.load(Ordering::Relaxed)
    }

    /// Requests since the start, whatever became of them.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Requests now.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests sent again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Ended requests by outcome; [`REFUSED`] beside those of turns.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self.outcomes.iter().map(|n| n.load(Ordering::Relaxed));
        let refused = (REFUSED, self.refused.load(Ordering::Relaxed));
        Outcome::ALL.iter().map(|o| o.as_str()).zip(counts).chain(std::iter::once(refused))
    }

    /// Answers of the proxy's own, by code.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self.faults.iter().map(|n| n.load(Ordering::Relaxed));
        FAULTS.iter().map(|f| f.code).zip(counts)
    }
}

/// One request in flight.
#[derive(Debug)]
pub struct InFlight {
    counters: Arc<Counters>,
    started: Instant,
    status: u16,
}

impl InFlight {
    /// The response head was relayed.
    pub fn responded(&mut self, status: u16) {
        self.status = status;
        self.counters.first_byte.observe(self.started.elapsed());
    }

    /// The proxy answered by itself, and it is no fault.
    pub fn answered(&mut self, status: u16) {
        self.status = status;
    }

    /// The status that was relayed; 0 while none was.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Time since the request arrived.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the engine answered with an error status.
    pub fn failed(&self) -> bool {
        self.status >= 400
    }

    /// The request ended; `None`: refused by the proxy itself.
    pub fn ended(&self, outcome: Option<Outcome>, fault: Option<Fault>) {
        self.counters.duration.observe(self.started.elapsed());
        let at = outcome.and_then(|outcome| Outcome::ALL.iter().position(|o| *o == outcome));
        let counter = at.and_then(|at| self.counters.outcomes.get(at));
        counter.unwrap_or(&self.counters.refused).fetch_add(1, Ordering::Relaxed);
        if let Some(fault) = fault {
            self.counters.answered(fault);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_in_flight_until_its_guard_is_dropped() {
        let counters = Arc::new(Counters::default());
        let mut request = counters.request();
        assert_eq!((counters.requests(), counters.in_flight()), (1, 1));
        request.responded(500);
        assert!(request.failed());
        request.ended(Some(Outcome::UpstreamError), Some(Fault::ENGINE_UNAVAILABLE));
        drop(request);
        assert_eq!(counters.in_flight(), 0);
        assert_eq!(counters.outcomes().find(|(_, n)| *n > 0), Some(("upstream_error", 1)));
        assert_eq!(counters.faults().find(|(_, n)| *n > 0), Some(("engine_unavailable", 1)));
    }

    #[test]
    fn every_answer_of_the_doors_is_counted_under_its_code() {
        let counters = Counters::default();
        for refusal in Refusal::ALL {
            counters.refused(refusal);
            counters.answered(refusal.into());
        }
        assert!(counters.refusals().all(|(_, n)| n == 1));
        let answered: u64 = counters.faults().map(|(_, n)| n).sum();
        let without = Refusal::ALL.iter().filter(|r| r.status().0 == 429).count();
        assert_eq!(answered as usize, Refusal::ALL.len() - without, "those are never answered");
    }

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_secs(1000));
        let (buckets, count, sum) = histogram.read();
        assert_eq!(buckets[0], (1, 0));
        assert_eq!(buckets[1], (5, 1));
        assert_eq!(buckets[11], (300_000, 1));
        assert_eq!(count, 2);
        assert!((sum - 1000.003).abs() < 1e-6);
    }
}
