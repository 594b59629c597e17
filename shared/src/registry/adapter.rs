//! What an adapter must look like to be published: the subset of PEFT that every engine accepts.
//!
//! Uniform rank and alpha, no bias, no DoRA, no modules to save, the seven projections only (design
//! §7). The config is kept as the bytes that were given, because the generation's hash is over
//! bytes.
//!
//! Invariant: what passes here loads in our engine, vLLM, SGLang and mistral.rs ≥ 0.9.1 as far as
//! its files can tell.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{CONFIG_FILE, RegistryError, Result, WEIGHTS_FILE, at};

/// Largest `adapter_config.json`, bytes.
pub const CONFIG_BYTES_MAX: usize = 64 * 1024;
/// Largest `adapter_model.safetensors`, bytes.
pub const WEIGHTS_BYTES_MAX: u64 = 8 << 30;
/// Largest rank (mistral.rs refuses more).
pub const RANK_MAX: u64 = 256;
/// The modules that an adapter may touch.
pub const PROJECTIONS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

const HEADER_BYTES_MAX: u64 = 16 << 20;

/// A checked `adapter_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    bytes: Vec<u8>,
    rank: u64,
    alpha: f64,
}

#[derive(Deserialize)]
struct RawConfig {
    peft_type: String,
    r: u64,
    lora_alpha: f64,
    target_modules: Value,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, Value>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, Value>,
}

impl AdapterConfig {
    /// The config of a LoRA over all seven projections. `base_model` is a name or path, for people
    /// only.
    pub fn new(base_model: &str, rank: u64, alpha: f64) -> Result<Self> {
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model,
            "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none",
            "target_modules": PROJECTIONS, "modules_to_save": null, "use_dora": false,
            "use_rslora": false, "fan_in_fan_out": false, "inference_mode": true,
            "rank_pattern": {}, "alpha_pattern": {},
        });
        Self::from_bytes(config.to_string().into_bytes())
    }

    /// Checks the bytes of an existing config; they are kept as they are. Error: what is not
    /// accepted, in words.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let refuse = |problem: String| Err(RegistryError::Adapter(problem));
        if bytes.len() > CONFIG_BYTES_MAX {
            return refuse(format!("{CONFIG_FILE} is larger than {CONFIG_BYTES_MAX} bytes"));
        }
        let raw: RawConfig = match serde_json::from_slice(&bytes) {
            Ok(raw) => raw,
            Err(error) => return refuse(format!("{CONFIG_FILE}: {error}")),
        };
        if raw.peft_type != "LORA" {
            return refuse(format!("peft_type is `{}`; only LORA is accepted", raw.peft_type));
        }
        if raw.r == 0 || raw.r > RANK_MAX {
            return refuse(format!("rank {} is not within 1 to {RANK_MAX}", raw.r));
        }
        if !raw.lora_alpha.is_finite() || raw.lora_alpha <= 0.0 {
            return refuse(format!("lora_alpha {} is not a positive number", raw.lora_alpha));
        }
        if raw.bias.as_deref().unwrap_or("none") != "none" {
            return refuse("bias must be `none`".to_owned());
        }
        if raw.use_dora || raw.modules_to_save.is_some_and(|m| !m.is_empty()) {
            return refuse("DoRA and modules_to_save are not accepted".to_owned());
        }
        if !raw.rank_pattern.is_empty() || !raw.alpha_pattern.is_empty() {
            return refuse(
                "rank and alpha must be uniform (no rank_pattern, alpha_pattern)".to_owned(),
            );
        }
        check_targets(&raw.target_modules)?;
        Ok(Self { bytes, rank: raw.r, alpha: raw.lora_alpha })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// LoRA rank.
    pub fn rank(&self) -> u64 {
        self.rank
    }

    /// LoRA alpha; the update is scaled by alpha / rank.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }
}

fn check_targets(targets: &Value) -> Result<()> {
    let names = targets.as_array().filter(|names| !names.is_empty());
    let Some(names) = names else {
        return Err(RegistryError::Adapter("target_modules must be a list of names".to_owned()));
    };
    match names.iter().find(|name| !name.as_str().is_some_and(|n| PROJECTIONS.contains(&n))) {
        None => Ok(()),
        Some(other) => Err(RegistryError::Adapter(format!(
            "target module {other} is not accepted (accepted: {})",
            PROJECTIONS.join(", ")
        ))),
    }
}

#[derive(Deserialize)]
struct RawTensor {
    data_offsets: [u64; 2],
}

/// Reads the header of a safetensors file of `len` bytes and checks that the file is whole and
/// holds LoRA pairs only.
pub(super) fn check_weights(reader: &mut impl Read, len: u64) -> Result<()> {
    let refuse = |problem: &str| RegistryError::Adapter(format!("{WEIGHTS_FILE}: {problem}"));
    if len > WEIGHTS_BYTES_MAX {
        return Err(refuse("larger than 8 GiB"));
    }
    let mut size = [0u8; 8];
    reader.read_exact(&mut size).map_err(|_| refuse("shorter than its header"))?;
    let size = u64::from_le_bytes(size);
    if size > HEADER_BYTES_MAX || size.saturating_add(8) > len {
        return Err(refuse("the header is longer than the file"));
    }
    let mut header = vec![0u8; usize::try_from(size).map_err(|_| refuse("header too long"))?];
    reader.read_exact(&mut header).map_err(|_| refuse("shorter than its header"))?;
    let entries: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|_| refuse("the header is not JSON"))?;
    let mut end = 0;
    let mut tensors = 0;
    for (name, entry) in entries.into_iter().filter(|(name, _)| name != "__metadata__") {
        let tensor: RawTensor = serde_json::from_value(entry)
            .map_err(|_| refuse(&format!("tensor `{name}` has no data_offsets")))?;
        let module = name.strip_suffix(".lora_A.weight").or(name.strip_suffix(".lora_B.weight"));
        let known =
            module.and_then(|m| m.rsplit('.').next()).is_some_and(|m| PROJECTIONS.contains(&m));
        if !known {
            return Err(refuse(&format!(
                "tensor `{name}` is not a LoRA weight of a known projection"
            )));
        }
        end = end.max(tensor.data_offsets[1]);
        tensors += 1;
    }
    if tensors == 0 {
        return Err(refuse("holds no tensors"));
    }
    // Trailing padding is not allowed by the format; a shorter file is a write that did not finish.
    if end.checked_add(8 + size) != Some(len) {
        return Err(refuse("its length is not what its header says: incomplete or damaged"));
    }
    Ok(())
}

/// sha256 over the bytes of the config, then those of the weights, lower-case hex.
pub(super) fn hash_dir(dir: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    for name in [CONFIG_FILE, WEIGHTS_FILE] {
        let path = dir.join(name);
        let mut file = File::open(&path).map_err(at(&path))?;
        std::io::copy(&mut file, &mut hasher).map_err(at(&path))?;
    }
    Ok(hex::encode(hasher.finalize()))
}
