//! The one bounded queue between the tap and the spool thread.
//!
//! Bounded in records and in bytes. Every accepted `Begin` reserves the place of its `Done`, so a
//! turn that was accepted can always end: a `Done` that would not fit loses its body (and is marked
//! as truncated), never its facts. A part that does not fit goes back to whoever offers it.
//!
//! Invariant: `requests = accepted + dropped{reason}`; a turn is counted once, when its `Begin` is
//! offered.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use super::SpoolConfig;
use super::health::Judge;
use crate::clock::now_ms;
use crate::turn::{DropReason, Gap, Part, Record, TurnId};

/// Most different (route, reason) pairs that are noted apart; more are noted without their route.
const GAPS_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Queue {
    records: VecDeque<Record>,
    bytes: usize,
    /// Turns whose `Begin` was accepted and whose `Done` was not yet offered.
    open: HashSet<TurnId>,
    /// Turns that were dropped since the last gap frame: how many, from when to when.
    gaps: BTreeMap<(String, DropReason), (u64, i64, i64)>,
    pub(super) closed: bool,
    /// The thread sleeps until something comes: whoever brings it must wake it.
    pub(super) awaited: bool,
    /// A sync has ended.
    pub(super) synced: bool,
    pub(super) judge: Judge,
    pub(super) requests: u64,
    pub(super) accepted: u64,
    /// Records that were ever taken: the place of the last one.
    pub(super) pushed: u64,
    /// Since when records wait that are not written, as seen by the thread.
    pub(super) unwritten_since: Option<Instant>,
    pub(super) bodies_cut: u64,
    pub(super) dropped: BTreeMap<DropReason, u64>,
    /// Emptied buffers of parts, to be filled again.
    buffers: Vec<Vec<u8>>,
}

impl Queue {
    /// Takes a record or says why not. A `Done` whose `Begin` was refused is refused as
    /// `BeginLost`, uncounted.
    pub(super) fn offer(
        &mut self,
        cfg: &SpoolConfig,
        disk_full: bool,
        record: Record,
    ) -> Result<(), DropReason> {
        match record {
            Record::Begin(begin) => {
                self.requests += 1;
                let turn_id = begin.turn_id;
                let weight = 512 + begin.body.len();
                if let Some(reason) = self.refusal(cfg, disk_full, weight) {
                    self.count_drop(begin.route, reason, 1, now_ms());
                    return Err(reason);
                }
                self.accepted += 1;
                self.open.insert(turn_id);
                self.push(Record::Begin(begin));
            }
            Record::Done(mut done) => {
                if self.closed {
                    return Err(DropReason::Closed);
                }
                if !self.open.remove(&done.turn_id) {
                    return Err(DropReason::BeginLost);
                }
                if disk_full || self.bytes + done.body.len() > cfg.queue_bytes_max {
                    done.body_truncated |= !done.body.is_empty();
                    self.bodies_cut += u64::from(!done.body.is_empty());
                    done.body = Bytes::new();
                    done.body_cut = None;
                }
                self.push(Record::Done(done));
            }
            Record::Gap(gap) => {
                if self.closed {
                    return Err(DropReason::Closed);
                }
                self.note_gap(gap.route, gap.reason, gap.count, gap.at_ms);
            }
            // No turn, so not in the turns' books: whoever offers it is told.
            Record::Feedback(feedback) => {
                if let Some(reason) = self.refusal(cfg, disk_full, feedback.weight_bytes()) {
                    return Err(reason);
                }
                self.push(Record::Feedback(feedback));
            }
            Record::Part(part) => {
                let refused = self.offer_part(cfg, disk_full, part);
                return refused.map_err(|_| DropReason::QueueBytes);
            }
        }
        Ok(())
    }

    /// Takes a part of an open turn, or gives its body back: while more waits than is written at
    /// once, streams are faster than the disk, and better hold what they have.
    pub(super) fn offer_part(
        &mut self,
        cfg: &SpoolConfig,
        disk_full: bool,
        part: Part,
    ) -> Result<(), Bytes> {
        let refused = self.refusal(cfg, disk_full, part.body.len()).is_some();
        if refused || self.bytes > cfg.sync_bytes_max || !self.open.contains(&part.turn_id) {
            return Err(part.body);
        }
        self.push(Record::Part(part));
        Ok(())
    }

    /// An empty buffer that a part had, if there is one.
    pub(super) fn take_buffer(&mut self) -> Option<Vec<u8>> {
        self.buffers.pop()
    }

    /// Keeps the buffers of parts that were written, up to the configured number. Those of other
    /// sizes are freed.
    pub(super) fn recycle(&mut self, cfg: &SpoolConfig, written: Vec<Record>) {
        for record in written {
            let Record::Part(part) = record else { continue };
            let Ok(buffer) = part.body.try_into_mut() else { continue };
            let mut buffer = Vec::from(buffer);
            if self.buffers.len() < cfg.part_buffers_max && buffer.capacity() == cfg.part_bytes {
                buffer.clear();
                self.buffers.push(buffer);
            }
        }
    }

    fn refusal(&self, cfg: &SpoolConfig, disk_full: bool, weight: usize) -> Option<DropReason> {
        if self.closed {
            Some(DropReason::Closed)
        } else if disk_full {
            Some(DropReason::SpoolFull)
        } else if self.records.len() + self.open.len() + 2 > cfg.queue_records_max {
            Some(DropReason::QueueFull)
        } else if self.bytes + weight > cfg.queue_bytes_max {
            Some(DropReason::QueueBytes)
        } else {
            None
        }
    }

    /// How much of the queue is used, per mille of its records or of its bytes, whichever is more.
    pub(super) fn used_per_mille(&self, cfg: &SpoolConfig) -> usize {
        let records = (self.records.len() + self.open.len()) * 1000 / cfg.queue_records_max.max(1);
        records.max(self.bytes.saturating_mul(1000) / cfg.queue_bytes_max.max(1))
    }

    fn push(&mut self, record: Record) {
        self.bytes += record.weight();
        self.records.push_back(record);
        self.pushed += 1;
        self.unwritten_since.get_or_insert_with(Instant::now);
    }

    /// Takes records from the front until they weigh `bytes_max`; at least one, if there is one.
    pub(super) fn take(&mut self, bytes_max: usize) -> Vec<Record> {
        let mut taken = Vec::new();
        let mut weight = 0;
        while weight < bytes_max {
            let Some(record) = self.records.pop_front() else { break };
            weight += record.weight();
            taken.push(record);
        }
        self.bytes = self.bytes.saturating_sub(weight);
        taken
    }

    /// Counts dropped turns, in memory at once and on disk with the next gap frames.
    pub(super) fn count_drop(&mut self, route: String, reason: DropReason, count: u64, at_ms: i64) {
        *self.dropped.entry(reason).or_default() += count;
        self.note_gap(route, reason, count, at_ms);
    }

    fn note_gap(&mut self, route: String, reason: DropReason, count: u64, at_ms: i64) {
        let key = (route, reason);
        let crowded = self.gaps.len() >= GAPS_MAX && !self.gaps.contains_key(&key);
        let key = if crowded { (String::new(), reason) } else { key };
        let (total, first, last) = self.gaps.entry(key).or_insert((0, at_ms, at_ms));
        *total += count;
        *first = (*first).min(at_ms);
        *last = (*last).max(at_ms);
    }

    /// Takes the gaps that are not yet on disk.
    pub(super) fn take_gaps(&mut self) -> Vec<Record> {
        let gaps = std::mem::take(&mut self.gaps).into_iter();
        gaps.map(|((route, reason), (count, from_ms, at_ms))| {
            Record::Gap(Gap { route, reason, count, from_ms, at_ms })
        })
        .collect()
    }

    pub(super) fn has_gaps(&self) -> bool {
        !self.gaps.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn open(&self) -> usize {
        self.open.len()
    }
}
