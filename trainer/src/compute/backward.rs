//! The backward pass of the decoder layers: activations' gradients through frozen weights, and
//! the adapter's gradients.
//!
//! For `y = W x + s B (A x)` with `e = dy (s B)`: `dx = dy W + e A`, `dA = eᵀ x` and
//! `dB = s dyᵀ (A x)`. Normed inputs and activations are recomputed, not saved. As forward, blocks
//! of rows go through everything but attention on one thread; the adapter's gradients, which sum
//! over rows, are collected between.

use std::ops::Range;

use hone_model::lora::Proj;
use rayon::prelude::*;

use super::adapter::{Collector, Group, Packed, Step};
use super::attention::{HeadGradients, Inputs, Outputs};
use super::batch::Batch;
use super::forward::Pass;
use super::kernels::{Linear, Out, Part, Rows, Turned, block_rows, multiply};
use super::math;
use super::model::Model;
use super::order;
use super::scratch::Scratch;
use super::state::{State, Trail, cut, cut_all};

/// Buffers of one layer's backward pass, reused from layer to layer and from batch to batch;
/// `(rows, width)` each.
#[derive(Default)]
pub(super) struct Buffers {
    /// Of the feed-forward: act, dgate, dup, normed input, gradient of the residual stream in the
    /// middle of the layer, datt, and `e` of down, of gate and up, and of the output.
    feed: [Vec<f32>; 9],
    /// Of the attention: dq, dk, dv, normed input, `e`.
    attention: [Vec<f32>; 5],
    heads: HeadGradients,
}

impl Buffers {
    /// Makes room for a batch; what stands there is arbitrary.
    fn resize(&mut self, pass: &Pass<'_>, rows: usize) {
        let (model, rank): (&Model, usize) = (pass.model, pass.rank());
        let (hidden, ffn) = (model.config.hidden, model.config.ffn);
        let (q, kv) = (model.q_width(), model.kv_width());
        let feed = [ffn, ffn, ffn, hidden, hidden, q, rank, 2 * rank, rank];
        let buffers = self.feed.iter_mut().chain(&mut self.attention);
        for (buffer, width) in buffers.zip(feed.into_iter().chain([q, kv, kv, hidden, 3 * rank])) {
            buffer.resize(rows * width, 0.0);
        }
        self.heads.resize(pass.heads(), rows);
    }
}

/// One layer's weights, turned.
struct Weights<'a> {
    proj: [Turned<'a>; 7],
    a: [Turned<'a>; 4],
    b: [Vec<Turned<'a>>; 4],
}

/// The backward pass of one batch.
pub(super) struct Backward<'a> {
    pub(super) pass: Pass<'a>,
    pub(super) adapter: &'a Packed,
    pub(super) batch: &'a Batch,
}

impl Backward<'_> {
    /// Goes through all layers from the last to the first. `dx (rows, hidden)` is the gradient of
    /// the residual stream before the final norm; `trail` is what the forward pass left.
    pub(super) fn run(
        &self,
        dx: &mut [f32],
        trail: &mut Trail,
        buffers: &mut Buffers,
        to: &mut Collector,
    ) {
        let rows = self.batch.rows();
        buffers.resize(&self.pass, rows);
        for index in (0..self.pass.model.layers.len()).rev() {
            if self.pass.stop.is_cancelled() {
                return;
            }
            let s = self.pass.again(index, self.batch, trail);
            let weights = self.weights(index);
            self.feed_forward(index, dx, s, &weights, buffers);
            let Buffers { feed, attention, heads } = &mut *buffers;
            let [act, dgate, dup, normed, dmid, datt, e_down, e_gate, e_o] = &*feed;
            let (shape, precision) = (self.pass.heads(), self.pass.model.precision);
            let inputs = Inputs { shape, q: &s.q, k: &s.k, v: &s.v, precision };
            let [_, h_o, h_gate, h_down] = &s.h;
            let steps = [
                Step { group: Group::Down, input: act, e: e_down, h: h_down, dy: vec![&*dx] },
                Step {
                    group: Group::GateUp,
                    input: normed,
                    e: e_gate,
                    h: h_gate,
                    dy: vec![dgate, dup],
                },
                Step { group: Group::O, input: &s.att, e: e_o, h: h_o, dy: vec![dmid] },
            ];
            // Heads are few and long; what is collected fills the gap at their end.
            let outputs = Outputs { att: &s.att, lse: &s.lse, datt };
            let mut tasks = heads.compute(inputs, outputs, self.batch);
            tasks.extend(to.add(index, rows, self.adapter.scale, &steps));
            order::run(tasks);
            self.attention(index, s, dmid, &weights, (&*heads, attention, &mut *dx));
            let [dq, dk, dv, normed, e] = &*attention;
            let (group, h, dy): (_, _, Vec<&[f32]>) = (Group::Qkv, &s.h[0], vec![dq, dk, dv]);
            let step = Step { group, input: normed, e, h, dy };
            order::run(to.add(index, rows, self.adapter.scale, &[step]));
        }
    }

    /// Turns a layer's weights, where they are not kept so.
    fn weights(&self, index: usize) -> Weights<'_> {
        let (layer, pairs) = (&self.pass.model.layers[index], &self.adapter.layers[index]);
        Weights {
            proj: layer.proj.each_ref().map(Linear::turned),
            a: pairs.each_ref().map(|group| group.a.turned()),
            b: pairs.each_ref().map(|group| group.b.iter().map(Linear::turned).collect()),
        }
    }

    /// Blocks of rows from the layer's output back to the attention's.
    fn feed_forward(&self, index: usize, dx: &[f32], s: &State, w: &Weights<'_>, b: &mut Buffers) {
        let (rows, model) = (self.batch.rows(), self.pass.model);
        let (hidden, ffn) = (model.config.hidden, model.config.ffn);
        let norm = &model.layers[index].norm2;
        let step = block_rows(rows);
        let blocks = cut_all(&mut b.feed, rows, step).into_par_iter().enumerate().with_max_len(1);
        blocks.for_each(|(i, [act, dgate, dup, normed, dmid, datt, e_down, e_gate, e_o])| {
            let of = |width: usize| i * step * width..rows.min((i + 1) * step) * width;
            let (dx, mid) = (&dx[of(hidden)], &s.mid[of(hidden)]);
            self.back(Group::Down, &[dx], w, e_down, Some(dup));
            math::swiglu_back(&s.gate[of(ffn)], &s.up[of(ffn)], dup, dgate, act);
            math::norm_rows(mid, norm, model.eps, normed);
            let mut dnormed = Scratch::take(dx.len());
            self.back(Group::GateUp, &[dgate, dup], w, e_gate, Some(&mut dnormed));
            dmid.copy_from_slice(dx);
            math::norm_rows_back(mid, norm, model.eps, &dnormed, dmid);
            self.back(Group::O, &[dmid], w, e_o, Some(datt));
        });
    }

    /// Blocks of rows from the heads' gradients back to the layer's input, whose gradient `dx`
    /// becomes.
    fn attention(
        &self,
        index: usize,
        s: &State,
        dmid: &[f32],
        w: &Weights<'_>,
        (heads, buffers, dx): (&HeadGradients, &mut [Vec<f32>; 5], &mut [f32]),
    ) {
        let (rows, model) = (self.batch.rows(), self.pass.model);
        let (hidden, norm) = (model.config.hidden, &model.layers[index].norm1);
        let step = block_rows(rows);
        let blocks = cut_all(buffers, rows, step).into_iter().zip(cut(dx, rows, step));
        let blocks: Vec<_> = blocks.enumerate().collect();
        blocks.into_par_iter().with_max_len(1).for_each(|(i, ([dq, dk, dv, normed, e], dx))| {
            let range = i * step..rows.min((i + 1) * step);
            let of = |width: usize| range.start * width..range.end * width;
            heads.gather(self.pass.heads(), self.batch, range.clone(), dq, dk, dv);
            self.unposition(index, s, range.clone(), dq, dk);
            let x = &s.x[of(hidden)];
            math::norm_rows(x, norm, model.eps, normed);
            // Nothing below the first layer has a gradient.
            let mut dnormed = (index > 0).then(|| Scratch::take(dx.len()));
            self.back(Group::Qkv, &[dq, dk, dv], w, e, dnormed.as_deref_mut());
            if let Some(dnormed) = dnormed {
                dx.copy_from_slice(&dmid[of(hidden)]);
                math::norm_rows_back(x, norm, model.eps, &dnormed, dx);
            }
        });
    }

    /// Undoes rotation and head norm on dq and dk of some rows.
    fn unposition(
        &self,
        index: usize,
        s: &State,
        rows: Range<usize>,
        dq: &mut [f32],
        dk: &mut [f32],
    ) {
        let (model, positions) = (self.pass.model, &self.batch.positions[rows.clone()]);
        self.pass.rope.rotate(dq, model.q_width(), positions, -1.0);
        self.pass.rope.rotate(dk, model.kv_width(), positions, -1.0);
        let Some(weights) = &model.layers[index].qk_norm else { return };
        for ((dy, raw), weight) in [dq, dk].into_iter().zip(&s.raw).zip(weights) {
            let width = dy.len() / rows.len().max(1);
            let mut dx = Scratch::zeros(dy.len());
            let raw = &raw[rows.start * width..rows.end * width];
            math::norm_rows_back(raw, weight, model.eps, dy, &mut dx);
            dy.copy_from_slice(&dx);
        }
    }

    /// A group's way back for a block: `e = dy (s B)` of all members side by side and, where it is
    /// wanted, the gradient of the group's input.
    fn back(
        &self,
        group: Group,
        dy: &[&[f32]],
        weights: &Weights<'_>,
        e: &mut [f32],
        dx: Option<&mut [f32]>,
    ) {
        let (rank, precision) = (self.adapter.rank, self.pass.model.precision);
        let stride = group.members().len() * rank;
        let rows = e.len() / stride;
        let pack = |dy: &&[f32]| Rows::pack(dy, dy.len() / rows, rows, dy.len() / rows, precision);
        let packed: Vec<Rows> = dy.iter().map(pack).collect();
        for (i, (dy, b)) in packed.iter().zip(&weights.b[group.index()]).enumerate() {
            let y = &mut e[i * rank..];
            multiply(Out { y, stride, add: false }, &[Part::new(dy, b)]);
        }
        let Some(dx) = dx else { return };
        let e = Rows::pack(e, stride, rows, stride, precision);
        let proj = |which: &Proj| &*weights.proj[which.index()];
        let members = packed.iter().zip(group.members());
        let mut parts: Vec<Part<'_>> =
            members.map(|(dy, which)| Part::new(dy, proj(which))).collect();
        parts.push(Part::new(&e, &weights.a[group.index()]));
        let stride = dx.len() / rows;
        multiply(Out { y: dx, stride, add: false }, &parts);
    }
}
