//! The handle that the tap holds, and the one that the ingest holds.
//!
//! Invariant: [`Spool::try_send`] takes one short lock and never waits for the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use super::health::{Health, Shown, Signs};
use super::queue::Queue;
use super::tail::Tail;
use super::task::Task;
use super::written::{Place, Written};
use super::{Position, SpoolConfig, SpoolError, SpoolWriter, at};
use crate::clock::now_ms;
use crate::turn::{DropReason, Part, Record};

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
    /// Bytes of all segments in the spool, as last measured, plus what was written since.
    pub disk_bytes: u64,
    /// The same of the reserve.
    pub reserve_bytes: u64,
    /// Whether the open segment lies in the reserve.
    pub on_reserve: bool,
    /// Writes and syncs that failed.
    pub write_errors: u64,
    /// Whether the last write failed and is being tried again.
    pub degraded: bool,
    /// Whether the quotas of the spool and of the reserve are used up.
    pub disk_full: bool,
    /// Whether records outlive this process before they are written.
    pub has_tail: bool,
    /// All that in one word.
    pub health: Health,
}

/// The spools of this process that nobody reads yet. Like the locks on their directories, a fact of
/// the process: the ingest finds them here without being handed anything, and at most one ingest
/// gets each of them.
static UNREAD: Mutex<Vec<Follower>> = Mutex::new(Vec::new());

#[derive(Debug, Default)]
pub(super) struct Durable {
    pub(super) upto: Position,
    pub(super) closed: bool,
    /// Durable lengths of ended segments. One entry per segment that was not yet read to its end.
    pub(super) sealed: BTreeMap<u32, u64>,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) queue: Mutex<Queue>,
    pub(super) filled: Condvar,
    pub(super) durable: Mutex<Durable>,
    pub(super) advanced: Condvar,
    /// Bytes in the spool and in the reserve.
    pub(super) used: [AtomicU64; 2],
    pub(super) disk_full: AtomicBool,
    pub(super) on_reserve: AtomicBool,
    pub(super) write_errors: AtomicU64,
    pub(super) degraded: AtomicBool,
    pub(super) health: Shown,
    pub(super) written: Written,
}

impl Shared {
    /// Decides how the spool is doing.
    pub(super) fn assess(&self, cfg: &SpoolConfig, queue: &mut Queue) {
        let failing = self.degraded.load(Ordering::Relaxed);
        let signs = Signs {
            queue_per_mille: queue.used_per_mille(cfg),
            disk_full: self.disk_full.load(Ordering::Relaxed),
            trouble: failing || self.on_reserve.load(Ordering::Relaxed),
        };
        queue.judge.decide(&self.health, signs, Duration::from_millis(cfg.recover_ms));
    }
}

/// A panic elsewhere must not take the spool down: its plain counters stay valid.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        let shared = Arc::new(Shared::default());
        let follower = Follower {
            dirs: writer.dirs(),
            boot: writer.boot().to_owned(),
            shared: Arc::clone(&shared),
        };
        lock(&shared.queue).tail = start_tail(&cfg, writer.dir());
        let task = Task::new(cfg.clone(), writer, Arc::clone(&shared)).map_err(at(&cfg.dir))?;
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
        self.try_send_to(record).map(drop)
    }

    /// As [`Spool::try_send`]; says where the record stands, for [`Spool::left`].
    pub fn try_send_to(&self, record: Record) -> Result<Place, DropReason> {
        let full = self.shared.disk_full.load(Ordering::Relaxed);
        let mut queue = lock(&self.shared.queue);
        let begins = matches!(record, Record::Begin(_));
        let offered = queue.offer(&self.cfg, full, record);
        if begins {
            self.shared.assess(&self.cfg, &mut queue);
        }
        let wakes = queue.wakes(&self.cfg);
        drop(queue);
        if wakes {
            self.shared.filled.notify_one();
        }
        offered
    }

    /// Waits until a record has left this process, so that killing it loses nothing, if the spool
    /// thread is behind by more than `late`. While the disk refuses, nothing is waited for.
    pub async fn left(&self, place: Place, late: Duration) {
        if place.is_kept()
            || self.shared.written.has(place)
            || self.shared.degraded.load(Ordering::Relaxed)
        {
            return;
        }
        let since = lock(&self.shared.queue).unwritten_since;
        if since.is_some_and(|since| since.elapsed() >= late) {
            self.shared.written.until(place).await;
        }
    }

    /// Hands over a piece of a response that has not ended. Returns an empty buffer for the next
    /// one, if there is one. Errors: there is no room now, or the turn is not open; the body, to be
    /// offered again later or with the end of the turn. Nothing is counted.
    pub fn try_send_part(&self, part: Part) -> Result<Option<Vec<u8>>, Bytes> {
        let full = self.shared.disk_full.load(Ordering::Relaxed);
        let mut queue = lock(&self.shared.queue);
        queue.offer_part(&self.cfg, full, part)?;
        let buffer = queue.take_buffer();
        let wakes = queue.wakes(&self.cfg);
        drop(queue);
        if wakes {
            self.shared.filled.notify_one();
        }
        Ok(buffer)
    }

    /// How long a part should be, bytes: buffers of this capacity are used again.
    pub fn part_bytes(&self) -> usize {
        self.cfg.part_bytes
    }

    /// How the spool is doing: one atomic load, for every request that must not pass unrecorded.
    pub fn health(&self) -> Health {
        self.shared.health.get()
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
        let used =
            |tier: usize| self.shared.used.get(tier).map_or(0, |n| n.load(Ordering::Relaxed));
        SpoolStats {
            requests: queue.requests,
            accepted: queue.accepted,
            dropped: queue.dropped.clone(),
            bodies_cut: queue.bodies_cut,
            open: queue.open(),
            queued_records: queue.len(),
            queued_bytes: queue.bytes(),
            disk_bytes: used(0),
            reserve_bytes: used(1),
            on_reserve: self.shared.on_reserve.load(Ordering::Relaxed),
            health: self.shared.health.get(),
            write_errors: self.shared.write_errors.load(Ordering::Relaxed),
            degraded: self.shared.degraded.load(Ordering::Relaxed),
            disk_full: self.shared.disk_full.load(Ordering::Relaxed),
            has_tail: queue.tail.is_some(),
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

/// Without a tail, answers wait for the spool thread where it is late.
fn start_tail(cfg: &SpoolConfig, dir: &Path) -> Option<Tail> {
    let place = cfg.tail_dir.as_deref()?;
    match Tail::create(place, dir, cfg.tail_bytes_max / 2) {
        Ok(tail) => Some(tail),
        Err(error) => {
            tracing::warn!(place = %place.display(), %error, "the spool has no tail in memory");
            None
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
    dirs: Vec<PathBuf>,
    boot: String,
    shared: Arc<Shared>,
}

impl Follower {
    /// Takes the spools under `spool` that this process writes and nobody reads yet.
    pub fn take_unread(spool: &Path) -> Vec<Self> {
        let mut unread = lock(&UNREAD);
        let (ours, others) = unread.drain(..).partition(|f| f.dir().parent() == Some(spool));
        *unread = others;
        ours
    }

    /// The directory of this process in the spool.
    pub fn dir(&self) -> &Path {
        self.dirs.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// The directories of this process, in the spool and in the reserve.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The durable length of a segment that has ended; `None` while it is written.
    pub(super) fn sealed(&self, segment: u32) -> Option<u64> {
        lock(&self.shared.durable).sealed.get(&segment).copied()
    }

    /// Forgets segments before this one: they were read to their end.
    pub(super) fn passed(&self, segment: u32) {
        let mut durable = lock(&self.shared.durable);
        durable.sealed = durable.sealed.split_off(&segment);
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

    /// Durable bytes after `seen`: what a reader that is there has still to read.
    pub fn ahead_bytes(&self, seen: Position) -> u64 {
        let durable = lock(&self.shared.durable);
        let sealed: u64 = durable.sealed.range(seen.segment..).map(|(_, len)| len).sum();
        (sealed + durable.upto.offset).saturating_sub(seen.offset)
    }

    /// Waits until there is more than `seen`, the spool is closed, or the time is over.
    pub fn wait(&self, seen: Position, timeout: Duration) {
        let durable = lock(&self.shared.durable);
        let idle = |d: &mut Durable| d.upto <= seen && !d.closed;
        drop(self.shared.advanced.wait_timeout_while(durable, timeout, idle));
    }
}
