//! What a layer leaves behind, and how its rows are shared out among threads.

use std::mem::take;

use super::adapter::Group;
use super::model::Model;

/// Activations of one layer for some rows, `(rows, width)` each.
pub(super) struct State {
    /// Input of the layer.
    pub(super) x: Vec<f32>,
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// q and k before their norm; empty for models without one.
    pub(super) raw: [Vec<f32>; 2],
    /// Log-sum-exp per row and head.
    pub(super) lse: Vec<f32>,
    pub(super) att: Vec<f32>,
    /// The residual stream between attention and feed-forward.
    pub(super) mid: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    /// `A x` per group of projections `(rows, members · rank)`; empty without an adapter.
    pub(super) h: [Vec<f32>; 4],
}

/// Some rows of a [`State`].
pub(super) struct StateRows<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    pub(super) v: &'a mut [f32],
    pub(super) raw: [&'a mut [f32]; 2],
    pub(super) att: &'a mut [f32],
    pub(super) mid: &'a mut [f32],
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
    pub(super) h: [&'a mut [f32]; 4],
}

/// A `(rows, width)` buffer in blocks of `step` rows; empty blocks of an empty buffer.
pub(super) fn cut(mut buffer: &mut [f32], rows: usize, step: usize) -> Vec<&mut [f32]> {
    let width = buffer.len() / rows.max(1);
    let mut blocks = Vec::with_capacity(rows.div_ceil(step.max(1)));
    for first in (0..rows).step_by(step.max(1)) {
        let (block, rest) = take(&mut buffer).split_at_mut(step.min(rows - first) * width);
        blocks.push(block);
        buffer = rest;
    }
    blocks
}

/// [`cut`] of several buffers at once.
pub(super) fn cut_all<const N: usize>(
    buffers: &mut [Vec<f32>; N],
    rows: usize,
    step: usize,
) -> Vec<[&mut [f32]; N]> {
    let mut parts = buffers.each_mut().map(|buffer| cut(buffer, rows, step).into_iter());
    let blocks = (0..rows).step_by(step.max(1));
    blocks.map(|_| parts.each_mut().map(|part| part.next().unwrap_or_default())).collect()
}

impl State {
    /// Buffers for `rows` rows.
    pub(super) fn new(model: &Model, rows: usize, rank: usize) -> State {
        let mut state = State {
            x: Vec::new(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            raw: Default::default(),
            lse: Vec::new(),
            att: Vec::new(),
            mid: Vec::new(),
            gate: Vec::new(),
            up: Vec::new(),
            h: Default::default(),
        };
        state.resize(model, rows, rank);
        state
    }

    /// Makes room for other rows in the same memory; what stands there is arbitrary.
    pub(super) fn resize(&mut self, model: &Model, rows: usize, rank: usize) {
        let widths = State::widths(model, rank);
        for (buffer, width) in self.buffers().into_iter().zip(widths) {
            buffer.resize(rows * width, 0.0);
        }
    }

    /// Bytes that one row takes.
    pub(super) fn row_bytes(model: &Model, rank: usize) -> usize {
        4 * State::widths(model, rank).iter().sum::<usize>()
    }

    /// Width of each buffer, in the order of [`State::buffers`].
    fn widths(model: &Model, rank: usize) -> [usize; 15] {
        let (q, kv) = (model.q_width(), model.kv_width());
        let (hidden, ffn) = (model.config.hidden, model.config.ffn);
        let raw = |width: usize| if model.config.qk_norm { width } else { 0 };
        let [h0, h1, h2, h3] = Group::ALL.map(|group| group.members().len() * rank);
        [
            hidden,
            q,
            kv,
            kv,
            raw(q),
            raw(kv),
            model.config.heads,
            q,
            hidden,
            ffn,
            ffn,
            h0,
            h1,
            h2,
            h3,
        ]
    }

    fn buffers(&mut self) -> [&mut Vec<f32>; 15] {
        let State { x, q, k, v, raw: [rq, rk], lse, att, mid, gate, up, h: [h0, h1, h2, h3] } =
            self;
        [x, q, k, v, rq, rk, lse, att, mid, gate, up, h0, h1, h2, h3]
    }

    /// All rows in blocks of `step`.
    pub(super) fn cut(&mut self, rows: usize, step: usize) -> Vec<StateRows<'_>> {
        let mut parts = self.buffers().map(|buffer| cut(buffer, rows, step).into_iter());
        let blocks = (0..rows).step_by(step.max(1)).map(|_| {
            let [x, q, k, v, rq, rk, _, att, mid, gate, up, h @ ..] =
                parts.each_mut().map(|part| part.next().unwrap_or_default());
            StateRows { x, q, k, v, raw: [rq, rk], att, mid, gate, up, h }
        });
        blocks.collect()
    }
}
