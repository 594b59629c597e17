//! What a pass looks at: turns that no rule has seen yet, and the model's own queues.
//!
//! ```text
//! store, rows without a verdict ─► fresh ─► rules ─► verdict
//!                                             ├─► one queue per route and judge ─► picks ─► model
//!                                             └─► left alone (the route no longer trains)
//! ```
//! Rules see a turn once as long as the policies stay the same. A queue holds rows, not turns; one
//! that waits for an endpoint or for its tokens keeps nobody else waiting. What finds no room in its
//! queue stays in the store, and is looked at again when the queue has run empty.
//!
//! Invariant: a turn without a verdict is in a queue, or will be looked at again; forgetting all of
//! this (a restart) costs time and no verdict.

use hone_shared::store::{Store, StoreError};
use std::collections::{BTreeMap, HashSet, VecDeque};

/// Turns that rules look at in one pass.
const TURNS_PER_LOOK: usize = 64;
/// Rows of the store's index that are looked past in one pass; some milliseconds.
const ROWS_PER_LOOK: usize = 65_536;
/// Rows that are remembered as looked at (16 bytes each); more are looked at again.
const SEEN_MAX: usize = 262_144;

/// A route and its judge: turns of one queue are asked about at one endpoint, out of one budget.
pub type Line = (String, String);

/// Turns that wait for the model of one judge.
#[derive(Debug, Default)]
struct Queue {
    /// Settled by a rule but for a hint: first, and at once when the model is away.
    ruled: VecDeque<i64>,
    silent: VecDeque<i64>,
    /// Some found no room.
    overflowed: bool,
}

impl Queue {
    fn len(&self) -> usize {
        self.ruled.len() + self.silent.len()
    }

    /// Takes a row out; `true`: it stood among the ruled ones.
    fn take(&mut self, row: i64) -> Option<bool> {
        for (ruled, rows) in [(true, &mut self.ruled), (false, &mut self.silent)] {
            // Rows are picked from the front, so this looks at a few.
            if let Some(at) = rows.iter().position(|known| *known == row) {
                rows.remove(at);
                return Some(ruled);
            }
        }
        None
    }

    fn put(&mut self, row: i64, ruled: bool) {
        if ruled { self.ruled.push_back(row) } else { self.silent.push_back(row) }
    }
}

/// The turns without a verdict that are known.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Version of the policies under which all of this was found.
    version: Option<u64>,
    /// The row after which the next look begins; 0 = at the oldest.
    cursor: i64,
    seen: HashSet<i64>,
    queues: BTreeMap<Line, Queue>,
    /// Which queue is first changes with every pass.
    passes: usize,
}

impl Waiting {
    /// Turns that are known to wait.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Forgets everything if the policies are others than before: rules may say something else.
    pub fn under(&mut self, version: u64) {
        if self.version != Some(version) {
            *self = Self { version: Some(version), ..Self::default() };
        }
    }

    /// Rows that no rule has seen, oldest first, and from there on around.
    pub fn fresh(&mut self, store: &Store) -> Result<Vec<i64>, StoreError> {
        let rows = store.unjudged_rows(self.cursor, ROWS_PER_LOOK)?;
        let new = rows.iter().copied().filter(|row| !self.seen.contains(row));
        let fresh: Vec<i64> = new.take(TURNS_PER_LOOK).collect();
        let all = rows.len() < ROWS_PER_LOOK;
        if self.cursor == 0 && all && self.seen.len() + fresh.len() > rows.len() {
            // Judged by feedback or erased meanwhile.
            self.seen.retain(|row| rows.binary_search(row).is_ok());
        }
        self.cursor = match (fresh.last(), rows.last()) {
            (Some(last), _) if fresh.len() == TURNS_PER_LOOK => *last,
            (_, Some(last)) if !all => *last,
            _ => 0,
        };
        Ok(fresh)
    }

    /// Leaves a turn alone until the policies change.
    pub fn leave(&mut self, row: i64) {
        if self.seen.len() < SEEN_MAX {
            self.seen.insert(row);
        }
    }

    /// Puts a turn into a queue of at most `room`. `ruled`: a rule's verdict stands already.
    pub fn push(&mut self, line: Line, row: i64, ruled: bool, room: usize) {
        self.leave(row);
        let queue = self.queues.entry(line).or_default();
        if queue.len() < room {
            queue.put(row, ruled);
        } else {
            queue.overflowed = true;
        }
    }

    /// At most `most` rows to ask about now, one of each queue in turn. From queues whose judge is
    /// not `open`, only those that a rule has settled already.
    pub fn picks(&mut self, most: usize, open: impl Fn(&str) -> bool) -> Vec<(Line, i64)> {
        let mut lines: Vec<_> = (self.queues.iter())
            .map(|(line, queue)| {
                let silent = if open(&line.1) { usize::MAX } else { 0 };
                (line, queue.ruled.iter().chain(queue.silent.iter().take(silent)))
            })
            .collect();
        self.passes = self.passes.wrapping_add(1);
        let first = self.passes % lines.len().max(1);
        lines.rotate_left(first);
        let mut picked = Vec::new();
        while picked.len() < most && !lines.is_empty() {
            lines.retain_mut(|(line, rows)| match rows.next() {
                Some(row) if picked.len() < most => {
                    picked.push((line.clone(), *row));
                    true
                }
                _ => false,
            });
        }
        picked
    }

    /// A turn that was picked has its verdict, or is gone.
    pub fn settled(&mut self, line: &Line, row: i64) {
        self.seen.remove(&row);
        let Some(queue) = self.queues.get_mut(line) else { return };
        queue.take(row);
        if queue.len() == 0 && std::mem::take(&mut queue.overflowed) {
            let queues = self.queues.values();
            self.seen = queues.flat_map(|q| q.ruled.iter().chain(&q.silent)).copied().collect();
        }
    }

    /// A turn that was picked cannot be asked about yet: whoever is behind it is first the next time.
    pub fn later(&mut self, line: &Line, row: i64) {
        let Some(queue) = self.queues.get_mut(line) else { return };
        if let Some(ruled) = queue.take(row) {
            queue.put(row, ruled);
        }
    }
}

#[cfg(test)]
#[path = "waiting_tests.rs"]
mod tests;
