//! The handle that the tap holds, and the one thread that writes.
//!
//! The thread takes what waits, appends it at once and syncs in groups. When the disk refuses, it
//! keeps what it has, tries again after a pause and lets the queue fill: traffic goes on, and what
//! no longer fits is counted as dropped.
//!
//! Invariant: [`Spool::try_send`] takes one short lock and never waits for the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::queue::Queue;
use super::{Position, SpoolConfig, SpoolError, SpoolWriter, at, disk_bytes};
use crate::clock::now_ms;
use crate::turn::{DropReason, Record};

/// How often the disk is measured and gaps are written, at most.
const UPKEEP: Duration = Duration::from_secs(1);

/// Numbers of one spool since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolStats {
    /// Turns whose `Begin` was offered: `accepted` plus all `dropped`, but for turns lost at
    /// `close`.
    pub requests: u64,
    /// Turns whose `Begin` was taken.
    pub accepted: u64,
    /// Turns that were not recorded, by reason.
    pub dropped: BTreeMap<DropReason, u64>,
    /// Responses that were recorded without their body because there was no room.
    pub bodies_cut: u64,
    /// Turns whose end was not yet offered.
    pub open: usize,
    /// Records that wait in memory.
    pub queued_records: usize,
    /// Bytes that wait in memory.
    pub queued_bytes: usize,
    /// Bytes of all segments on disk, as last measured, plus what was written since.
    pub disk_bytes: u64,
    /// Writes and syncs that failed.
    pub write_errors: u64,
    /// Whether the last write failed and is being tried again.
    pub degraded: bool,
    /// Whether the disk quota is used up.
    pub disk_full: bool,
}

/// The spools of this process that nobody reads yet. Like the locks on their directories, a fact of
/// the process: the ingest finds them here without being handed anything, and at most one ingest
/// gets each of them.
static UNREAD: Mutex<Vec<Follower>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, Copy, Default)]
struct Durable {
    upto: Position,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    durable: Mutex<Durable>,
    advanced: Condvar,
    disk_bytes: AtomicU64,
    disk_full: AtomicBool,
    write_errors: AtomicU64,
    degraded: AtomicBool,
}

/// A panic elsewhere must not take the spool down: its plain counters stay valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The spool of this process. Share it behind an `Arc`.
#[derive(Debug)]
pub struct Spool {
    cfg: SpoolConfig,
    shared: Arc<Shared>,
    follower: Follower,
    thread: Mutex<Option<JoinHandle<u64>>>,
}

impl Spool {
    /// Makes this process's directory and starts the thread. Errors: the directory cannot be made
    /// or locked.
    pub fn start(cfg: SpoolConfig) -> Result<Self, SpoolError> {
        let writer = SpoolWriter::create(&cfg)?;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            durable: Mutex::default(),
            advanced: Condvar::new(),
            disk_bytes: AtomicU64::new(disk_bytes(&cfg.dir)),
            disk_full: AtomicBool::new(false),
            write_errors: AtomicU64::new(0),
            degraded: AtomicBool::new(false),
        });
        let follower = Follower {
            dir: writer.dir().to_owned(),
            boot: writer.boot().to_owned(),
            shared: Arc::clone(&shared),
        };
        let mut task = Task {
            cfg: cfg.clone(),
            writer,
            shared: Arc::clone(&shared),
            begins: 0,
            upkeep_at: Instant::now(),
            closing_since: None,
        };
        task.measure();
        let thread = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || task.run())
            .map_err(at(&cfg.dir))?;
        lock(&UNREAD).push(follower.clone());
        Ok(Self { cfg, shared, follower, thread: Mutex::new(Some(thread)) })
    }

    /// Hands a record to the spool, or says why it was not taken. Never blocks on the disk.
    ///
    /// A refused `Begin` is counted as dropped, once, here; its `Done` need not be sent and is
    /// refused as `BeginLost` without being counted again.
    pub fn try_send(&self, record: Record) -> Result<(), DropReason> {
        let full = self.shared.disk_full.load(Ordering::Relaxed);
        lock(&self.shared.queue).offer(&self.cfg, full, record)?;
        self.shared.filled.notify_one();
        Ok(())
    }

    /// Counts turns that the caller dropped before they came here, so that the sum stays exact.
    pub fn count_drop(&self, route: &str, reason: DropReason, count: u64) {
        let mut queue = lock(&self.shared.queue);
        queue.requests += count;
        queue.count_drop(route.to_owned(), reason, count, now_ms());
    }

    /// What ingest needs to read along.
    pub fn follower(&self) -> Follower {
        self.follower.clone()
    }

    /// The numbers now.
    pub fn stats(&self) -> SpoolStats {
        let queue = lock(&self.shared.queue);
        SpoolStats {
            requests: queue.requests,
            accepted: queue.accepted,
            dropped: queue.dropped.clone(),
            bodies_cut: queue.bodies_cut,
            open: queue.open(),
            queued_records: queue.len(),
            queued_bytes: queue.bytes(),
            disk_bytes: self.shared.disk_bytes.load(Ordering::Relaxed),
            write_errors: self.shared.write_errors.load(Ordering::Relaxed),
            degraded: self.shared.degraded.load(Ordering::Relaxed),
            disk_full: self.shared.disk_full.load(Ordering::Relaxed),
        }
    }

    /// Refuses new records, writes and syncs what waits, and releases the directory. Closing twice
    /// is harmless. Errors: turns that could not be written within `close_ms_max`.
    pub fn close(&self) -> Result<(), SpoolError> {
        lock(&self.shared.queue).closed = true;
        self.shared.filled.notify_all();
        let Some(thread) = lock(&self.thread).take() else { return Ok(()) };
        match thread.join() {
            Ok(0) => Ok(()),
            Ok(lost) => Err(SpoolError::Unwritten(lost)),
            Err(_) => Err(SpoolError::ThreadGone),
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        lock(&UNREAD).retain(|unread| unread.boot != self.follower.boot);
        if let Err(error) = self.close() {
            tracing::error!(%error, "the spool was not closed cleanly");
        }
    }
}

/// Tells the reader of this process's own spool how far it may read.
#[derive(Debug, Clone)]
pub struct Follower {
    dir: PathBuf,
    boot: String,
    shared: Arc<Shared>,
}

impl Follower {
    /// Takes the spools under `spool` that this process writes and nobody reads yet.
    pub fn take_unread(spool: &Path) -> Vec<Self> {
        let mut unread = lock(&UNREAD);
        let (ours, others) = unread.drain(..).partition(|f| f.dir.parent() == Some(spool));
        *unread = others;
        ours
    }

    /// The directory of this process.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of the directory.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Everything before this position is durable and may be read.
    pub fn upto(&self) -> Position {
        lock(&self.shared.durable).upto
    }

    /// Whether the spool was closed: nothing will be written any more.
    pub fn closed(&self) -> bool {
        lock(&self.shared.durable).closed
    }

    /// Waits until there is more than `seen`, the spool is closed, or the time is over.
    pub fn wait(&self, seen: Position, timeout: Duration) {
        let durable = lock(&self.shared.durable);
        let idle = |d: &mut Durable| d.upto <= seen && !d.closed;
        drop(self.shared.advanced.wait_timeout_while(durable, timeout, idle));
    }
}

/// The state of the spool thread.
struct Task {
    cfg: SpoolConfig,
    writer: SpoolWriter,
    shared: Arc<Shared>,
    /// `Begin` frames that are not yet durable.
    begins: u64,
    upkeep_at: Instant,
    closing_since: Option<Instant>,
}

impl Task {
    /// Runs until the spool is closed and empty. Returns how many turns could not be written.
    fn run(mut self) -> u64 {
        loop {
            let batch = self.next_batch();
            let degraded = self.shared.degraded.load(Ordering::Relaxed);
            let idle = batch.is_empty() && self.writer.unsynced_bytes() == 0;
            let result = batch.iter().try_for_each_all(|record| {
                self.begins += u64::from(matches!(record, Record::Begin(_)));
                self.writer.append(record)
            });
            let result = result.and_then(|()| self.sync_if_due(degraded));
            let result = result.and_then(|()| self.upkeep());
            self.note(result);
            if self.closing_since.is_some() && idle && !lock(&self.shared.queue).has_gaps() {
                return self.finish(0);
            }
            let limit = Duration::from_millis(self.cfg.close_ms_max);
            if self.closing_since.is_some_and(|since| since.elapsed() >= limit) {
                let lost = self.give_up();
                return self.finish(lost);
            }
        }
    }

    /// Waits for records, at most until something else is due. While the disk refuses, takes none.
    fn next_batch(&mut self) -> Vec<Record> {
        let degraded = self.shared.degraded.load(Ordering::Relaxed);
        let wait = match self.writer.unsynced_since() {
            _ if degraded => Duration::from_millis(self.cfg.retry_ms),
            Some(since) => {
                Duration::from_millis(self.cfg.sync_ms_max).saturating_sub(since.elapsed())
            }
            None => UPKEEP.saturating_sub(self.upkeep_at.elapsed()),
        };
        let queue = lock(&self.shared.queue);
        let idle = |q: &mut Queue| !q.closed && (degraded || q.len() == 0);
        let waited = self.shared.filled.wait_timeout_while(queue, wait, idle);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if queue.closed {
            self.closing_since.get_or_insert_with(Instant::now);
        }
        if degraded {
            let closed = queue.closed;
            drop(queue);
            if closed {
                std::thread::sleep(Duration::from_millis(self.cfg.retry_ms.min(20)));
            }
            return Vec::new();
        }
        let mut batch = queue.take(self.cfg.sync_bytes_max);
        if queue.has_gaps() && (queue.closed || self.upkeep_at.elapsed() >= UPKEEP) {
            batch.append(&mut queue.take_gaps());
        }
        batch
    }

    fn sync_if_due(&mut self, now: bool) -> Result<(), SpoolError> {
        let age = self.writer.unsynced_since().map(|since| since.elapsed());
        let old = age.is_some_and(|age| age >= Duration::from_millis(self.cfg.sync_ms_max));
        let large = self.writer.unsynced_bytes() >= self.cfg.sync_bytes_max;
        if !(now || old || large || self.closing_since.is_some()) {
            return Ok(());
        }
        self.sync()
    }

    fn sync(&mut self) -> Result<(), SpoolError> {
        let bytes = self.writer.unsynced_bytes() as u64;
        self.writer.sync()?;
        self.begins = 0;
        let total = self.shared.disk_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.shared.disk_full.store(total >= self.cfg.disk_bytes_max, Ordering::Relaxed);
        self.publish(false);
        Ok(())
    }

    fn note(&self, result: Result<(), SpoolError>) {
        let failed = result.is_err();
        if let Err(error) = result {
            self.shared.write_errors.fetch_add(1, Ordering::Relaxed);
            if !self.shared.degraded.load(Ordering::Relaxed) {
                tracing::error!(%error, "the spool cannot be written; trying again");
            }
        }
        self.shared.degraded.store(failed, Ordering::Relaxed);
    }

    /// Seals a segment that is old, or that must make room, and measures the disk.
    fn upkeep(&mut self) -> Result<(), SpoolError> {
        if self.upkeep_at.elapsed() < UPKEEP && self.closing_since.is_none() {
            return Ok(());
        }
        self.upkeep_at = Instant::now();
        self.measure();
        let age = self.writer.segment_since().map(|since| since.elapsed());
        let old = age.is_some_and(|age| age >= Duration::from_millis(self.cfg.segment_age_ms_max));
        let full = self.shared.disk_full.load(Ordering::Relaxed);
        if old || full {
            self.sync()?;
            self.writer.seal();
            self.publish(false);
        }
        Ok(())
    }

    fn measure(&mut self) {
        let bytes = disk_bytes(&self.cfg.dir);
        self.shared.disk_bytes.store(bytes, Ordering::Relaxed);
        self.shared.disk_full.store(bytes >= self.cfg.disk_bytes_max, Ordering::Relaxed);
    }

    fn publish(&self, closed: bool) {
        *lock(&self.shared.durable) = Durable { upto: self.writer.synced(), closed };
        self.shared.advanced.notify_all();
    }

    fn give_up(&mut self) -> u64 {
        self.writer.give_up();
        let mut queue = lock(&self.shared.queue);
        let mut lost = self.begins;
        loop {
            let rest = queue.take(usize::MAX);
            if rest.is_empty() {
                break;
            }
            lost += rest.iter().filter(|r| matches!(r, Record::Begin(_))).count() as u64;
        }
        *queue.dropped.entry(DropReason::SpoolError).or_default() += lost;
        lost
    }

    /// Announces the end. The lock on the directory is released when the writer is dropped, after
    /// this.
    fn finish(mut self, lost: u64) -> u64 {
        self.writer.seal();
        self.publish(true);
        lost
    }
}

/// Applies a step to every item, also after an error, and returns the first error.
trait TryForEachAll: Iterator + Sized {
    fn try_for_each_all<E>(self, step: impl FnMut(Self::Item) -> Result<(), E>) -> Result<(), E> {
        self.map(step).fold(Ok(()), Result::and)
    }
}

impl<I: Iterator> TryForEachAll for I {}
