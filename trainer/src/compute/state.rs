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

/// What the layers of a batch leave for the backward pass: their states, or of the first layers,
/// where memory does not allow more, their inputs (`reference/training.md` §3: a tenth).
#[derive(Default)]
pub(super) struct Trail {
    inputs: Vec<Vec<f32>>,
    states: Vec<State>,
}

/// How many of `layers` layers can keep `state` bytes each, if the others keep `input` bytes and
/// share one state. Fewer than none is none: a single input has to be kept.
fn layers_kept(layers: usize, state: usize, input: usize, bytes_max: usize) -> usize {
    if state * layers <= bytes_max {
        return layers;
    }
    let left = bytes_max.saturating_sub(state + input * layers);
    (left / state.saturating_sub(input).max(1)).min(layers.saturating_sub(1))
}

impl Trail {
    /// Room for a batch of `rows` rows in at most `bytes_max` bytes, if the inputs alone fit. What
    /// stands there is arbitrary.
    pub(super) fn resize(&mut self, model: &Model, rows: usize, rank: usize, bytes_max: usize) {
        let (layers, width) = (model.layers.len(), model.config.hidden);
        let kept =
            layers_kept(layers, State::row_bytes(model, rank) * rows, 4 * width * rows, bytes_max);
        let states = if kept < layers { kept + 1 } else { layers };
        self.fit(model, rows, rank, (layers - kept, states));
        if self.bytes() > bytes_max {
            // Batches of other shapes left larger buffers behind.
            *self = Trail::default();
            self.fit(model, rows, rank, (layers - kept, states));
        }
    }

    /// Room for one layer, which all of them use in turn: for those who need no backward pass.
    pub(super) fn resize_to_one(&mut self, model: &Model, rows: usize, rank: usize) {
        self.fit(model, rows, rank, (0, 1));
    }

    fn fit(&mut self, model: &Model, rows: usize, rank: usize, (inputs, states): (usize, usize)) {
        self.inputs.resize_with(inputs, Vec::new);
        for input in &mut self.inputs {
            input.resize(rows * model.config.hidden, 0.0);
        }
        self.states.truncate(states);
        while self.states.len() < states {
            self.states.push(State::new(model, 0, rank));
        }
        for state in &mut self.states {
            state.resize(model, rows, rank);
        }
    }

    /// Bytes of all buffers.
    fn bytes(&mut self) -> usize {
        let states = self.states.iter_mut().flat_map(State::buffers);
        let held: usize = states.map(|buffer| buffer.capacity()).sum();
        4 * (held + self.inputs.iter().map(Vec::capacity).sum::<usize>())
    }

    /// Where layer `index` leaves its input, if it has to, and its state.
    pub(super) fn at(&mut self, index: usize) -> (Option<&mut Vec<f32>>, &mut State) {
        let again = self.inputs.len();
        let shared = usize::from(again > 0);
        let place = if index < again { 0 } else { index - again + shared };
        let last = self.states.len() - 1;
        (self.inputs.get_mut(index), &mut self.states[place.min(last)])
    }
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

#[cfg(test)]
mod tests {
    use hone_model::testing::tiny_model_dir;

    use super::super::kernels::Precision;
    use super::*;

    #[test]
    fn as_many_layers_keep_their_state_as_memory_allows() {
        assert_eq!(layers_kept(30, 100, 10, 3000), 30);
        // One shared state, 30 inputs at most, and 90 more for each state that is kept.
        assert_eq!(layers_kept(30, 100, 10, 2999), 28);
        assert_eq!(layers_kept(30, 100, 10, 400 + 180), 2);
        assert_eq!(layers_kept(30, 100, 10, 400), 0);
        assert_eq!(layers_kept(30, 100, 10, 0), 0);
    }

    #[test]
    fn a_trail_stays_within_its_bytes_whatever_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = tiny_model_dir(&dir.path().join("tiny"), 5).unwrap();
        let model = Model::load(&path, Precision::F32, 0).unwrap();
        let layers = model.layers.len();
        let row = State::row_bytes(&model, 4);
        // Three rows' states of all layers; a hundred rows' inputs and shared state fit as well.
        let bytes_max = (3 * row * layers).max(100 * (row + 4 * model.config.hidden * layers));
        let mut trail = Trail::default();
        for rows in [3, 100, 40, 1, 90] {
            trail.resize(&model, rows, 4, bytes_max);
            assert!(trail.bytes() <= bytes_max, "{rows} rows: {} bytes", trail.bytes());
            for index in 0..layers {
                let (input, state) = trail.at(index);
                assert!(input.is_none_or(|input| input.len() == rows * model.config.hidden));
                assert_eq!(state.x.len(), rows * model.config.hidden);
            }
        }
    }
}
