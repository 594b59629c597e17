//! A plain, differentiable Llama in candle: what faster code is checked against.
//!
//! Only operations whose gradient candle knows are used (see [`crate::ops`]). No cache, no batching:
//! one sequence at a time, every position computed.
//!
//! Invariant: with an adapter whose B is zero, the result is the base model's.

mod adapter;

use std::path::Path;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::silu;

use crate::config::ModelConfig;
use crate::frozen::{Frozen, FrozenError};
use crate::lora::{Lora, Proj};
use crate::ops::{self, log_softmax, rms_norm};
use crate::weights::Weights;

pub use adapter::LoraVars;

/// Why a computation failed.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// The model could not be loaded.
    #[error(transparent)]
    Model(#[from] FrozenError),
    /// candle refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The input makes no sense for this model.
    #[error("{0}")]
    Input(String),
}

/// A model in memory, f32.
pub struct CandleLlama(Frozen);

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
        Ok(CandleLlama(Frozen::load(dir, device.clone(), DType::F32)?))
    }

    /// Takes the weights that it needs, checking every shape.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn new(
        config: ModelConfig,
        weights: Weights,
        device: &Device,
    ) -> Result<CandleLlama, OracleError> {
        Ok(CandleLlama(Frozen::new(config, weights, device.clone(), DType::F32)?))
    }

    /// The model's dimensions.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.0.config
    }

    /// Logits `(T, vocab)` at every position of `tokens`.
    ///
    /// # Errors
    /// Empty or too long input, or a token outside the vocabulary.
    pub fn logits(&self, tokens: &[u32], lora: Option<&LoraVars>) -> Result<Tensor, OracleError> {
        Ok(self.0.logits(&self.hidden(tokens, lora)?)?)
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
        let logits = self.0.logits(&rows)?;
        let targets = Tensor::new(response, &self.0.device)?.unsqueeze(1)?;
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
        let vars = LoraVars::new(lora, self.config(), &self.0.device)?;
        let logprobs = self.logprobs(prompt, response, Some(&vars))?;
        let values = logprobs.to_vec1::<f32>()?;
        let slopes = slope(&values);
        if slopes.len() != values.len() {
            return Err(OracleError::Input("one slope per response token is needed".to_owned()));
        }
        let loss = (logprobs * Tensor::new(slopes.as_slice(), &self.0.device)?)?.sum_all()?;
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
            let next = self.0.logits(&last)?.argmax(D::Minus1)?.to_vec1::<u32>()?[0];
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
        if length == 0 || length > self.config().max_positions {
            let limit = self.config().max_positions;
            return Err(OracleError::Input(format!("{length} tokens; 1 to {limit} work")));
        }
        if let Some(token) = tokens.iter().find(|t| **t as usize >= self.config().vocab) {
            return Err(OracleError::Input(format!("token {token} is not in the vocabulary")));
        }
        let eps = self.config().rms_eps;
        let (cos, sin) = ops::rotation(&self.0.frequencies, 0, length, &self.0.device)?;
        let mask = ops::causal_mask(length, &self.0.device)?;
        let mut x = self.0.embed(tokens)?;
        for (index, layer) in self.0.layers.iter().enumerate() {
            let apply = |proj: Proj, input: &Tensor| match lora {
                Some(lora) => layer.project(proj, input)? + lora.delta(index, proj, input)?,
                None => layer.project(proj, input),
            };
            let normed = rms_norm(&x, &layer.norms[0], eps)?;
            let [q, k, v] =
                [apply(Proj::Q, &normed)?, apply(Proj::K, &normed)?, apply(Proj::V, &normed)?];
            let heads = self.0.heads(index, [&q, &k, &v], &cos, &sin)?;
            let mixed = self.0.attention(&heads, &mask)?;
            x = (x + apply(Proj::O, &mixed)?)?;
            let normed = rms_norm(&x, &layer.norms[1], eps)?;
            let gated = (silu(&apply(Proj::Gate, &normed)?)? * apply(Proj::Up, &normed)?)?;
            x = (x + apply(Proj::Down, &gated)?)?;
        }
        Ok(rms_norm(&x, &self.0.norm, eps)?)
    }
}

#[cfg(test)]
mod tests;
