//! Outer products for the gradients of skinny matrices: `rightᵀ left`, summed over all rows.
//!
//! The wide side is cut into panels, a few rows at a time, and the narrow one read where it lies.
//!
//! Invariant: sums run over the rows in order, so the result does not depend on scheduling.

use super::micro::{Left, NR, Product, Tile, accumulate, f32_words};
use super::rows::strips;
use super::words::Precision;
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
}

/// What computes all products.
///
/// # Panics
/// When a length does not fit: a bug of the caller, caught before memory is touched.
pub(in crate::compute) fn collect(rows: usize, products: Vec<Outer<'_>>) -> Vec<order::Task<'_>> {
    let mut tasks: Vec<order::Task<'_>> = Vec::new();
    for Outer { to, add, left, right, stride, first, columns, scale } in products {
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
            let task = Task { to, add, left, width, column, right, stride, columns, scale };
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
}

impl Task<'_> {
    fn run(mut self, rows: usize) {
        let count = self.to.first().map_or(0, |to| to.len());
        let panels = count.div_ceil(NR);
        // `(panels, columns, NR)` and `(panels, rows, NR)`.
        let mut tiles: Scratch<f32> = Scratch::zeros(panels * self.columns * NR);
        let mut wide: Scratch<u32> = Scratch::zeros(panels * TASK_ROWS * NR);
        for row in (0..rows).step_by(TASK_ROWS) {
            let taken = TASK_ROWS.min(rows - row);
            for r in 0..taken {
                let from = (row + r) * self.width + self.column;
                let from = f32_words(&self.left[from..from + count]);
                let (whole, rest) = from.as_chunks::<NR>();
                let mut to = wide.as_chunks_mut::<NR>().0.iter_mut().skip(r).step_by(TASK_ROWS);
                // Copied in registers, not by calls.
                whole.iter().zip(&mut to).for_each(|(from, to)| *to = *from);
                if let Some(to) = to.next().filter(|_| !rest.is_empty()) {
                    to[..rest.len()].copy_from_slice(rest);
                }
            }
            let panels = wide.chunks_exact(TASK_ROWS * NR);
            for (panel, tile) in panels.zip(tiles.chunks_exact_mut(self.columns * NR)) {
                self.sums(row, &panel[..taken * NR], tile);
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

    /// Adds some rows' products with one panel of the wide side to `tile (columns, NR)`.
    fn sums(&self, row: usize, panel: &[u32], tile: &mut [f32]) {
        for (column, take) in strips(self.columns) {
            let words = &f32_words(self.right)[row * self.stride + column..];
            let left = Left { words, step: self.stride, rows: take };
            let values = &mut tile[column * NR..(column + take) * NR];
            let (precision, narrow, ahead): (_, _, (&[u32], _)) = (Precision::F32, false, (&[], 0));
            accumulate(
                Tile { values, stride: NR, fresh: false },
                Product { precision, left, panel, narrow, ahead },
            );
        }
    }
}
