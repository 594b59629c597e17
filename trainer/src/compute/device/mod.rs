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
mod sampler;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use hone_model::frozen::Frozen;
use hone_model::lora::Lora;
use tokio_util::sync::CancellationToken;

use self::adapter::{Adapter, Collector};
use self::head::Head;
use self::layer::{Ground, Walk};
use super::look::{Look, Sight, Slopes};
use super::{Compute, ComputeError, Gradient, Precision, Rollout, SampleParams, Sequence, check};

/// A base model on a device.
pub struct DeviceCompute {
    model: Frozen,
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
        // candle's bf16 products on the processor are slower than those of f32.
        let matrix = match precision {
            Precision::Bf16 if !device.is_cpu() => DType::BF16,
            _ => DType::F32,
        };
        let model = Frozen::load(model_dir, device, matrix)?;
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

    /// Hidden states `(T, hidden)` before the final norm; `keep` gets every layer's input.
    fn run(
        &self,
        ground: &Ground<'_>,
        sequence: &Sequence,
        mut keep: impl FnMut(Tensor),
    ) -> Result<Tensor, ComputeError> {
        let tokens = [sequence.prompt.as_slice(), &sequence.response].concat();
        let mut x = self.model.embed(&tokens[..check::fed(sequence)])?;
        for index in 0..self.model.layers.len() {
            self.uninterrupted()?;
            let out = Walk::causal(ground, index, &x)?.out;
            keep(std::mem::replace(&mut x, out));
        }
        Ok(x)
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
            let x = self.run(&ground, sequence, drop)?;
            let (rows, look) = (rows_of(&x, sequence)?, looks.get(index));
            let mut sight = head.sight(&rows, &sequence.response, look)?;
            if look.is_some_and(|look| look.state) {
                sight.state = rows.flatten_all()?.to_vec1()?;
            }
            found.push(sight);
        }
        check::sights(found)
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
            let mut inputs = Vec::with_capacity(self.model.layers.len());
            let x = self.run(&ground, sequence, |input| inputs.push(input))?;
            let (rows, look) = (rows_of(&x, sequence)?, looks.get(index));
            let sight = head.sight(&rows, &sequence.response, look)?;
            let slopes = loss(index, &sight);
            check::slopes(index, &slopes, &sight)?;
            logprobs[index].clone_from(&sight.own);
            let drows = head.back(&rows, &sequence.response, look, &slopes)?;
            // Rows before the response have no loss of their own.
            let before = sequence.prompt.len() - 1;
            let mut dx = drows.pad_with_zeros(0, before, 0)?;
            for (layer, x) in inputs.into_iter().enumerate().rev() {
                self.uninterrupted()?;
                dx = Walk::causal(&ground, layer, &x)?.back(&ground, layer, &dx, &mut collector)?;
            }
        }
        check::gradient(Gradient { lora: collector.finish()?, logprobs })
    }
}
