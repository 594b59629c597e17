//! Outer products for the gradients of skinny matrices: `rightᵀ left`, summed over all rows.
//!
//! The wide side is cut into panels, a few rows at a time; the narrow one is read where it lies, in
//! bf16 from a copy that is folded like the panels.
//!
//! Invariant: sums run over the rows in order, so the result does not depend on scheduling.

use std::ops::Range;

use super::micro::{Left, NR, Product, Tile, accumulate, f32_words};
use super::rows::strips;
use super::words::{Precision, fold_two};
use crate::compute::order;
use crate::compute::scratch::Scratch;

/// Panels of the wide side that one task takes.
const TASK_PANELS: usize = 6;
const TASK_COLUMNS: usize = TASK_PANELS * NR;
/// Rows that are summed before the next strip: a panel of them stays in the core's nearest cache.
const TASK_ROWS: usize = 128;

/// One product to collect: `to (columns, width) (+)= scale · rightᵀ left` over all rows.
pub(in crate::compute) struct Outer<'a> {
    pub(in crate::compute) to: &'a mut [f32],
    /// Add to what stands there instead of overwriting it.
    pub(in crate::compute) add: bool,
    /// `(rows, width)`, the wide side.
    pub(in crate::compute) left: &'a [f32],
    /// `(rows, stride)`, of which `columns` from `first` on are taken.
    pub(in crate::compute) right: &'a [f32],
    pub(in crate::compute) stride: usize,
    pub(in crate::compute) first: usize,
    pub(in crate::compute) columns: usize,
    pub(in crate::compute) scale: f32,
    /// Of the operands; sums are f32.
    pub(in crate::compute) precision: Precision,
}

/// What computes all products.
///
/// # Panics
/// When a length does not fit: a bug of the caller, caught before memory is touched.
pub(in crate::compute) fn collect(rows: usize, products: Vec<Outer<'_>>) -> Vec<order::Task<'_>> {
    let mut tasks: Vec<order::Task<'_>> = Vec::new();
    for Outer { to, add, left, right, stride, first, columns, scale, precision } in products {
        let width = left.len() / rows.max(1);
        assert_eq!(to.len(), width * columns, "a sum of another shape");
        assert!(right.len() >= rows * stride && first + columns <= stride, "too narrow");
        let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
        parts.resize_with(width.div_ceil(TASK_COLUMNS), Vec::new);
        for row in to.chunks_exact_mut(width.max(1)) {
            row.chunks_mut(TASK_COLUMNS).zip(&mut parts).for_each(|(to, part)| part.push(to));
        }
        for (index, to) in parts.into_iter().enumerate() {
            let (right, column) = (&right[first.min(right.len())..], index * TASK_COLUMNS);
            let task =
                Task { to, add, left, width, column, right, stride, columns, scale, precision };
            tasks.push(Box::new(move || task.run(rows)));
        }
    }
    tasks
}

/// Some columns of one product's wide side.
struct Task<'a> {
    /// One stretch per column of the narrow side.
    to: Vec<&'a mut [f32]>,
    add: bool,
    left: &'a [f32],
    width: usize,
    /// First column of the wide side.
    column: usize,
    right: &'a [f32],
    stride: usize,
    columns: usize,
    scale: f32,
    precision: Precision,
}

impl Task<'_> {
    fn run(mut self, rows: usize) {
        let count = self.to.first().map_or(0, |to| to.len());
        let panels = count.div_ceil(NR);
        // `(panels, columns, NR)`, `(panels, words of rows, NR)` and `(words of rows, columns)`.
        let mut tiles: Scratch<f32> = Scratch::zeros(panels * self.columns * NR);
        let words = self.precision.words(TASK_ROWS);
        let mut wide: Scratch<u32> = Scratch::zeros(panels * words * NR);
        let mut narrow: Scratch<u32> = Scratch::take(words * self.columns);
        for row in (0..rows).step_by(TASK_ROWS) {
            let taken = row..rows.min(row + TASK_ROWS);
            let words_taken = self.precision.words(taken.len());
            self.wide(taken.clone(), count, &mut wide, words);
            let left = self.narrow(taken, &mut narrow);
            for (panel, tile) in
                wide.chunks_exact(words * NR).zip(tiles.chunks_exact_mut(self.columns * NR))
            {
                self.sums(left, &panel[..words_taken * NR], tile);
            }
        }
        for (panel, tile) in tiles.chunks_exact(self.columns * NR).enumerate() {
            for (to, sums) in self.to.iter_mut().zip(tile.chunks_exact(NR)) {
                for (to, sum) in to[panel * NR..].iter_mut().zip(sums) {
                    *to = if self.add { self.scale.mul_add(*sum, *to) } else { self.scale * sum };
                }
            }
        }
    }

    /// Lays some rows of the wide side as panels of `words` words each.
    fn wide(&self, rows: Range<usize>, count: usize, to: &mut [u32], words: usize) {
        let at = |row: usize| {
            let from = row * self.width + self.column;
            &self.left[from..from + count]
        };
        let step = 2 / self.precision.words(2);
        for (index, row) in rows.clone().step_by(step).enumerate() {
            let (low, low_rest) = at(row).as_chunks::<NR>();
            let mut to = to.as_chunks_mut::<NR>().0.iter_mut().skip(index).step_by(words);
            match self.precision {
                Precision::F32 => {
                    // Copied in registers, not by calls.
                    let whole = f32_words(low.as_flattened()).as_chunks::<NR>().0;
                    whole.iter().zip(&mut to).for_each(|(from, to)| *to = *from);
                    if let Some(to) = to.next().filter(|_| !low_rest.is_empty()) {
                        to[..low_rest.len()].copy_from_slice(f32_words(low_rest));
                    }
                }
                Precision::Bf16 => {
                    let zeros = [0.0; TASK_COLUMNS];
                    let next = if row + 1 < rows.end { at(row + 1) } else { &zeros[..count] };
                    let (high, high_rest) = next.as_chunks::<NR>();
                    let both = low.iter().zip(high);
                    both.zip(&mut to).for_each(|((low, high), to)| fold_two(to, low, high));
                    if let Some(to) = to.next().filter(|_| !low_rest.is_empty()) {
                        fold_two(to, low_rest, high_rest);
                    }
                }
            }
        }
    }

    /// Some rows of the narrow side as words: where they lie in f32, folded to `to` in bf16.
    fn narrow<'t>(&'t self, rows: Range<usize>, to: &'t mut [u32]) -> Left<'t> {
        let at = |row: usize| &self.right[row * self.stride..][..self.columns];
        match self.precision {
            Precision::F32 => {
                let words = &f32_words(self.right)[rows.start * self.stride..];
                Left { words, step: self.stride, rows: self.columns }
            }
            Precision::Bf16 => {
                let zeros = vec![0.0; self.columns];
                for (row, to) in rows.clone().step_by(2).zip(to.chunks_exact_mut(self.columns)) {
                    let high = if row + 1 < rows.end { at(row + 1) } else { &zeros };
                    fold_two(to, at(row), high);
                }
                Left { words: to, step: self.columns, rows: self.columns }
            }
        }
    }

    /// Adds the products of some rows with one panel of the wide side to `tile (columns, NR)`.
    fn sums(&self, right: Left<'_>, panel: &[u32], tile: &mut [f32]) {
        for (column, take) in strips(self.columns) {
            let left = Left { words: &right.words[column..], step: right.step, rows: take };
            let values = &mut tile[column * NR..(column + take) * NR];
            let (precision, narrow, ahead) = (self.precision, false, (&[][..], 0));
            accumulate(
                Tile { values, stride: NR, fresh: false },
                Product { precision, left, panel, narrow, ahead },
            );
        }
    }
}
