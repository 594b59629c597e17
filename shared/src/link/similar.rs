//! How alike two texts are: answers that a client edited a little.
//!
//! Invariant: the cost is bounded by [`SIMILARITY_BYTES_MAX`] of each side.

use std::collections::HashMap;

use crate::text;

/// Text compared, bytes of each side.
const SIMILARITY_BYTES_MAX: usize = 64 * 1024;

/// The character trigrams of a text with how often each occurs.
#[derive(Debug, Default)]
pub(super) struct Grams {
    counts: HashMap<[char; 3], usize>,
    total: usize,
}

impl Grams {
    pub(super) fn of(text: &str) -> Self {
        let clipped = text::head(text, SIMILARITY_BYTES_MAX);
        let mut grams = Self::default();
        let mut last = ['\0'; 2];
        for (at, char) in clipped.chars().enumerate() {
            let [x, y] = last;
            if at >= 2 {
                *grams.counts.entry([x, y, char]).or_default() += 1;
                grams.total += 1;
            }
            last = [y, char];
        }
        grams
    }

    /// The Dice coefficient, 0 to 1; 0 for texts that are both too short.
    pub(super) fn dice(&self, other: &Self) -> f64 {
        let total = self.total + other.total;
        if total == 0 {
            return 0.0;
        }
        let in_both =
            |(gram, n): (&[char; 3], &usize)| other.counts.get(gram).map_or(0, |m| *n.min(m));
        2.0 * self.counts.iter().map(in_both).sum::<usize>() as f64 / total as f64
    }
}

/// How alike two folded texts are, 0 to 1: the Dice coefficient of their character trigrams. Equal
/// texts give 1.
pub fn similarity(a: &str, b: &str) -> f64 {
    if a == b { 1.0 } else { Grams::of(a).dice(&Grams::of(b)) }
}
