//! The frozen weights on a device.
//!
//! Invariant: matrices are of one element type, everything else is f32; no weight is ever a variable.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use hone_model::config::ModelConfig;
use hone_model::lora::Proj;
use hone_model::weights::Weights;

use crate::compute::{ComputeError, Precision};

/// One layer's weights.
pub(super) struct Layer {
    /// Of the input and of the feed-forward part.
    pub(super) norms: [Tensor; 2],
    /// `(out, in)`, by [`Proj::index`].
    weights: [Tensor; 7],
    /// `(out)` where the family has one.
    biases: [Option<Tensor>; 7],
    /// Of queries and keys, where the family has them.
    pub(super) qk_norms: Option<[Tensor; 2]>,
}

/// A base model.
pub(super) struct Model {
    pub(super) config: ModelConfig,
    pub(super) device: Device,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Tensor,
    pub(super) frequencies: Vec<f32>,
    embedding: Tensor,
    head: Tensor,
}

/// Moves a tensor of a checked shape out of the weights: as a matrix, or as numbers.
type Take<'a> = dyn FnMut(&str, &[usize], DType) -> Result<Tensor, ComputeError> + 'a;

impl Model {
    pub(super) fn load(
        dir: &Path,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ComputeError> {
        let (config, mut weights) = (ModelConfig::from_dir(dir)?, Weights::load(dir)?);
        // candle's bf16 products on the processor are slower than those of f32.
        let matrix = match precision {
            Precision::Bf16 if !device.is_cpu() => DType::BF16,
            _ => DType::F32,
        };
        let mut take = |name: &str, shape: &[usize], dtype| -> Result<Tensor, ComputeError> {
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

    /// `(T, hidden)`.
    pub(super) fn embed(&self, tokens: &[u32]) -> candle_core::Result<Tensor> {
        let ids = Tensor::new(tokens, &self.device)?;
        self.embedding.index_select(&ids, 0)?.to_dtype(DType::F32)
    }

    /// Logits `(rows, vocab)` of normed hidden states.
    pub(super) fn logits(&self, normed: &Tensor) -> candle_core::Result<Tensor> {
        product(normed, &self.head)
    }

    /// dL by the normed hidden states, from dL by the logits.
    pub(super) fn logits_back(&self, dlogits: &Tensor) -> candle_core::Result<Tensor> {
        product_back(dlogits, &self.head)
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
    ) -> Result<Self, ComputeError> {
        let name = |suffix: &str| format!("model.layers.{index}.{suffix}");
        let mut weights = Vec::with_capacity(7);
        let mut biases = [const { None }; 7];
        for proj in Proj::ALL {
            let (out, width) = config.proj_shape(proj);
            weights.push(take(&name(&format!("{}.weight", proj.path())), &[out, width], matrix)?);
            if config.qkv_bias && matches!(proj, Proj::Q | Proj::K | Proj::V) {
                let bias = take(&name(&format!("{}.bias", proj.path())), &[out], DType::F32)?;
                biases[proj.index()] = Some(bias);
            }
        }
        let weights = weights.try_into().map_err(|_| ComputeError::AdapterShape)?;
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

    /// `x Wᵀ + bias`, without the adapter.
    pub(super) fn project(&self, proj: Proj, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = product(x, &self.weights[proj.index()])?;
        match &self.biases[proj.index()] {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// dL / dx of [`Layer::project`].
    pub(super) fn project_back(&self, proj: Proj, dy: &Tensor) -> candle_core::Result<Tensor> {
        product_back(dy, &self.weights[proj.index()])
    }
}
