//! An adapter made ready for the kernels, and the buffers that collect its gradient.
//!
//! `y = W x + s B (A x)`: A and `s B` are packed like any weight, so a projection with an adapter
//! is a sum of two terms. Projections that read the same input are one [`Group`] whose A's are
//! stacked, so that a step multiplies its input once. Gradients are collected with the long side
//! last, so that kernels read activations as they lie; those of B are turned at the end.

use hone_model::lora::{Lora, Pair, Proj};
use rayon::prelude::*;

use super::kernels::{Linear, Outer, collect};
use super::model::Model;

/// Projections with one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// q, k and v.
    Qkv,
    /// The attention's output.
    O,
    /// gate and up.
    GateUp,
    /// The feed-forward's output.
    Down,
}

impl Group {
    /// All, in the order of the forward pass.
    pub(super) const ALL: [Group; 4] = [Group::Qkv, Group::O, Group::GateUp, Group::Down];

    /// Position in [`Group::ALL`].
    pub(super) fn index(self) -> usize {
        self as usize
    }

    /// Its projections, in the order of their stacked A's.
    pub(super) fn members(self) -> &'static [Proj] {
        match self {
            Group::Qkv => &[Proj::Q, Proj::K, Proj::V],
            Group::O => &[Proj::O],
            Group::GateUp => &[Proj::Gate, Proj::Up],
            Group::Down => &[Proj::Down],
        }
    }
}

/// One group's pairs, packed.
pub(super) struct PackedGroup {
    /// `(members · rank, in)`.
    pub(super) a: Linear,
    /// `(out, rank)` of each member, times the adapter's scale.
    pub(super) b: Vec<Linear>,
}

/// A whole adapter, packed.
pub(super) struct Packed {
    pub(super) rank: usize,
    pub(super) scale: f32,
    /// Indexed by [`Group::index`].
    pub(super) layers: Vec<[PackedGroup; 4]>,
}

impl Packed {
    /// Packs an adapter that [`Lora::fits`] the model.
    pub(super) fn new(lora: &Lora, model: &Model) -> Packed {
        let (rank, scale, precision) = (lora.rank, lora.scale(), model.precision);
        let pack = |layer: &[Pair; 7], group: Group| {
            let members = group.members();
            let width = model.config.proj_shape(members[0]).1;
            let stacked: Vec<f32> =
                members.iter().flat_map(|proj| &layer[proj.index()].a).copied().collect();
            let a = Linear::pack(&stacked, members.len() * rank, width, 1.0, precision);
            let b = members.iter().map(|proj| {
                let out = model.config.proj_shape(*proj).0;
                let b = &layer[proj.index()].b;
                Linear::pack(b, out, rank, scale, precision).keeping(true)
            });
            PackedGroup { a: a.keeping(true), b: b.collect() }
        };
        let layers = lora.layers.par_iter().map(|l| Group::ALL.map(|group| pack(l, group)));
        Packed { rank, scale, layers: layers.collect() }
    }
}

/// The gradient of a whole adapter while it is being collected.
pub(super) struct Collector {
    layers: Vec<[Sums; 4]>,
    rank: usize,
}

/// One group's gradient: A `(members · rank, in)`, and each member's B `(rank, out)`.
struct Sums {
    a: Vec<f32>,
    b: Vec<Vec<f32>>,
}

/// What one group's gradient is made of, `(rows, width)` each.
pub(super) struct Step<'a> {
    pub(super) group: Group,
    /// The group's input.
    pub(super) input: &'a [f32],
    /// `dy (s B)` of all members side by side, `(rows, members · rank)`.
    pub(super) e: &'a [f32],
    /// The saved `A x` of all members side by side, `(rows, members · rank)`.
    pub(super) h: &'a [f32],
    /// The gradient of each member's output.
    pub(super) dy: Vec<&'a [f32]>,
}

impl Collector {
    /// All zero.
    pub(super) fn new(model: &Model, rank: usize) -> Collector {
        let sums = |group: Group| {
            let shapes = group.members().iter().map(|proj| model.config.proj_shape(*proj));
            let width = model.config.proj_shape(group.members()[0]).1;
            let a = vec![0.0; width * group.members().len() * rank];
            Sums { a, b: shapes.map(|(out, _)| vec![0.0; out * rank]).collect() }
        };
        let layers = (0..model.config.layers).map(|_| Group::ALL.map(sums)).collect();
        Collector { layers, rank }
    }

    /// Adds what some steps of layer `index` contribute, on the threads of the current pool:
    /// `dA = eᵀ x` and `dB = s dyᵀ (A x)`.
    pub(super) fn add(&mut self, index: usize, rows: usize, scale: f32, steps: &[Step<'_>]) {
        let (rank, mut products) = (self.rank, Vec::new());
        for (group, sums) in Group::ALL.into_iter().zip(&mut self.layers[index]) {
            let Some(step) = steps.iter().find(|step| step.group == group) else { continue };
            let columns = group.members().len() * rank;
            let all = (step.e, columns, 0, columns, 1.0);
            products.push(outer(&mut sums.a, step.input, all));
            for (i, (to, dy)) in sums.b.iter_mut().zip(&step.dy).enumerate() {
                products.push(outer(to, dy, (step.h, columns, i * rank, rank, scale)));
            }
        }
        collect(rows, products);
    }

    /// The gradient in the adapter's shapes. On the current pool.
    pub(super) fn finish(self, like: &Lora) -> Lora {
        let rank = self.rank;
        let layers = self.layers.into_par_iter().map(|groups| {
            let mut pairs: [Pair; 7] = std::array::from_fn(|_| Pair { a: vec![], b: vec![] });
            for (group, Sums { a, b }) in Group::ALL.into_iter().zip(groups) {
                let each = a.len() / group.members().len();
                for ((proj, a), b) in group.members().iter().zip(a.chunks_exact(each)).zip(b) {
                    let out = b.len() / rank;
                    let column = |o: usize| b.iter().skip(o).step_by(out);
                    let b = (0..out).flat_map(column).copied().collect();
                    pairs[proj.index()] = Pair { a: a.to_vec(), b };
                }
            }
            pairs
        });
        Lora { rank, alpha: like.alpha, layers: layers.collect() }
    }
}

fn outer<'a>(
    to: &'a mut [f32],
    left: &'a [f32],
    (right, stride, first, columns, scale): (&'a [f32], usize, usize, usize, f32),
) -> Outer<'a> {
    Outer { to, left, right, stride, first, columns, scale }
}
