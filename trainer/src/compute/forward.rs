//! The forward pass of the decoder layers, with or without what the backward pass needs.
//!
//! Every step is one parallel region over tiles or rows. Scoring and sampling reuse one layer's
//! buffers; training keeps one [`State`] per layer (about 0.7 MB per token for SmolLM2-135M).

use hone_model::lora::Proj;
use tokio_util::sync::CancellationToken;

use super::adapter::Packed;
use super::attention::{self, Heads, Inputs};
use super::batch::Batch;
use super::kernels::{Job, Term, project};
use super::math::{self, Rope};
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
    /// `A x` per projection `(rows, rank)`; empty without an adapter.
    pub(super) h: [Vec<f32>; 7],
}

impl State {
    /// Buffers for `rows` rows.
    pub(super) fn new(model: &Model, rows: usize, rank: usize) -> State {
        let (q, kv) = (model.q_width(), model.kv_width());
        let buffer = |width: usize| vec![0.0; rows * width];
        let raw = |width: usize| buffer(if model.config.qk_norm { width } else { 0 });
        State {
            x: buffer(model.config.hidden),
            q: buffer(q),
            k: buffer(kv),
            v: buffer(kv),
            raw: [raw(q), raw(kv)],
            lse: buffer(model.config.heads),
            att: buffer(q),
            mid: buffer(model.config.hidden),
            gate: buffer(model.config.ffn),
            up: buffer(model.config.ffn),
            h: std::array::from_fn(|_| buffer(rank)),
        }
    }

    /// Bytes that one row takes.
    pub(super) fn row_bytes(model: &Model, rank: usize) -> usize {
        let widths = 2 * model.config.hidden + 4 * model.q_width() + 3 * model.kv_width();
        4 * (widths + model.config.heads + 2 * model.config.ffn + 7 * rank)
    }

    /// Keeps the first `rows` of `from` rows.
    pub(super) fn shrink(&mut self, rows: usize, from: usize) {
        let State { x, q, k, v, raw: [rq, rk], lse, att, mid, gate, up, h } = self;
        let all = [x, q, k, v, rq, rk, lse, att, mid, gate, up];
        for buffer in all.into_iter().chain(h) {
            buffer.truncate(buffer.len() / from.max(1) * rows);
        }
    }
}

/// Buffers that no later step needs, `(rows, width)` each.
pub(super) struct Scratch {
    normed: Vec<f32>,
    act: Vec<f32>,
}

impl Scratch {
    /// Buffers for `rows` rows.
    pub(super) fn new(model: &Model, rows: usize) -> Scratch {
        let (hidden, ffn) = (model.config.hidden, model.config.ffn);
        Scratch { normed: vec![0.0; rows * hidden], act: vec![0.0; rows * ffn] }
    }

    /// Keeps the first `rows` of `from` rows.
    pub(super) fn shrink(&mut self, rows: usize, from: usize) {
        for buffer in [&mut self.normed, &mut self.act] {
            buffer.truncate(buffer.len() / from.max(1) * rows);
        }
    }
}

/// A model with an adapter, ready to run.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) model: &'a Model,
    pub(super) adapter: Option<&'a Packed>,
    pub(super) rope: &'a Rope,
    /// Once set, layers are left out: whoever runs the pass throws its result away.
    pub(super) stop: &'a CancellationToken,
}

/// One projection of a step: its input's `A x` and its output.
type Out<'a> = (Proj, &'a mut Vec<f32>, &'a mut [f32]);

impl Pass<'_> {
    /// The adapter's rank, 0 without one.
    pub(super) fn rank(&self) -> usize {
        self.adapter.map_or(0, |adapter| adapter.rank)
    }

    pub(super) fn heads(&self) -> Heads {
        let config = &self.model.config;
        Heads { heads: config.heads, kv_heads: config.kv_heads, dim: config.head_dim }
    }

    /// Runs all layers over a batch and returns the residual stream before the final norm
    /// `(rows, hidden)`. With `keep`, pushes every layer's state to it.
    pub(super) fn run(&self, batch: &Batch, mut keep: Option<&mut Vec<State>>) -> Vec<f32> {
        let rows = batch.rows();
        let mut x = vec![0.0; rows * self.model.config.hidden];
        self.model.embed(&batch.tokens, &mut x);
        let mut scratch = Scratch::new(self.model, rows);
        let mut state = State::new(self.model, rows, self.rank());
        for index in 0..self.model.layers.len() {
            self.layer(index, &mut x, &batch.positions, &mut state, &mut scratch, |s| {
                self.attend(batch, s);
            });
            if let Some(states) = keep.as_deref_mut() {
                let fresh = State::new(self.model, rows, self.rank());
                states.push(std::mem::replace(&mut state, fresh));
            }
        }
        x
    }

    /// Attention inside the batch.
    pub(super) fn attend(&self, batch: &Batch, s: &mut State) {
        let inputs = Inputs { shape: self.heads(), q: &s.q, k: &s.k, v: &s.v };
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
        scratch: &mut Scratch,
        attend: impl FnOnce(&mut State),
    ) {
        if self.stop.is_cancelled() {
            return;
        }
        let (layer, eps) = (&self.model.layers[index], self.model.eps);
        let Scratch { normed, act } = scratch;
        s.x.copy_from_slice(x);
        math::norm(x, &layer.norm1, eps, normed);
        let State { q, k, v, h: [hq, hk, hv, ..], .. } = s;
        let outs = vec![
            (Proj::Q, hq, q.as_mut_slice()),
            (Proj::K, hk, k.as_mut_slice()),
            (Proj::V, hv, v.as_mut_slice()),
        ];
        self.apply(index, normed, outs, false);
        self.position(index, positions, s);
        attend(s);
        let State { att, mid, gate, up, h: [.., ho, hg, hu, hd], .. } = s;
        self.apply(index, att, vec![(Proj::O, ho, x)], true);
        mid.copy_from_slice(x);
        math::norm(x, &layer.norm2, eps, normed);
        let outs = vec![(Proj::Gate, hg, gate.as_mut_slice()), (Proj::Up, hu, up.as_mut_slice())];
        self.apply(index, normed, outs, false);
        math::swiglu(gate, up, act);
        self.apply(index, act, vec![(Proj::Down, hd, x)], true);
    }

    /// Bias, head norm and rotation of fresh q, k, v.
    fn position(&self, index: usize, positions: &[u32], s: &mut State) {
        let layer = &self.model.layers[index];
        if let Some([q, k, v]) = &layer.bias {
            math::add_bias(&mut s.q, q);
            math::add_bias(&mut s.k, k);
            math::add_bias(&mut s.v, v);
        }
        if let Some([q, k]) = &layer.qk_norm {
            s.raw[0].copy_from_slice(&s.q);
            s.raw[1].copy_from_slice(&s.k);
            math::norm(&s.raw[0], q, self.model.eps, &mut s.q);
            math::norm(&s.raw[1], k, self.model.eps, &mut s.k);
        }
        self.rope.rotate(&mut s.q, self.model.q_width(), positions, 1.0);
        self.rope.rotate(&mut s.k, self.model.kv_width(), positions, 1.0);
    }

    /// `y (+)= W x + s B (A x)` for projections with the same input.
    fn apply(&self, index: usize, x: &[f32], mut outs: Vec<Out<'_>>, add: bool) {
        let proj = &self.model.layers[index].proj;
        let width = match outs.first() {
            Some((which, ..)) => self.model.config.proj_shape(*which).1,
            None => return,
        };
        let rows = x.len() / width;
        let pairs = self.adapter.map(|adapter| &adapter.layers[index]);
        if let Some(pairs) = pairs {
            let jobs = outs.iter_mut().map(|(which, h, _)| Job {
                y: h,
                add: false,
                terms: vec![Term { x, w: &pairs[which.index()].a }],
            });
            project(rows, &mut jobs.collect::<Vec<_>>());
        }
        let jobs = outs.into_iter().map(|(which, h, y)| {
            let mut terms = vec![Term { x, w: &proj[which.index()] }];
            if let Some(pairs) = pairs {
                terms.push(Term { x: h, w: &pairs[which.index()].b });
            }
            Job { y, add, terms }
        });
        project(rows, &mut jobs.collect::<Vec<_>>());
    }
}
