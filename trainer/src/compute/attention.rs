//! Causal attention with grouped heads over packed segments, and its gradient.
//!
//! A tile of query rows is scored against the shared prefix and its own segment, so memory is
//! `tile x keys`, never `rows x rows`. The backward pass recomputes the probabilities from the
//! saved log-sum-exp (Dao et al. 2022, algorithm 4, without the blocking over keys).
//!
//! Invariant: a row sees its prefix and its own segment up to itself, nothing else.

use std::ops::Range;

use rayon::prelude::*;

use super::batch::{Batch, Segment};
use super::kernels::{View, ViewMut, gemm};
use super::math;

/// Query rows per tile.
const TILE: usize = 64;

/// Numbers and width of the heads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) dim: usize,
}

/// Queries `(rows, heads · dim)`, keys and values `(rows, kv_heads · dim)`.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) shape: Heads,
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
}

/// What the forward pass gave and what came back to it.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    /// `(rows, heads · dim)`.
    pub(super) att: &'a [f32],
    /// `(rows, heads)`.
    pub(super) lse: &'a [f32],
    /// `(rows, heads · dim)`.
    pub(super) datt: &'a [f32],
}

impl Heads {
    fn q_width(self) -> usize {
        self.heads * self.dim
    }

    fn kv_width(self) -> usize {
        self.kv_heads * self.dim
    }

    /// The key and value head of query head `head`.
    pub(super) fn kv_of(self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// `1 / √dim`.
    pub(super) fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// Some rows of one head as a matrix `(rows, dim)`.
fn part<'a>(
    data: &'a [f32],
    rows: &Range<usize>,
    head: usize,
    width: usize,
    dim: usize,
) -> View<'a> {
    View::new(&data[rows.start * width + head * dim..], rows.len(), dim, width)
}

/// As [`part`], of the columns `first..` of a `(rows, keys)` matrix.
fn columns<'a>(data: &'a [f32], rows: usize, keys: usize, range: &Range<usize>) -> View<'a> {
    View::new(&data[range.start..], rows, range.len(), keys)
}

/// One tile: query rows of a segment, and the key rows that they see.
struct Tile<'a> {
    inputs: Inputs<'a>,
    rows: Range<usize>,
    segment: &'a Segment,
}

impl Tile<'_> {
    /// Keys of a tile: prefix, then the segment up to the tile's last row.
    fn keys(&self) -> usize {
        self.segment.prefix.len() + self.rows.end - self.segment.rows.start
    }

    /// Keys that row `i` of the tile sees.
    fn visible(&self, i: usize) -> usize {
        self.segment.prefix.len() + self.rows.start + i + 1 - self.segment.rows.start
    }

    /// The two stretches of keys: their columns in the tile and their rows in the batch.
    fn stretches(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
        let prefix = self.segment.prefix.clone();
        let own = self.segment.rows.start..self.rows.end;
        let split = prefix.len();
        [(0..split, prefix), (split..split + own.len(), own)]
            .into_iter()
            .filter(|(columns, _)| !columns.is_empty())
    }

    /// `to (tile, keys) = scale · left rightᵀ`, where `right` are keys or values of a head.
    fn against(&self, to: &mut [f32], left: View<'_>, right: &[f32], head: usize, scale: f32) {
        let Heads { dim, .. } = self.inputs.shape;
        let (keys, width) = (self.keys(), self.inputs.shape.kv_width());
        for (range, rows) in self.stretches() {
            let right = part(right, &rows, self.inputs.shape.kv_of(head), width, dim);
            let to = ViewMut::new(&mut to[range.start..], self.rows.len(), range.len(), keys);
            gemm(to, false, left, right.t(), scale);
        }
    }

    fn queries<'b>(&self, data: &'b [f32], head: usize) -> View<'b> {
        part(data, &self.rows, head, self.inputs.shape.q_width(), self.inputs.shape.dim)
    }
}

fn tiles<'a>(inputs: Inputs<'a>, segments: &'a [Segment]) -> impl Iterator<Item = Tile<'a>> {
    segments.iter().flat_map(move |segment| {
        segment.rows.clone().step_by(TILE).map(move |start| Tile {
            inputs,
            rows: start..(start + TILE).min(segment.rows.end),
            segment,
        })
    })
}

/// Writes `att (rows, heads · dim)` and `lse (rows, heads)`, on the current pool. Segments cover
/// the rows in order.
pub(super) fn forward(
    inputs: Inputs<'_>,
    segments: &[Segment],
    mut att: &mut [f32],
    mut lse: &mut [f32],
) {
    let shape = inputs.shape;
    let mut tasks = Vec::new();
    for tile in tiles(inputs, segments) {
        let (mine, rest) = att.split_at_mut(tile.rows.len() * shape.q_width());
        let (sums, rest_sums) = lse.split_at_mut(tile.rows.len() * shape.heads);
        (att, lse) = (rest, rest_sums);
        tasks.push((tile, mine, sums));
    }
    tasks.into_par_iter().with_max_len(1).for_each_init(Vec::new, |scores, (tile, att, lse)| {
        let (count, keys) = (tile.rows.len(), tile.keys());
        scores.resize(count * keys, 0.0);
        for head in 0..shape.heads {
            let queries = tile.queries(inputs.q, head);
            tile.against(scores, queries, inputs.k, head, shape.scale());
            for (i, row) in scores.chunks_exact_mut(keys).enumerate().take(count) {
                lse[i * shape.heads + head] = softmax(row, tile.visible(i));
            }
            for (range, rows) in tile.stretches() {
                let values = part(inputs.v, &rows, shape.kv_of(head), shape.kv_width(), shape.dim);
                let to = &mut att[head * shape.dim..];
                let to = ViewMut::new(to, count, shape.dim, shape.q_width());
                let probabilities = columns(scores, count, keys, &range);
                gemm(to, range.start > 0, probabilities, values, 1.0);
            }
        }
    });
}

/// Softmax over the first `visible` values, zero for the rest; returns the log-sum-exp.
pub(super) fn softmax(row: &mut [f32], visible: usize) -> f32 {
    let (seen, hidden) = row.split_at_mut(visible);
    let most = math::max(seen);
    let sum = math::exp_in_place(seen, most, 1.0);
    let factor = 1.0 / sum;
    seen.iter_mut().for_each(|p| *p *= factor);
    hidden.fill(0.0);
    most + sum.ln()
}

/// Gradients per head, before heads that share keys are summed: for each group and each query
/// head the three matrices dq, dk, dv `(group rows, dim)`.
pub(super) struct HeadGradients {
    values: Vec<f32>,
    shape: Heads,
}

impl HeadGradients {
    /// Computes them on the current pool; one task per group and head.
    pub(super) fn compute(inputs: Inputs<'_>, outputs: Outputs<'_>, batch: &Batch) -> Self {
        let shape = inputs.shape;
        let mut values = vec![0.0; batch.rows() * shape.heads * 3 * shape.dim];
        let (mut tasks, mut rest) = (Vec::new(), values.as_mut_slice());
        for group in &batch.groups {
            for head in 0..shape.heads {
                let (mine, left) = rest.split_at_mut(3 * group.rows.len() * shape.dim);
                rest = left;
                tasks.push((group, head, mine));
            }
        }
        tasks.into_par_iter().with_max_len(1).for_each_init(
            || (Vec::new(), Vec::new()),
            |(p, dp), (group, head, to)| {
                for tile in tiles(inputs, &batch.segments[group.segments.clone()]) {
                    tile_back(&tile, outputs, head, group.rows.start, to, p, dp);
                }
            },
        );
        HeadGradients { values, shape }
    }

    /// Sums into dq `(rows, heads · dim)` and dk, dv `(rows, kv_heads · dim)`.
    pub(super) fn gather(&self, batch: &Batch, dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
        let Heads { heads, dim, .. } = self.shape;
        let (q_width, kv_width) = (self.shape.q_width(), self.shape.kv_width());
        let rows = dq.par_chunks_exact_mut(q_width).zip(dk.par_chunks_exact_mut(kv_width));
        let rows = rows.zip(dv.par_chunks_exact_mut(kv_width)).enumerate();
        rows.with_min_len(math::TASK_ROWS).for_each(|(row, ((dq, dk), dv))| {
            let after = batch.groups.partition_point(|group| group.rows.end <= row);
            let group = &batch.groups[after].rows;
            dk.fill(0.0);
            dv.fill(0.0);
            for head in 0..heads {
                let start = (group.start * heads + head * group.len()) * 3 * dim;
                let at = |which: usize| {
                    let from = start + (which * group.len() + row - group.start) * dim;
                    &self.values[from..from + dim]
                };
                let kv = self.shape.kv_of(head) * dim..(self.shape.kv_of(head) + 1) * dim;
                dq[head * dim..(head + 1) * dim].copy_from_slice(at(0));
                math::add_scaled(&mut dk[kv.clone()], 1.0, at(1));
                math::add_scaled(&mut dv[kv], 1.0, at(2));
            }
        });
    }
}

/// Adds one tile's share to a group's dq, dk, dv of one head. `first` is the group's first row.
fn tile_back(
    tile: &Tile<'_>,
    outputs: Outputs<'_>,
    head: usize,
    first: usize,
    to: &mut [f32],
    p: &mut Vec<f32>,
    dp: &mut Vec<f32>,
) {
    let Inputs { shape, q, k, v } = tile.inputs;
    let (count, keys, dim) = (tile.rows.len(), tile.keys(), shape.dim);
    p.resize(count * keys, 0.0);
    dp.resize(count * keys, 0.0);
    tile.against(p, tile.queries(q, head), k, head, shape.scale());
    tile.against(dp, tile.queries(outputs.datt, head), v, head, 1.0);
    for i in 0..count {
        let (row, visible) = (tile.rows.start + i, tile.visible(i));
        let own = row * shape.q_width() + head * dim..row * shape.q_width() + (head + 1) * dim;
        let inner = math::dot(&outputs.att[own.clone()], &outputs.datt[own]);
        let lse = outputs.lse[row * shape.heads + head];
        let (p, dp) = (&mut p[i * keys..(i + 1) * keys], &mut dp[i * keys..(i + 1) * keys]);
        for (p, ds) in p[..visible].iter_mut().zip(&mut dp[..visible]) {
            *p = math::exp(*p - lse);
            *ds = *p * (*ds - inner) * shape.scale();
        }
        p[visible..].fill(0.0);
        dp[visible..].fill(0.0);
    }
    let (dq, rest) = to.split_at_mut(to.len() / 3);
    let (dk, dv) = rest.split_at_mut(dq.len());
    let (queries, datt) = (tile.queries(q, head), tile.queries(outputs.datt, head));
    for (range, rows) in tile.stretches() {
        let (p, ds) = (columns(p, count, keys, &range), columns(dp, count, keys, &range));
        let key_rows = part(k, &rows, shape.kv_of(head), shape.kv_width(), dim);
        let at = |rows: &Range<usize>| (rows.start - first) * dim;
        let (mine, theirs) = (at(&tile.rows), at(&rows));
        gemm(ViewMut::new(&mut dq[mine..], count, dim, dim), true, ds, key_rows, 1.0);
        gemm(ViewMut::new(&mut dk[theirs..], rows.len(), dim, dim), true, ds.t(), queries, 1.0);
        gemm(ViewMut::new(&mut dv[theirs..], rows.len(), dim, dim), true, p.t(), datt, 1.0);
    }
}
