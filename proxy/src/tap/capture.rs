//! One body on its way past the tap.
//!
//! Bytes are copied into one vector that grows by doubling, so that a stream of 170-byte SSE chunks
//! costs a handful of allocations and pins none of pingora's buffers. Past the cap of the policy,
//! or when all captures together hold as much as they may, the rest is only counted.
//!
//! Invariant: `bytes` is always a prefix of what crossed the wire, and `len` is all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// First allocation of a capture, bytes: one short SSE answer.
const GROWTH_BYTES_MIN: usize = 8 << 10;

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

    fn take(&self, bytes: u64) -> bool {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.max {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A finished capture.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Captured {
    /// A prefix of the body.
    pub bytes: Bytes,
    /// Length of the whole body on the wire.
    pub len: u64,
    /// Whether `bytes` is shorter than that.
    pub truncated: bool,
}

/// A capture in progress.
#[derive(Debug)]
pub struct Capture {
    bytes: Vec<u8>,
    len: u64,
    max: usize,
    truncated: bool,
    reserved: u64,
    budget: Arc<Budget>,
}

impl Capture {
    /// An empty capture that keeps at most `max` bytes and allocates nothing yet.
    pub fn new(budget: Arc<Budget>, max: u64) -> Self {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        Self { bytes: Vec::new(), len: 0, max, truncated: false, reserved: 0, budget }
    }

    /// Makes room for a body whose length is known, so that it is allocated once.
    pub fn expect(&mut self, len: u64) {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(self.max);
        self.make_room(len);
    }

    /// Copies a chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        self.len += chunk.len() as u64;
        if self.truncated {
            return;
        }
        let room = self.max - self.bytes.len();
        let kept = chunk.len().min(room);
        if !self.make_room(kept) {
            self.truncated = true;
            return;
        }
        self.bytes.extend_from_slice(&chunk[..kept]);
        self.truncated = kept < chunk.len();
    }

    /// Forgets everything: the request is sent again and its body comes past once more.
    pub fn restart(&mut self) {
        self.bytes.clear();
        self.len = 0;
        self.truncated = false;
    }

    /// Notes that part of the body never came past.
    pub fn cut(&mut self) {
        self.truncated = true;
    }

    /// Takes what was captured; the capture is empty afterwards and its memory is no longer counted
    /// here.
    pub fn take(&mut self) -> Captured {
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        self.budget.give_back(std::mem::take(&mut self.reserved));
        Captured { bytes, len: self.len, truncated: self.truncated }
    }

    /// Whether `more` bytes fit, after growing if need be.
    fn make_room(&mut self, more: usize) -> bool {
        let needed = self.bytes.len() + more;
        let capacity = self.bytes.capacity();
        if needed <= capacity {
            return true;
        }
        let target = needed.max(capacity * 2).max(GROWTH_BYTES_MIN).min(self.max).max(needed);
        let growth = (target - capacity) as u64;
        if !self.budget.take(growth) {
            return false;
        }
        self.reserved += growth;
        self.bytes.reserve_exact(target - self.bytes.len());
        true
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.budget.give_back(self.reserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined_and_counted() {
        let budget = Budget::new(1 << 20);
        let mut capture = Capture::new(Arc::clone(&budget), 1 << 20);
        (0..100).for_each(|_| capture.push(&[b'x'; 170]));
        assert!(budget.held() >= 17_000);
        let captured = capture.take();
        assert_eq!(
            (captured.bytes.len(), captured.len, captured.truncated),
            (17_000, 17_000, false)
        );
        assert_eq!(budget.held(), 0, "handed over, so no longer counted");
    }

    #[test]
    fn ten_thousand_chunks_cost_a_handful_of_allocations() {
        let mut capture = Capture::new(Budget::new(1 << 30), 1 << 30);
        let mut capacities = std::collections::BTreeSet::new();
        for _ in 0..10_000 {
            capture.push(&[b'x'; 170]);
            capacities.insert(capture.bytes.capacity());
        }
        assert!(capacities.len() <= 10, "{capacities:?}");
    }

    #[test]
    fn a_body_over_the_cap_keeps_its_beginning_and_its_length() {
        let mut capture = Capture::new(Budget::new(1 << 20), 10);
        capture.push(b"0123456");
        capture.push(b"789abc");
        capture.push(b"def");
        let captured = capture.take();
        assert_eq!(
            captured,
            Captured { bytes: Bytes::from("0123456789"), len: 16, truncated: true }
        );
    }

    #[test]
    fn a_body_of_exactly_the_cap_is_whole() {
        let mut capture = Capture::new(Budget::new(1 << 20), 4);
        capture.push(b"0123");
        assert!(!capture.take().truncated);
    }

    #[test]
    fn captures_share_one_budget_and_give_it_back() {
        let budget = Budget::new(10_000);
        let mut first = Capture::new(Arc::clone(&budget), 1 << 20);
        first.push(&[1; 8192]);
        let mut second = Capture::new(Arc::clone(&budget), 1 << 20);
        second.push(&[2; 8192]);
        assert!(second.take().truncated);
        drop(first);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn a_retry_starts_over() {
        let mut capture = Capture::new(Budget::new(1 << 20), 4);
        capture.push(b"lost!");
        capture.restart();
        capture.push(b"kept");
        let captured = capture.take();
        assert_eq!(captured, Captured { bytes: Bytes::from("kept"), len: 4, truncated: false });
    }
}
