//! When to ask an endpoint again that was down.
//!
//! Invariant: waits double from [`FIRST_MS`] to [`LAST_MS`] and never grow beyond; one success
//! forgets everything.

use std::collections::HashMap;

/// First wait after a failure.
pub const FIRST_MS: i64 = 1_000;
/// Longest wait.
pub const LAST_MS: i64 = 300_000;
/// Endpoints that are remembered.
const ENDPOINTS_MAX: usize = 64;

/// Waits by endpoint.
#[derive(Debug, Default)]
pub struct Backoff(HashMap<String, Wait>);

#[derive(Debug, Clone, Copy)]
struct Wait {
    until_ms: i64,
    next_ms: i64,
}

impl Backoff {
    /// Whether the endpoint may be asked now.
    pub fn open(&self, endpoint: &str, now_ms: i64) -> bool {
        self.0.get(endpoint).is_none_or(|wait| now_ms >= wait.until_ms)
    }

    /// Records a failure; returns the wait in milliseconds.
    pub fn failed(&mut self, endpoint: &str, now_ms: i64) -> i64 {
        if self.0.len() >= ENDPOINTS_MAX && !self.0.contains_key(endpoint) {
            self.0.clear();
        }
        let wait = self.0.get(endpoint).map_or(FIRST_MS, |wait| wait.next_ms);
        let next_ms = (wait * 2).min(LAST_MS);
        self.0.insert(endpoint.to_owned(), Wait { until_ms: now_ms + wait, next_ms });
        wait
    }

    /// Leaves an endpoint alone for a while that is not down but serves others first. Does not make
    /// later waits longer.
    pub fn pause(&mut self, endpoint: &str, now_ms: i64, wait_ms: i64) {
        self.failed(endpoint, now_ms);
        if let Some(wait) = self.0.get_mut(endpoint) {
            *wait = Wait { until_ms: now_ms + wait_ms, next_ms: FIRST_MS };
        }
    }

    /// Records a success.
    pub fn succeeded(&mut self, endpoint: &str) {
        self.0.remove(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_a_success_forgets_them() {
        let mut backoff = Backoff::default();
        let waits: Vec<i64> = (0..12).map(|_| backoff.failed("a", 0)).collect();
        assert_eq!(&waits[..3], &[1_000, 2_000, 4_000]);
        assert_eq!(waits.last(), Some(&LAST_MS));
        assert!(!backoff.open("a", LAST_MS - 1) && backoff.open("a", LAST_MS));
        assert!(backoff.open("b", 0), "another endpoint is not punished");
        backoff.succeeded("a");
        assert!(backoff.open("a", 0));
        backoff.pause("a", 0, 50);
        assert!(!backoff.open("a", 49) && backoff.open("a", 50));
        assert_eq!(backoff.failed("a", 50), FIRST_MS, "a pause is no failure");
    }
}
