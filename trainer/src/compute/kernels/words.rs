//! Values as 32-bit words: an f32 each, or two bf16 that are neighbours along the contraction.
//!
//! Packing neighbours makes a panel of bf16 look exactly like a panel of f32 with half as many
//! rows, so everything but the multiplication itself is shared. An odd last value is paired
//! with zero.

use std::borrow::Cow;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::micro::{NR, kernels};

/// Rows that one task converts.
const TASK_ROWS: usize = 32;

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
        if kernels().multiply_pairs.is_some() { self } else { Precision::F32 }
    }

    /// Words that hold `count` values.
    pub(super) fn words(self, count: usize) -> usize {
        match self {
            Precision::F32 => count,
            Precision::Bf16 => count.div_ceil(2),
        }
    }

    /// Word `k` of a row of values times `scale`.
    pub(super) fn word(self, row: &[f32], k: usize, scale: f32) -> u32 {
        match self {
            Precision::F32 => (scale * row[k]).to_bits(),
            Precision::Bf16 => {
                let high = row.get(2 * k + 1).map_or(0.0, |value| scale * value);
                pair(scale * row[2 * k], high)
            }
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

    /// Rows of `width` values as rows of words, on the current pool where they are converted.
    pub(super) fn operand(self, x: &[f32], width: usize) -> Cow<'_, [u32]> {
        if self == Precision::F32 {
            // SAFETY: f32 and u32 have the same size and alignment, and every bit pattern is
            // valid; the lifetime is that of `x`.
            return Cow::Borrowed(unsafe {
                std::slice::from_raw_parts(x.as_ptr().cast::<u32>(), x.len())
            });
        }
        let depth = self.words(width);
        let mut words = vec![0; x.len() / width.max(1) * depth];
        let tasks = words.par_chunks_mut((TASK_ROWS * depth).max(1));
        tasks.zip(x.par_chunks((TASK_ROWS * width).max(1))).for_each(|(words, x)| {
            for (words, x) in words.chunks_exact_mut(depth).zip(x.chunks_exact(width)) {
                let (pairs, tail) = x.as_chunks::<2>();
                for (word, [low, high]) in words.iter_mut().zip(pairs) {
                    *word = pair(*low, *high);
                }
                if let ([last], Some(word)) = (tail, words.last_mut()) {
                    *word = pair(*last, 0.0);
                }
            }
        });
        Cow::Owned(words)
    }
}

/// Two values rounded to bf16 (to nearest, ties to even), the first in the low half. Infinity
/// and NaN are not expected: they would have been refused with the weights or the result.
#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    let rounded = |value: f32| {
        let bits = value.to_bits();
        bits.wrapping_add(0x7fff + ((bits >> 16) & 1))
    };
    (rounded(low) >> 16) | (rounded(high) & 0xffff_0000)
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
    fn a_row_survives_its_packing_up_to_rounding() {
        let row: Vec<f32> = (0..7).map(|i| (i as f32 - 3.0) * 1.37).collect();
        for (precision, tolerance) in [(Precision::F32, 0.0), (Precision::Bf16, 0.004)] {
            let words: Vec<u32> =
                (0..precision.words(7)).map(|k| precision.word(&row, k, 1.0)).collect();
            for (k, value) in row.iter().enumerate() {
                let back = precision.value(k, |k| words[k]);
                assert!((back - value).abs() <= tolerance * value.abs(), "{value} became {back}");
            }
            assert_eq!(precision.operand(&row, 7).as_ref(), words);
        }
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
