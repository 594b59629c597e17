//! Wall time in milliseconds, real or set by hand.
//!
//! Why: ages and timestamps decide behaviour (segment rotation, rounds), and tests must not sleep
//! for them.
//! Invariant: times are milliseconds since 1970-01-01 UTC and never negative.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01 UTC by the system clock; 0 if the clock stands before that.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A source of wall time. Clones of a manual clock share one hand.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The system clock.
    #[default]
    System,
    /// Stands still until it is moved: for tests.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that shows `ms` until it is moved.
    pub fn manual(ms: i64) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(ms)))
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub fn now_ms(&self) -> i64 {
        match self {
            Self::System => now_ms(),
            Self::Manual(ms) => ms.load(Ordering::Relaxed),
        }
    }

    /// Moves a manual clock forward by `ms` milliseconds; does nothing to the system clock.
    pub fn advance(&self, ms: i64) {
        if let Self::Manual(hand) = self {
            hand.fetch_add(ms, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual(5);
        let same = clock.clone();
        assert_eq!(clock.now_ms(), 5);
        same.advance(10);
        assert_eq!(clock.now_ms(), 15);
    }

    #[test]
    fn the_system_clock_shows_this_century() {
        assert!(Clock::System.now_ms() > 1_600_000_000_000);
    }
}
