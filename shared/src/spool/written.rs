//! Waiting until a record has left this process: from then on a kill of it loses nothing.
//!
//! The system keeps what was written to a file also when the writer is killed; only what waits in the
//! queue is lost with the process. The spool thread writes within a millisecond or two, but on an
//! overloaded machine it may not get a processor for far longer, while answers go out.
//!
//! Invariant: records are written in the order of their places.

use std::future::poll_fn;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};

use super::handle::lock;

/// A record's place among those that the spool took, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub(super) u64);

impl Place {
    /// Of a record that outlives this process from the start.
    pub(super) const KEPT: Self = Self(0);

    /// Whether nothing is to be waited for.
    pub fn is_kept(self) -> bool {
        self == Self::KEPT
    }
}

/// How many records were written, and who waits for more.
#[derive(Debug, Default)]
pub(super) struct Written {
    records: AtomicU64,
    /// At most one per request that waits; each wait has its end.
    waiting: Mutex<Vec<Waker>>,
}

impl Written {
    /// `records` more were written: everybody looks again.
    pub(super) fn add(&self, records: u64) {
        self.records.fetch_add(records, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(super) fn has(&self, place: Place) -> bool {
        self.records.load(Ordering::SeqCst) >= place.0
    }

    /// Ends when the record is written. Whoever drops it is not kept in mind after the next write.
    pub(super) async fn until(&self, place: Place) {
        poll_fn(|cx| {
            if self.has(place) {
                return Poll::Ready(());
            }
            lock(&self.waiting).push(cx.waker().clone());
            // Written in between: the writer may have woken everybody before.
            if self.has(place) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
