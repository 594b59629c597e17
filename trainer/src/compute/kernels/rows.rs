//! Activations as strips: the rows of a strip lie side by side, so that a kernel reads them from
//! one place whatever the distance between rows was.

use super::micro::{Left, NR, Source, kernels, strip};
use super::words::Precision;
use crate::compute::scratch::Scratch;

/// Words that a kernel may write past the end of a strip.
const SLACK: usize = 16;

/// Some rows, packed. Strips of nearly equal height follow each other, each `(words, height)`.
pub(in crate::compute) struct Rows {
    words: Scratch<u32>,
    rows: usize,
    width: usize,
    precision: Precision,
}

impl Rows {
    /// Packs `rows` rows of `width` values; a row begins `stride` values after the one before.
    ///
    /// # Panics
    /// When `x` is too short: a bug of the caller, caught before memory is touched.
    pub(in crate::compute) fn pack(
        x: &[f32],
        stride: usize,
        rows: usize,
        width: usize,
        precision: Precision,
    ) -> Rows {
        let mut packed = Rows { words: Scratch::take(0), rows: 0, width: 0, precision };
        packed.fill(x, stride, rows, width);
        packed
    }

    /// As [`Rows::pack`], into what was packed before.
    pub(in crate::compute) fn fill(&mut self, x: &[f32], stride: usize, rows: usize, width: usize) {
        assert!(rows == 0 || x.len() >= (rows - 1) * stride + width, "rows past their buffer");
        let kernels = kernels();
        let (interleave, depth) =
            (kernels.of(self.precision).interleave, self.precision.words(width));
        (self.rows, self.width) = (rows, width);
        self.words = Scratch::take(rows * depth + SLACK);
        for (row, take) in strips(rows) {
            let from = x[row * stride..].as_ptr();
            let source = Source { from, stride, rows: take, width, scale: 1.0 };
            // SAFETY: `take` rows of `x`, checked above; `depth` steps of `take` words with SLACK
            // behind the last; what spills into the next strip is written before it.
            unsafe { interleave(&source, self.words.as_mut_ptr().add(row * depth), take) };
        }
    }

    /// Number of rows.
    pub(in crate::compute) fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// How the values are held.
    pub(in crate::compute) fn precision(&self) -> Precision {
        self.precision
    }

    /// The strip of `take` rows from `row` on, from value `first` on.
    pub(in crate::compute) fn strip(&self, (row, take): (usize, usize), first: usize) -> Left<'_> {
        let start = row * self.precision.words(self.width) + self.precision.words(first) * take;
        Left { words: &self.words[start..], step: take, rows: take }
    }
}

/// First row and height of the strips that `rows` rows are cut into.
pub(in crate::compute) fn strips(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let most = kernels().rows;
    let mut row = 0;
    std::iter::from_fn(move || {
        let take = strip(rows.checked_sub(row).filter(|left| *left > 0)?, most);
        row += take;
        Some((row - take, take))
    })
}

/// Packs up to [`NR`] rows, `(stride, rows, width)`, as the columns of a panel `(words of width, NR)`,
/// times `scale`.
///
/// # Panics
/// When `x` is too short: a bug of the caller, caught before memory is touched.
pub(in crate::compute) fn panel(
    to: &mut Vec<u32>,
    x: &[f32],
    size: (usize, usize, usize),
    scale: f32,
    precision: Precision,
) {
    to.resize(precision.words(size.2) * NR, 0);
    interleave_panel(to, x, size, scale, precision);
}

/// Writes rows as the columns of a panel; columns without a row become zero.
pub(super) fn interleave_panel(
    to: &mut [u32],
    x: &[f32],
    (stride, rows, width): (usize, usize, usize),
    scale: f32,
    precision: Precision,
) {
    assert!(rows <= NR && to.len() >= precision.words(width) * NR, "a panel past its buffer");
    assert!(rows == 0 || x.len() >= (rows - 1) * stride + width, "rows past their buffer");
    let interleave = kernels().of(precision).interleave;
    for half in 0..2 {
        let first = half * NR / 2;
        let count = rows.saturating_sub(first).min(NR / 2);
        let from = x.as_ptr().wrapping_add(if count > 0 { first * stride } else { 0 });
        let source = Source { from, stride, rows: count, width, scale };
        // SAFETY: the rows and the panel were checked above; half a panel is 16 words.
        unsafe { interleave(&source, to[first..].as_mut_ptr(), NR) };
    }
}
