//! Outer products for the gradients of skinny matrices: `leftᵀ right`, summed over all rows.
//!
//! Invariant: sums run over the rows in order, so the result does not depend on scheduling.

use rayon::prelude::*;

use super::micro::{Left, NR, Product, Tile, accumulate, f32_words};
use super::rows::strips;
use super::words::Precision;

/// Columns of `left` that one task takes: a multiple of all strips.
const TASK_COLUMNS: usize = 96;
/// Rows that are summed before the next strip: their values stay in the cache.
const TASK_ROWS: usize = 128;

/// One product to collect: `to (width, columns) += scale · leftᵀ right` over all rows.
pub(in crate::compute) struct Outer<'a> {
    pub(in crate::compute) to: &'a mut [f32],
    /// `(rows, width)`.
    pub(in crate::compute) left: &'a [f32],
    /// `(rows, stride)`, of which `columns` from `first` on are taken.
    pub(in crate::compute) right: &'a [f32],
    pub(in crate::compute) stride: usize,
    pub(in crate::compute) first: usize,
    pub(in crate::compute) columns: usize,
    pub(in crate::compute) scale: f32,
}

/// Adds all products, on the threads of the current pool.
///
/// # Panics
/// When a length does not fit: a bug of the caller, caught before memory is touched.
pub(in crate::compute) fn collect(rows: usize, products: Vec<Outer<'_>>) {
    let panels: Vec<Vec<Vec<u32>>> = products.par_iter().map(|p| panels(rows, p)).collect();
    let mut tasks = Vec::new();
    for (product, panels) in products.into_iter().zip(&panels) {
        let Outer { to, left, columns, scale, .. } = product;
        let width = left.len() / rows.max(1);
        assert_eq!(to.len(), width * columns, "a sum of another shape");
        for (index, to) in to.chunks_mut((TASK_COLUMNS * columns).max(1)).enumerate() {
            tasks.push(Task {
                to,
                left,
                width,
                first: index * TASK_COLUMNS,
                columns,
                scale,
                panels,
            });
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each(|task| task.run(rows));
}

/// The right side as panels `(rows, NR)`.
fn panels(rows: usize, product: &Outer<'_>) -> Vec<Vec<u32>> {
    let Outer { right, stride, first, columns, .. } = *product;
    assert!(right.len() >= rows * stride && first + columns <= stride, "a right side too narrow");
    let panel = |from: usize| {
        let width = NR.min(columns - from);
        let mut panel = vec![0; rows * NR];
        for (to, row) in panel.chunks_exact_mut(NR).zip(right.chunks_exact(stride.max(1))) {
            let start = first + from;
            to[..width].copy_from_slice(f32_words(&row[start..start + width]));
        }
        panel
    };
    (0..columns).step_by(NR).map(panel).collect()
}

/// Some columns of one product's left side.
struct Task<'a> {
    to: &'a mut [f32],
    left: &'a [f32],
    width: usize,
    first: usize,
    columns: usize,
    scale: f32,
    panels: &'a [Vec<u32>],
}

impl Task<'_> {
    fn run(self, rows: usize) {
        let count = self.to.len() / self.columns.max(1);
        let left = f32_words(self.left);
        let mut tiles = vec![0.0; count * NR];
        for (index, panel) in self.panels.iter().enumerate() {
            let from = index * NR;
            let width = NR.min(self.columns - from);
            for row in (0..rows).step_by(TASK_ROWS) {
                let panel = &panel[row * NR..rows.min(row + TASK_ROWS) * NR];
                for (column, take) in strips(count) {
                    let words = &left[row * self.width + self.first + column..];
                    let left = Left { words, step: self.width, rows: take };
                    let (precision, narrow) = (Precision::F32, width <= NR / 2);
                    let values = &mut tiles[column * NR..(column + take) * NR];
                    accumulate(
                        Tile { values, stride: NR, fresh: row == 0 },
                        Product { precision, left, panel, narrow, ahead: (&[], 0) },
                    );
                }
            }
            for (to, tile) in self.to.chunks_exact_mut(self.columns).zip(tiles.chunks_exact(NR)) {
                for (to, sum) in to[from..from + width].iter_mut().zip(tile) {
                    *to = self.scale.mul_add(*sum, *to);
                }
            }
        }
    }
}
