//! Who may generate now: a bounded number of sequences, and a bounded queue of requests before it.
//!
//! Invariant: a request waits at most `queue_wait_ms_max`, among at most `queue_max` others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::BackendConfig;
use crate::error::{ApiError, Code};

/// The sequences that may run at once.
pub struct Admission {
    permits: Arc<Semaphore>,
    sequences_max: usize,
    waiting: AtomicUsize,
    queue_max: usize,
    wait: Duration,
}

/// Counts a waiting request, also when its future is dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Admission {
    /// Nobody runs yet.
    pub fn new(config: &BackendConfig) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(config.sequences_max)),
            sequences_max: config.sequences_max,
            waiting: AtomicUsize::new(0),
            queue_max: config.queue_max,
            wait: Duration::from_millis(config.queue_wait_ms_max),
        }
    }

    /// Waits until `sequences` more may run, first come first served.
    ///
    /// # Errors
    /// 400 if they never could, 429 if the queue is full, 503 if the wait is over.
    pub async fn enter(&self, sequences: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        if sequences > self.sequences_max {
            let most = self.sequences_max;
            let message = format!("{sequences} replies were asked for, at most {most} can run.");
            return Err(ApiError::value("n", message));
        }
        let _place = Place(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::AcqRel) > self.queue_max {
            return Err(ApiError::new(Code::Overloaded, "Too many requests wait; try again."));
        }
        let permits = Arc::clone(&self.permits).acquire_many_owned(sequences as u32);
        match tokio::time::timeout(self.wait, permits).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(ApiError::new(Code::Timeout, "The wait for the engine is over; try again.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn admission(sequences_max: usize, queue_max: usize, wait_ms: u64) -> Admission {
        let mut config = BackendConfig::new("d", "m", SocketAddr::from(([127, 0, 0, 1], 0)));
        config.sequences_max = sequences_max;
        config.queue_max = queue_max;
        config.queue_wait_ms_max = wait_ms;
        Admission::new(&config)
    }

    #[tokio::test]
    async fn a_request_waits_for_its_turn_and_gets_it() {
        let admission = admission(2, 4, 10_000);
        let first = admission.enter(2).await.unwrap();
        let second = admission.enter(1);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        assert!(second.await.is_ok());
    }

    #[tokio::test]
    async fn a_full_queue_and_a_long_wait_are_errors_not_hangs() {
        let admission = admission(1, 0, 20);
        let running = admission.enter(1).await.unwrap();
        assert_eq!(admission.enter(2).await.unwrap_err().code, Code::InvalidValue);
        let waiting = admission.enter(1);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        assert_eq!(admission.enter(1).await.unwrap_err().code, Code::Overloaded);
        assert_eq!(waiting.await.unwrap_err().code, Code::Timeout);
        drop(running);
        assert!(admission.enter(1).await.is_ok());
    }
}
