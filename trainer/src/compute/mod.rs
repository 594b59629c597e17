//! The trainer's arithmetic: score tokens, differentiate a loss, draw replies.
//!
//! [`Compute`] is the seam; [`CpuCompute`] implements it with a hand-written forward and backward
//! pass on raw `f32` buffers, optionally with bf16 matrix products, [`DeviceCompute`] with candle's
//! operations on a GPU. Only the LoRA adapter gets
//! gradients; through frozen weights only the activations' gradient is computed.
//!
//! Invariant: results depend on the inputs and the seed, not on the number of threads, the order
//! of the sequences (beyond rounding) or what else is in the batch.

mod adapter;
mod attention;
mod backward;
mod batch;
pub mod bench;
mod check;
mod choice;
mod cpu;
mod device;
mod forward;
mod head;
mod kernels;
mod look;
mod math;
mod model;
mod order;
mod sampler;
mod scratch;
mod state;

use hone_model::config::ConfigError;
use hone_model::frozen::FrozenError;
use hone_model::lora::Lora;
use hone_model::weights::WeightsError;
use tokio_util::sync::CancellationToken;

pub use choice::open_device;
pub use cpu::{CpuCompute, Limits};
pub use device::DeviceCompute;
pub use kernels::Precision;
pub use look::{Against, Direction, Look, Sight, Slopes};

/// A prompt and what was answered, as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// At least one token. Sequences with equal prompts share the work on it.
    pub prompt: Vec<u32>,
    /// The tokens whose probabilities matter. May be empty: then nothing is computed.
    pub response: Vec<u32>,
}

/// How replies are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleParams {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Most tokens of one reply.
    pub tokens_max: usize,
    /// Tokens that end a reply; they are part of it.
    pub eos: Vec<u32>,
    /// Each reply has its own generator, seeded by this, its prompt's index and its own index.
    pub seed: u64,
}

/// One drawn reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Its tokens, with the ending one if it ended.
    pub tokens: Vec<u32>,
    /// ln p of each token under the full softmax at temperature 1.
    pub logprobs: Vec<f32>,
    /// It ended by an ending token, not by the cap.
    pub ended: bool,
}

/// What [`Compute::gradient`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradient {
    /// dL / d adapter, in the adapter's shapes.
    pub lora: Lora,
    /// ln p of each response token, per sequence, in the order of the input.
    pub logprobs: Vec<Vec<f32>>,
}

/// Why a computation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// The model's configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model's weights are not usable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The worker threads could not be started.
    #[error("cannot start the compute threads: {0}")]
    Threads(String),
    /// A sequence has no prompt, so its first token has no condition.
    #[error("sequence {0} has an empty prompt")]
    EmptyPrompt(usize),
    /// A sequence is longer than the model computes exactly.
    #[error("sequence {index} has {tokens} tokens, the model's limit is {max}")]
    TooLong {
        /// Position in the input.
        index: usize,
        /// Prompt and response together.
        tokens: usize,
        /// The model's limit.
        max: usize,
    },
    /// A token that the vocabulary does not have.
    #[error("sequence {index} holds token {token}, the vocabulary has {vocab}")]
    UnknownToken {
        /// Position in the input.
        index: usize,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The adapter has other shapes than the model.
    #[error("the adapter does not fit the model")]
    AdapterShape,
    /// The loss returned a gradient of another length than the response.
    #[error("the loss of sequence {index} returned {found} values for {wanted} tokens")]
    LossLength {
        /// Position in the input.
        index: usize,
        /// Tokens of the response.
        wanted: usize,
        /// Values returned.
        found: usize,
    },
    /// Asked to stop, see [`Compute::interrupt_by`]: the call has no result.
    #[error("interrupted")]
    Interrupted,
    /// What is asked about a sequence does not fit it.
    #[error("what is asked about sequence {0} does not fit its response or the model")]
    LookShape(usize),
    /// A device was asked for that there is not.
    #[error("no device {name:?}: {why}")]
    NoDevice {
        /// What was asked for.
        name: String,
        /// What there is.
        why: String,
    },
    /// A device, such as a GPU, refused or failed.
    #[error("the compute device: {0}")]
    Device(#[from] candle_core::Error),
    /// A result is infinite or not a number.
    #[error("{0} is not finite")]
    NotFinite(&'static str),
}

impl From<FrozenError> for ComputeError {
    fn from(error: FrozenError) -> Self {
        match error {
            FrozenError::Config(error) => error.into(),
            FrozenError::Weights(error) => error.into(),
            FrozenError::Candle(error) => error.into(),
        }
    }
}

/// Scoring, differentiation and sampling with one base model.
pub trait Compute: Send {
    /// From now on a call returns [`ComputeError::Interrupted`] soon after `stop` is set: within a
    /// layer of the call's largest batch. A gate on a large model runs for minutes, and whoever
    /// stops the trainer does not wait that long.
    fn interrupt_by(&mut self, stop: CancellationToken);

    /// Draws `replies` replies to each prompt with the adapter (or the base alone).
    ///
    /// # Errors
    /// An empty, too long or foreign prompt, or an adapter of another shape.
    fn sample(
        &mut self,
        adapter: Option<&Lora>,
        prompts: &[Vec<u32>],
        replies: usize,
        params: &SampleParams,
    ) -> Result<Vec<Vec<Rollout>>, ComputeError>;

    /// What `looks` ask about the rows of the responses: one per sequence, or none for their own
    /// log-probabilities alone.
    ///
    /// # Errors
    /// An unusable sequence or question, or an adapter of another shape.
    fn look(
        &mut self,
        adapter: Option<&Lora>,
        sequences: &[Sequence],
        looks: &[Look],
    ) -> Result<Vec<Sight>, ComputeError>;

    /// Differentiates a loss with respect to the adapter.
    ///
    /// `loss(i, sight)` is called once for every sequence with a response, in no particular order,
    /// and returns dL by what was seen; hidden states are not among that.
    ///
    /// # Errors
    /// An unusable sequence or question, an adapter of another shape, slopes that do not fit what
    /// was seen, or a result that is not finite.
    fn differentiate(
        &mut self,
        adapter: &Lora,
        sequences: &[Sequence],
        looks: &[Look],
        loss: &mut dyn FnMut(usize, &Sight) -> Slopes,
    ) -> Result<Gradient, ComputeError>;

    /// ln p of every response token, per sequence: [`Compute::look`] without questions.
    ///
    /// # Errors
    /// As [`Compute::look`].
    fn score(
        &mut self,
        adapter: Option<&Lora>,
        sequences: &[Sequence],
    ) -> Result<Vec<Vec<f32>>, ComputeError> {
        let seen = self.look(adapter, sequences, &[])?;
        Ok(seen.into_iter().map(|sight| sight.own).collect())
    }

    /// As [`Compute::differentiate`] for a loss of the responses' own log-probabilities;
    /// `loss(i, ln p)` returns dL / d ln p of each response token.
    ///
    /// # Errors
    /// As [`Compute::differentiate`].
    fn gradient(
        &mut self,
        adapter: &Lora,
        sequences: &[Sequence],
        loss: &mut dyn FnMut(usize, &[f32]) -> Vec<f32>,
    ) -> Result<Gradient, ComputeError> {
        self.differentiate(adapter, sequences, &[], &mut |index, seen| {
            loss(index, &seen.own).into()
        })
    }
}
