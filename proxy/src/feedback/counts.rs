//! What became of feedback at the door, by shape and kind.
//!
//! Invariant: labels come from fixed lists; pieces are counted once, their parts by kind.

use std::sync::atomic::{AtomicU64, Ordering};

use hone_shared::feedback::{FeedbackKind, Shape};

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Answered with 202: on its way into the store.
    Accepted,
    /// Only checked, as its sender asked.
    DryRun,
    /// Its body is wrong.
    Invalid,
    /// Its body is too large.
    TooLarge,
    /// Its tenant sent too much.
    Limited,
    /// It could not be recorded.
    Unavailable,
}

const FATES: [(Fate, &str); 6] = [
    (Fate::Accepted, "accepted"),
    (Fate::DryRun, "dry_run"),
    (Fate::Invalid, "invalid"),
    (Fate::TooLarge, "too_large"),
    (Fate::Limited, "limited"),
    (Fate::Unavailable, "unavailable"),
];
/// The last of each list stands for "not known".
const SHAPES: usize = Shape::ALL.len() + 1;
const KINDS: usize = FeedbackKind::ALL.len() + 1;

/// The counts since the start.
#[derive(Debug)]
pub struct Counts {
    cells: [AtomicU64; SHAPES * KINDS * FATES.len()],
    accepted: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { cells: std::array::from_fn(|_| AtomicU64::new(0)), accepted: AtomicU64::new(0) }
    }
}

impl Counts {
    /// Counts a part, or a piece whose parts are not known.
    pub fn add(&self, shape: Option<Shape>, kind: Option<FeedbackKind>, fate: Fate) {
        let shape = Shape::ALL.iter().position(|s| Some(*s) == shape).unwrap_or(SHAPES - 1);
        let kind = FeedbackKind::ALL.iter().position(|k| Some(*k) == kind).unwrap_or(KINDS - 1);
        let fate = FATES.iter().position(|(f, _)| *f == fate).unwrap_or(0);
        if let Some(cell) = self.cells.get((shape * KINDS + kind) * FATES.len() + fate) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a piece that was understood.
    pub fn piece(&self, fate: Fate) {
        self.accepted.fetch_add(u64::from(fate == Fate::Accepted), Ordering::Relaxed);
    }

    /// Pieces answered with 202 and not only checked.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Shape, kind, outcome and count of all that ever happened.
    pub fn read(&self) -> Vec<([&'static str; 3], u64)> {
        let named = |at: usize| {
            let (fate, rest) = (at % FATES.len(), at / FATES.len());
            let shape = Shape::ALL.get(rest / KINDS).map_or("unknown", |s| s.as_str());
            let kind = FeedbackKind::ALL.get(rest % KINDS).map_or("none", |k| k.as_str());
            [shape, kind, FATES.get(fate).map_or("", |(_, name)| name)]
        };
        let counts = self.cells.iter().map(|cell| cell.load(Ordering::Relaxed)).enumerate();
        counts.filter(|(_, n)| *n > 0).map(|(at, n)| (named(at), n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_counted_under_its_own_names() {
        let counts = Counts::default();
        let shapes = Shape::ALL.iter().copied().map(Some).chain([None]);
        for shape in shapes {
            for kind in FeedbackKind::ALL.iter().copied().map(Some).chain([None]) {
                FATES.iter().for_each(|(fate, _)| counts.add(shape, kind, *fate));
            }
        }
        counts.add(Some(Shape::Portkey), Some(FeedbackKind::Score), Fate::Limited);
        let read = counts.read();
        assert_eq!(read.len(), SHAPES * KINDS * FATES.len());
        let twice: Vec<_> = read.iter().filter(|(_, n)| *n == 2).collect();
        assert_eq!(twice, [&(["portkey", "score", "limited"], 2)]);
    }
}
