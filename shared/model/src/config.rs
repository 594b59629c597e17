//! What `config.json` says about a model, validated: shapes, rope, norms and special ids.
//!
//! Only what the Llama family shares is accepted (Llama, Mistral, Qwen2, Qwen3). Anything that
//! would change the arithmetic and is not implemented is refused here, so that no later stage
//! computes a silently wrong model.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::lora::Proj;

/// Why a model's configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file of the model directory could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{path} is not valid: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The model asks for something that is not implemented.
    #[error("config.json: {0}")]
    Unsupported(String),
}

/// The members of the Llama family that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, 3 and SmolLM.
    Llama,
    /// Mistral 7B and relatives (the sliding window is respected by capping the length).
    Mistral,
    /// Qwen 2 and 2.5: q, k and v have a bias.
    Qwen2,
    /// Qwen 3: q and k are normalised per head.
    Qwen3,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Plain rope.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a smooth ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths longer than `original_positions / low` are divided.
        low: f64,
        /// Wavelengths shorter than `original_positions / high` are kept.
        high: f64,
        /// The context length before stretching, in tokens.
        original_positions: f64,
    },
}

/// A model's dimensions and constants. All counts are in elements, heads, layers or tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which relative of Llama it is.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width of the gated feed-forward layer.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Epsilon of every RMS norm.
    pub rms_eps: f64,
    /// The output head is the embedding.
    pub tied: bool,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// q and k are RMS-normalised per head.
    pub qk_norm: bool,
    /// Tokens that end a reply, ascending; `generation_config.json` and `config.json` together.
    pub eos_ids: Vec<u32>,
    /// The token that starts a text, if the model has one.
    pub bos_id: Option<u32>,
    /// Longest sequence that is computed exactly, in tokens.
    pub max_positions: usize,
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    max_position_embeddings: Option<usize>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    eos_token_id: Option<Value>,
    bos_token_id: Option<Value>,
    quantization_config: Option<Value>,
}

impl ModelConfig {
    /// Reads `config.json` and, where present, `generation_config.json` of a model directory.
    ///
    /// # Errors
    /// A missing or malformed file, or a model that is not one of the [`Family`] members.
    pub fn from_dir(dir: &Path) -> Result<ModelConfig, ConfigError> {
        let mut config = Self::from_raw(read_json(&dir.join("config.json"))?)?;
        let generation = dir.join("generation_config.json");
        if generation.exists() {
            let value: Value = read_json(&generation)?;
            config.eos_ids.extend(token_ids(value.get("eos_token_id")));
        }
        config.eos_ids.sort_unstable();
        config.eos_ids.dedup();
        Ok(config)
    }

    /// Shape `(out, in)` of a projection's weight.
    #[must_use]
    pub fn proj_shape(&self, proj: Proj) -> (usize, usize) {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match proj {
            Proj::Q => (q, self.hidden),
            Proj::K | Proj::V => (kv, self.hidden),
            Proj::O => (self.hidden, q),
            Proj::Gate | Proj::Up => (self.ffn, self.hidden),
            Proj::Down => (self.hidden, self.ffn),
        }
    }

    /// Rotary frequencies in radians per position, `head_dim / 2` of them, scaling applied.
    #[must_use]
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let dim = self.head_dim as f64;
        let plain = (0..self.head_dim / 2).map(|i| self.rope_theta.powf(-2.0 * i as f64 / dim));
        plain.map(|frequency| self.rope_scaling.apply(frequency) as f32).collect()
    }

    fn from_raw(raw: Raw) -> Result<ModelConfig, ConfigError> {
        let family = family(&raw)?;
        refuse_unsupported(&raw, family)?;
        let heads = raw.num_attention_heads;
        let kv_heads = raw.num_key_value_heads.unwrap_or(heads);
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(ConfigError::Unsupported(format!(
                "{heads} query heads cannot share {kv_heads} key heads"
            )));
        }
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / heads);
        let sizes = [raw.hidden_size, raw.num_hidden_layers, raw.intermediate_size, raw.vocab_size];
        if sizes.contains(&0) || head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(ConfigError::Unsupported(format!(
                "sizes must be positive and head_dim even (sizes {sizes:?}, head_dim {head_dim})"
            )));
        }
        let window = match raw.use_sliding_window {
            Some(false) => None,
            Some(true) => raw.sliding_window,
            None => raw.sliding_window.filter(|_| family == Family::Mistral),
        };
        let positions = raw.max_position_embeddings.unwrap_or(2048);
        let scaling = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let theta = scaling.and_then(|s| s.get("rope_theta")).and_then(Value::as_f64);
        let mut eos_ids = token_ids(raw.eos_token_id.as_ref());
        eos_ids.sort_unstable();
        Ok(ModelConfig {
            family,
            hidden: raw.hidden_size,
            layers: raw.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            ffn: raw.intermediate_size,
            vocab: raw.vocab_size,
            rope_theta: raw.rope_theta.or(theta).unwrap_or(10_000.0),
            rope_scaling: RopeScaling::parse(scaling)?,
            rms_eps: raw.rms_norm_eps.unwrap_or(1e-6),
            tied: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias: family == Family::Qwen2,
            qk_norm: family == Family::Qwen3,
            eos_ids,
            bos_id: token_ids(raw.bos_token_id.as_ref()).first().copied(),
            max_positions: window.map_or(positions, |w| w.min(positions)),
        })
    }
}

impl RopeScaling {
    fn parse(value: Option<&Value>) -> Result<RopeScaling, ConfigError> {
        let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(RopeScaling::None) };
        let kind = value.get("rope_type").or_else(|| value.get("type")).and_then(Value::as_str);
        let number = |key: &str| {
            value.get(key).and_then(Value::as_f64).filter(|n| *n > 0.0).ok_or_else(|| {
                ConfigError::Unsupported(format!("rope_scaling needs a positive `{key}`"))
            })
        };
        match kind {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original_positions: number("original_max_position_embeddings")?,
            }),
            Some(other) => Err(ConfigError::Unsupported(format!(
                "rope_scaling type `{other}` is not implemented (default, linear, llama3 are)"
            ))),
        }
    }

    /// One frequency after stretching; Llama 3.1's rule as in transformers' `modeling_rope_utils`.
    fn apply(self, frequency: f64) -> f64 {
        match self {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low, high, original_positions } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                let ramp = (original_positions / wavelength - low) / (high - low);
                let kept = ramp.clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}

fn family(raw: &Raw) -> Result<Family, ConfigError> {
    let named = raw.model_type.as_deref().or(raw.architectures.first().map(String::as_str));
    match named.unwrap_or("").to_lowercase().trim_end_matches("forcausallm") {
        "llama" => Ok(Family::Llama),
        "mistral" => Ok(Family::Mistral),
        "qwen2" => Ok(Family::Qwen2),
        "qwen3" => Ok(Family::Qwen3),
        other => Err(ConfigError::Unsupported(format!(
            "model type `{other}` is not one of llama, mistral, qwen2, qwen3"
        ))),
    }
}

fn refuse_unsupported(raw: &Raw, family: Family) -> Result<(), ConfigError> {
    let biased = family != Family::Qwen2 && raw.attention_bias.unwrap_or(false);
    let reason = if biased || raw.mlp_bias.unwrap_or(false) {
        "attention_bias and mlp_bias are not implemented for this model type".to_owned()
    } else if raw.hidden_act.as_deref().is_some_and(|act| act != "silu") {
        format!("hidden_act {:?} is not implemented (silu is)", raw.hidden_act)
    } else if raw.quantization_config.as_ref().is_some_and(|q| !q.is_null()) {
        "quantised checkpoints are not implemented; use the f32, f16 or bf16 one".to_owned()
    } else {
        return Ok(());
    };
    Err(ConfigError::Unsupported(reason))
}

/// A token id or a list of them, as `config.json` writes either.
fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(single) => id(single).into_iter().collect(),
        None => Vec::new(),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let bytes = std::fs::read(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|source| ConfigError::Json { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
