//! Causal attention with grouped heads over packed segments.
//!
//! Scores stand turned: keys downwards, 32 queries side by side. So they come out of the kernels as
//! the panel that the next product reads, and the softmax runs down columns without a sum across
//! lanes. Memory is `keys x 32` per thread, never `rows x rows`. Keys and values are packed once for
//! all queries that see them.
//!
//! Invariant: a row sees its prefix and its own segment up to itself, nothing else.

mod back;

use std::ops::Range;

use rayon::prelude::*;

use super::batch::Segment;
use super::kernels::{
    Left, NR, Precision, Product, ROWS_MAX, Rows, Tile, accumulate, f32_words, fold, panel, strips,
};
use super::math;
use super::scratch::Scratch;

pub(super) use back::{HeadGradients, Outputs};

/// Query rows that one task takes: two panels.
const TILE: usize = 2 * NR;

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
    /// Of the products; softmax and sums are f32.
    pub(super) precision: Precision,
}

impl<'a> Inputs<'a> {
    /// Head `kv` of some rows of keys or values, for a sum over rows.
    fn lanes(self, data: &'a [f32], rows: Range<usize>, kv: usize) -> Lanes<'a> {
        let (width, dim) = (self.shape.kv_width(), self.shape.dim);
        let from = data.get(rows.start * width + kv * dim..).unwrap_or_default();
        Lanes::new(from, (width, rows.len(), dim), self.precision)
    }
}

impl Heads {
    fn q_width(self) -> usize {
        self.heads * self.dim
    }

    fn kv_width(self) -> usize {
        self.kv_heads * self.dim
    }

    /// Query heads that share one key and value head.
    fn shared(self) -> usize {
        self.heads / self.kv_heads
    }

    /// The key and value head of query head `head`.
    pub(super) fn kv_of(self, head: usize) -> usize {
        head / self.shared()
    }

    /// The query heads of key and value head `kv`.
    fn heads_of(self, kv: usize) -> Range<usize> {
        kv * self.shared()..(kv + 1) * self.shared()
    }

    /// `1 / √dim`.
    pub(super) fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// Consecutive rows of keys of one head, packed for the product with queries.
struct Keys {
    rows: Range<usize>,
    packed: Rows,
}

impl Keys {
    /// Packs head `kv` of some rows of `data (rows, kv_heads · dim)`.
    fn pack(inputs: Inputs<'_>, data: &[f32], rows: Range<usize>, kv: usize) -> Keys {
        let shape = inputs.shape;
        let (width, from) = (shape.kv_width(), rows.start * shape.kv_width() + kv * shape.dim);
        let packed = Rows::pack(
            &data[from.min(data.len())..],
            width,
            rows.len(),
            shape.dim,
            inputs.precision,
        );
        Keys { rows, packed }
    }

    /// `to (≥ count, NR) = keys · right`, for the first `count` keys and as many as complete a strip.
    fn times(&self, to: &mut [f32], right: &[u32], count: usize, narrow: bool) {
        let precision = self.packed.precision();
        for (row, take) in strips(self.rows.len()).take_while(|(row, _)| *row < count) {
            let values = &mut to[row * NR..(row + take) * NR];
            let (left, panel) = (self.packed.strip((row, take), 0), right);
            accumulate(
                Tile { values, stride: NR, fresh: true },
                Product { precision, left, panel, narrow, ahead: (&[], 0) },
            );
        }
    }
}

/// Rows of some columns as the left side of a sum over rows: where they lie in f32, two rows folded
/// into one of words in bf16.
enum Lanes<'a> {
    Plain(&'a [u32], usize),
    Folded(Vec<u32>, usize),
}

impl<'a> Lanes<'a> {
    /// `rows` rows of `width` values that begin `stride` values after each other.
    fn new(
        x: &'a [f32],
        (stride, rows, width): (usize, usize, usize),
        precision: Precision,
    ) -> Lanes<'a> {
        match precision {
            Precision::F32 => Lanes::Plain(f32_words(x), stride),
            Precision::Bf16 => {
                let mut words = Vec::new();
                fold(&mut words, x, (stride, rows, width));
                Lanes::Folded(words, width)
            }
        }
    }

    /// Columns `first..first + rows` of the rows from `start` on, which is even.
    fn columns(&self, start: usize, first: usize, rows: usize) -> Left<'_> {
        let (words, step, start) = match self {
            Lanes::Plain(words, step) => (*words, *step, start),
            Lanes::Folded(words, step) => (words.as_slice(), *step, start / 2),
        };
        Left { words: words.get(start * step + first..).unwrap_or_default(), step, rows }
    }

    /// `to (width, NR) += rowsᵀ right (n, NR)` for `n` rows from `start` on, which is even. `folded`
    /// is working memory.
    fn outer(
        &self,
        start: usize,
        to: &mut [f32],
        (right, narrow): (&[f32], bool),
        precision: Precision,
        folded: &mut Vec<u32>,
    ) {
        let panel = match precision {
            Precision::F32 => f32_words(right),
            Precision::Bf16 => {
                fold(folded, right, (NR, right.len() / NR, NR));
                folded
            }
        };
        for (first, take) in strips(to.len() / NR) {
            let values = &mut to[first * NR..(first + take) * NR];
            let left = self.columns(start, first, take);
            accumulate(
                Tile { values, stride: NR, fresh: false },
                Product { precision, left, panel, narrow, ahead: (&[], 0) },
            );
        }
    }
}

/// Up to [`NR`] query rows of a segment.
struct Panel<'a> {
    segment: &'a Segment,
    rows: Range<usize>,
}

impl Panel<'_> {
    /// Keys of the own segment that some of the rows see.
    fn own(&self) -> usize {
        self.rows.end - self.segment.rows.start
    }

    /// Sets what lies after a query to `value`, in the `scores (keys, NR)` of own keys from `start`
    /// on.
    fn mask(&self, scores: &mut [f32], start: usize, value: f32) {
        let first = self.rows.start - self.segment.rows.start;
        let keys = scores.as_chunks_mut::<NR>().0.iter_mut().enumerate();
        for (i, row) in keys.skip(first.saturating_sub(start)) {
            row[..(start + i - first).min(NR)].fill(value);
        }
    }
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
    for segment in segments {
        for start in segment.rows.clone().step_by(TILE) {
            let rows = start..(start + TILE).min(segment.rows.end);
            let (mine, rest) = att.split_at_mut(rows.len() * shape.q_width());
            let (sums, rest_sums) = lse.split_at_mut(rows.len() * shape.heads);
            (att, lse) = (rest, rest_sums);
            tasks.push((segment, rows, mine, sums));
        }
    }
    // Those that see most first.
    tasks.sort_by_key(|(segment, rows, ..)| {
        std::cmp::Reverse(segment.prefix.len() + rows.end - segment.rows.start)
    });
    let sides = Sides::pack(inputs, segments);
    tasks.into_iter().par_bridge().for_each(|(segment, rows, att, lse)| {
        let mut buffers = [Vec::new(), Vec::new()];
        for kv in 0..shape.kv_heads {
            let sides = [sides.before(segment, kv), sides.own(segment, kv)];
            for first in rows.clone().step_by(NR) {
                let panel = Panel { segment, rows: first..(first + NR).min(rows.end) };
                let skip = first - rows.start;
                for head in shape.heads_of(kv) {
                    let att = &mut att[skip * shape.q_width() + head * shape.dim..];
                    let lse = &mut lse[skip * shape.heads + head..];
                    attend(inputs, &panel, sides, head, &mut buffers, (att, lse));
                }
            }
        }
    });
}

/// Keys of one head and segment, and its values for a sum over them.
type Side<'a> = (Keys, Lanes<'a>);

/// Every segment's keys and values, packed once for all queries that see them.
struct Sides<'a> {
    segments: &'a [Segment],
    kv_heads: usize,
    /// Segment by segment, all heads of one side by side.
    packed: Vec<Side<'a>>,
}

impl<'a> Sides<'a> {
    /// Packs them on the current pool.
    fn pack(inputs: Inputs<'a>, segments: &'a [Segment]) -> Sides<'a> {
        let kv_heads = inputs.shape.kv_heads;
        let places = (0..segments.len() * kv_heads).into_par_iter().with_max_len(1);
        let packed = places.map(|place| {
            let (rows, kv) = (segments[place / kv_heads].rows.clone(), place % kv_heads);
            let values = inputs.lanes(inputs.v, rows.clone(), kv);
            (Keys::pack(inputs, inputs.k, rows, kv), values)
        });
        Sides { segments, kv_heads, packed: packed.collect() }
    }

    /// Those of a segment itself. Segments stand in the order of their rows.
    fn own(&self, segment: &Segment, kv: usize) -> Option<&Side<'a>> {
        let index = self.segments.partition_point(|other| other.rows.end <= segment.rows.start);
        self.packed.get(index * self.kv_heads + kv)
    }

    /// Those of its prefix, which is a segment of its own; `None` without one.
    fn before(&self, segment: &Segment, kv: usize) -> Option<&Side<'a>> {
        let (prefix, segments) = (&segment.prefix, self.segments);
        let index = segments.partition_point(|other| other.rows.end <= prefix.start);
        if prefix.is_empty() { None } else { self.packed.get(index * self.kv_heads + kv) }
    }
}

/// One head of one panel against its prefix and its own segment; `att` and `lse` begin at its first
/// value.
fn attend(
    inputs: Inputs<'_>,
    rows: &Panel<'_>,
    [before, own]: [Option<&Side<'_>>; 2],
    head: usize,
    [queries, folded]: &mut [Vec<u32>; 2],
    (att, lse): (&mut [f32], &mut [f32]),
) {
    let Inputs { shape, q, precision, .. } = inputs;
    let (dim, q_width, count) = (shape.dim, shape.q_width(), rows.rows.len());
    let narrow = count <= NR / 2;
    let from = &q[rows.rows.start * q_width + head * dim..];
    panel(queries, from, (q_width, count, dim), shape.scale(), precision);
    let (prefix, seen) = (rows.segment.prefix.len(), rows.own());
    // The kernels write whole strips, which may end behind the last key.
    let mut scores = Scratch::take((prefix + seen + ROWS_MAX) * NR);
    let (first, after) = scores.split_at_mut(prefix * NR);
    if let Some((keys, _)) = before {
        keys.times(first, queries, prefix, narrow);
    }
    if let Some((keys, _)) = own {
        keys.times(after, queries, seen, narrow);
    }
    rows.mask(&mut after[..seen * NR], 0, f32::NEG_INFINITY);
    let scores = &mut scores[..(prefix + seen) * NR];
    let (most, sums) = math::softmax_columns(scores);
    rows.mask(&mut scores[prefix * NR..], 0, 0.0);
    let mut out = Scratch::zeros(dim * NR);
    let (first, after) = scores.split_at(prefix * NR);
    for (side, weights) in [(before, first), (own, after)] {
        if let Some((_, values)) = side {
            values.outer(0, &mut out, (weights, narrow), precision, folded);
        }
    }
    for j in 0..count {
        let factor = 1.0 / sums[j];
        lse[j * shape.heads] = most[j] + sums[j].ln();
        for (d, to) in att[j * q_width..j * q_width + dim].iter_mut().enumerate() {
            *to = out[d * NR + j] * factor;
        }
    }
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
