//! How the spool is doing, in one word that a request may ask for.
//!
//! Invariant: the word does not flap. `Full` is entered above one mark and left below another;
//! `Degraded` stays for a while after the last trouble.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Whether turns can be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Health {
    /// As it should be.
    #[default]
    Good,
    /// Every turn is recorded, but something is wrong: a write failed, the reserve is in use, or
    /// the queue is half full.
    Degraded,
    /// No turn can be recorded: no place has room, or the queue is all but full.
    Full,
}

impl Health {
    /// All of them, best first.
    pub const ALL: &'static [Self] = &[Self::Good, Self::Degraded, Self::Full];

    /// The word as it stands in JSON, metrics and `/readyz`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Degraded => "degraded",
            Self::Full => "full",
        }
    }
}

/// The word, readable without a lock.
#[derive(Debug, Default)]
pub(super) struct Shown(AtomicU8);

impl Shown {
    pub(super) fn get(&self) -> Health {
        match self.0.load(Ordering::Relaxed) {
            0 => Health::Good,
            1 => Health::Degraded,
            _ => Health::Full,
        }
    }

    fn set(&self, health: Health) {
        self.0.store(health as u8, Ordering::Relaxed);
    }
}

/// Decides the word. One per spool, under the lock of its queue.
#[derive(Debug, Default)]
pub(super) struct Judge {
    full: bool,
    trouble_at: Option<Instant>,
}

/// What the word is decided by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signs {
    /// How much of the queue is used, per mille of records or bytes, whichever is more.
    pub(super) queue_per_mille: usize,
    /// No place on disk has room.
    pub(super) disk_full: bool,
    /// Writing fails, or the reserve is in use.
    pub(super) trouble: bool,
}

impl Judge {
    /// From here on the queue counts as full, and up to there it still does, per mille.
    const FULL_FROM: usize = 875;
    const FULL_UPTO: usize = 500;
    const TROUBLE_FROM: usize = 500;

    /// Decides, and shows the word. `calm`: how long it stays degraded after the last trouble.
    pub(super) fn decide(&mut self, shown: &Shown, signs: Signs, calm: Duration) {
        let mark = if self.full { Self::FULL_UPTO } else { Self::FULL_FROM };
        self.full = signs.disk_full || signs.queue_per_mille >= mark;
        if signs.trouble || self.full || signs.queue_per_mille >= Self::TROUBLE_FROM {
            self.trouble_at = Some(Instant::now());
        }
        let troubled = self.trouble_at.is_some_and(|at| at.elapsed() < calm);
        shown.set(match (self.full, troubled) {
            (true, _) => Health::Full,
            (false, true) => Health::Degraded,
            (false, false) => Health::Good,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_is_left_well_below_where_it_is_entered() {
        let (mut judge, shown) = (Judge::default(), Shown::default());
        let mut see = |queue_per_mille, disk_full| {
            let signs = Signs { queue_per_mille, disk_full, trouble: false };
            judge.decide(&shown, signs, Duration::from_secs(60));
            shown.get()
        };
        assert_eq!(see(400, false), Health::Good);
        assert_eq!(see(870, false), Health::Degraded);
        assert_eq!(see(880, false), Health::Full);
        assert_eq!(see(600, false), Health::Full);
        assert_eq!(see(499, false), Health::Degraded);
        assert_eq!(see(0, true), Health::Full);
        assert_eq!(see(0, false), Health::Degraded, "the trouble is not long past");
    }

    #[test]
    fn trouble_that_is_past_is_forgotten() {
        let (mut judge, shown) = (Judge::default(), Shown::default());
        let signs = |trouble| Signs { queue_per_mille: 0, disk_full: false, trouble };
        judge.decide(&shown, signs(true), Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(5));
        judge.decide(&shown, signs(false), Duration::from_millis(1));
        assert_eq!(shown.get(), Health::Good);
    }
}
