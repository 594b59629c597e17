//! What rounds are made with: store, registry, model files, kernels, engine, proxy.
//!
//! One per trainer process, used by one thread (the store is not shared between threads).
//!
//! Invariant: an adapter is only taken from the registry, and only if it was made for this base.

use crate::compute::{self, Compute, ComputeError, CpuCompute, DeviceCompute, Limits, open_device};
use crate::driver::Driver;
use crate::publish::ProxyAdmin;
use crate::sample::render::Renderer;
use hone_model::lora::{Lora, LoraError};
use hone_shared::data_dir::DataDir;
use hone_shared::policy::{MemoryPolicy, Precision};
use hone_shared::registry::{Registry, RegistryError};
use hone_shared::store::Store;
use hone_shared::turn::Generation;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Makes the kernels for a model directory, a number of threads (0: all), a precision and bounds of
/// their memory. Made for each round, so that an idle trainer holds no weights.
pub type Kernels = Arc<dyn Fn(&Path, usize, Precision, &MemoryPolicy) -> MadeKernels + Send + Sync>;

/// Kernels, or why there are none.
pub type MadeKernels = Result<Box<dyn Compute>, ComputeError>;

/// The kernels of a device by name, see [`open_device`].
///
/// # Errors
/// There is no such device.
pub fn kernels(device: &str) -> Result<Kernels, ComputeError> {
    let Some(device) = open_device(device)? else { return Ok(cpu_kernels()) };
    Ok(Arc::new(move |dir, _, precision, memory| {
        let (precision, device) = (compute_precision(precision), device.clone());
        let made = DeviceCompute::new(dir, device, precision, memory.logits_bytes_max)?;
        Ok(Box::new(made) as Box<dyn Compute>)
    }))
}

/// The kernels that run on the CPU.
pub fn cpu_kernels() -> Kernels {
    Arc::new(|dir, threads, precision, memory| {
        let limits = Limits {
            precision: compute_precision(precision),
            activation_bytes_max: memory.activation_bytes_max,
            turned_bytes_max: memory.turned_bytes_max,
            logits_bytes_max: memory.logits_bytes_max,
            cache_bytes_max: memory.cache_bytes_max,
            ..Limits::default()
        };
        Ok(Box::new(CpuCompute::with_limits(dir, threads, limits)?) as Box<dyn Compute>)
    })
}

fn compute_precision(asked: Precision) -> compute::Precision {
    match asked {
        Precision::Bf16 => compute::Precision::Bf16,
        Precision::F32 => compute::Precision::F32,
    }
}

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkshopError {
    /// Not in the registry, or damaged.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Not an adapter of this model.
    #[error("generation {generation}: {source}")]
    Adapter {
        /// The generation.
        generation: Generation,
        /// What is wrong.
        source: LoraError,
    },
    /// Made for another base model.
    #[error("generation {0} was trained on another base model")]
    OtherBase(Generation),
}

/// The tools of a round.
pub struct Workshop {
    /// Directories and secrets.
    pub data: DataDir,
    /// Turns, verdicts, rounds.
    pub store: Store,
    /// Generations and aliases.
    pub registry: Registry,
    /// Tokenizer and chat template.
    pub renderer: Renderer,
    /// The base model.
    pub model_dir: PathBuf,
    /// sha256 of the base model's weights.
    pub base_hash: String,
    /// Where kernels come from.
    pub kernels: Kernels,
    /// The engine.
    pub driver: Arc<dyn Driver>,
    /// The proxy.
    pub proxy: ProxyAdmin,
    /// Runs HTTP from the round's thread.
    pub handle: Handle,
    /// Set when the trainer shall end.
    pub shutdown: CancellationToken,
    /// Key of the holdout split.
    pub secret: [u8; 32],
}

impl Workshop {
    /// The adapter of a generation; `None` for the base.
    pub fn adapter(&self, generation: &Generation) -> Result<Option<Lora>, WorkshopError> {
        if generation.is_base() {
            return Ok(None);
        }
        let found = self.registry.verify(generation)?;
        let made_for = &found.manifest.draft.base_model_hash;
        if !made_for.is_empty() && *made_for != self.base_hash {
            return Err(WorkshopError::OtherBase(generation.clone()));
        }
        let adapter = Lora::from_peft(&found.path, &self.renderer.model);
        let wrong = |source| WorkshopError::Adapter { generation: generation.clone(), source };
        adapter.map(Some).map_err(wrong)
    }
}
