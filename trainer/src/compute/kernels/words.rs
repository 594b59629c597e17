//! Values as 32-bit words: an f32 each, or two bf16 that are neighbours along the contraction.
//!
//! Packing neighbours makes a panel of bf16 look exactly like a panel of f32 with half as many
//! rows, so everything but the multiplication itself is shared. An odd last value is paired
//! with zero.

use serde::{Deserialize, Serialize};

use super::micro::{NR, kernels};

/// How operands of matrix products are held. Sums are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 24 bits of mantissa: agrees with a reference to about 1e-5.
    #[default]
    F32,
    /// 8 bits of mantissa: half the memory, up to twice the speed, log-probabilities off by some
    /// hundredths. Only with AVX-512 BF16; elsewhere it means [`Precision::F32`].
    Bf16,
}

impl Precision {
    /// This precision, or f32 where the processor cannot multiply bf16.
    pub(in crate::compute) fn supported(self) -> Precision {
        if kernels().pairs.is_some() { self } else { Precision::F32 }
    }

    /// Bytes of one value.
    pub(in crate::compute) fn bytes(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }

    /// Words that hold `count` values.
    pub(super) fn words(self, count: usize) -> usize {
        match self {
            Precision::F32 => count,
            Precision::Bf16 => count.div_ceil(2),
        }
    }

    /// Value `k` of a row of which `word` gives the words.
    pub(super) fn value(self, k: usize, word: impl Fn(usize) -> u32) -> f32 {
        match self {
            Precision::F32 => f32::from_bits(word(k)),
            Precision::Bf16 if k.is_multiple_of(2) => f32::from_bits(word(k / 2) << 16),
            Precision::Bf16 => f32::from_bits(word(k / 2) & 0xffff_0000),
        }
    }
}

/// Two values rounded to bf16 (to nearest, ties to even), the first in the low half. Infinity and
/// NaN are not expected: they would have been refused with the weights or the result.
#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    let rounded = |value: f32| {
        let bits = value.to_bits();
        bits.wrapping_add(0x7fff + ((bits >> 16) & 1))
    };
    (rounded(low) >> 16) | (rounded(high) & 0xffff_0000)
}

/// Folds two rows into one of words: `to[i]` holds `low[i]` and, in its high half, `high[i]`.
pub(super) fn fold_two(to: &mut [u32], low: &[f32], high: &[f32]) {
    for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
        *to = pair(*low, *high);
    }
}

/// Folds every two of some rows, `(stride, rows, width)`, into one of words: pairs of bf16 that are
/// neighbours from row to row. An odd last row is paired with zeros.
///
/// # Panics
/// When `x` is too short: a bug of the caller.
pub(in crate::compute) fn fold(
    to: &mut Vec<u32>,
    x: &[f32],
    (stride, rows, width): (usize, usize, usize),
) {
    to.clear();
    for row in (0..rows).step_by(2) {
        let low = &x[row * stride..][..width];
        if row + 1 < rows {
            let high = &x[(row + 1) * stride..][..width];
            to.extend(low.iter().zip(high).map(|(low, high)| pair(*low, *high)));
        } else {
            to.extend(low.iter().map(|low| pair(*low, 0.0)));
        }
    }
}

/// From word rows of a panel (pairs of inputs, one column per output) `width` inputs as rows of
/// pairs of outputs: row `k`, column `n` holds outputs `2 n` and `2 n + 1` of input `k`.
pub(super) fn regroup(source: &[u32], width: usize) -> [[u32; NR]; NR] {
    let mut rows = [[0; NR]; NR];
    let words = source.as_chunks::<NR>().0;
    for (word, rows) in words.iter().take(width.div_ceil(2)).zip(rows.as_chunks_mut::<2>().0) {
        let [even, odd] = rows;
        for ((even, odd), [a, b]) in even.iter_mut().zip(odd).zip(word.as_chunks::<2>().0) {
            *even = (a & 0xffff) | (b << 16);
            *odd = (a >> 16) | (b & 0xffff_0000);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_pairs_neighbouring_rows_and_rounds_to_nearest() {
        let x = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0, 5.0, 6.0];
        let mut words = Vec::new();
        fold(&mut words, &x, (3, 3, 2));
        assert_eq!(words, [pair(1.0, 3.0), pair(2.0, 4.0), pair(5.0, 0.0), pair(6.0, 0.0)]);
        let value = 1.0 + 3.0 / 512.0;
        assert_eq!(f32::from_bits(pair(0.0, value) & 0xffff_0000), 1.0 + 1.0 / 128.0);
    }

    #[test]
    fn regrouping_pairs_neighbouring_outputs_of_one_input() {
        // Input k of output n is worth 100 n + k, which bf16 holds exactly up to 256.
        let value = |n: usize, k: usize| if n < 2 { (100 * n + k) as f32 } else { 0.0 };
        let word = |n: usize, k: usize| pair(value(n, k), value(n, k + 1));
        let source: Vec<u32> = (0..2).flat_map(|k| (0..NR).map(move |n| word(n, 2 * k))).collect();
        let rows = regroup(&source, 3);
        for (k, row) in rows.iter().enumerate().take(4) {
            assert_eq!(row[0], pair(value(0, k), value(1, k)));
            assert_eq!(row[1], 0);
        }
    }
}
