//! The trainer: it judges turns, trains a LoRA from the verdicts, proves it better, publishes it.
//!
//! The folders are the flow:
//! ```text
//! judge/ ─► sample/ ─► train/ ─► gate/ ─► publish.rs ─► driver/ (engine) and registry
//!                    round.rs: all of it on one screen
//! ```
//! `external.rs` is another trainer's command in place of `train/`, `export/` the samples for it.
//! `compute/` holds the arithmetic behind one trait; `work.rs` the files of a round; `run.rs` the
//! process. No stage makes serving wait, and the process may be killed at any instruction.
//!
//! Invariant: nothing reaches an alias that has not passed the gate.

pub mod compute;
pub mod driver;
mod due;
pub mod export;
pub mod external;
pub mod gate;
pub mod judge;
pub mod publish;
pub mod round;
mod run;
pub mod sample;
#[cfg(test)]
mod testing;
pub mod train;
pub mod work;
pub mod workshop;

pub use due::is_due;
pub use publish::{ProxyAdmin, Publisher, RollbackTo};
pub use run::{check_aliases, rollback, run, run_with, workshop};

use hone_shared::data_dir::{DataDir, DataDirError};
use hone_shared::policy::PolicyError;
use hone_shared::registry::RegistryError;
use hone_shared::store::StoreError;
use std::path::PathBuf;

/// What the trainer process needs to know.
#[derive(Debug, Clone)]
pub struct TrainerConfig {
    /// Where everything lives.
    pub data: DataDir,
    /// The base model, a Hugging Face directory.
    pub model_dir: PathBuf,
    /// The engine, such as `http://127.0.0.1:9000`, without `/v1`.
    pub engine_url: String,
    /// The proxy's admin listener; `None`: what its run file says.
    pub proxy_admin: Option<String>,
    /// How often to look for work, in milliseconds.
    pub poll_ms: u64,
    /// What computes, see [`compute::open_device`].
    pub device: String,
}

/// Why the trainer ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// The data directory.
    #[error(transparent)]
    Data(#[from] DataDirError),
    /// The policies.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The judge.
    #[error(transparent)]
    Judge(#[from] judge::JudgeError),
    /// The model directory.
    #[error(transparent)]
    Render(#[from] sample::render::RenderError),
    /// The model's weights.
    #[error(transparent)]
    Weights(#[from] hone_model::weights::WeightsError),
    /// What computes.
    #[error(transparent)]
    Compute(#[from] compute::ComputeError),
    /// A round.
    #[error(transparent)]
    Round(#[from] round::RoundError),
    /// Publishing.
    #[error(transparent)]
    Publish(#[from] publish::PublishError),
    /// No HTTP client could be built.
    #[error("HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    /// One of its threads panicked.
    #[error("a thread of the trainer ended unexpectedly: {0}")]
    Thread(String),
}
