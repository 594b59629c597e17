//! An adapter made ready for the kernels, and the buffers that collect its gradient.
//!
//! `y = W x + s B (A x)`: A and `s B` are packed like any weight, so a projection with an adapter
//! is a sum of two terms. Projections that read the same input are one [`Group`] whose A's are
//! stacked, so that a step multiplies its input once. Gradients are collected with the long side
//! last, so that kernels read activations as they lie; those of B are turned at the end.

use hone_model::lora::{Lora, Pair, Proj};
use rayon::prelude::*;

use super::kernels::{Linear, Outer, Precision, collect};
use super::model::Model;
use super::order;
use super::scratch::Scratch;

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
    /// Room for adapters of one rank.
    pub(super) fn new(model: &Model, rank: usize) -> Packed {
        let blank = |outputs, inputs| Linear::blank(outputs, inputs, model.precision).keeping(true);
        let group = |group: Group| {
            let shapes = group.members().iter().map(|proj| model.config.proj_shape(*proj));
            let width = model.config.proj_shape(group.members()[0]).1;
            let b = shapes.map(|(out, _)| blank(out, rank)).collect();
            PackedGroup { a: blank(group.members().len() * rank, width), b }
        };
        let layers = (0..model.config.layers).map(|_| Group::ALL.map(group)).collect();
        Packed { rank, scale: 1.0, layers }
    }

    /// Packs an adapter of this rank that [`Lora::fits`] the model, in the place of another.
    pub(super) fn fill(&mut self, lora: &Lora) {
        let scale = lora.scale();
        self.scale = scale;
        self.layers.par_iter_mut().zip(&lora.layers).for_each(|(groups, pairs)| {
            for (group, PackedGroup { a, b }) in Group::ALL.into_iter().zip(groups) {
                let members = || group.members().iter().map(|proj| &pairs[proj.index()]);
                let mut stacked = Scratch::take(members().map(|pair| pair.a.len()).sum());
                let mut rest = &mut *stacked;
                for pair in members() {
                    let (to, after) = rest.split_at_mut(pair.a.len());
                    to.copy_from_slice(&pair.a);
                    rest = after;
                }
                a.fill(&stacked, 1.0);
                b.iter_mut().zip(members()).for_each(|(b, pair)| b.fill(&pair.b, scale));
            }
        });
    }
}

/// The gradient of a whole adapter while it is being collected.
pub(super) struct Collector {
    layers: Vec<[Sums; 4]>,
    pub(super) rank: usize,
    precision: Precision,
}

/// One group's gradient: A `(members · rank, in)`, and each member's B `(rank, out)`.
struct Sums {
    /// Nothing was collected yet: what stands here is arbitrary.
    empty: bool,
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
            Sums { empty: true, a, b: shapes.map(|(out, _)| vec![0.0; out * rank]).collect() }
        };
        let layers = (0..model.config.layers).map(|_| Group::ALL.map(sums)).collect();
        Collector { layers, rank, precision: model.precision }
    }

    /// Begins another gradient.
    pub(super) fn reset(&mut self) {
        self.layers.iter_mut().flatten().for_each(|sums| sums.empty = true);
    }

    /// What adds the contributions of some steps of layer `index`: `dA = eᵀ x` and
    /// `dB = s dyᵀ (A x)`.
    pub(super) fn add<'a>(
        &'a mut self,
        index: usize,
        rows: usize,
        scale: f32,
        steps: &[Step<'a>],
    ) -> Vec<order::Task<'a>> {
        let (rank, precision, mut products) = (self.rank, self.precision, Vec::new());
        for (group, sums) in Group::ALL.into_iter().zip(&mut self.layers[index]) {
            let Some(step) = steps.iter().find(|step| step.group == group) else { continue };
            let (columns, add) = (group.members().len() * rank, !std::mem::take(&mut sums.empty));
            let all = (step.e, columns, 0, columns, 1.0, precision);
            products.push(outer(&mut sums.a, add, step.input, all));
            for (i, (to, dy)) in sums.b.iter_mut().zip(&step.dy).enumerate() {
                products.push(outer(
                    to,
                    add,
                    dy,
                    (step.h, columns, i * rank, rank, scale, precision),
                ));
            }
        }
        collect(rows, products)
    }

    /// The gradient in the adapter's shapes. On the current pool.
    pub(super) fn finish(&self, like: &Lora) -> Lora {
        let rank = self.rank;
        let layers = self.layers.par_iter().map(|groups| {
            let mut pairs: [Pair; 7] = std::array::from_fn(|_| Pair { a: vec![], b: vec![] });
            for (group, Sums { empty, a, b }) in Group::ALL.into_iter().zip(groups) {
                let each = a.len() / group.members().len();
                for ((proj, a), b) in group.members().iter().zip(a.chunks_exact(each)).zip(b) {
                    pairs[proj.index()] = match empty {
                        true => Pair { a: vec![0.0; a.len()], b: vec![0.0; b.len()] },
                        false => Pair { a: a.to_vec(), b: turned(b, rank) },
                    };
                }
            }
            pairs
        });
        Lora { rank, alpha: like.alpha, layers: layers.collect() }
    }
}

/// `(rank, out)` as `(out, rank)`.
fn turned(from: &[f32], rank: usize) -> Vec<f32> {
    let out = from.len() / rank;
    let mut to = Vec::with_capacity(from.len());
    for o in 0..out {
        to.extend((0..rank).map(|r| from[r * out + o]));
    }
    to
}

/// The narrow side of an outer product: values, stride, first column, columns, scale, precision.
type Narrow<'a> = (&'a [f32], usize, usize, usize, f32, Precision);

fn outer<'a>(
    to: &'a mut [f32],
    add: bool,
    left: &'a [f32],
    (right, stride, first, columns, scale, precision): Narrow<'a>,
) -> Outer<'a> {
    Outer { to, add, left, right, stride, first, columns, scale, precision }
}
