//! An adapter made ready for the kernels, and the buffers that collect its gradient.
//!
//! `y = W x + s B (A x)`: A and `s B` are packed like any weight, so a projection with an adapter
//! is a sum of two terms. Gradients are collected with the long side first, so that threads can
//! own whole rows, and turned into the adapter's shapes once at the end.

use hone_model::lora::{Lora, Pair, Proj};
use rayon::prelude::*;

use super::kernels::{Linear, View, ViewMut, gemm};
use super::model::Model;

/// Rows of a gradient that one task computes.
const TASK_ROWS: usize = 192;

/// One projection's pair, packed.
pub(super) struct PackedPair {
    /// `(rank, in)`.
    pub(super) a: Linear,
    /// `(out, rank)`, times the adapter's scale.
    pub(super) b: Linear,
}

/// A whole adapter, packed.
pub(super) struct Packed {
    pub(super) rank: usize,
    pub(super) scale: f32,
    pub(super) layers: Vec<[PackedPair; 7]>,
}

impl Packed {
    /// Packs an adapter that [`Lora::fits`] the model.
    pub(super) fn new(lora: &Lora, model: &Model) -> Packed {
        let (rank, scale) = (lora.rank, lora.scale());
        let pack = |layer: &[Pair; 7]| {
            Proj::ALL.map(|proj| {
                let (out, width) = model.config.proj_shape(proj);
                let pair = &layer[proj.index()];
                PackedPair {
                    a: Linear::pack(&pair.a, rank, width, 1.0, model.precision),
                    b: Linear::pack(&pair.b, out, rank, scale, model.precision),
                }
            })
        };
        Packed { rank, scale, layers: lora.layers.par_iter().map(pack).collect() }
    }
}

/// Gradient of one matrix with the long side first: `(in, rank)` for A, `(out, rank)` for B.
type Collected = Vec<f32>;

/// The gradient of a whole adapter while it is being collected: per layer, A and B of each
/// projection.
pub(super) struct Collector {
    pub(super) layers: Vec<[(Collected, Collected); 7]>,
    rank: usize,
}

/// One product to collect: `to (width, rank) += scale · leftᵀ right` over all rows.
pub(super) struct Outer<'a> {
    pub(super) to: &'a mut [f32],
    /// `(rows, width)`.
    pub(super) left: &'a [f32],
    /// `(rows, rank)`.
    pub(super) right: &'a [f32],
    pub(super) scale: f32,
}

impl Collector {
    /// All zero.
    pub(super) fn new(model: &Model, rank: usize) -> Collector {
        let layer = || {
            Proj::ALL.map(|proj| {
                let (out, width) = model.config.proj_shape(proj);
                (vec![0.0; width * rank], vec![0.0; out * rank])
            })
        };
        Collector { layers: (0..model.config.layers).map(|_| layer()).collect(), rank }
    }

    /// The gradient in the adapter's shapes.
    pub(super) fn finish(self, like: &Lora) -> Lora {
        let rank = self.rank;
        let turn = |(a, b): (Collected, Collected)| {
            let width = a.len() / rank.max(1);
            let mut turned = vec![0.0; a.len()];
            for (i, row) in a.chunks_exact(rank).enumerate() {
                for (r, value) in row.iter().enumerate() {
                    turned[r * width + i] = *value;
                }
            }
            Pair { a: turned, b }
        };
        let layers = self.layers.into_iter().map(|layer| layer.map(turn)).collect();
        Lora { rank, alpha: like.alpha, layers }
    }
}

/// Adds all products, on the threads of the current pool. Sums run over the rows in order, so
/// the result does not depend on scheduling.
pub(super) fn collect(rows: usize, rank: usize, products: Vec<Outer<'_>>) {
    let mut tasks = Vec::new();
    for product in products {
        let width = product.left.len() / rows.max(1);
        for (index, to) in product.to.chunks_mut(TASK_ROWS * rank).enumerate() {
            let left = &product.left[index * TASK_ROWS..];
            tasks.push((to, left, width, product.right, product.scale));
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(to, left, width, right, scale)| {
        let count = to.len() / rank;
        let left = View::new(left, rows, count, width).t();
        let to = ViewMut::new(to, count, rank, rank);
        gemm(to, true, left, View::new(right, rows, rank, rank), scale);
    });
}
