//! The state of a training run after an update: adapter, both Adam moments, step.
//!
//! One safetensors file with the tensors `adapter.N`, `first.N`, `second.N` in the adapter's fixed
//! order, and `step`, `rank`, `alpha`, `plan` as metadata. There is no random state to keep: every
//! seed is derived from the policy's seed and the step.
//!
//! Invariant: what is read back is bit for bit what was written, or an error.

use super::Plan;
use super::adamw::AdamW;
use hone_model::config::ModelConfig;
use hone_model::lora::Lora;
use safetensors::tensor::{Dtype, SafeTensors, View, serialize_to_file};
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

    /// Writes the file at `path`; not atomic by itself.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let meta = HashMap::from([
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

    /// Reads the file at `path` for a model of these shapes.
    pub fn read(path: &Path, model: &ModelConfig) -> Result<Self, CheckpointError> {
        let bytes = std::fs::read(path)?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let meta = header.metadata().clone().unwrap_or_default();
        let rank = number::<usize>(&meta, "rank")?;
        let mut adapter = Lora::zeros(model, rank, number::<f64>(&meta, "alpha")?);
        let mut adam = AdamW::new(&adapter);
        adam.step = number::<u64>(&meta, "step")?;
        let file = SafeTensors::deserialize(&bytes)?;
        fill(&file, "adapter", &mut adapter)?;
        fill(&file, "first", &mut adam.first)?;
        fill(&file, "second", &mut adam.second)?;
        Ok(Self { adapter, adam })
    }
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
