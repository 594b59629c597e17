//! How long a connection may keep others waiting: deadlines and minimum rates, with one timer each.
//!
//! A timer is only touched when there is something to wait for; bytes that are there at once cost
//! nothing.
//!
//! Invariant: only time that was spent waiting for the client is charged to it.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is made when it is first needed.
#[derive(Debug, Default)]
pub struct Clock(Option<Pin<Box<Sleep>>>);

impl Clock {
    /// Whether `deadline` has passed; otherwise the task is woken when it does. A timer that is set
    /// to an earlier time is left alone: when it fires, it is set again.
    pub fn passed(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.is_elapsed() || sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        if sleep.as_mut().poll(cx).is_pending() {
            return false;
        }
        if Instant::now() >= deadline {
            return true;
        }
        sleep.as_mut().reset(deadline);
        sleep.as_mut().poll(cx).is_ready()
    }
}

/// A budget of waiting: it shrinks while the client is waited for and grows with each byte.
#[derive(Debug)]
pub struct Pace {
    budget: Duration,
    full: Duration,
    bytes_per_s: u32,
    since: Option<Instant>,
}

impl Pace {
    /// Waits `full` without a byte; each byte gives back what it may take at the minimum rate.
    pub const fn new(full: Duration, bytes_per_s: u32) -> Self {
        Self { budget: full, full, bytes_per_s, since: None }
    }

    /// The client is waited for. When the budget will be used up.
    pub fn waits(&mut self) -> Instant {
        *self.since.get_or_insert_with(Instant::now) + self.budget
    }

    /// Bytes moved: the wait, if there was one, is over.
    pub fn moved(&mut self, bytes: usize) {
        if let Some(since) = self.since.take() {
            self.budget = self.budget.saturating_sub(since.elapsed());
        }
        if self.budget < self.full {
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            let earned = f64::from(bytes) / f64::from(self.bytes_per_s.max(1));
            self.budget = (self.budget + Duration::from_secs_f64(earned)).min(self.full);
        }
    }

    /// The whole budget again.
    pub fn refill(&mut self) {
        (self.budget, self.since) = (self.full, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drip_uses_up_the_budget_and_a_steady_sender_does_not() {
        let grace = Duration::from_secs(10);
        let (mut drip, mut steady) = (Pace::new(grace, 240), Pace::new(grace, 240));
        for _ in 0..100 {
            assert!(steady.waits() > Instant::now() + Duration::from_secs(5));
            drip.waits();
            tokio::time::advance(Duration::from_secs(1)).await;
            drip.moved(1);
            steady.moved(300);
        }
        assert!(drip.waits() - Instant::now() < Duration::from_millis(100), "it is used up");
        drip.refill();
        assert_eq!(drip.waits() - Instant::now(), grace);
    }

    #[tokio::test]
    async fn a_clock_follows_a_deadline_that_moves() {
        let (mut clock, start) = (Clock::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        std::future::poll_fn(|cx| {
            let late = Instant::now() >= at(30);
            let deadline = if late { at(60) } else { at(40) };
            match clock.passed(deadline, cx) {
                true => std::task::Poll::Ready(()),
                false => {
                    cx.waker().wake_by_ref();
                    std::task::Poll::Pending
                }
            }
        })
        .await;
        assert!(start.elapsed() >= Duration::from_millis(60));
    }
}
