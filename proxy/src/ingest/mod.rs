//! Ingest: spool → parse → link → store, on a thread of its own.
//!
//! It follows the spool of this process and adopts those of dead ones. A turn's `Begin` waits, by
//! its position in the spool and not in the store, until its `Done` comes; its segment is kept for
//! so long. (A table of open turns would write every request twice; the spool is durable already.)
//! Up to 2,048 turns or 4 MiB are committed with the position they were read up to, and only then are
//! segments deleted. What is before the position is read again after a restart only to find the
//! turns that are still open.
//!
//! The parts of a long response wait in the same way, and are joined when it ends. The ingest gives
//! way to requests for as long as what waits is young and little (`turn_taking`).
//!
//! While SQLite is locked or cannot be written, the batch is kept and tried again; the spool grows,
//! traffic goes on.
//!
//! Invariant: every turn of a spool is stored exactly once, or counted as dropped with a reason.

mod gathered;
mod parts;
mod retention;
mod source;
mod turn_taking;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use hone_shared::clock::now_ms;
use hone_shared::data_dir::DataDir;
use hone_shared::link::LinkKind;
use hone_shared::policy::{PolicySet, RedactionPolicy, RoutePolicy};
use hone_shared::store::{FeedbackInserted, IngestTurn};
use hone_shared::turn::DropReason;

use worker::Worker;

/// Why the ingest could not be started.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The thread could not be started.
    #[error("the ingest thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// The policies that turns are redacted and kept by, as of the moment they are asked for.
#[derive(Clone, Default)]
pub struct Policies(Option<Arc<dyn Fn() -> Arc<PolicySet> + Send + Sync>>);

impl Policies {
    /// Asks `current` for the set in force; it must answer with the last good one.
    pub fn of(current: impl Fn() -> Arc<PolicySet> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(current)))
    }

    fn redactions_of(&self, route: &str) -> Vec<Arc<RedactionPolicy>> {
        self.0.as_ref().map(|current| current().redactions_of(route)).unwrap_or_default()
    }

    /// Those of all routes together, for texts whose route is not known.
    fn any_redactions(&self) -> Vec<Arc<RedactionPolicy>> {
        let mut all: Vec<Arc<RedactionPolicy>> = Vec::new();
        for route in self.routes() {
            for redaction in self.redactions_of(&route.name) {
                if !all.iter().any(|known| Arc::ptr_eq(known, &redaction)) {
                    all.push(redaction);
                }
            }
        }
        all
    }

    fn routes(&self) -> Vec<Arc<RoutePolicy>> {
        self.0.as_ref().map(|current| current().routes.clone()).unwrap_or_default()
    }
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Policies").field(&self.0.is_some()).finish()
    }
}

type See = dyn Fn(&IngestTurn) + Send + Sync;

/// Who is shown every turn of this process that was stored.
#[derive(Clone, Default)]
pub struct Observer(Option<Arc<See>>);

impl Observer {
    /// Calls `see`, which must be quick, on the ingest's thread.
    pub fn of(see: impl Fn(&IngestTurn) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(see)))
    }

    fn see(&self, turns: &[IngestTurn]) {
        if let Some(see) = &self.0 {
            turns.iter().for_each(|turn| see(turn));
        }
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Observer").field(&self.0.is_some()).finish()
    }
}

/// Where the ingest reads and writes, and its limits.
#[derive(Debug, Clone)]
pub struct IngestConfig {
    /// The directory of all processes' spools.
    pub spool_dir: PathBuf,
    /// The reserve of the spool, if it has one.
    pub reserve_dir: Option<PathBuf>,
    /// The SQLite file.
    pub store_path: PathBuf,
    /// The secret of the data directory; keys the links.
    pub secret: [u8; 32],
    /// Who is shown what was stored; nobody unless set.
    pub observer: Observer,
    /// What turns are redacted and kept by; none unless set.
    pub policies: Policies,
    /// Most turns of one transaction.
    pub batch_turns_max: usize,
    /// How long a batch that is not full waits for more turns, milliseconds: a commit per turn
    /// would write the same pages again and again.
    pub batch_ms_max: u64,
    /// Most bytes of bodies of one transaction.
    pub batch_bytes_max: usize,
    /// Most turns of one process that wait for their end; the oldest is then stored as
    /// `proxy_crash`.
    pub open_turns_max: usize,
    /// Most bytes of waiting requests that are kept in memory; others are read again when they are
    /// needed.
    pub open_bytes_max: usize,
    /// Most segments that are kept only because parts of open turns lie in them; those in the
    /// oldest are then taken into memory, as far as `open_bytes_max` allows.
    pub pinned_segments_max: usize,
    /// How often dead processes are looked for, milliseconds.
    pub adopt_every_ms: u64,
    /// First pause before a failed commit is tried again, milliseconds; doubles up to
    /// `retry_ms_max`.
    pub retry_ms: u64,
    /// Longest pause before a failed commit is tried again, milliseconds.
    pub retry_ms_max: u64,
    /// How long a statement waits for another process's lock, milliseconds.
    pub busy_ms_max: u64,
    /// The thread's nice value: requests go first where both want the processor.
    pub nice: i32,
    /// Requests are given way to while the process uses so much of all processors without the
    /// ingest, per mille...
    pub give_way_above_per_mille: u32,
    /// ... and the oldest turn that waits for it has waited less than this, milliseconds...
    pub give_way_ms_max: u64,
    /// ... and so many bytes wait, at most.
    pub give_way_bytes_max: u64,
    /// How long stopping may take, milliseconds; the rest stays in the spool and is adopted by the
    /// next start.
    pub drain_ms_max: u64,
}

impl IngestConfig {
    /// The defaults for a data directory.
    pub fn new(data: &DataDir, secret: [u8; 32]) -> Self {
        Self {
            spool_dir: data.spool_dir(),
            reserve_dir: Some(data.reserve_dir()),
            store_path: data.store_path(),
            secret,
            observer: Observer::default(),
            policies: Policies::default(),
            batch_turns_max: 2_048,
            batch_ms_max: 200,
            batch_bytes_max: 4 << 20,
            open_turns_max: 65_536,
            open_bytes_max: 32 << 20,
            pinned_segments_max: 64,
            adopt_every_ms: 2_000,
            retry_ms: 50,
            retry_ms_max: 2_000,
            busy_ms_max: 5_000,
            nice: 5,
            give_way_above_per_mille: 150,
            give_way_ms_max: 5_000,
            give_way_bytes_max: 256 << 20,
            drain_ms_max: 10_000,
        }
    }
}

/// Numbers of one ingest since it was started.
///
/// With the spool's: `requests = stored + dropped (here and there) + pending`, and pending is 0
/// once all is at rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IngestStats {
    /// Turns of this process that are stored.
    pub stored: u64,
    /// Turns of dead processes that were stored here.
    pub adopted: u64,
    /// Turns that were stored before.
    pub duplicates: u64,
    /// Stored turns with a parent.
    pub linked: u64,
    /// The same by how it was found, in the order of [`LinkKind::ALL`].
    pub linked_by: [u64; LinkKind::ALL.len()],
    /// Turns that found their parent only after they were stored.
    pub relinked: u64,
    /// Turns of this process that were lost between spool and store. Does not contain the spool's
    /// own drops.
    pub dropped: BTreeMap<DropReason, u64>,
    /// Turns of dead processes that were lost, as found here.
    pub adopted_dropped: BTreeMap<DropReason, u64>,
    /// Turns whose end has not yet been read.
    pub open: usize,
    /// Age of the oldest ended turn that is read and not yet stored, milliseconds; 0 when there is
    /// none.
    pub lag_ms: u64,
    /// What became of feedback.
    pub feedback: FeedbackStats,
    /// Transactions.
    pub commits: u64,
    /// Time spent in transactions that succeeded, microseconds.
    pub commit_us_sum: u64,
    /// The longest of them, microseconds.
    pub commit_us_max: u64,
    /// Size of the store's write-ahead log after the last transaction, bytes.
    pub wal_bytes: u64,
    /// Size of the store without its log after the last transaction, bytes.
    pub store_bytes: u64,
    /// Reads and commits that failed and were tried again.
    pub errors: u64,
    /// What the last of them said; `None` once one succeeded.
    pub last_error: Option<String>,
}

/// Pieces of feedback that the ingest read from spools, its own and adopted ones.
///
/// `accepted at the door = stored + duplicates + dropped + what is still in the spool`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeedbackStats {
    /// New pieces.
    pub stored: u64,
    /// Of those, the ones that waited for their turn when they were stored.
    pub waiting: u64,
    /// Pieces that were stored before: sent again under the same id.
    pub duplicates: u64,
    /// Pieces that are not kept, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Pieces that waited and were given up: too many waited, or for a day.
    pub given_up: u64,
}

impl FeedbackStats {
    fn add(&mut self, inserted: &FeedbackInserted, lost: u64) {
        self.stored += inserted.stored;
        self.waiting += inserted.waiting;
        self.duplicates += inserted.duplicates;
        self.given_up += inserted.evicted;
        let dropped = [
            ("forgotten", inserted.forgotten),
            ("ambiguous", inserted.ambiguous),
            ("undecodable", lost),
        ];
        for (reason, count) in dropped {
            *self.dropped.entry(reason).or_default() += count;
        }
    }
}

#[derive(Debug, Default)]
struct Figures {
    stats: IngestStats,
    behind_since_ms: Option<i64>,
}

#[derive(Debug, Default)]
struct Shared {
    figures: Mutex<Figures>,
    /// Since when the ingest is to stop.
    stop: Mutex<Option<Instant>>,
    stopping: Condvar,
}

/// Counters stay valid whoever panicked while holding them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ingest of this process. Share it behind an `Arc`.
#[derive(Debug)]
pub struct Ingest {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Ingest {
    /// Starts the thread. The store need not be reachable yet.
    pub fn start(cfg: IngestConfig) -> Result<Self, IngestError> {
        let shared = Arc::new(Shared::default());
        let mut worker = Worker::new(cfg, Arc::clone(&shared));
        let thread =
            std::thread::Builder::new().name("ingest".to_owned()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The numbers now.
    pub fn stats(&self) -> IngestStats {
        let figures = lock(&self.shared.figures);
        let lag = figures.behind_since_ms.map_or(0, |since| now_ms() - since);
        IngestStats { lag_ms: u64::try_from(lag).unwrap_or(0), ..figures.stats.clone() }
    }

    /// Whether the thread has ended by itself, which only a bug can do: nothing is stored any more
    /// until the next start.
    pub fn has_died(&self) -> bool {
        let ended = lock(&self.thread).as_ref().is_some_and(JoinHandle::is_finished);
        ended && lock(&self.shared.stop).is_none()
    }

    /// Stores what is in the spool and ends the thread. Close the spool first. Stopping twice is
    /// harmless.
    pub fn drain_and_stop(&self) {
        lock(&self.shared.stop).get_or_insert_with(Instant::now);
        self.shared.stopping.notify_all();
        let Some(thread) = lock(&self.thread).take() else { return };
        if thread.join().is_err() {
            tracing::error!("the ingest thread panicked; the spool is adopted by the next start");
        }
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.drain_and_stop();
    }
}
