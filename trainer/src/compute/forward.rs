//! The forward pass of the decoder layers, with or without what the backward pass needs.
//!
//! Rows only meet in attention. So a layer is three parallel regions: blocks of rows go from the
//! residual stream to q, k and v; tiles of rows attend; blocks go through the rest of the layer. A
//! block's intermediates stay in its core's cache. Scoring and sampling reuse one layer's buffers;
//! training keeps one [`State`] per layer (about 0.7 MB per token for SmolLM2-135M), as far as memory
//! allows, and of the other layers what it takes to run them again ([`Trail`]).

use hone_model::lora::Proj;
use rayon::prelude::*;
use tokio_util::sync::CancellationToken;

use super::adapter::{Group, Packed};
use super::attention::{self, Heads, Inputs};
use super::batch::Batch;
use super::kernels::{Out, Part, Rows, block_rows, multiply};
use super::math::{self, Rope};
use super::model::Model;
use super::scratch::Scratch;
use super::state::{State, StateRows, Trail, cut};

/// A model with an adapter, ready to run.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) model: &'a Model,
    pub(super) adapter: Option<&'a Packed>,
    pub(super) rope: &'a Rope,
    /// Once set, layers are left out: whoever runs the pass throws its result away.
    pub(super) stop: &'a CancellationToken,
}

impl Pass<'_> {
    /// The adapter's rank, 0 without one.
    pub(super) fn rank(&self) -> usize {
        self.adapter.map_or(0, |adapter| adapter.rank)
    }

    pub(super) fn heads(&self) -> Heads {
        let config = &self.model.config;
        Heads { heads: config.heads, kv_heads: config.kv_heads, dim: config.head_dim }
    }

    /// Runs all layers over a batch; `x` becomes the residual stream before the final norm
    /// `(rows, hidden)`. Each layer leaves its state or its input in `trail`.
    pub(super) fn run(&self, batch: &Batch, trail: &mut Trail, x: &mut Vec<f32>) {
        x.resize(batch.rows() * self.model.config.hidden, 0.0);
        self.model.embed(&batch.tokens, x);
        for index in 0..self.model.layers.len() {
            let (input, state) = trail.at(index);
            if let Some(input) = input {
                input.copy_from_slice(x);
            }
            self.layer(index, x, &batch.positions, state, |s| self.attend(batch, s));
        }
    }

    /// The state of a layer that was run before: kept, or computed again from its input.
    pub(super) fn again<'t>(&self, index: usize, batch: &Batch, trail: &'t mut Trail) -> &'t State {
        let (input, state) = trail.at(index);
        if let Some(input) = input {
            // The layer replaces its input, which is not needed any more.
            self.layer(index, input, &batch.positions, state, |s| self.attend(batch, s));
        }
        state
    }

    /// Attention inside the batch.
    pub(super) fn attend(&self, batch: &Batch, s: &mut State) {
        let (shape, precision) = (self.heads(), self.model.precision);
        let inputs = Inputs { shape, q: &s.q, k: &s.k, v: &s.v, precision };
        attention::forward(inputs, &batch.segments, &mut s.att, &mut s.lse);
    }

    /// One layer: `x` is replaced by its output. `attend` reads q, k, v of the state and writes
    /// att and lse.
    pub(super) fn layer(
        &self,
        index: usize,
        x: &mut [f32],
        positions: &[u32],
        s: &mut State,
        attend: impl FnOnce(&mut State),
    ) {
        if self.stop.is_cancelled() {
            return;
        }
        let rows = positions.len();
        let step = block_rows(rows);
        let blocks = s.cut(rows, step).into_iter().zip(cut(x, rows, step));
        let blocks: Vec<_> = blocks.zip(positions.chunks(step)).collect();
        blocks.into_par_iter().with_max_len(1).for_each(|((mut s, x), positions)| {
            self.enter(index, x, positions, &mut s);
        });
        attend(s);
        let blocks: Vec<_> = s.cut(rows, step).into_iter().zip(cut(x, rows, step)).collect();
        blocks.into_par_iter().with_max_len(1).for_each(|(mut s, x)| self.leave(index, x, &mut s));
    }

    /// From the residual stream of a block to its q, k and v.
    fn enter(&self, index: usize, x: &[f32], positions: &[u32], s: &mut StateRows<'_>) {
        let (layer, model) = (&self.model.layers[index], self.model);
        s.x.copy_from_slice(x);
        let mut normed = Scratch::take(x.len());
        math::norm_rows(x, &layer.norm1, model.eps, &mut normed);
        let StateRows { q, k, v, raw: [raw_q, raw_k], h: [h, ..], .. } = s;
        self.apply(index, Group::Qkv, &normed, h, &mut [q, k, v], false);
        if let Some([bias_q, bias_k, bias_v]) = &layer.bias {
            math::add_bias(q, bias_q);
            math::add_bias(k, bias_k);
            math::add_bias(v, bias_v);
        }
        if let Some([weight_q, weight_k]) = &layer.qk_norm {
            raw_q.copy_from_slice(q);
            raw_k.copy_from_slice(k);
            math::norm_rows(raw_q, weight_q, model.eps, q);
            math::norm_rows(raw_k, weight_k, model.eps, k);
        }
        self.rope.rotate(q, model.q_width(), positions, 1.0);
        self.rope.rotate(k, model.kv_width(), positions, 1.0);
    }

    /// From a block's attention through the feed-forward to the next layer's input.
    fn leave(&self, index: usize, x: &mut [f32], s: &mut StateRows<'_>) {
        let (layer, eps) = (&self.model.layers[index], self.model.eps);
        let StateRows { att, mid, gate, up, h: [_, ho, hg, hd], .. } = s;
        self.apply(index, Group::O, att, ho, &mut [&mut *x], true);
        mid.copy_from_slice(x);
        let mut normed = Scratch::take(x.len());
        math::norm_rows(x, &layer.norm2, eps, &mut normed);
        self.apply(index, Group::GateUp, &normed, hg, &mut [&mut **gate, &mut **up], false);
        let mut act = Scratch::take(gate.len());
        math::swiglu(gate, up, &mut act);
        self.apply(index, Group::Down, &act, hd, &mut [x], true);
    }

    /// `y (+)= W x + s B (A x)` for the projections of a group; `h` becomes their `A x`.
    fn apply(
        &self,
        index: usize,
        group: Group,
        x: &[f32],
        h: &mut [f32],
        outs: &mut [&mut [f32]],
        add: bool,
    ) {
        let (model, rank) = (self.model, self.rank());
        let proj = |which: &Proj| &model.layers[index].proj[which.index()];
        let members = group.members();
        let width = model.config.proj_shape(members[0]).1;
        let rows = x.len() / width;
        let x = Rows::pack(x, width, rows, width, model.precision);
        let pairs = self.adapter.map(|adapter| &adapter.layers[index][group.index()]);
        if let Some(pairs) = pairs {
            let stride = members.len() * rank;
            multiply(Out { y: &mut *h, stride, add: false }, &[Part::new(&x, &pairs.a)]);
        }
        for (i, (which, y)) in members.iter().zip(outs).enumerate() {
            let stride = y.len() / rows.max(1);
            let (out, base) = (Out { y, stride, add }, Part::new(&x, proj(which)));
            match pairs {
                Some(pairs) => {
                    let columns = members.len() * rank;
                    let h = Rows::pack(&h[i * rank..], columns, rows, rank, model.precision);
                    multiply(out, &[base, Part::new(&h, &pairs.b[i])]);
                }
                None => multiply(out, &[base]),
            }
        }
    }
}
