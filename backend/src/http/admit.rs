//! Who may generate now: a bounded number of sequences, and a bounded queue of requests before it.
//!
//! Requests of the background (`x-hone-priority: background`, the judge's) start only after nobody
//! else was here for `quiet_ms`, and give way as soon as somebody comes: what they were generating
//! is thrown away and the caller asks again later.
//!
//! Invariant: a request waits at most `queue_wait_ms_max`, among at most `queue_max` others; a
//! request of the background never runs beside one that is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::config::BackendConfig;
use crate::error::{ApiError, Code};

/// Request header by which a trusted caller says that everybody else goes first.
pub const PRIORITY: &str = "x-hone-priority";
/// Its only value.
pub const BACKGROUND: &str = "background";

/// The sequences that may run at once.
pub struct Admission {
    permits: Arc<Semaphore>,
    sequences_max: usize,
    waiting: AtomicUsize,
    queue_max: usize,
    wait: Duration,
    quiet: Duration,
    quiet_wait: Duration,
    front: watch::Sender<Front>,
}

/// Requests that are not of the background.
#[derive(Debug, Clone, Copy)]
struct Front {
    /// Waiting or running.
    here: usize,
    /// When the last of them left.
    left: Instant,
}

/// Counts a waiting request, also when its future is dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counts a request that is not of the background, from its arrival to its end.
#[derive(Debug)]
struct Presence(watch::Sender<Front>);

impl Presence {
    fn new(front: &watch::Sender<Front>) -> Self {
        front.send_modify(|front| front.here += 1);
        Self(front.clone())
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.send_modify(|front| *front = Front { here: front.here - 1, left: Instant::now() });
    }
}

/// The right to run, until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    _permit: OwnedSemaphorePermit,
    _presence: Option<Presence>,
    /// Of a request of the background: who came since.
    front: Option<watch::Receiver<Front>>,
}

impl Admitted {
    /// Ends when this request has to give way; never for one that is not of the background.
    pub async fn displaced(&mut self) -> ApiError {
        if let Some(front) = &mut self.front
            && front.wait_for(|front| front.here > 0).await.is_ok()
        {
            return yielded();
        }
        std::future::pending().await
    }
}

fn yielded() -> ApiError {
    ApiError::new(Code::Yielded, "The engine serves others first; try again later.")
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
            quiet: Duration::from_millis(config.background_quiet_ms),
            quiet_wait: Duration::from_millis(config.background_wait_ms_max),
            front: watch::Sender::new(Front { here: 0, left: Instant::now() }),
        }
    }

    /// Waits until `sequences` more may run, first come first served.
    ///
    /// # Errors
    /// 400 if they never could, 429 if the queue is full, 503 if the wait is over.
    pub async fn enter(&self, sequences: usize) -> Result<Admitted, ApiError> {
        self.fits(sequences)?;
        let presence = Presence::new(&self.front);
        let _place = Place(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::AcqRel) > self.queue_max {
            return Err(ApiError::new(Code::Overloaded, "Too many requests wait; try again."));
        }
        let permits = Arc::clone(&self.permits).acquire_many_owned(sequences as u32);
        match tokio::time::timeout(self.wait, permits).await {
            Ok(Ok(permit)) => {
                Ok(Admitted { _permit: permit, _presence: Some(presence), front: None })
            }
            _ => Err(ApiError::new(Code::Timeout, "The wait for the engine is over; try again.")),
        }
    }

    /// Waits for a quiet moment; nobody of the background waits for anybody else of it.
    ///
    /// # Errors
    /// 400 if the sequences never could run, 503 [`Code::Yielded`] if no quiet moment came in time.
    pub async fn enter_quietly(&self, sequences: usize) -> Result<Admitted, ApiError> {
        self.fits(sequences)?;
        let quiet = tokio::time::timeout(self.quiet_wait, self.quiet_moment());
        let front = quiet.await.map_err(|_| yielded())?;
        let permits = Arc::clone(&self.permits).try_acquire_many_owned(sequences as u32);
        let permit = permits.map_err(|_| yielded())?;
        Ok(Admitted { _permit: permit, _presence: None, front: Some(front) })
    }

    /// Ends when nobody was here for the quiet time.
    async fn quiet_moment(&self) -> watch::Receiver<Front> {
        let mut front = self.front.subscribe();
        loop {
            let Front { here, left } = *front.borrow_and_update();
            let came = match here {
                0 => tokio::time::timeout_at(left + self.quiet, front.changed()).await,
                _ => Ok(front.changed().await),
            };
            if came.is_err() {
                return front;
            }
        }
    }

    fn fits(&self, sequences: usize) -> Result<(), ApiError> {
        if sequences > self.sequences_max {
            let most = self.sequences_max;
            let message = format!("{sequences} replies were asked for, at most {most} can run.");
            return Err(ApiError::value("n", message));
        }
        Ok(())
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
        config.background_quiet_ms = 40;
        config.background_wait_ms_max = 10_000;
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

    #[tokio::test]
    async fn the_background_waits_for_a_quiet_moment() {
        let admission = admission(2, 4, 10_000);
        let client = admission.enter(1).await.unwrap();
        let judge = admission.enter_quietly(1);
        tokio::pin!(judge);
        tokio::time::sleep(Duration::from_millis(80)).await;
        assert!(futures::poll!(&mut judge).is_pending(), "a client is here");
        let left = Instant::now();
        drop(client);
        assert!(judge.await.is_ok());
        assert!(left.elapsed() >= Duration::from_millis(40), "and was here just now");
    }

    #[tokio::test]
    async fn the_background_gives_way_to_a_client_and_not_to_its_like() {
        let admission = admission(4, 4, 10_000);
        let mut judge = admission.enter_quietly(1).await.unwrap();
        let other = admission.enter_quietly(1).await.unwrap();
        let displaced = judge.displaced();
        tokio::pin!(displaced);
        assert!(futures::poll!(&mut displaced).is_pending());
        let mut client = admission.enter(1).await.unwrap();
        assert_eq!(displaced.await.code, Code::Yielded);
        assert!(futures::poll!(Box::pin(client.displaced())).is_pending(), "a client stays");
        drop(other);
    }
}
