//! The way into the spool, and the first column of the books.
//!
//! `requests = stored + dropped{reason} + pending` holds at every moment: a turn is opened here,
//! and is later either stored by the ingest, or dropped with a reason, or still on its way. The
//! spool keeps a place for the end of every turn whose beginning it took, and writes down what it
//! refused, so this end has nothing to remember.
//!
//! Invariant: neither [`Recorder::begin`] nor [`Recorder::done`] waits for disk.
//! [`Recorder::left`] waits for a processor, where the machine has none for the spool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hone_shared::feedback::Feedback;
use hone_shared::policy::{RoutePolicy, WhenFull};
use hone_shared::spool::{Health, Place, Spool, SpoolError, SpoolStats};
use hone_shared::turn::{Begin, Done, DropReason, Part, Record};

use super::capture::Budget;

/// Behind by more than this, the spool thread does not get the processor that it needs.
const LATE: Duration = Duration::from_millis(2);

/// The tap's end of the spool. One per process, shared by all requests.
pub struct Recorder {
    spool: Spool,
    budget: Arc<Budget>,
    opened: AtomicU64,
    in_flight: AtomicU64,
    overtaken: AtomicU64,
}

impl Recorder {
    /// A recorder in front of `spool`; captures together hold at most `capture_bytes_max`.
    pub fn new(spool: Spool, capture_bytes_max: u64) -> Arc<Self> {
        let budget = Budget::new(capture_bytes_max);
        let [opened, in_flight, overtaken] = std::array::from_fn(|_| AtomicU64::new(0));
        Arc::new(Self { spool, budget, opened, in_flight, overtaken })
    }

    /// The memory that captures share.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// A turn began.
    pub fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A turn ended.
    pub fn closed(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Offers the first half of a turn and says where it stands. `None`: refused; the spool has
    /// counted the turn as dropped.
    pub fn begin(&self, begin: Begin) -> Option<Place> {
        self.spool.try_send_to(Record::Begin(begin)).ok()
    }

    /// Waits, at most `most`, until a record would outlive this process, if it does not from the
    /// start and the thread that writes gets no processor.
    pub async fn left(&self, place: Place, most: Duration) {
        if place.is_kept() {
            return;
        }
        // Out of time, the answer goes out all the same: a full disk must not stop traffic.
        if tokio::time::timeout(most, self.spool.left(place, LATE)).await.is_err() {
            self.overtaken.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Answers that went out before their requests were recorded, because that took too long.
    pub fn overtaken_total(&self) -> u64 {
        self.overtaken.load(Ordering::Relaxed)
    }

    /// Length of the parts in which a long response is handed over, bytes.
    pub fn part_bytes(&self) -> usize {
        self.spool.part_bytes()
    }

    /// Offers a piece of a response whose turn's first half was taken; an empty buffer for the next
    /// one may come back. Errors: there is no room for it now; its body.
    pub fn part(&self, part: Part) -> Result<Option<Vec<u8>>, Bytes> {
        self.spool.try_send_part(part)
    }

    /// Offers the second half of a turn whose first half was taken.
    pub fn done(&self, done: Done) {
        // Refused only when the spool is closed already; the turn is then adopted as `proxy_crash`
        // by the next start.
        if let Err(reason) = self.spool.try_send(Record::Done(done)) {
            tracing::warn!(%reason, "the end of a turn could not be recorded");
        }
    }

    /// Offers what somebody said about a turn. `false`: refused, and kept nowhere.
    pub fn feedback(&self, feedback: Feedback) -> bool {
        self.spool.try_send(Record::Feedback(Box::new(feedback))).is_ok()
    }

    /// Whether a request of this route must be refused now, because it could not be recorded and
    /// its policy wants no request to pass unrecorded. Counts it as dropped if so.
    pub fn sheds(&self, policy: &RoutePolicy) -> bool {
        let sheds = self.would_shed(policy);
        if sheds {
            self.opened.fetch_add(1, Ordering::Relaxed);
            self.spool.count_drop(&policy.name, DropReason::Shed, 1);
        }
        sheds
    }

    /// Whether requests of this route are refused now; counts nothing.
    pub fn would_shed(&self, policy: &RoutePolicy) -> bool {
        policy.capture.when_full == WhenFull::Shed && self.health() == Health::Full
    }

    /// Whether turns can be recorded: one atomic load.
    pub fn health(&self) -> Health {
        self.spool.health()
    }

    /// Turns opened since the start.
    pub fn opened_total(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Turns whose exchange has not ended.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The spool's own figures.
    pub fn spool(&self) -> SpoolStats {
        self.spool.stats()
    }

    /// Ends recording: everything taken is on disk afterwards.
    pub fn close(&self) -> Result<(), SpoolError> {
        self.spool.close()
    }
}
