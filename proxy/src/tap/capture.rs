//! One body on its way past the tap.
//!
//! Bytes are copied into blocks, each a fraction of what is held already: a stream of 170-byte SSE
//! chunks costs a handful of allocations, never moves what it has, wastes little, and pins none of
//! pingora's buffers. A body over the cap of its policy, or one that finds the memory of all
//! captures used up, keeps only its two ends, its length and its hash ([`super::ends`]).
//!
//! A capture in parts gives its blocks away whenever they hold as much as a part; from the second
//! part on that is one block of just that size, which is moved, not copied.
//!
//! Invariant: what is kept, with the parts before it, is a prefix of what crossed the wire, or after
//! a cut a prefix and a suffix; `len` is all of it; and a chunk allocates only when a block is full.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hone_shared::turn::Cut;

use super::ends::Ends;

/// Smallest block, bytes. All others are multiples: a size that allocators keep wastes nothing.
const BLOCK_BYTES_MIN: usize = 4 << 10;
/// Largest block, bytes.
const BLOCK_BYTES_MAX: usize = 256 << 10;
/// A new block is this part of what is held, so that at most as much is wasted.
const BLOCK_PART: usize = 8;
/// Most that is allocated on the word of a `Content-Length`, bytes: it costs a client nothing.
const EXPECT_BYTES_MAX: usize = 64 << 10;

/// What all captures in flight may hold together.
#[derive(Debug)]
pub struct Budget {
    held: AtomicU64,
    max: u64,
}

impl Budget {
    /// A budget of `max` bytes.
    pub fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { held: AtomicU64::new(0), max })
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.max {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}

/// A finished capture.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Captured {
    /// The body; of a cut one its beginning and its end.
    pub bytes: Bytes,
    /// Length of the whole body on the wire.
    pub len: u64,
    /// Whether `bytes` is not the whole body.
    pub truncated: bool,
    /// Where the body was cut, and the hash of all of it.
    pub cut: Option<Cut>,
    /// How much of the body was taken as parts, and is not in `bytes`.
    pub at: u64,
}

/// A capture in progress.
#[derive(Debug)]
pub struct Capture {
    blocks: VecDeque<Vec<u8>>,
    /// Bytes in `blocks`.
    held: usize,
    len: u64,
    max: usize,
    /// Bytes that were taken as parts, all before those held.
    taken: usize,
    /// The hash of so many first bytes: of those taken, and of what was put back.
    hash: Option<Box<blake3::Hasher>>,
    hashed: usize,
    /// How much of the beginning is kept of a body that was cut.
    head: usize,
    /// Length of a part, and what must be held for the next one to be taken.
    part: usize,
    due: usize,
    /// Part of the body never came past.
    missing: bool,
    /// Set once the body no longer fits.
    ends: Option<Box<Ends>>,
    /// What of the budget is ours.
    reserved: usize,
    budget: Arc<Budget>,
}

impl Capture {
    /// An empty capture that keeps at most `max` bytes and allocates nothing yet.
    pub fn new(budget: Arc<Budget>, max: u64) -> Self {
        Self::in_parts(budget, max, usize::MAX)
    }

    /// As [`Capture::new`], of which parts of about `part` bytes can be taken.
    pub fn in_parts(budget: Arc<Budget>, max: u64, part: usize) -> Self {
        Self {
            blocks: VecDeque::new(),
            held: 0,
            len: 0,
            max: usize::try_from(max).unwrap_or(usize::MAX),
            taken: 0,
            hash: None,
            hashed: 0,
            head: 0,
            part,
            due: part,
            missing: false,
            ends: None,
            reserved: 0,
            budget,
        }
    }

    /// Makes room for a body whose length is known, so that a short one is allocated once.
    pub fn expect(&mut self, len: u64) {
        let most = self.max.min(self.part).min(EXPECT_BYTES_MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(most);
        if self.blocks.is_empty() && len > 0 {
            // Without it the body is allocated as it comes.
            let _ = self.add_block(len);
        }
    }

    /// Copies a chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        self.len += chunk.len() as u64;
        if let Some(ends) = &mut self.ends {
            ends.pass(chunk);
        } else if chunk.len() > self.max - self.taken - self.held || !self.keep(chunk) {
            self.cut_short(chunk);
        }
    }

    /// Whether a part is to be taken before the next chunk, of so many bytes, comes. Not shortly
    /// before the cap: the end of a longer body must still be here when it is cut.
    pub fn is_part_due(&self, chunk_bytes: usize) -> bool {
        self.held > 0
            && self.held.saturating_add(chunk_bytes) > self.due
            && self.ends.is_none()
            && self.taken + self.held <= self.max - Ends::sizes(self.max).1
    }

    /// Takes what is held as the next part, which begins where [`Capture::taken`] ended before.
    pub fn take_part(&mut self) -> Bytes {
        let bytes = match self.blocks.len() {
            1 => Bytes::from(self.blocks.pop_front().unwrap_or_default()),
            _ => self.join(self.part.min(EXPECT_BYTES_MAX), &[]),
        };
        self.budget.give_back(std::mem::take(&mut self.reserved));
        (self.held, self.due) = (0, self.part);
        let known = self.hashed - self.taken;
        self.hash.get_or_insert_default().update(bytes.get(known..).unwrap_or_default());
        self.taken += bytes.len();
        self.hashed = self.taken;
        bytes
    }

    /// The part that was just taken is gone for good; `buffer` is for what comes next.
    pub fn refill(&mut self, buffer: Option<Vec<u8>>) {
        let Some(buffer) = buffer.filter(|buffer| self.budget.take(buffer.capacity())) else {
            return;
        };
        self.reserved += buffer.capacity();
        self.blocks.push_back(buffer);
    }

    /// Takes the part that was just taken back: there is no room for it elsewhere. It is offered
    /// again when twice as much is held.
    pub fn put_back(&mut self, bytes: Bytes) {
        let block = Vec::from(bytes);
        self.taken -= block.len();
        self.held += block.len();
        self.due = self.held.saturating_mul(2);
        // It was ours a moment ago; at worst the budget is over by one part.
        self.budget.held.fetch_add(block.capacity() as u64, Ordering::Relaxed);
        self.reserved += block.capacity();
        self.blocks.push_front(block);
    }

    /// Bytes taken as parts so far.
    pub fn taken(&self) -> u64 {
        self.taken as u64
    }

    /// Forgets everything: the request is sent again and its body comes past once more.
    pub fn restart(&mut self) {
        self.blocks.clear();
        self.budget.give_back(std::mem::take(&mut self.reserved));
        (self.held, self.len, self.missing, self.ends) = (0, 0, false, None);
        (self.taken, self.hash, self.hashed, self.due) = (0, None, 0, self.part);
    }

    /// Bytes that came past so far.
    pub fn passed(&self) -> u64 {
        self.len
    }

    /// Notes that part of the body never came past.
    pub fn cut(&mut self) {
        self.missing = true;
    }

    /// Takes what was captured; the capture is empty afterwards and its memory is no longer counted
    /// here.
    pub fn take(&mut self) -> Captured {
        let (head_bytes, ends) = (self.head as u64, self.ends.take().map(|ends| ends.finish()));
        let cut =
            ends.as_ref().map(|(_, hash)| Cut { head_bytes, blake3: hash.to_hex().to_string() });
        let tail = ends.map(|(tail, _)| tail).unwrap_or_default();
        let bytes = match self.blocks.len() <= 1 && tail.is_empty() {
            true => Bytes::from(self.blocks.pop_front().unwrap_or_default()),
            false => self.join(0, &tail),
        };
        self.budget.give_back(std::mem::take(&mut self.reserved));
        self.held = 0;
        let truncated = self.missing || cut.is_some();
        // The hash of a body that did not all come past would be the hash of something else.
        let cut = if self.missing { None } else { cut };
        Captured { bytes, len: self.len, truncated, cut, at: self.taken() }
    }

    /// All blocks and `tail` in one piece, of a capacity of at least `room`.
    fn join(&mut self, room: usize, tail: &[u8]) -> Bytes {
        let mut whole = Vec::with_capacity(room.max(self.held + tail.len()));
        // Each block is freed as soon as it is copied, so that a long body is not held twice.
        while let Some(block) = self.blocks.pop_front() {
            whole.extend_from_slice(&block);
        }
        whole.extend_from_slice(tail);
        Bytes::from(whole)
    }

    /// Copies a chunk that fits below the cap; `false`, and nothing is copied, when there is no
    /// memory for it.
    fn keep(&mut self, chunk: &[u8]) -> bool {
        let spare = self.blocks.back().map_or(0, |last| last.capacity() - last.len());
        let (first, rest) = chunk.split_at(chunk.len().min(spare));
        let part = (self.held / BLOCK_PART).next_multiple_of(BLOCK_BYTES_MIN);
        let grown = match self.taken {
            0 => part.clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX),
            _ => self.part,
        };
        let room = self.max - self.taken - self.held - first.len();
        if !rest.is_empty() {
            let last = self.blocks.len();
            if !self.add_block(grown.min(room).max(rest.len())) {
                return false;
            }
            if let Some(block) = self.blocks.get_mut(last) {
                block.extend_from_slice(rest);
            }
            if let Some(block) = last.checked_sub(1).and_then(|at| self.blocks.get_mut(at)) {
                block.extend_from_slice(first);
            }
        } else if let Some(block) = self.blocks.back_mut() {
            block.extend_from_slice(first);
        }
        self.held += chunk.len();
        true
    }

    fn add_block(&mut self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        if taken {
            self.reserved += bytes;
            self.blocks.push_back(Vec::with_capacity(bytes));
        }
        taken
    }

    /// The body does not fit: from here on only its ends are kept. Once per body.
    fn cut_short(&mut self, chunk: &[u8]) {
        let (head_max, tail_max) = Ends::sizes(self.max);
        let tail_max = if self.budget.take(tail_max) { tail_max } else { 0 };
        let hash = self.hash.take().map_or_else(blake3::Hasher::new, |hash| *hash);
        let mut ends = Box::new(Ends::after(self.taken as u64, hash, self.hashed as u64, tail_max));
        self.blocks.iter().for_each(|block| ends.pass(block));
        ends.pass(chunk);
        self.shorten(head_max.saturating_sub(self.taken));
        let fill = head_max.saturating_sub(self.taken + self.held).min(chunk.len());
        if fill > 0 && !self.keep(&chunk[..fill]) {
            tracing::debug!("no memory is left for the beginning of a body");
        }
        self.reserved += tail_max;
        self.head = head_max.min(self.taken + self.held);
        ends.begin_at(self.head as u64);
        self.ends = Some(ends);
    }

    /// Frees what is held beyond `max` bytes.
    fn shorten(&mut self, max: usize) {
        while self.held > max {
            let Some(mut last) = self.blocks.pop_back() else { return };
            let over = (self.held - max).min(last.len());
            self.held -= over;
            self.reserved -= last.capacity();
            self.budget.give_back(last.capacity());
            if over < last.len() {
                last.truncate(last.len() - over);
                last.shrink_to_fit();
                // It was ours a moment ago; at worst the budget is over by one block.
                self.budget.held.fetch_add(last.capacity() as u64, Ordering::Relaxed);
                self.reserved += last.capacity();
                self.blocks.push_back(last);
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.budget.give_back(self.reserved);
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
