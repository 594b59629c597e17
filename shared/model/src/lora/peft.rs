//! Adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The narrow form that every engine accepts: one rank and one alpha, no bias, the seven
//! projections, F32. Bytes depend only on the values, so that equal adapters have equal hashes.
//! Reading refuses whatever would mean something else than [`Lora`] can say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::{Lora, Proj, RANK_MAX, Side};
use crate::config::ModelConfig;
use crate::weights::to_f32;

/// File name of the configuration.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// File name of the tensors.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Why an adapter could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `adapter_config.json` is not JSON, or says something that is not supported.
    #[error("adapter_config.json: {0}")]
    Config(String),
    /// `adapter_model.safetensors` is malformed.
    #[error("adapter_model.safetensors: {0}")]
    Weights(String),
    /// A tensor is not there.
    #[error("adapter_model.safetensors has no tensor `{0}` (all seven projections are needed)")]
    Missing(String),
    /// A tensor belongs to something else.
    #[error("adapter_model.safetensors has an unexpected tensor `{0}`")]
    Unexpected(String),
    /// A tensor does not fit the model.
    #[error("tensor `{name}` has shape {found:?}, this model and rank need {wanted:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the model and the rank.
        wanted: Vec<usize>,
    },
    /// A tensor holds NaN or infinity.
    #[error("tensor `{0}` holds values that are not finite")]
    NotFinite(String),
}

impl Lora {
    /// Writes both files into an existing directory and fsyncs them. `base_model` is what
    /// `base_model_name_or_path` shall say.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn to_peft(&self, dir: &Path, base_model: &str) -> Result<(), LoraError> {
        write_synced(&dir.join(ADAPTER_CONFIG), &self.peft_config(base_model))?;
        write_synced(&dir.join(ADAPTER_WEIGHTS), &self.peft_bytes()?)
    }

    /// The bytes of `adapter_config.json`.
    #[must_use]
    pub fn peft_config(&self, base_model: &str) -> Vec<u8> {
        let alpha = if self.alpha.fract() == 0.0 && self.alpha.abs() < 1e15 {
            json!(self.alpha as i64)
        } else {
            json!(self.alpha)
        };
        let value = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "target_modules": Proj::ALL.map(Proj::name),
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": null,
            "use_dora": false,
            "use_rslora": false,
        });
        let mut text = format!("{value:#}");
        text.push('\n');
        text.into_bytes()
    }

    /// The bytes of `adapter_model.safetensors`.
    ///
    /// # Errors
    /// [`LoraError::Weights`] when a buffer has not the length that rank and layers imply.
    pub fn peft_bytes(&self) -> Result<Vec<u8>, LoraError> {
        let mut buffers = Vec::new();
        self.for_each_tensor(|layer, proj, side, values| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let width = values.len() / self.rank.max(1);
            let shape = match side {
                Side::A => vec![self.rank, width],
                Side::B => vec![width, self.rank],
            };
            buffers.push((tensor_name(layer, proj, side), shape, bytes));
        });
        let mut views = Vec::with_capacity(buffers.len());
        for (name, shape, bytes) in &buffers {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(weights_error)?;
            views.push((name.as_str(), view));
        }
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(views, Some(format)).map_err(weights_error)
    }

    /// Reads a PEFT directory made by hone, PEFT or another trainer.
    ///
    /// # Errors
    /// Unreadable files, options that are not supported, and tensors that do not fit the model.
    pub fn from_peft(dir: &Path, config: &ModelConfig) -> Result<Lora, LoraError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).map_err(|source| LoraError::File { path, source })
        };
        Lora::from_peft_bytes(&read(ADAPTER_CONFIG)?, &read(ADAPTER_WEIGHTS)?, config)
    }

    /// Reads the content of the two PEFT files.
    ///
    /// # Errors
    /// As [`Lora::from_peft`].
    pub fn from_peft_bytes(
        adapter_config: &[u8],
        adapter_weights: &[u8],
        config: &ModelConfig,
    ) -> Result<Lora, LoraError> {
        let (rank, alpha) = parse_config(adapter_config)?;
        let tensors = SafeTensors::deserialize(adapter_weights).map_err(weights_error)?;
        let mut lora = Lora::zeros(config, rank, alpha);
        let mut problem = None;
        let mut known = std::collections::HashSet::new();
        lora.for_each_tensor_mut(|layer, proj, side, values| {
            let name = tensor_name(layer, proj, side);
            if problem.is_none() {
                problem = fill(&tensors, &name, config, (proj, side, rank), values).err();
            }
            known.insert(name);
        });
        if let Some(error) = problem {
            return Err(error);
        }
        let mut names = tensors.names();
        names.sort_unstable();
        match names.into_iter().find(|name| !known.contains(*name)) {
            Some(extra) => Err(LoraError::Unexpected(extra.to_owned())),
            None => Ok(lora),
        }
    }
}

/// PEFT's name of a tensor.
fn tensor_name(layer: usize, proj: Proj, side: Side) -> String {
    let side = if side == Side::A { "lora_A" } else { "lora_B" };
    format!("base_model.model.model.layers.{layer}.{}.{side}.weight", proj.path())
}

fn fill(
    tensors: &SafeTensors<'_>,
    name: &str,
    config: &ModelConfig,
    (proj, side, rank): (Proj, Side, usize),
    values: &mut [f32],
) -> Result<(), LoraError> {
    let (out, width) = config.proj_shape(proj);
    let wanted = if side == Side::A { [rank, width] } else { [out, rank] };
    let view = tensors.tensor(name).map_err(|_| LoraError::Missing(name.to_owned()))?;
    if view.shape() != wanted {
        return Err(LoraError::Shape {
            name: name.to_owned(),
            found: view.shape().to_vec(),
            wanted: wanted.to_vec(),
        });
    }
    let read = to_f32(view.dtype(), view.data()).ok_or_else(|| {
        LoraError::Weights(format!("`{name}` is {:?}; F32, F16 and BF16 work", view.dtype()))
    })?;
    if !read.iter().all(|v| v.is_finite()) {
        return Err(LoraError::NotFinite(name.to_owned()));
    }
    values.copy_from_slice(&read);
    Ok(())
}

/// Rank and alpha, after refusing every option that changes the arithmetic.
fn parse_config(bytes: &[u8]) -> Result<(usize, f64), LoraError> {
    let refuse = |reason: String| Err(LoraError::Config(reason));
    let value: Value =
        serde_json::from_slice(bytes).map_err(|e| LoraError::Config(e.to_string()))?;
    if value.get("peft_type").and_then(Value::as_str).is_some_and(|kind| kind != "LORA") {
        return refuse(format!("peft_type {} is not LORA", value["peft_type"]));
    }
    for flag in ["use_dora", "use_rslora", "fan_in_fan_out", "lora_bias"] {
        if value.get(flag).and_then(Value::as_bool).unwrap_or(false) {
            return refuse(format!("`{flag}` is not supported"));
        }
    }
    for key in ["rank_pattern", "alpha_pattern", "modules_to_save"] {
        let empty = match value.get(key) {
            None | Some(Value::Null) => true,
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        };
        if !empty {
            return refuse(format!("`{key}` must be empty (one rank and one alpha everywhere)"));
        }
    }
    if value.get("bias").and_then(Value::as_str).is_some_and(|bias| bias != "none") {
        return refuse("`bias` must be \"none\"".to_owned());
    }
    let rank = value.get("r").and_then(Value::as_u64).unwrap_or(0) as usize;
    let alpha = value.get("lora_alpha").and_then(Value::as_f64).unwrap_or(0.0);
    if rank == 0 || rank > RANK_MAX || !(alpha.is_finite() && alpha > 0.0) {
        return refuse(format!("`r` must be 1 to {RANK_MAX} and `lora_alpha` positive"));
    }
    Ok((rank, alpha))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), LoraError> {
    let write = || {
        use std::io::Write;
        let mut file = std::fs::File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| LoraError::File { path: path.to_owned(), source })
}

fn weights_error(error: safetensors::SafeTensorError) -> LoraError {
    LoraError::Weights(error.to_string())
}
