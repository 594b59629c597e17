//! The gradient of attention.
//!
//! Probabilities are recomputed from the saved log-sum-exp (Dao et al. 2022, algorithm 4), for a
//! square of queries and keys at a time: what is computed of it stays in a core's cache, and the sums
//! over its queries and over its keys are long enough for the kernels. One task has one query head of
//! one group of segments; heads that share a key head are added up afterwards, so that all sums are
//! made in one order.

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

/// Panels of queries that are taken at a time.
const PANELS: usize = 4;
/// Keys that are taken at a time: whole panels.
const KEYS: usize = 4 * NR;

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
    panels: [Buffers; PANELS],
    folded: Vec<u32>,
    /// Squares turned, one below the other: `(queries, NR)`.
    turned: Scratch<f32>,
}

/// One segment's side of the products.
struct Stretch<'a> {
    rows: Range<usize>,
    /// Keys and values, [`KEYS`] rows at a time.
    blocks: Vec<[Keys; 2]>,
    /// The keys once more, for the sum over them.
    lanes: Lanes<'a>,
    /// Where its panels of sums begin.
    first: usize,
}

/// What is computed for one panel of queries.
struct Buffers {
    queries: Vec<u32>,
    dout: Vec<u32>,
    lse: Columns,
    /// Product of each query's output and its gradient.
    inner: Columns,
    /// `(KEYS, NR)`: scores, then probabilities; and their gradients.
    p: Scratch<f32>,
    ds: Scratch<f32>,
    /// `(dim, NR)`.
    dq: Scratch<f32>,
}

impl Buffers {
    fn new(dim: usize) -> Buffers {
        let [p, ds] = [(); 2].map(|()| Scratch::zeros(KEYS * NR));
        let (queries, dout) = (Vec::new(), Vec::new());
        let (lse, inner) = ([0.0; NR], [0.0; NR]);
        Buffers { queries, dout, lse, inner, p, ds, dq: Scratch::zeros(dim * NR) }
    }
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
        let (kv, dim) = (inputs.shape.kv_of(head), inputs.shape.dim);
        for segment in segments {
            let rows = segment.rows.clone();
            let blocks = rows.clone().step_by(KEYS).map(|start| {
                let block = start..(start + KEYS).min(rows.end);
                [inputs.k, inputs.v].map(|data| Keys::pack(inputs, data, block.clone(), kv))
            });
            let (blocks, lanes) = (blocks.collect(), inputs.lanes(inputs.k, rows.clone(), kv));
            let first = panels;
            panels += rows.len().div_ceil(NR);
            stretches.push(Stretch { rows, blocks, lanes, first });
        }
        let sums = [(); 2].map(|()| Scratch::zeros(panels * dim * NR));
        let (turned, first) = (Scratch::zeros(PANELS * NR * NR), group.rows.start);
        let (panels, folded) = (std::array::from_fn(|_| Buffers::new(dim)), Vec::new());
        Task { inputs, outputs, first, segments, head, stretches, sums, panels, folded, turned }
    }

    fn run(mut self, to: &mut [f32]) {
        let dim = self.inputs.shape.dim;
        let rows = to.len() / (3 * dim);
        let (dq, rest) = to.split_at_mut(rows * dim);
        let segments = self.segments;
        for (index, segment) in segments.iter().enumerate() {
            for start in segment.rows.clone().step_by(PANELS * NR) {
                let rows = start..(start + PANELS * NR).min(segment.rows.end);
                self.queries(segment, rows, index, &mut dq[(start - self.first) * dim..]);
            }
        }
        for (sums, to) in self.sums.iter().zip(rest.chunks_exact_mut((rows * dim).max(1))) {
            for Stretch { rows, first, .. } in &self.stretches {
                for (i, start) in rows.clone().step_by(NR).enumerate() {
                    let from = &sums[(first + i) * dim * NR..][..dim * NR];
                    let count = NR.min(rows.end - start);
                    spread(from, dim, &mut to[(start - self.first) * dim..], dim, count);
                }
            }
        }
    }

    /// Some panels of queries of segment `index`: adds to the sums and writes their dq `(rows, dim)`.
    fn queries(&mut self, segment: &Segment, rows: Range<usize>, index: usize, to: &mut [f32]) {
        let Inputs { shape, q, precision, .. } = self.inputs;
        let Outputs { att, lse, datt } = self.outputs;
        let (dim, width, head) = (shape.dim, shape.q_width(), self.head);
        let at = |row: usize| row * width + head * dim;
        let panels: Vec<Panel<'_>> = rows
            .clone()
            .step_by(NR)
            .map(|start| Panel { segment, rows: start..(start + NR).min(rows.end) })
            .collect();
        for (Panel { rows, .. }, buffers) in panels.iter().zip(&mut self.panels) {
            let (from, size) = (at(rows.start), (width, rows.len(), dim));
            panel(&mut buffers.queries, &q[from..], size, shape.scale(), precision);
            panel(&mut buffers.dout, &datt[from..], size, 1.0, precision);
            for (j, row) in rows.clone().enumerate() {
                let own = at(row)..at(row) + dim;
                buffers.lse[j] = lse[row * shape.heads + head];
                buffers.inner[j] = math::dot(&att[own.clone()], &datt[own]);
            }
            buffers.dq.fill(0.0);
        }
        let (from, size) = (at(rows.start), (width, rows.len(), dim));
        let sides = [&q[from..], &datt[from..]].map(|x| Lanes::new(x, size, precision));
        if !segment.prefix.is_empty() {
            // The prefix is the group's first segment.
            self.against(&panels, 0, &sides, false);
        }
        self.against(&panels, index, &sides, true);
        for (Panel { rows: own, .. }, buffers) in panels.iter().zip(&self.panels) {
            spread(&buffers.dq, dim, &mut to[(own.start - rows.start) * dim..], dim, own.len());
        }
    }

    /// Panels of queries against the keys of one segment that they see. `sides` are the queries and
    /// the gradient of their output.
    fn against(&mut self, panels: &[Panel<'_>], index: usize, sides: &[Lanes<'_>; 2], own: bool) {
        let Inputs { shape, precision, .. } = self.inputs;
        let Stretch { blocks, lanes, first, rows } = &self.stretches[index];
        let (dim, folded) = (shape.dim, &mut self.folded);
        let seen = |panel: &Panel<'_>| if own { panel.own() } else { rows.len() };
        let queries: usize = panels.iter().map(|panel| panel.rows.len()).sum();
        let most = panels.last().map_or(0, seen);
        for ([keys, values], start) in blocks.iter().zip((0..most).step_by(KEYS)) {
            for (panel, buffers) in panels.iter().zip(&mut self.panels) {
                let here = seen(panel).saturating_sub(start).min(keys.rows.len());
                let narrow = panel.rows.len() <= NR / 2;
                keys.times(&mut buffers.p, &buffers.queries, here, narrow);
                values.times(&mut buffers.ds, &buffers.dout, here, narrow);
                let (p, ds) = (&mut buffers.p[..here * NR], &mut buffers.ds[..here * NR]);
                math::softmax_columns_back(p, ds, &buffers.lse, &buffers.inner, shape.scale());
                if own {
                    panel.mask(p, start, 0.0);
                    panel.mask(ds, start, 0.0);
                }
                lanes.outer(start, &mut buffers.dq, (ds, narrow), precision, folded);
            }
            for i in 0..keys.rows.len().div_ceil(NR) {
                // Those that see these keys are the last ones.
                let blind = panels.iter().take_while(|panel| seen(panel) <= start + i * NR).count();
                let (to, narrow) = (first + start / NR + i, keys.rows.len() - i * NR <= NR / 2);
                for (which, (side, sums)) in sides.iter().zip(&mut self.sums).enumerate() {
                    let turned = self.turned.as_chunks_mut::<{ NR * NR }>().0.iter_mut();
                    let seeing = self.panels[..panels.len()].iter().skip(blind);
                    for (turned, buffers) in turned.zip(seeing) {
                        let values = if which == 0 { &buffers.ds } else { &buffers.p };
                        turn_square(&values.as_chunks::<{ NR * NR }>().0[i], turned);
                    }
                    let right = &self.turned[..(queries - (blind * NR).min(queries)) * NR];
                    let sums = &mut sums[to * dim * NR..][..dim * NR];
                    side.outer(blind * NR, sums, (right, narrow), precision, folded);
                }
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
