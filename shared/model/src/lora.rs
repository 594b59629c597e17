//! A LoRA adapter of the seven projections: `y = W x + (alpha / rank) · B (A x)` (Hu et al. 2021).
//!
//! Plain `f32` buffers, one [`Pair`] per layer and projection, in one fixed order. The same order
//! is used by every walk over the tensors, so optimiser states, gradients and files line up.
//! Invariant: every pair has the shapes that [`ModelConfig::proj_shape`] and `rank` give.

mod peft;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::ModelConfig;

pub use peft::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraError};

/// Largest rank that is accepted.
pub const RANK_MAX: usize = 512;

/// The projections that carry an adapter, in the order in which a layer applies them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proj {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention output.
    O,
    /// Gate of the feed-forward layer.
    Gate,
    /// Up-projection of the feed-forward layer.
    Up,
    /// Down-projection of the feed-forward layer.
    Down,
}

impl Proj {
    /// All seven; a projection's position here is its index in a layer.
    pub const ALL: [Proj; 7] =
        [Proj::Q, Proj::K, Proj::V, Proj::O, Proj::Gate, Proj::Up, Proj::Down];

    /// Position in [`Proj::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// PEFT's name of the module, such as `q_proj`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Proj::Q => "q_proj",
            Proj::K => "k_proj",
            Proj::V => "v_proj",
            Proj::O => "o_proj",
            Proj::Gate => "gate_proj",
            Proj::Up => "up_proj",
            Proj::Down => "down_proj",
        }
    }

    /// Path inside a decoder layer, such as `self_attn.q_proj`.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Proj::Q => "self_attn.q_proj",
            Proj::K => "self_attn.k_proj",
            Proj::V => "self_attn.v_proj",
            Proj::O => "self_attn.o_proj",
            Proj::Gate => "mlp.gate_proj",
            Proj::Up => "mlp.up_proj",
            Proj::Down => "mlp.down_proj",
        }
    }
}

/// Which half of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Shape `(rank, in)`.
    A,
    /// Shape `(out, rank)`.
    B,
}

/// The two matrices of one projection.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// `(rank, in)`, row-major.
    pub a: Vec<f32>,
    /// `(out, rank)`, row-major.
    pub b: Vec<f32>,
}

/// An adapter (or anything of its shape: a gradient, an optimiser's moment).
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Inner dimension, the same everywhere.
    pub rank: usize,
    /// Scale numerator, the same everywhere.
    pub alpha: f64,
    /// One array of pairs per decoder layer, indexed by [`Proj::index`].
    pub layers: Vec<[Pair; 7]>,
}

impl Lora {
    /// A fresh adapter that changes nothing yet: A uniform in ±1/√in (Kaiming with a = √5, as
    /// PEFT does), B zero. The same seed gives the same bytes on every machine.
    #[must_use]
    pub fn init(config: &ModelConfig, rank: usize, alpha: f64, seed: u64) -> Lora {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Lora::build(config, rank, alpha, |proj, side| {
            let (out, width) = config.proj_shape(proj);
            match side {
                Side::A => {
                    let bound = 1.0 / (width as f32).sqrt();
                    (0..rank * width).map(|_| bound * rng.random_range(-1.0f32..1.0)).collect()
                }
                Side::B => vec![0.0; out * rank],
            }
        })
    }

    /// An all-zero adapter for a model.
    #[must_use]
    pub fn zeros(config: &ModelConfig, rank: usize, alpha: f64) -> Lora {
        Lora::build(config, rank, alpha, |proj, side| {
            let (out, width) = config.proj_shape(proj);
            vec![0.0; rank * if side == Side::A { width } else { out }]
        })
    }

    /// The same shapes, all zero.
    #[must_use]
    pub fn zeros_like(&self) -> Lora {
        let zero = |pair: &Pair| Pair { a: vec![0.0; pair.a.len()], b: vec![0.0; pair.b.len()] };
        let layers = self.layers.iter().map(|layer| layer.each_ref().map(zero)).collect();
        Lora { rank: self.rank, alpha: self.alpha, layers }
    }

    /// `alpha / rank`: what `B A x` is multiplied by.
    #[must_use]
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// One projection's pair; `None` past the last layer.
    #[must_use]
    pub fn pair(&self, layer: usize, proj: Proj) -> Option<&Pair> {
        self.layers.get(layer).map(|pairs| &pairs[proj.index()])
    }

    /// Number of values in all tensors.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.tensors().map(<[f32]>::len).sum()
    }

    /// Euclidean norm over all tensors, summed in f64.
    #[must_use]
    pub fn norm(&self) -> f64 {
        let squares = self.tensors().flatten().map(|v| f64::from(*v) * f64::from(*v));
        squares.sum::<f64>().sqrt()
    }

    /// Every value is a finite number.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.tensors().flatten().all(|v| v.is_finite())
    }

    /// Has the shapes that this model and this adapter's rank ask for.
    #[must_use]
    pub fn fits(&self, config: &ModelConfig) -> bool {
        self.layers.len() == config.layers
            && self.layers.iter().all(|layer| {
                Proj::ALL.iter().zip(layer).all(|(proj, pair)| {
                    let (out, width) = config.proj_shape(*proj);
                    pair.a.len() == self.rank * width && pair.b.len() == out * self.rank
                })
            })
    }

    /// All tensors in the fixed order: by layer, by [`Proj::ALL`], A before B.
    pub fn tensors(&self) -> impl Iterator<Item = &[f32]> {
        self.layers.iter().flatten().flat_map(|pair| [pair.a.as_slice(), pair.b.as_slice()])
    }

    /// All tensors in the fixed order, to be changed in place.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        self.layers.iter_mut().flatten().flat_map(|pair| [&mut pair.a, &mut pair.b])
    }

    /// Visits every tensor in the fixed order with its place: layer, projection, side, values.
    pub fn for_each_tensor(&self, mut visit: impl FnMut(usize, Proj, Side, &[f32])) {
        for (index, layer) in self.layers.iter().enumerate() {
            for (proj, pair) in Proj::ALL.into_iter().zip(layer) {
                visit(index, proj, Side::A, &pair.a);
                visit(index, proj, Side::B, &pair.b);
            }
        }
    }

    /// Visits every tensor in the fixed order, to be changed in place.
    pub fn for_each_tensor_mut(&mut self, mut visit: impl FnMut(usize, Proj, Side, &mut [f32])) {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for (proj, pair) in Proj::ALL.into_iter().zip(layer) {
                visit(index, proj, Side::A, &mut pair.a);
                visit(index, proj, Side::B, &mut pair.b);
            }
        }
    }

    /// Adds `factor · other` element by element. Shapes must be equal; extra tensors are ignored.
    pub fn add_scaled(&mut self, other: &Lora, factor: f32) {
        for (mine, theirs) in self.tensors_mut().zip(other.tensors()) {
            for (value, delta) in mine.iter_mut().zip(theirs) {
                *value += factor * delta;
            }
        }
    }

    fn build(
        config: &ModelConfig,
        rank: usize,
        alpha: f64,
        mut fill: impl FnMut(Proj, Side) -> Vec<f32>,
    ) -> Lora {
        let mut pair = |proj| Pair { a: fill(proj, Side::A), b: fill(proj, Side::B) };
        let layers = (0..config.layers).map(|_| Proj::ALL.map(&mut pair)).collect();
        Lora { rank, alpha, layers }
    }
}

#[cfg(test)]
mod tests;
