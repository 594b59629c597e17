//! A base model's frozen weights on a device, and what a layer does with them, in candle's operations.
//!
//! Invariant: matrices are of one element type, everything else is f32; no weight is ever a variable.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::config::{ConfigError, ModelConfig};
use crate::lora::Proj;
use crate::ops::{repeat, rms_norm, rotate, softmax};
use crate::weights::{Weights, WeightsError};

/// Why a model could not be put onto a device.
#[derive(Debug, thiserror::Error)]
pub enum FrozenError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights are not usable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device, such as one that is out of memory.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// One layer's weights.
pub struct Layer {
    /// Of the input and of the feed-forward part, `(hidden)`.
    pub norms: [Tensor; 2],
    /// `(out, in)`, by [`Proj::index`].
    pub(crate) weights: [Tensor; 7],
    /// `(out)` where the family has one.
    biases: [Option<Tensor>; 7],
    /// Of queries and keys, `(head_dim)`, where the family has them.
    qk_norms: Option<[Tensor; 2]>,
}

/// A base model.
pub struct Frozen {
    /// Its dimensions.
    pub config: ModelConfig,
    /// Where it is.
    pub device: Device,
    /// Its layers, in order.
    pub layers: Vec<Layer>,
    /// Of the output, `(hidden)`.
    pub norm: Tensor,
    /// Rotary frequencies, see [`ModelConfig::rope_frequencies`].
    pub frequencies: Vec<f32>,
    embedding: Tensor,
    head: Tensor,
}

/// Moves a tensor of a checked shape out of the weights: as a matrix, or as numbers.
type Take<'a> = dyn FnMut(&str, &[usize], DType) -> Result<Tensor, FrozenError> + 'a;

impl Frozen {
    /// Loads a model directory onto a device, its matrices as `matrix`.
    ///
    /// # Errors
    /// Unusable files, or a device that is out of memory.
    pub fn load(dir: &Path, device: Device, matrix: DType) -> Result<Self, FrozenError> {
        Self::new(ModelConfig::from_dir(dir)?, Weights::load(dir)?, device, matrix)
    }

    /// Takes the weights that it needs, checking every shape.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn new(
        config: ModelConfig,
        mut weights: Weights,
        device: Device,
        matrix: DType,
    ) -> Result<Self, FrozenError> {
        let mut take = |name: &str, shape: &[usize], dtype| -> Result<Tensor, FrozenError> {
            let values = weights.take_shaped(name, shape)?;
            Ok(Tensor::from_vec(values, shape, &device)?.to_dtype(dtype)?)
        };
        let embedding = take("model.embed_tokens.weight", &[config.vocab, config.hidden], matrix)?;
        let norm = take("model.norm.weight", &[config.hidden], DType::F32)?;
        let head = match config.tied {
            true => embedding.clone(),
            false => take("lm_head.weight", &[config.vocab, config.hidden], matrix)?,
        };
        let layers = (0..config.layers).map(|index| Layer::take(&config, index, matrix, &mut take));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let frequencies = config.rope_frequencies();
        Ok(Self { config, device, layers, norm, frequencies, embedding, head })
    }

    /// Hidden states of tokens, `(T, hidden)`.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> candle_core::Result<Tensor> {
        let ids = Tensor::new(tokens, &self.device)?;
        self.embedding.index_select(&ids, 0)?.to_dtype(DType::F32)
    }

    /// Logits `(rows, vocab)` of hidden states after the final norm.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn logits(&self, normed: &Tensor) -> candle_core::Result<Tensor> {
        product(normed, &self.head)
    }

    /// dL by those hidden states, from dL by the logits.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn logits_back(&self, dlogits: &Tensor) -> candle_core::Result<Tensor> {
        product_back(dlogits, &self.head)
    }

    /// Queries and keys of layer `index` normed and rotated, and values: `(heads, T, head_dim)` each,
    /// from projections `(T, heads · head_dim)`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn heads(
        &self,
        index: usize,
        [q, k, v]: [&Tensor; 3],
        cos: &Tensor,
        sin: &Tensor,
    ) -> candle_core::Result<[Tensor; 3]> {
        let config = &self.config;
        let split = |y: &Tensor, heads: usize| y.reshape((y.dim(0)?, heads, config.head_dim));
        let (mut q, mut k) = (split(q, config.heads)?, split(k, config.kv_heads)?);
        if let Some([q_norm, k_norm]) = &self.layers[index].qk_norms {
            q = rms_norm(&q, q_norm, config.rms_eps)?;
            k = rms_norm(&k, k_norm, config.rms_eps)?;
        }
        let by_head = |y: Tensor| y.transpose(0, 1)?.contiguous();
        let (q, k) = (rotate(&by_head(q)?, cos, sin)?, rotate(&by_head(k)?, cos, sin)?);
        Ok([q, k, by_head(split(v, config.kv_heads)?)?])
    }

    /// Grouped-query attention over such heads, with a mask `(T, T)` that is added to the scores;
    /// `(T, heads · head_dim)`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn attention(&self, [q, k, v]: &[Tensor; 3], mask: &Tensor) -> candle_core::Result<Tensor> {
        let config = &self.config;
        let times = config.heads / config.kv_heads;
        let (k, v) = (repeat(k, times)?, repeat(v, times)?);
        let scores = (q.matmul(&k.t()?.contiguous()?)? / (config.head_dim as f64).sqrt())?;
        let weights = softmax(&scores.broadcast_add(mask)?)?;
        weights.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((q.dim(1)?, ()))
    }
}

/// `x Wᵀ` in W's element type, `(T, in)` to `(T, out)`.
fn product(x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    x.to_dtype(w.dtype())?.matmul(&w.t()?)?.to_dtype(DType::F32)
}

/// `dy W` in W's element type.
fn product_back(dy: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    dy.to_dtype(w.dtype())?.matmul(w)?.to_dtype(DType::F32)
}

impl Layer {
    fn take(
        config: &ModelConfig,
        index: usize,
        matrix: DType,
        take: &mut Take<'_>,
    ) -> Result<Self, FrozenError> {
        let name = |suffix: &str| format!("model.layers.{index}.{suffix}");
        let mut weight = |proj: Proj| {
            let (out, width) = config.proj_shape(proj);
            take(&name(&format!("{}.weight", proj.path())), &[out, width], matrix)
        };
        let weights = [
            weight(Proj::Q)?,
            weight(Proj::K)?,
            weight(Proj::V)?,
            weight(Proj::O)?,
            weight(Proj::Gate)?,
            weight(Proj::Up)?,
            weight(Proj::Down)?,
        ];
        let mut biases = [const { None }; 7];
        for proj in [Proj::Q, Proj::K, Proj::V].into_iter().filter(|_| config.qkv_bias) {
            let out = config.proj_shape(proj).0;
            let bias = take(&name(&format!("{}.bias", proj.path())), &[out], DType::F32)?;
            biases[proj.index()] = Some(bias);
        }
        let mut norm = |suffix: &str, width: usize| take(&name(suffix), &[width], DType::F32);
        let qk_norms = match config.qk_norm {
            true => Some([
                norm("self_attn.q_norm.weight", config.head_dim)?,
                norm("self_attn.k_norm.weight", config.head_dim)?,
            ]),
            false => None,
        };
        let norms = [
            norm("input_layernorm.weight", config.hidden)?,
            norm("post_attention_layernorm.weight", config.hidden)?,
        ];
        Ok(Self { norms, weights, biases, qk_norms })
    }

    /// `x Wᵀ + bias`, without an adapter.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn project(&self, proj: Proj, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = product(x, &self.weights[proj.index()])?;
        match &self.biases[proj.index()] {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// dL / dx of [`Layer::project`].
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn project_back(&self, proj: Proj, dy: &Tensor) -> candle_core::Result<Tensor> {
        product_back(dy, &self.weights[proj.index()])
    }
}
