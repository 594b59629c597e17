//! The one thread that writes.
//!
//! It takes what waits, appends it at once and syncs in groups. When no place takes its writes, it
//! keeps what it has, tries again after a pause and lets the queue fill: traffic goes on, and what
//! no longer fits is counted as dropped.
//!
//! Invariant: a record leaves the queue only into the writer, which keeps it until it is durable.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::batch::Item;
use super::handle::{Durable, Shared, lock};
use super::queue::{Awaited, Queue};
use super::sync::Syncer;
use super::tail::Tail;
use super::{SpoolConfig, SpoolError, SpoolWriter, disk_bytes};
use crate::turn::DropReason;

/// How often the disk is measured and gaps are written, at most.
const UPKEEP: Duration = Duration::from_secs(1);
/// Shortest time between two looks at the queue while much comes: records are written together
/// instead of each waking the thread. What comes after a quiet moment is written at once.
const GATHER: Duration = Duration::from_millis(1);
/// The same for records that outlive this process already: nothing but the ingest waits for them.
const GATHER_KEPT: Duration = Duration::from_millis(4);
/// Records per millisecond that count as much.
const MUCH: u32 = 4;
/// How long they are counted before that is decided again.
const COUNTED: Duration = Duration::from_millis(4);

/// How fast records come.
struct Pace {
    since: Instant,
    records: u32,
    much: bool,
}

impl Pace {
    fn count(&mut self, records: u64, now: Instant) {
        self.records = self.records.saturating_add(u32::try_from(records).unwrap_or(u32::MAX));
        let counted = now.saturating_duration_since(self.since);
        if counted >= COUNTED {
            self.much = u128::from(self.records) >= counted.as_millis() * u128::from(MUCH);
            (self.since, self.records) = (now, 0);
        }
    }
}

/// The state of the spool thread.
pub(super) struct Task {
    cfg: SpoolConfig,
    writer: SpoolWriter,
    shared: Arc<Shared>,
    syncer: Syncer,
    /// `Begin` frames that are not yet durable.
    begins: u64,
    /// Records that were taken from the queue and are not yet written.
    unwritten: u64,
    upkeep_at: Instant,
    looked_at: Instant,
    pace: Pace,
    has_tail: bool,
    closing_since: Option<Instant>,
}

impl Task {
    /// Errors: the thread that syncs cannot be started.
    pub(super) fn new(
        cfg: SpoolConfig,
        writer: SpoolWriter,
        shared: Arc<Shared>,
    ) -> std::io::Result<Self> {
        let syncer = Syncer::start(Arc::clone(&shared))?;
        let now = Instant::now();
        let has_tail = lock(&shared.queue).tail.is_some();
        let mut task = Self {
            cfg,
            writer,
            shared,
            syncer,
            begins: 0,
            unwritten: 0,
            upkeep_at: now,
            looked_at: now,
            pace: Pace { since: now, records: 0, much: false },
            has_tail,
            closing_since: None,
        };
        task.measure();
        Ok(task)
    }

    /// Runs until the spool is closed and empty. Returns how many turns could not be written.
    pub(super) fn run(mut self) -> u64 {
        loop {
            let batch = self.next_batch();
            let degraded = self.shared.degraded.load(Ordering::Relaxed);
            let idle = batch.is_empty() && self.writer.unsynced_bytes() == 0;
            self.begins += batch.iter().map(Item::begins).sum::<u64>();
            let result = self.writer.append_all(&batch);
            if result.is_ok() && !batch.is_empty() {
                self.wrote();
            }
            if !batch.is_empty() {
                lock(&self.shared.queue).recycle(&self.cfg, batch);
            }
            let result = result.and_then(|()| self.sync_if_due(degraded));
            let result = result.and_then(|()| self.upkeep());
            // What was refused before has now been written again, if nothing failed.
            if result.is_ok() && degraded {
                self.wrote();
            }
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
    fn next_batch(&mut self) -> Vec<Item> {
        if self.pace.much && !self.has_tail && self.closing_since.is_none() {
            std::thread::sleep(GATHER.saturating_sub(self.looked_at.elapsed()));
        }
        let degraded = self.shared.degraded.load(Ordering::Relaxed);
        let wait = match self.writer.unsynced_since() {
            _ if degraded => Duration::from_millis(self.cfg.retry_ms),
            // Woken when it has ended.
            _ if self.syncer.busy => UPKEEP,
            Some(since) => {
                Duration::from_millis(self.cfg.sync_ms_max).saturating_sub(since.elapsed())
            }
            None => UPKEEP.saturating_sub(self.upkeep_at.elapsed()),
        };
        let queue = lock(&self.shared.queue);
        let idle = |q: &mut Queue| {
            let idle = !q.closed && !q.synced && (degraded || q.len() == 0);
            q.awaited = if idle { Awaited::Records } else { Awaited::Nothing };
            idle
        };
        let waited = self.shared.filled.wait_timeout_while(queue, wait, idle);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if queue.len() > 0 && !degraded {
            let waits = |q: &mut Queue| {
                let waits = !q.closed && q.can_wait(&self.cfg);
                q.awaited = if waits { Awaited::Hurry } else { Awaited::Nothing };
                waits
            };
            let waited = self.shared.filled.wait_timeout_while(queue, GATHER_KEPT, waits);
            (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        (queue.awaited, queue.synced) = (Awaited::Nothing, false);
        self.looked_at = Instant::now();
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
        let records = batch.iter().map(Item::records).sum::<u64>();
        self.unwritten += records;
        self.pace.count(records, self.looked_at);
        if queue.has_gaps() && (queue.closed || self.upkeep_at.elapsed() >= UPKEEP) {
            let gaps = queue.take_gaps().into_iter();
            batch.extend(gaps.map(|gap| Item::Record(Box::new(gap))));
        }
        batch
    }

    /// All that was taken is written: whoever waited for it goes on.
    fn wrote(&mut self) {
        let records = std::mem::take(&mut self.unwritten);
        if records > 0 {
            let mut queue = lock(&self.shared.queue);
            queue.unwritten_since = (queue.len() > 0).then(Instant::now);
            queue.tail.as_mut().into_iter().for_each(Tail::wrote);
            drop(queue);
            self.shared.written.add(records);
        }
    }

    fn sync_if_due(&mut self, now: bool) -> Result<(), SpoolError> {
        let age = self.writer.unsynced_since().map(|since| since.elapsed());
        let old = age.is_some_and(|age| age >= Duration::from_millis(self.cfg.sync_ms_max));
        let bytes = self.writer.unsynced_bytes();
        let large = bytes >= self.cfg.sync_bytes_max;
        // What waits to be written again, and what is too much to keep, is waited for.
        let much = bytes >= self.cfg.sync_bytes_max.saturating_mul(4);
        if now || much || self.writer.is_long() || self.closing_since.is_some() {
            return self.sync();
        }
        self.take_synced(false)?;
        if self.syncer.busy || !(old || large) {
            return Ok(());
        }
        let job = self.writer.sync_job(self.begins);
        let begun = job.is_some_and(|job| self.syncer.begin(job));
        if begun { Ok(()) } else { self.sync() }
    }

    /// Notes the sync that was under way, once it has ended.
    fn take_synced(&mut self, wait: bool) -> Result<(), SpoolError> {
        let Some((job, result)) = self.syncer.ended(wait) else { return Ok(()) };
        if self.writer.synced_by(&job, result)? {
            self.begins = self.begins.saturating_sub(job.begins);
            if self.count_used(self.writer.tier(), job.bytes as u64) {
                self.writer.sync()?;
                self.writer.seal();
            }
            self.publish(false);
        }
        Ok(())
    }

    /// Makes everything durable, now.
    fn sync(&mut self) -> Result<(), SpoolError> {
        self.take_synced(true)?;
        let bytes = self.writer.unsynced_bytes() as u64;
        let into = self.writer.tier();
        self.writer.sync()?;
        self.begins = 0;
        if self.count_used(into.or(self.writer.tier()), bytes) {
            // What follows goes elsewhere, and this segment can be deleted once it is stored.
            self.writer.seal();
        }
        self.publish(false);
        Ok(())
    }

    /// Adds to what a place holds. Returns whether the place of the open segment is full now.
    fn count_used(&mut self, tier: Option<usize>, bytes: u64) -> bool {
        if let Some(used) = self.shared.used.get(tier.unwrap_or(0)) {
            used.fetch_add(bytes, Ordering::Relaxed);
        }
        bytes > 0 && self.mark_full(false)
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
        self.shared.on_reserve.store(self.writer.tier() == Some(1), Ordering::Relaxed);
        self.shared.assess(&self.cfg, &mut lock(&self.shared.queue));
    }

    /// Seals a segment that is old, or that must make room, and measures the disk.
    fn upkeep(&mut self) -> Result<(), SpoolError> {
        if self.upkeep_at.elapsed() < UPKEEP && self.closing_since.is_none() {
            return Ok(());
        }
        self.upkeep_at = Instant::now();
        let mut queue = lock(&self.shared.queue);
        let nothing_waits = queue.len() == 0 && self.unwritten == 0;
        queue.tail.as_mut().into_iter().for_each(|tail| tail.wipe(nothing_waits));
        drop(queue);
        self.measure();
        let age = self.writer.segment_since().map(|since| since.elapsed());
        let old = age.is_some_and(|age| age >= Duration::from_millis(self.cfg.segment_age_ms_max));
        let full = self.shared.disk_full.load(Ordering::Relaxed);
        if old || full || self.writer.should_move() {
            self.sync()?;
            self.writer.seal();
            self.publish(false);
        }
        Ok(())
    }

    fn measure(&mut self) {
        let roots = [Some(&self.cfg.dir), self.cfg.reserve_dir.as_ref()];
        for (used, root) in self.shared.used.iter().zip(roots) {
            used.store(root.map_or(0, |root| disk_bytes(root)), Ordering::Relaxed);
        }
        self.mark_full(true);
    }

    /// Compares what is used with the quotas. A place that was full has room again once an eighth
    /// is free. Returns whether the place of the open segment is full.
    fn mark_full(&mut self, measured: bool) -> bool {
        let reserve = self.cfg.reserve_dir.as_ref().map(|_| self.cfg.reserve_bytes_max);
        let quotas = [Some(self.cfg.disk_bytes_max), reserve];
        let (mut all, mut own) = (true, false);
        for (tier, quota) in quotas.into_iter().enumerate() {
            let Some(quota) = quota else { continue };
            let used = self.shared.used.get(tier).map_or(0, |used| used.load(Ordering::Relaxed));
            let was_full = self.writer.is_full(tier);
            // Only a measurement can free room.
            let mark = if was_full && measured { quota - quota / 8 } else { quota };
            let full = used >= mark || (was_full && !measured);
            self.writer.set_full(tier, full);
            all &= full;
            own |= full && self.writer.tier() == Some(tier);
        }
        self.shared.disk_full.store(all, Ordering::Relaxed);
        own
    }

    fn publish(&mut self, closed: bool) {
        let sealed = self.writer.take_sealed();
        let mut durable = lock(&self.shared.durable);
        durable.sealed.extend(sealed);
        let upto = self.writer.synced();
        *durable = Durable { upto, closed, sealed: std::mem::take(&mut durable.sealed) };
        drop(durable);
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
            lost += rest.iter().map(Item::begins).sum::<u64>();
        }
        *queue.dropped.entry(DropReason::SpoolError).or_default() += lost;
        lost
    }

    /// Announces the end. The lock on the directory is released when the writer is dropped, after
    /// this.
    fn finish(mut self, lost: u64) -> u64 {
        self.writer.seal();
        // Before a reader, who is told next, removes the directory that has links to it.
        lock(&self.shared.queue).tail = None;
        self.publish(true);
        lost
    }
}
