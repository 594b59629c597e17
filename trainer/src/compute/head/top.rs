//! The largest logits of a row, chunk by chunk.
//!
//! Invariant: the order is total (larger logit first, then smaller token), so that the result does
//! not depend on how the vocabulary is cut.

use std::cmp::Ordering;

/// Larger logits first, equal ones by token.
fn order(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `k` largest of `logits`, in order; their tokens count from `first`.
pub(in crate::compute) fn largest(logits: &[f32], first: usize, k: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(k + 1);
    if k == 0 {
        return best;
    }
    let mut least = f32::NEG_INFINITY;
    for (i, &logit) in logits.iter().enumerate() {
        // Tokens come in order, so an equal one is never better.
        if best.len() == k && logit <= least {
            continue;
        }
        let new = ((first + i) as u32, logit);
        let at = best.partition_point(|old| order(old, &new) == Ordering::Less);
        best.insert(at, new);
        best.truncate(k);
        least = best.last().map_or(f32::NEG_INFINITY, |last| last.1);
    }
    best
}

/// The `k` best of all chunks' largest.
pub(super) fn best(found: impl Iterator<Item = (u32, f32)>, k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = found.collect();
    all.sort_unstable_by(order);
    all.truncate(k);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_equal_ones_by_token() {
        let logits = [1.0f32, 3.0, 2.0, 3.0, -1.0, 2.0];
        assert_eq!(largest(&logits, 10, 4), [(11, 3.0), (13, 3.0), (12, 2.0), (15, 2.0)]);
        assert_eq!(largest(&logits, 0, 1), [(1, 3.0)]);
        assert!(largest(&logits, 0, 0).is_empty());
        assert_eq!(largest(&logits[..2], 0, 5).len(), 2);
    }

    #[test]
    fn cutting_the_vocabulary_changes_nothing() {
        let logits: Vec<f32> = (0..100).map(|i| ((i * 37) % 11) as f32).collect();
        let whole = largest(&logits, 0, 7);
        let parts = logits.chunks(13).enumerate().flat_map(|(i, c)| largest(c, i * 13, 7));
        assert_eq!(best(parts, 7), whole);
    }
}
