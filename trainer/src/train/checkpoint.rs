//! The state of a training run after an update: adapter, both Adam moments, step.
//!
//! One safetensors file with the tensors `adapter.N`, `first.N`, `second.N` in the adapter's fixed
//! order, and `step`, `rank`, `alpha`, `plan` as metadata. There is no random state to keep: every
//! seed is derived from the policy's seed and the step.
//!
//! Invariant: what is read back is bit for bit what was written, or an error; and it is taken up only
//! by the plan that wrote it (other samples, another start or another recipe begin anew).

use super::Plan;
use super::adamw::AdamW;
use hone_model::config::ModelConfig;
use hone_model::lora::Lora;
use hone_shared::policy::{BudgetPolicy, TrainPolicy};
use safetensors::tensor::{Dtype, SafeTensors, View, serialize_to_file};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// A resumable state.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The student.
    pub adapter: Lora,
    /// Moments and step.
    pub adam: AdamW,
}

/// Why a checkpoint could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Reading or writing failed.
    #[error("checkpoint: {0}")]
    Io(#[from] io::Error),
    /// Not a safetensors file.
    #[error("checkpoint: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor or a number is missing or has the wrong size.
    #[error("checkpoint: {0} is missing or of the wrong size")]
    Content(String),
}

impl Checkpoint {
    /// Before the first update: the plan's starting adapter, or a fresh one.
    pub fn start(plan: &Plan) -> Self {
        let policy = &plan.policy;
        let fresh = || Lora::init(&plan.model, policy.rank, policy.alpha, policy.seed);
        let adapter = plan.start.clone().unwrap_or_else(fresh);
        Self { adam: AdamW::new(&adapter), adapter }
    }

    /// Writes the file at `path`, marked with the plan's fingerprint; not atomic by itself.
    pub fn write(&self, path: &Path, plan: &str) -> Result<(), CheckpointError> {
        let meta = HashMap::from([
            ("plan".to_owned(), plan.to_owned()),
            ("step".to_owned(), self.adam.step.to_string()),
            ("rank".to_owned(), self.adapter.rank.to_string()),
            ("alpha".to_owned(), self.adapter.alpha.to_string()),
        ]);
        let parts = [
            ("adapter", &self.adapter),
            ("first", &self.adam.first),
            ("second", &self.adam.second),
        ];
        let tensors = parts.iter().flat_map(|(part, lora)| {
            let tensors = lora.tensors().enumerate();
            tensors
                .map(move |(i, values)| (format!("{part}.{i:04}"), Floats(values, [values.len()])))
        });
        serialize_to_file(tensors.collect::<Vec<_>>(), Some(meta), path)?;
        Ok(())
    }

    /// Reads the file at `path` for a model of these shapes; `None`: another plan wrote it.
    pub fn read(
        path: &Path,
        model: &ModelConfig,
        plan: &str,
    ) -> Result<Option<Self>, CheckpointError> {
        let bytes = std::fs::read(path)?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let meta = header.metadata().clone().unwrap_or_default();
        if meta.get("plan").map(String::as_str) != Some(plan) {
            return Ok(None);
        }
        let rank = number::<usize>(&meta, "rank")?;
        let mut adapter = Lora::zeros(model, rank, number::<f64>(&meta, "alpha")?);
        let mut adam = AdamW::new(&adapter);
        adam.step = number::<u64>(&meta, "step")?;
        let file = SafeTensors::deserialize(&bytes)?;
        fill(&file, "adapter", &mut adapter)?;
        fill(&file, "first", &mut adam.first)?;
        fill(&file, "second", &mut adam.second)?;
        Ok(Some(Self { adapter, adam }))
    }
}

/// What a plan is, in 64 hexadecimal digits: samples, start, teacher and recipe. How many updates
/// there are, on how many threads, and what ends them early is not in it: it does not change the ones
/// already made.
pub fn fingerprint(plan: &Plan) -> String {
    let budget =
        BudgetPolicy { kl_max: 0.0, wall_s_max: 0.0, cpu_s_max: 0.0, ..plan.policy.budget };
    let recipe = TrainPolicy { updates: 0, threads: 0, budget, ..plan.policy.clone() };
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(format!("{recipe:?}").as_bytes());
    for sample in &plan.samples {
        add(format!("{sample:?}").as_bytes());
    }
    for adapter in [&plan.start, &plan.teacher] {
        add(&[u8::from(adapter.is_some())]);
        for tensor in adapter.iter().flat_map(|lora| lora.tensors()) {
            let bytes: Vec<u8> = tensor.iter().flat_map(|value| value.to_le_bytes()).collect();
            add(&bytes);
        }
    }
    format!("{:x}", hash.finalize())
}

fn number<T: std::str::FromStr>(
    meta: &HashMap<String, String>,
    key: &str,
) -> Result<T, CheckpointError> {
    let found = meta.get(key).and_then(|text| text.parse().ok());
    found.ok_or_else(|| CheckpointError::Content(key.to_owned()))
}

fn fill(file: &SafeTensors<'_>, part: &str, lora: &mut Lora) -> Result<(), CheckpointError> {
    for (i, values) in lora.tensors_mut().enumerate() {
        let name = format!("{part}.{i:04}");
        let found = file.tensor(&name)?;
        if found.dtype() != Dtype::F32 || found.data().len() != values.len() * 4 {
            return Err(CheckpointError::Content(name));
        }
        for (value, raw) in values.iter_mut().zip(found.data().chunks_exact(4)) {
            *value = f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        }
    }
    Ok(())
}

/// One tensor of the file, converted only while it is written.
struct Floats<'a>(&'a [f32], [usize; 1]);

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.0.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
    fn data_len(&self) -> usize {
        self.0.len() * 4
    }
}
