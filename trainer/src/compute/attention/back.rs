//! The gradient of attention.
//!
//! Probabilities are recomputed from the saved log-sum-exp (Dao et al. 2022, algorithm 4, without
//! the blocking over keys). One task has one query head of one group of segments; heads that share
//! a key head are added up afterwards, so that all sums are made in one order.

use std::ops::Range;

use super::super::batch::{Batch, Group, Segment};
use super::super::kernels::{NR, panel, turn_square};
use super::super::math::{self, Columns};
use super::super::order;
use super::super::scratch::Scratch;
use super::{Heads, Inputs, Keys, Lanes, Panel};

/// What the forward pass gave and what came back to it.
#[derive(Clone, Copy)]
pub(in super::super) struct Outputs<'a> {
    /// `(rows, heads · dim)`.
    pub(in super::super) att: &'a [f32],
    /// `(rows, heads)`.
    pub(in super::super) lse: &'a [f32],
    /// `(rows, heads · dim)`.
    pub(in super::super) datt: &'a [f32],
}

/// Gradients per group and query head: dq, dk and dv `(group rows, dim)` each.
#[derive(Default)]
pub(in super::super) struct HeadGradients {
    values: Vec<f32>,
}

impl HeadGradients {
    /// Makes room for a batch; what stands there is arbitrary.
    pub(in super::super) fn resize(&mut self, shape: Heads, rows: usize) {
        self.values.resize(3 * rows * shape.q_width(), 0.0);
    }

    /// What computes them: one task per group and query head.
    pub(in super::super) fn compute<'a>(
        &'a mut self,
        inputs: Inputs<'a>,
        outputs: Outputs<'a>,
        batch: &'a Batch,
    ) -> Vec<order::Task<'a>> {
        let (mut tasks, mut rest) = (Vec::<order::Task<'a>>::new(), self.values.as_mut_slice());
        for group in &batch.groups {
            for head in 0..inputs.shape.heads {
                let (mine, left) = rest.split_at_mut(3 * group.rows.len() * inputs.shape.dim);
                rest = left;
                tasks.push(Box::new(move || {
                    let segments = &batch.segments[group.segments.clone()];
                    Task::new(inputs, outputs, group, segments, head).run(mine);
                }));
            }
        }
        tasks
    }

    /// Copies some rows to dq `(rows, heads · dim)` and dk, dv `(rows, kv_heads · dim)`.
    pub(in super::super) fn gather(
        &self,
        shape: Heads,
        batch: &Batch,
        rows: Range<usize>,
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32],
    ) {
        let (dim, q_width, kv_width) = (shape.dim, shape.q_width(), shape.kv_width());
        let mine = dq.chunks_exact_mut(q_width).zip(dk.chunks_exact_mut(kv_width));
        for (row, ((dq, dk), dv)) in rows.zip(mine.zip(dv.chunks_exact_mut(kv_width))) {
            let after = batch.groups.partition_point(|group| group.rows.end <= row);
            let group = &batch.groups[after].rows;
            dk.fill(0.0);
            dv.fill(0.0);
            for (head, dq) in dq.chunks_exact_mut(dim).enumerate() {
                let part = 3 * (group.start * shape.heads + head * group.len()) * dim;
                let at = |which: usize| {
                    let from = part + (which * group.len() + row - group.start) * dim;
                    &self.values[from..from + dim]
                };
                let kv = shape.kv_of(head) * dim..(shape.kv_of(head) + 1) * dim;
                dq.copy_from_slice(at(0));
                math::add_scaled(&mut dk[kv.clone()], 1.0, at(1));
                math::add_scaled(&mut dv[kv], 1.0, at(2));
            }
        }
    }
}

/// One query head of one group.
struct Task<'a> {
    inputs: Inputs<'a>,
    outputs: Outputs<'a>,
    first: usize,
    segments: &'a [Segment],
    head: usize,
    stretches: Vec<Stretch<'a>>,
    /// dKᵀ and dVᵀ `(panels, dim, NR)`.
    sums: [Scratch<f32>; 2],
    buffers: Buffers,
}

/// One segment's side of the products.
struct Stretch<'a> {
    keys: Keys,
    values: Keys,
    /// The keys once more, for the sum over them.
    lanes: Lanes<'a>,
    /// Where its panels of sums begin.
    first: usize,
}

/// Buffers of one task.
#[derive(Default)]
struct Buffers {
    queries: Vec<u32>,
    dout: Vec<u32>,
    scores: Vec<f32>,
    dp: Vec<f32>,
    dq: Vec<f32>,
    folded: Vec<u32>,
}

impl<'a> Task<'a> {
    fn new(
        inputs: Inputs<'a>,
        outputs: Outputs<'a>,
        group: &Group,
        segments: &'a [Segment],
        head: usize,
    ) -> Task<'a> {
        let (mut stretches, mut panels) = (Vec::with_capacity(segments.len()), 0);
        let kv = inputs.shape.kv_of(head);
        for segment in segments {
            let pack = |data| Keys::pack(inputs, data, segment.rows.clone(), kv);
            let lanes = inputs.lanes(inputs.k, segment.rows.clone(), kv);
            let (keys, values) = (pack(inputs.k), pack(inputs.v));
            stretches.push(Stretch { keys, values, lanes, first: panels });
            panels += segment.rows.len().div_ceil(NR);
        }
        let sums = [(); 2].map(|()| Scratch::zeros(panels * inputs.shape.dim * NR));
        let (first, buffers) = (group.rows.start, Buffers::default());
        Task { inputs, outputs, first, segments, head, stretches, sums, buffers }
    }

    fn run(mut self, to: &mut [f32]) {
        let dim = self.inputs.shape.dim;
        let rows = to.len() / (3 * dim);
        let (dq, rest) = to.split_at_mut(rows * dim);
        for index in 0..self.segments.len() {
            let segment = &self.segments[index];
            for start in segment.rows.clone().step_by(NR) {
                let panel = Panel { segment, rows: start..(start + NR).min(segment.rows.end) };
                self.buffers.dq.clear();
                self.buffers.dq.resize(dim * NR, 0.0);
                self.panel(&panel, index);
                let to = &mut dq[(start - self.first) * dim..];
                spread(&self.buffers.dq, dim, to, dim, panel.rows.len());
            }
        }
        for (sums, to) in self.sums.iter().zip(rest.chunks_exact_mut((rows * dim).max(1))) {
            for Stretch { keys, first, .. } in &self.stretches {
                for (i, start) in keys.rows.clone().step_by(NR).enumerate() {
                    let from = &sums[(first + i) * dim * NR..][..dim * NR];
                    let count = NR.min(keys.rows.end - start);
                    spread(from, dim, &mut to[(start - self.first) * dim..], dim, count);
                }
            }
        }
    }

    /// One panel of queries of segment `index`: adds to dq and to the sums.
    fn panel(&mut self, rows: &Panel<'_>, index: usize) {
        let Inputs { shape, q, precision, .. } = self.inputs;
        let Outputs { att, lse, datt } = self.outputs;
        let (dim, width, count) = (shape.dim, shape.q_width(), rows.rows.len());
        let head = self.head;
        let from = rows.rows.start * width + head * dim;
        let (size, scale) = ((width, count, dim), shape.scale());
        panel(&mut self.buffers.queries, &q[from..], size, scale, precision);
        panel(&mut self.buffers.dout, &datt[from..], size, 1.0, precision);
        let sides = [&q[from..], &datt[from..]].map(|x| Lanes::new(x, size, precision));
        let (mut sums, mut inner): (Columns, Columns) = ([0.0; NR], [0.0; NR]);
        for (j, row) in rows.rows.clone().enumerate() {
            let own = row * width + head * dim..row * width + (head + 1) * dim;
            sums[j] = lse[row * shape.heads + head];
            inner[j] = math::dot(&att[own.clone()], &datt[own]);
        }
        if !rows.segment.prefix.is_empty() {
            // The prefix is the group's first segment.
            let count = rows.segment.prefix.len();
            self.against(rows, (0, count), &sides, (&sums, &inner), false);
        }
        self.against(rows, (index, rows.own()), &sides, (&sums, &inner), true);
    }

    /// A panel of queries against the first `seen` keys of one segment. `sides` are the queries
    /// and the gradient of their output.
    fn against(
        &mut self,
        rows: &Panel<'_>,
        (index, seen): (usize, usize),
        sides: &[Lanes<'_>; 2],
        (lse, inner): (&Columns, &Columns),
        own: bool,
    ) {
        let Inputs { shape, precision, .. } = self.inputs;
        let (dim, count) = (shape.dim, rows.rows.len());
        let Buffers { queries, dout, scores, dp, dq, folded } = &mut self.buffers;
        let Stretch { keys, values, lanes, first } = &self.stretches[index];
        let narrow = count <= NR / 2;
        for buffer in [&mut *scores, &mut *dp] {
            buffer.resize(keys.rows.len().next_multiple_of(NR) * NR, 0.0);
        }
        keys.times(scores, queries, seen, narrow);
        values.times(dp, dout, seen, narrow);
        let (p, ds) = (&mut scores[..seen * NR], &mut dp[..seen * NR]);
        math::softmax_columns_back(p, ds, lse, inner, shape.scale());
        if own {
            rows.mask(p, 0.0);
            rows.mask(ds, 0.0);
        }
        lanes.outer(dq, ds, narrow, precision, folded);
        let mut turned = [0.0; NR * NR];
        for ((values, side), sums) in [&*dp, &*scores].into_iter().zip(sides).zip(&mut self.sums) {
            let squares = values.as_chunks::<{ NR * NR }>().0.iter().take(seen.div_ceil(NR));
            for (i, square) in squares.enumerate() {
                turn_square(square, &mut turned);
                let to = &mut sums[(first + i) * dim * NR..][..dim * NR];
                let narrow = seen - i * NR <= NR / 2;
                side.outer(to, &turned[..count * NR], narrow, precision, folded);
            }
        }
    }
}

/// Writes the first `count` columns of `from (dim, NR)` as rows of `to`, `stride` apart.
fn spread(from: &[f32], dim: usize, to: &mut [f32], stride: usize, count: usize) {
    for j in 0..count {
        for (d, to) in to[j * stride..j * stride + dim].iter_mut().enumerate() {
            *to = from[d * NR + j];
        }
    }
}
