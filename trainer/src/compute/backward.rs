//! The backward pass of the decoder layers: activations' gradients through frozen weights, and
//! the adapter's gradients.
//!
//! For `y = W x + s B (A x)` with `e = dy (s B)`: `dx = dy W + e A`, `dA = eᵀ x` and
//! `dB = s dyᵀ (A x)`. Normed inputs and activations are recomputed, not saved.

use hone_model::lora::Proj;

use super::adapter::{Collector, Outer, Packed, collect};
use super::attention::{HeadGradients, Inputs, Outputs};
use super::batch::Batch;
use super::forward::{Pass, State};
use super::kernels::{Term, project_back};
use super::math;
use super::model::Model;

/// Buffers of one layer's backward pass, reused from layer to layer; `(rows, width)` each.
struct Buffers {
    /// A recomputed normed input, and its gradient.
    normed: Vec<f32>,
    dnormed: Vec<f32>,
    act: Vec<f32>,
    dgate: Vec<f32>,
    /// Gradient of `act`, then of `up`.
    dup: Vec<f32>,
    datt: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    /// `dy (s B)` of up to three projections `(rows, rank)`.
    e: [Vec<f32>; 3],
}

impl Buffers {
    fn new(model: &Model, rows: usize, rank: usize) -> Buffers {
        let buffer = |width: usize| vec![0.0; rows * width];
        let (hidden, ffn) = (model.config.hidden, model.config.ffn);
        Buffers {
            normed: buffer(hidden),
            dnormed: buffer(hidden),
            act: buffer(ffn),
            dgate: buffer(ffn),
            dup: buffer(ffn),
            datt: buffer(model.q_width()),
            dq: buffer(model.q_width()),
            dk: buffer(model.kv_width()),
            dv: buffer(model.kv_width()),
            e: std::array::from_fn(|_| buffer(rank)),
        }
    }
}

/// One projection on its way back: gradient of its output and the saved `A x`.
struct Part<'a> {
    proj: Proj,
    dy: &'a [f32],
    h: &'a [f32],
}

/// Where a step's input gradient goes, and whether it is added there.
type Sink<'a> = Option<(&'a mut [f32], bool)>;

/// The backward pass of one batch.
pub(super) struct Backward<'a> {
    pub(super) pass: Pass<'a>,
    pub(super) adapter: &'a Packed,
    pub(super) batch: &'a Batch,
}

impl Backward<'_> {
    /// Goes through all layers from the last to the first. `dx (rows, hidden)` is the gradient of
    /// the residual stream before the final norm; `states` are the layers' in forward order.
    pub(super) fn run(&self, mut dx: Vec<f32>, states: Vec<State>, to: &mut Collector) {
        let mut buffers = Buffers::new(self.pass.model, self.batch.rows(), self.adapter.rank);
        for (index, state) in states.into_iter().enumerate().rev() {
            if self.pass.stop.is_cancelled() {
                return;
            }
            self.feed_forward(index, &mut dx, &state, &mut buffers, to);
            self.attention(index, &mut dx, &state, &mut buffers, to);
        }
    }

    fn feed_forward(
        &self,
        index: usize,
        dx: &mut [f32],
        s: &State,
        b: &mut Buffers,
        to: &mut Collector,
    ) {
        let (layer, eps) = (&self.pass.model.layers[index], self.pass.model.eps);
        math::swiglu(&s.gate, &s.up, &mut b.act);
        let down = [Part { proj: Proj::Down, dy: dx, h: &s.h[6] }];
        self.step(index, &b.act, &down, &mut b.e, Some((&mut b.dup, false)), to);
        math::swiglu_back(&s.gate, &s.up, &mut b.dup, &mut b.dgate);
        math::norm(&s.mid, &layer.norm2, eps, &mut b.normed);
        let parts = [
            Part { proj: Proj::Gate, dy: &b.dgate, h: &s.h[4] },
            Part { proj: Proj::Up, dy: &b.dup, h: &s.h[5] },
        ];
        self.step(index, &b.normed, &parts, &mut b.e, Some((&mut b.dnormed, false)), to);
        math::norm_back(&s.mid, &layer.norm2, eps, &b.dnormed, dx);
    }

    fn attention(
        &self,
        index: usize,
        dx: &mut [f32],
        s: &State,
        b: &mut Buffers,
        to: &mut Collector,
    ) {
        let (layer, eps) = (&self.pass.model.layers[index], self.pass.model.eps);
        let output = [Part { proj: Proj::O, dy: dx, h: &s.h[3] }];
        self.step(index, &s.att, &output, &mut b.e, Some((&mut b.datt, false)), to);
        let inputs = Inputs { shape: self.pass.heads(), q: &s.q, k: &s.k, v: &s.v };
        let outputs = Outputs { att: &s.att, lse: &s.lse, datt: &b.datt };
        let heads = HeadGradients::compute(inputs, outputs, self.batch);
        heads.gather(self.batch, &mut b.dq, &mut b.dk, &mut b.dv);
        self.unposition(index, s, b);
        math::norm(&s.x, &layer.norm1, eps, &mut b.normed);
        let parts = [
            Part { proj: Proj::Q, dy: &b.dq, h: &s.h[0] },
            Part { proj: Proj::K, dy: &b.dk, h: &s.h[1] },
            Part { proj: Proj::V, dy: &b.dv, h: &s.h[2] },
        ];
        // Nothing below the first layer has a gradient.
        let sink: Sink<'_> = (index > 0).then_some((&mut b.dnormed, false));
        self.step(index, &b.normed, &parts, &mut b.e, sink, to);
        if index > 0 {
            math::norm_back(&s.x, &layer.norm1, eps, &b.dnormed, dx);
        }
    }

    /// Undoes rotation and head norm on dq and dk.
    fn unposition(&self, index: usize, s: &State, b: &mut Buffers) {
        let (model, positions) = (self.pass.model, &self.batch.positions);
        self.pass.rope.rotate(&mut b.dq, model.q_width(), positions, -1.0);
        self.pass.rope.rotate(&mut b.dk, model.kv_width(), positions, -1.0);
        let Some(weights) = &model.layers[index].qk_norm else { return };
        for ((dy, raw), weight) in [&mut b.dq, &mut b.dk].into_iter().zip(&s.raw).zip(weights) {
            let mut dx = vec![0.0; dy.len()];
            math::norm_back(raw, weight, model.eps, dy, &mut dx);
            *dy = dx;
        }
    }

    /// Projections with one input: collects their adapter gradients and, with a sink, the
    /// input's gradient.
    fn step(
        &self,
        index: usize,
        input: &[f32],
        parts: &[Part<'_>],
        e: &mut [Vec<f32>; 3],
        sink: Sink<'_>,
        to: &mut Collector,
    ) {
        let (rows, rank) = (self.batch.rows(), self.adapter.rank);
        let (proj, pairs) = (&self.pass.model.layers[index].proj, &self.adapter.layers[index]);
        for (part, e) in parts.iter().zip(e.iter_mut()) {
            let w = &pairs[part.proj.index()].b;
            project_back(rows, e, false, &[Term { x: part.dy, w }]);
        }
        let mut products = Vec::with_capacity(2 * parts.len());
        for (place, (a, b)) in to.layers[index].iter_mut().enumerate() {
            let found = parts.iter().zip(e.iter()).find(|(p, _)| p.proj.index() == place);
            let Some((part, e)) = found else { continue };
            products.push(Outer { to: a, left: input, right: e, scale: 1.0 });
            let scale = self.adapter.scale;
            products.push(Outer { to: b, left: part.dy, right: part.h, scale });
        }
        collect(rows, rank, products);
        if let Some((dx, add)) = sink {
            let terms = parts.iter().zip(e.iter()).flat_map(|(part, e)| {
                let place = part.proj.index();
                [Term { x: part.dy, w: &proj[place] }, Term { x: e, w: &pairs[place].a }]
            });
            project_back(rows, dx, add, &terms.collect::<Vec<_>>());
        }
    }
}
