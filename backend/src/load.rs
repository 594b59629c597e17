//! Builds one resident engine with mistral.rs: the only file that knows its loader.
//!
//! Traps of mistralrs 0.8.1 that this file keeps shut:
//! * the loader pushes applied LoRAs to a thread-local that it never clears, so a load has a thread
//!   of its own, cleared before and after;
//! * on the CPU the prefix cache is never evicted (its eviction counts only other devices), so it
//!   is off; every generation has its own caches anyway;
//! * `get_sender` reboots a dead engine on its old pipeline behind our back, so the sender is taken
//!   once, here, and a dead engine is seen as a closed sender.
//!
//! Invariant: a load that fails or panics leaves nothing behind but its error.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use hone_shared::turn::Generation;
use mistralrs::core::{
    AdapterPaths, DefaultSchedulerMethod, DeviceMapMetadata, DeviceMapSetting, LocalModelPaths,
    LoraAdapterPaths, MistralRsBuilder, ModelDType, ModelPaths, NormalLoaderBuilder,
    NormalSpecificConfig, SchedulerConfig,
};
use tokio::runtime::Handle;

use crate::adapter::AdapterFiles;
use crate::model::ModelFiles;
use crate::resident::{Resident, Vocabulary};

/// Builds the engine of the base (`adapter` none) or of one generation, on a thread of its own.
/// Takes seconds and the memory of the whole model.
///
/// # Errors
/// What the loader said, or that it panicked.
pub async fn build(
    model: Arc<ModelFiles>,
    adapter: Option<AdapterFiles>,
    sequences_max: usize,
) -> Result<Resident, String> {
    let runtime = Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("hone-load".to_owned()).spawn(move || {
        mistralrs_quant::clear_applied_loras();
        let built = build_here(&runtime, &model, adapter, sequences_max);
        mistralrs_quant::clear_applied_loras();
        // Nobody waits any more: the resident is dropped, and its engine ends.
        drop(sender.send(built));
    });
    thread.map_err(|e| format!("no thread for the load: {e}"))?;
    receiver.await.unwrap_or_else(|_| Err("the loader panicked".to_owned()))
}

fn build_here(
    runtime: &Handle,
    model: &ModelFiles,
    adapter: Option<AdapterFiles>,
    sequences_max: usize,
) -> Result<Resident, String> {
    let name = Some(model.dir.to_string_lossy().into_owned());
    let mut builder =
        NormalLoaderBuilder::new(NormalSpecificConfig::default(), None, None, name, false, None);
    if let Some(adapter) = &adapter {
        builder = builder.with_lora(vec![adapter.dir.to_string_lossy().into_owned()]);
    }
    let loader = builder.build(Some(model.family.clone())).map_err(|e| e.to_string())?;
    let paths: Box<dyn ModelPaths> = Box::new(paths(model, adapter.as_ref()));
    let pipeline = loader
        .load_model_from_path(
            &paths,
            &ModelDType::F32,
            &Device::Cpu,
            true,
            DeviceMapSetting::Map(DeviceMapMetadata::dummy()),
            None,
            None,
        )
        .map_err(|e| format!("{e:#}"))?;
    let vocabulary = {
        let pipeline = pipeline.try_lock().map_err(|e| e.to_string())?;
        let metadata = pipeline.get_metadata();
        let tokenizer = pipeline.tokenizer().ok_or("the model has no tokenizer")?;
        Vocabulary {
            trie: metadata.tok_env().ok_or("the tokenizer has no byte table")?,
            encode: Box::new(move |text| {
                let encoding = tokenizer.encode_fast(text, true).map_err(|e| e.to_string())?;
                Ok(encoding.get_ids().to_vec())
            }),
            ends: metadata.eos_tok.clone(),
            context: metadata.max_seq_len,
        }
    };
    let sequences = NonZeroUsize::new(sequences_max).unwrap_or(NonZeroUsize::MIN);
    let scheduler =
        SchedulerConfig::DefaultScheduler { method: DefaultSchedulerMethod::Fixed(sequences) };
    let engine =
        MistralRsBuilder::new(pipeline, scheduler, false, None).with_no_prefix_cache(true).build();
    let engine = runtime.block_on(engine);
    let sender = engine.get_sender(None).map_err(|e| e.to_string())?;
    let (generation, rank, adapter_bytes) = match &adapter {
        Some(adapter) => (adapter.generation.clone(), adapter.rank, adapter.bytes),
        None => (Generation::base(), 0, 0),
    };
    Ok(Resident::new(generation, rank, adapter_bytes, engine, sender, vocabulary))
}

fn paths(model: &ModelFiles, adapter: Option<&AdapterFiles>) -> LocalModelPaths<PathBuf> {
    let adapters = match adapter {
        None => AdapterPaths::None,
        Some(adapter) => AdapterPaths::Lora(vec![LoraAdapterPaths {
            lora_config: mistralrs_quant::LoraConfig {
                rank: adapter.rank,
                alpha: adapter.alpha,
                target_modules: adapter.targets.clone(),
            },
            adapter_path: adapter.weights(),
        }]),
    };
    LocalModelPaths::new(
        model.tokenizer.clone(),
        model.config.clone(),
        model.template.clone(),
        model.weights.clone(),
        adapters,
        model.generation_config.clone(),
        None,
        None,
        None,
    )
}
