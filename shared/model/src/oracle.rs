//! A plain, differentiable Llama in candle: what faster code is checked against.
//!
//! Only operations whose gradient candle knows are used (see [`crate::ops`]). No cache, no batching:
//! one sequence at a time, every position computed. Invariant: with an
//! adapter whose B is zero, the result is the base model's.

mod adapter;

use std::path::Path;

use candle_core::{D, Device, Tensor};
use candle_nn::ops::silu;

use crate::config::{ConfigError, ModelConfig};
use crate::lora::{Lora, Proj};
use crate::ops::{self, log_softmax, repeat, rms_norm, rotate, softmax};
use crate::weights::{Weights, WeightsError};

pub use adapter::LoraVars;

/// Why a computation failed.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights are not usable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// candle refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The input makes no sense for this model.
    #[error("{0}")]
    Input(String),
}

/// Moves a tensor of a checked shape out of the weights.
type Take<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor, OracleError> + 'a;

struct Layer {
    input_norm: Tensor,
    post_norm: Tensor,
    /// `(out, in)`, by [`Proj::index`].
    weights: [Tensor; 7],
    /// `(out)` where the family has one.
    biases: [Option<Tensor>; 7],
    qk_norms: Option<(Tensor, Tensor)>,
}

/// A model in memory, f32.
pub struct CandleLlama {
    config: ModelConfig,
    device: Device,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
}

/// Log-probabilities and what they say about the adapter.
#[derive(Debug, Clone)]
pub struct OracleGradient {
    /// Gradient of the loss, in the adapter's shape.
    pub lora: Lora,
    /// ln p of each response token.
    pub logprobs: Vec<f32>,
}

impl CandleLlama {
    /// Loads a model directory onto a device.
    ///
    /// # Errors
    /// Unusable files, or a device that is out of memory.
    pub fn load(dir: &Path, device: &Device) -> Result<CandleLlama, OracleError> {
        CandleLlama::new(ModelConfig::from_dir(dir)?, Weights::load(dir)?, device)
    }

    /// Takes the weights that it needs, checking every shape.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn new(
        config: ModelConfig,
        mut weights: Weights,
        device: &Device,
    ) -> Result<CandleLlama, OracleError> {
        let mut take = |name: &str, shape: &[usize]| -> Result<Tensor, OracleError> {
            Ok(Tensor::from_vec(weights.take_shaped(name, shape)?, shape, device)?)
        };
        let embedding = take("model.embed_tokens.weight", &[config.vocab, config.hidden])?;
        let norm = take("model.norm.weight", &[config.hidden])?;
        let head = match config.tied {
            true => embedding.clone(),
            false => take("lm_head.weight", &[config.vocab, config.hidden])?,
        };
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(Layer::take(&config, index, &mut take)?);
        }
        Ok(CandleLlama { config, device: device.clone(), embedding, layers, norm, head })
    }

    /// The model's dimensions.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Logits `(T, vocab)` at every position of `tokens`.
    ///
    /// # Errors
    /// Empty or too long input, or a token outside the vocabulary.
    pub fn logits(&self, tokens: &[u32], lora: Option<&LoraVars>) -> Result<Tensor, OracleError> {
        Ok(self.hidden(tokens, lora)?.matmul(&self.head.t()?)?)
    }

    /// ln p of each response token given everything before it, `(response)`, at temperature 1 over
    /// the whole vocabulary. Differentiable with respect to the adapter's variables.
    ///
    /// # Errors
    /// As [`CandleLlama::logits`]; also an empty prompt or response.
    pub fn logprobs(
        &self,
        prompt: &[u32],
        response: &[u32],
        lora: Option<&LoraVars>,
    ) -> Result<Tensor, OracleError> {
        if prompt.is_empty() || response.is_empty() {
            return Err(OracleError::Input("prompt and response must not be empty".to_owned()));
        }
        let tokens = [prompt, response].concat();
        // The last response token predicts nothing that is asked for.
        let hidden = self.hidden(&tokens[..tokens.len() - 1], lora)?;
        let rows = hidden.narrow(0, prompt.len() - 1, response.len())?;
        let logits = rows.matmul(&self.head.t()?)?;
        let targets = Tensor::new(response, &self.device)?.unsqueeze(1)?;
        Ok(log_softmax(&logits)?.gather(&targets, 1)?.squeeze(1)?)
    }

    /// Gradient of a loss that depends on the response's log-probabilities only: `slope` gets them
    /// and returns dL / d ln p of each.
    ///
    /// # Errors
    /// As [`CandleLlama::logprobs`]; an adapter that does not fit; a slope of another length.
    pub fn gradient(
        &self,
        lora: &Lora,
        prompt: &[u32],
        response: &[u32],
        slope: &mut dyn FnMut(&[f32]) -> Vec<f32>,
    ) -> Result<OracleGradient, OracleError> {
        let vars = LoraVars::new(lora, &self.config, &self.device)?;
        let logprobs = self.logprobs(prompt, response, Some(&vars))?;
        let values = logprobs.to_vec1::<f32>()?;
        let slopes = slope(&values);
        if slopes.len() != values.len() {
            return Err(OracleError::Input("one slope per response token is needed".to_owned()));
        }
        let loss = (logprobs * Tensor::new(slopes.as_slice(), &self.device)?)?.sum_all()?;
        let gradients = loss.backward()?;
        Ok(OracleGradient { lora: vars.gradient(&gradients)?, logprobs: values })
    }

    /// The most probable continuation, up to and including a token of `eos`.
    ///
    /// # Errors
    /// As [`CandleLlama::logits`].
    pub fn greedy(
        &self,
        prompt: &[u32],
        tokens_max: usize,
        eos: &[u32],
        lora: Option<&LoraVars>,
    ) -> Result<Vec<u32>, OracleError> {
        let mut tokens = prompt.to_vec();
        for _ in 0..tokens_max {
            let hidden = self.hidden(&tokens, lora)?;
            let last = hidden.narrow(0, tokens.len() - 1, 1)?;
            let next = last.matmul(&self.head.t()?)?.argmax(D::Minus1)?.to_vec1::<u32>()?[0];
            tokens.push(next);
            if eos.contains(&next) {
                break;
            }
        }
        Ok(tokens.split_off(prompt.len()))
    }

    /// Final-norm hidden states `(T, hidden)`.
    fn hidden(&self, tokens: &[u32], lora: Option<&LoraVars>) -> Result<Tensor, OracleError> {
        let length = tokens.len();
        if length == 0 || length > self.config.max_positions {
            let limit = self.config.max_positions;
            return Err(OracleError::Input(format!("{length} tokens; 1 to {limit} work")));
        }
        if let Some(token) = tokens.iter().find(|t| **t as usize >= self.config.vocab) {
            return Err(OracleError::Input(format!("token {token} is not in the vocabulary")));
        }
        let eps = self.config.rms_eps;
        let frequencies = self.config.rope_frequencies();
        let (cos, sin) = ops::rotation(&frequencies, 0, length, &self.device)?;
        let mask = ops::causal_mask(length, &self.device)?;
        let ids = Tensor::new(tokens, &self.device)?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let apply = |proj: Proj, input: &Tensor| layer.project(index, proj, input, lora);
            let normed = rms_norm(&x, &layer.input_norm, eps)?;
            let mixed = self.attend(layer, &normed, (&cos, &sin, &mask), &apply)?;
            x = (x + apply(Proj::O, &mixed)?)?;
            let normed = rms_norm(&x, &layer.post_norm, eps)?;
            let gated = (silu(&apply(Proj::Gate, &normed)?)? * apply(Proj::Up, &normed)?)?;
            x = (x + apply(Proj::Down, &gated)?)?;
        }
        Ok(rms_norm(&x, &self.norm, eps)?)
    }

    /// Causal grouped-query attention: `(T, hidden)` in, `(T, heads · head_dim)` out.
    fn attend(
        &self,
        layer: &Layer,
        x: &Tensor,
        (cos, sin, mask): (&Tensor, &Tensor, &Tensor),
        apply: &dyn Fn(Proj, &Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let ModelConfig { heads, kv_heads, head_dim, rms_eps, .. } = self.config;
        let length = x.dim(0)?;
        let split = |y: Tensor, heads: usize| y.reshape((length, heads, head_dim));
        let (mut q, mut k) =
            (split(apply(Proj::Q, x)?, heads)?, split(apply(Proj::K, x)?, kv_heads)?);
        if let Some((q_norm, k_norm)) = &layer.qk_norms {
            q = rms_norm(&q, q_norm, rms_eps)?;
            k = rms_norm(&k, k_norm, rms_eps)?;
        }
        let v = split(apply(Proj::V, x)?, kv_heads)?.transpose(0, 1)?.contiguous()?;
        let q = rotate(&q.transpose(0, 1)?.contiguous()?, cos, sin)?;
        let k = rotate(&k.transpose(0, 1)?.contiguous()?, cos, sin)?;
        let (k, v) = (repeat(&k, heads / kv_heads)?, repeat(&v, heads / kv_heads)?);
        let scores = (q.matmul(&k.t()?.contiguous()?)? / (head_dim as f64).sqrt())?;
        let weights = softmax(&scores.broadcast_add(mask)?)?;
        weights.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((length, heads * head_dim))
    }
}

impl Layer {
    fn take(config: &ModelConfig, index: usize, take: &mut Take<'_>) -> Result<Layer, OracleError> {
        let name = |suffix: &str| format!("model.layers.{index}.{suffix}");
        let mut weights = Vec::with_capacity(7);
        let mut biases = [const { None }; 7];
        for proj in Proj::ALL {
            let (out, width) = config.proj_shape(proj);
            weights.push(take(&name(&format!("{}.weight", proj.path())), &[out, width])?);
            if config.qkv_bias && matches!(proj, Proj::Q | Proj::K | Proj::V) {
                let bias = take(&name(&format!("{}.bias", proj.path())), &[out])?;
                biases[proj.index()] = Some(bias);
            }
        }
        let weights = weights.try_into();
        let weights = weights.map_err(|_| OracleError::Input("seven projections".to_owned()))?;
        let mut norm = |suffix: &str, width: usize| take(&name(suffix), &[width]);
        let qk_norms = match config.qk_norm {
            true => Some((
                norm("self_attn.q_norm.weight", config.head_dim)?,
                norm("self_attn.k_norm.weight", config.head_dim)?,
            )),
            false => None,
        };
        Ok(Layer {
            input_norm: norm("input_layernorm.weight", config.hidden)?,
            post_norm: norm("post_attention_layernorm.weight", config.hidden)?,
            weights,
            biases,
            qk_norms,
        })
    }

    /// `x Wᵀ + bias + scale · (x Aᵀ) Bᵀ`.
    fn project(
        &self,
        index: usize,
        proj: Proj,
        x: &Tensor,
        lora: Option<&LoraVars>,
    ) -> candle_core::Result<Tensor> {
        let mut y = x.matmul(&self.weights[proj.index()].t()?)?;
        if let Some(bias) = &self.biases[proj.index()] {
            y = y.broadcast_add(bias)?;
        }
        match lora {
            Some(lora) => y + lora.delta(index, proj, x)?,
            None => Ok(y),
        }
    }
}

#[cfg(test)]
mod tests;
