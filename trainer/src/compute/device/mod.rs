//! [`Compute`] with candle's operations, on a GPU (features `cuda` and `metal`) or the processor.
//!
//! One sequence at a time, layer by layer: the forward pass keeps each layer's input, the backward pass
//! computes the layer again and cuts candle's graph at every frozen matrix, so that no gradient of a
//! frozen weight is ever made (see [`layer`]). The same rounds, losses and gate run on it as on
//! `CpuCompute`, which the tests compare it with, number by number.
//!
//! Invariant: memory is the weights, one input per layer, one layer's activations and some rows of
//! logits, however many sequences come in.

mod adapter;
mod head;
mod layer;
mod model;
mod sampler;

use std::path::Path;

use candle_core::{Device, Tensor};
use hone_model::lora::Lora;
use hone_model::ops;
use tokio_util::sync::CancellationToken;

use self::adapter::{Adapter, Collector};
use self::head::Head;
use self::layer::{Ground, Walk};
use self::model::Model;
use super::look::{Look, Sight, Slopes};
use super::{Compute, ComputeError, Gradient, Precision, Rollout, SampleParams, Sequence, check};

/// A base model on a device.
pub struct DeviceCompute {
    model: Model,
    logits_bytes_max: usize,
    stop: CancellationToken,
}

impl DeviceCompute {
    /// Loads a model directory onto a device. At most `logits_bytes_max` bytes of logits exist at a time.
    ///
    /// # Errors
    /// An unusable model, or a device without enough memory.
    pub fn new(
        model_dir: &Path,
        device: Device,
        precision: Precision,
        logits_bytes_max: usize,
    ) -> Result<Self, ComputeError> {
        let model = Model::load(model_dir, device, precision)?;
        Ok(Self { model, logits_bytes_max, stop: CancellationToken::new() })
    }

    fn uninterrupted(&self) -> Result<(), ComputeError> {
        if self.stop.is_cancelled() { Err(ComputeError::Interrupted) } else { Ok(()) }
    }

    fn adapter(&self, lora: Option<&Lora>) -> Result<Option<Adapter>, ComputeError> {
        lora.map(|lora| Adapter::new(lora, &self.model)).transpose()
    }

    fn head(&self) -> Head<'_> {
        Head { model: &self.model, logits_bytes_max: self.logits_bytes_max }
    }

    /// Inputs of all layers and, last, the hidden states before the final norm, all `(T, hidden)`.
    fn inputs(
        &self,
        ground: &Ground<'_>,
        sequence: &Sequence,
    ) -> Result<Vec<Tensor>, ComputeError> {
        let tokens = [sequence.prompt.as_slice(), &sequence.response].concat();
        // The last token predicts nothing that is asked for.
        let mut x = self.model.embed(&tokens[..tokens.len() - 1])?;
        let mut all = Vec::with_capacity(self.model.layers.len() + 1);
        for index in 0..self.model.layers.len() {
            self.uninterrupted()?;
            let out = Walk::of(ground, index, &x, &|q, k, v| ground.attend(index, q, k, v))?.out;
            all.push(std::mem::replace(&mut x, out));
        }
        all.push(x);
        Ok(all)
    }
}

/// The rows of the response in hidden states `(T, hidden)`.
fn rows_of(x: &Tensor, sequence: &Sequence) -> Result<Tensor, ComputeError> {
    Ok(x.narrow(0, sequence.prompt.len() - 1, sequence.response.len())?)
}

impl Compute for DeviceCompute {
    fn interrupt_by(&mut self, stop: CancellationToken) {
        self.stop = stop;
    }

    fn sample(
        &mut self,
        adapter: Option<&Lora>,
        prompts: &[Vec<u32>],
        replies: usize,
        params: &SampleParams,
    ) -> Result<Vec<Vec<Rollout>>, ComputeError> {
        let pairs = prompts.iter().map(|prompt| (prompt.as_slice(), [].as_slice()));
        check::sequences(&self.model.config, pairs)?;
        let adapter = self.adapter(adapter)?;
        let mut all = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.iter().enumerate() {
            let sampler = sampler::Sampler {
                model: &self.model,
                adapter: adapter.as_ref(),
                params,
                stop: &self.stop,
            };
            all.push(sampler.draw(index, prompt, replies)?);
        }
        Ok(all)
    }

    fn look(
        &mut self,
        adapter: Option<&Lora>,
        sequences: &[Sequence],
        looks: &[Look],
    ) -> Result<Vec<Sight>, ComputeError> {
        check::sequences(&self.model.config, check::pairs(sequences))?;
        check::looks(&self.model.config, sequences, looks)?;
        let adapter = self.adapter(adapter)?;
        let (mut found, head) = (Vec::with_capacity(sequences.len()), self.head());
        for (index, sequence) in sequences.iter().enumerate() {
            if sequence.response.is_empty() {
                found.push(Sight::default());
                continue;
            }
            let ground = Ground::of(&self.model, adapter.as_ref(), check::fed(sequence))?;
            let x = self.inputs(&ground, sequence)?.pop().ok_or(ComputeError::AdapterShape)?;
            let look = looks.get(index);
            let rows = rows_of(&x, sequence)?;
            let mut sight = head.sight(&rows, &sequence.response, look)?;
            if look.is_some_and(|look| look.state) {
                sight.state = rows.flatten_all()?.to_vec1()?;
            }
            found.push(sight);
        }
        let mut numbers = found.iter().flat_map(|sight| sight.own.iter().chain(&sight.kl));
        match numbers.any(|value| !value.is_finite()) {
            true => Err(ComputeError::NotFinite("a log-probability")),
            false => Ok(found),
        }
    }

    fn differentiate(
        &mut self,
        adapter: &Lora,
        sequences: &[Sequence],
        looks: &[Look],
        loss: &mut dyn FnMut(usize, &Sight) -> Slopes,
    ) -> Result<Gradient, ComputeError> {
        check::sequences(&self.model.config, check::pairs(sequences))?;
        check::looks(&self.model.config, sequences, looks)?;
        let tensors = Adapter::new(adapter, &self.model)?;
        let mut collector = Collector::new(adapter);
        let (mut logprobs, head) = (vec![Vec::new(); sequences.len()], self.head());
        for (index, sequence) in sequences.iter().enumerate() {
            if sequence.response.is_empty() {
                continue;
            }
            let ground = Ground::of(&self.model, Some(&tensors), check::fed(sequence))?;
            let mut inputs = self.inputs(&ground, sequence)?;
            let x = inputs.pop().ok_or(ComputeError::AdapterShape)?;
            let (rows, look) = (rows_of(&x, sequence)?, looks.get(index));
            let sight = head.sight(&rows, &sequence.response, look)?;
            let slopes = loss(index, &sight);
            if !slopes.fits(&sight) {
                let (wanted, found) = (sequence.response.len(), slopes.own.len());
                return Err(ComputeError::LossLength { index, wanted, found });
            }
            logprobs[index].clone_from(&sight.own);
            let drows = head.back(&rows, &sequence.response, look, &slopes)?;
            // Rows before the response have no loss of their own.
            let before = sequence.prompt.len() - 1;
            let mut dx = drows.pad_with_zeros(0, before, 0)?;
            for (layer, x) in inputs.into_iter().enumerate().rev() {
                self.uninterrupted()?;
                let walk = Walk::of(&ground, layer, &x, &|q, k, v| ground.attend(layer, q, k, v))?;
                dx = walk.back(&ground, layer, &dx, &mut collector)?;
            }
        }
        let lora = collector.finish()?;
        if !lora.is_finite() || logprobs.iter().flatten().any(|value| !value.is_finite()) {
            return Err(ComputeError::NotFinite("a gradient"));
        }
        Ok(Gradient { lora, logprobs })
    }
}

/// Cosines, sines and mask of a sequence of `length` tokens.
fn positions(model: &Model, length: usize) -> Result<[Tensor; 3], ComputeError> {
    let (cos, sin) = ops::rotation(&model.frequencies, 0, length, &model.device)?;
    Ok([cos, sin, ops::causal_mask(length, &model.device)?])
}
