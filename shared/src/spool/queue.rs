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
use super::batch::{Frames, Item};
use super::frame;
use super::health::Judge;
use super::tail::Tail;
use super::written::Place;
use crate::clock::now_ms;
use crate::turn::{DropReason, Gap, Part, Record, TurnId};

/// Most different (route, reason) pairs that are noted apart; more are noted without their route.
const GAPS_MAX: usize = 1024;
/// Heavier records are not framed by whoever brings them: the thread that writes packs them.
const FRAMED_WEIGHT_MAX: usize = 48 << 10;
/// Heavier records are not put into the tail: that takes too long for the path of requests.
const TAIL_WEIGHT_MAX: usize = 256 << 10;
/// A buffer of frames that has grown beyond this is not used again.
const SPARE_BYTES_MAX: usize = 160 << 10;
/// Most of them.
const SPARES_MAX: usize = 8;

/// What the thread sleeps for, if it does: whoever brings it must wake it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Awaited {
    #[default]
    Nothing,
    /// Any record.
    Records,
    /// More records, which can wait, or one that cannot.
    Hurry,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    records: usize,
    bytes: usize,
    /// Keeps what is in `items` from dying with this process; `None`: there is no place for it.
    pub(super) tail: Option<Tail>,
    /// Records in `items` that are not in the tail.
    exposed: usize,
    /// Turns whose `Begin` was accepted and whose `Done` was not yet offered.
    open: HashSet<TurnId>,
    /// Turns that were dropped since the last gap frame: how many, from when to when.
    gaps: BTreeMap<(String, DropReason), (u64, i64, i64)>,
    pub(super) closed: bool,
    pub(super) awaited: Awaited,
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
    /// Emptied buffers of frames.
    spare: Vec<Vec<u8>>,
}

impl Queue {
    /// Takes a record or says why not. A `Done` whose `Begin` was refused is refused as
    /// `BeginLost`, uncounted.
    pub(super) fn offer(
        &mut self,
        cfg: &SpoolConfig,
        disk_full: bool,
        record: Record,
    ) -> Result<Place, DropReason> {
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
                Ok(self.push(cfg, Record::Begin(begin)))
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
                Ok(self.push(cfg, Record::Done(done)))
            }
            Record::Gap(gap) => {
                if self.closed {
                    return Err(DropReason::Closed);
                }
                self.note_gap(gap.route, gap.reason, gap.count, gap.at_ms);
                Ok(Place::KEPT)
            }
            // No turn, so not in the turns' books: whoever offers it is told.
            Record::Feedback(feedback) => {
                if let Some(reason) = self.refusal(cfg, disk_full, feedback.weight_bytes()) {
                    return Err(reason);
                }
                Ok(self.push(cfg, Record::Feedback(feedback)))
            }
            Record::Part(part) => {
                let offered = self.offer_part(cfg, disk_full, part);
                offered.map_err(|_| DropReason::QueueBytes)
            }
        }
    }

    /// Takes a part of an open turn, or gives its body back: while more waits than is written at
    /// once, streams are faster than the disk, and better hold what they have.
    pub(super) fn offer_part(
        &mut self,
        cfg: &SpoolConfig,
        disk_full: bool,
        part: Part,
    ) -> Result<Place, Bytes> {
        let refused = self.refusal(cfg, disk_full, part.body.len()).is_some();
        if refused || self.bytes > cfg.sync_bytes_max || !self.open.contains(&part.turn_id) {
            return Err(part.body);
        }
        Ok(self.push(cfg, Record::Part(part)))
    }

    /// An empty buffer that a part had, if there is one.
    pub(super) fn take_buffer(&mut self) -> Option<Vec<u8>> {
        self.buffers.pop()
    }

    /// Keeps buffers of what was written, to be filled again.
    pub(super) fn recycle(&mut self, cfg: &SpoolConfig, written: Vec<Item>) {
        for item in written {
            match item {
                Item::Record(record) => self.recycle_part(cfg, *record),
                Item::Frames(mut frames) => {
                    let small = frames.bytes.capacity() <= SPARE_BYTES_MAX;
                    if small && self.spare.len() < SPARES_MAX {
                        frames.bytes.clear();
                        self.spare.push(frames.bytes);
                    }
                }
            }
        }
    }

    /// Keeps the buffer of a part, up to the configured number. Those of other sizes are freed.
    fn recycle_part(&mut self, cfg: &SpoolConfig, record: Record) {
        let Record::Part(part) = record else { return };
        let Ok(buffer) = part.body.try_into_mut() else { return };
        let mut buffer = Vec::from(buffer);
        if self.buffers.len() < cfg.part_buffers_max && buffer.capacity() == cfg.part_bytes {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    fn refusal(&self, cfg: &SpoolConfig, disk_full: bool, weight: usize) -> Option<DropReason> {
        if self.closed {
            Some(DropReason::Closed)
        } else if disk_full {
            Some(DropReason::SpoolFull)
        } else if self.records + self.open.len() + 2 > cfg.queue_records_max {
            Some(DropReason::QueueFull)
        } else if self.bytes + weight > cfg.queue_bytes_max {
            Some(DropReason::QueueBytes)
        } else {
            None
        }
    }

    /// How much of the queue is used, per mille of its records or of its bytes, whichever is more.
    pub(super) fn used_per_mille(&self, cfg: &SpoolConfig) -> usize {
        let records = (self.records + self.open.len()) * 1000 / cfg.queue_records_max.max(1);
        records.max(self.bytes.saturating_mul(1000) / cfg.queue_bytes_max.max(1))
    }

    /// Where the record stands, which is nowhere worth waiting for if the tail has it.
    fn push(&mut self, cfg: &SpoolConfig, record: Record) -> Place {
        self.records += 1;
        self.pushed += 1;
        self.unwritten_since.get_or_insert_with(Instant::now);
        let weight = record.weight();
        self.bytes += weight;
        let kept = match &mut self.tail {
            Some(tail) if weight <= FRAMED_WEIGHT_MAX => {
                if !matches!(self.items.back(), Some(Item::Frames(frames)) if frames.has_room()) {
                    let frames = Frames::reusing(self.spare.pop());
                    self.items.push_back(Item::Frames(frames));
                }
                let kept = match self.items.back_mut() {
                    Some(Item::Frames(frames)) => tail.put(frames.add(&record)),
                    _ => false,
                };
                self.recycle_part(cfg, record);
                kept
            }
            tail => {
                let kept = tail.as_mut().is_some_and(|tail| {
                    let mut frame = Vec::new();
                    if weight <= TAIL_WEIGHT_MAX {
                        frame::encode_plain(&record, &mut frame);
                    }
                    !frame.is_empty() && tail.put(&frame)
                });
                self.items.push_back(Item::Record(Box::new(record)));
                kept
            }
        };
        if kept {
            return Place::KEPT;
        }
        self.exposed += 1;
        Place(self.pushed)
    }

    /// Whether what waits may wait a little longer, for more to be written with it: all of it
    /// outlives this process, and it is not much.
    pub(super) fn can_wait(&self, cfg: &SpoolConfig) -> bool {
        self.tail.is_some() && self.exposed == 0 && self.bytes < cfg.sync_bytes_max / 4
    }

    /// Whether the thread is to be woken for what came since.
    pub(super) fn wakes(&mut self, cfg: &SpoolConfig) -> bool {
        let wakes = match self.awaited {
            Awaited::Nothing => false,
            Awaited::Records => true,
            Awaited::Hurry => !self.can_wait(cfg),
        };
        if wakes {
            self.awaited = Awaited::Nothing;
        }
        wakes
    }

    /// Takes items from the front until they weigh `bytes_max`; at least one, if there is one.
    pub(super) fn take(&mut self, bytes_max: usize) -> Vec<Item> {
        let mut taken = Vec::new();
        let mut weight = 0;
        while weight < bytes_max {
            let Some(item) = self.items.pop_front() else { break };
            weight += item.weight();
            self.records = self.records.saturating_sub(item.records() as usize);
            taken.push(item);
        }
        self.bytes = self.bytes.saturating_sub(weight);
        if self.items.is_empty() {
            self.exposed = 0;
            if let Some(tail) = self.tail.as_mut().filter(|_| !taken.is_empty()) {
                tail.take_turns();
            }
        }
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
        self.records
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn open(&self) -> usize {
        self.open.len()
    }
}
