//! Turns a GGUF file into an ordinary Hugging Face model directory.
//!
//! The engine can put a LoRA only onto plain safetensors, and the trainer wants plain floats, so a
//! GGUF base is dequantised once. llama.cpp stores the rows of `q` and `k` of the Llama
//! architecture in another order (rotary pairs next to each other); they are put back.
//! Invariant: only known tensors with the expected shapes are written; everything else is refused.

mod tensors;
mod vocabulary;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value as Entry};
use serde_json::{Value, json};

use crate::progress::Progress;

/// Why a GGUF file could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a readable GGUF.
    #[error("not a readable GGUF file: {0}")]
    Malformed(String),
    /// A metadata key is missing or has another type.
    #[error("GGUF metadata has no usable `{0}`")]
    Metadata(String),
    /// The model is of a kind that is not converted.
    #[error("{0}; give the Hugging Face directory of this model instead")]
    Unsupported(String),
    /// A tensor is missing or has an unexpected shape.
    #[error("GGUF tensor `{name}`: {reason}")]
    Tensor {
        /// The tensor's GGUF name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The metadata of an opened file, with typed access.
struct Source {
    content: Content,
    architecture: String,
}

/// Writes `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json` and
/// `model.safetensors` (F32) into `out_dir`, which must exist; each file is fsynced. The caller
/// gives a temporary directory and renames it when this returns.
///
/// # Errors
/// An unreadable file, or a model that is not of the Llama family with a byte-level vocabulary.
pub fn convert(gguf: &Path, out_dir: &Path, progress: &dyn Progress) -> Result<(), GgufError> {
    let file =
        File::open(gguf).map_err(|source| GgufError::File { path: gguf.to_owned(), source })?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let content = Content::read(&mut reader).map_err(|e| GgufError::Malformed(e.to_string()))?;
    let source = Source::new(content)?;
    let config = source.config()?;
    write_json(&out_dir.join("config.json"), &config)?;
    write_json(&out_dir.join("generation_config.json"), &source.generation_config())?;
    write_json(&out_dir.join("tokenizer.json"), &vocabulary::tokenizer(&source)?)?;
    write_json(&out_dir.join("tokenizer_config.json"), &vocabulary::tokenizer_config(&source)?)?;
    tensors::write(&source, &mut reader, &config, &out_dir.join("model.safetensors"), progress)
}

impl Source {
    fn new(content: Content) -> Result<Source, GgufError> {
        let architecture = match content.metadata.get("general.architecture") {
            Some(Entry::String(name)) => name.clone(),
            _ => return Err(GgufError::Metadata("general.architecture".to_owned())),
        };
        if !["llama", "qwen2", "qwen3"].contains(&architecture.as_str()) {
            return Err(GgufError::Unsupported(format!(
                "GGUF architecture `{architecture}` is not one of llama, qwen2, qwen3"
            )));
        }
        Ok(Source { content, architecture })
    }

    fn get(&self, key: &str) -> Option<&Entry> {
        self.content.metadata.get(key)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(|entry| entry.to_string().ok()).map(String::as_str)
    }

    fn number(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Entry::I32(value) => u64::try_from(*value).ok(),
            Entry::I64(value) => u64::try_from(*value).ok(),
            entry => entry.to_u64().ok(),
        }
    }

    /// A float as the shortest decimal that is the same f32: 1e-5, not 9.999999747e-6.
    fn float(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Entry::F32(value) => value.to_string().parse().ok(),
            Entry::F64(value) => Some(*value),
            _ => None,
        }
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(|entry| entry.to_bool().ok())
    }

    fn array(&self, key: &str) -> Result<&[Entry], GgufError> {
        let found = self.get(key).and_then(|entry| entry.to_vec().ok());
        found.map(Vec::as_slice).ok_or_else(|| GgufError::Metadata(key.to_owned()))
    }

    fn strings(&self, key: &str) -> Result<Vec<&str>, GgufError> {
        let bad = || GgufError::Metadata(key.to_owned());
        self.array(key)?
            .iter()
            .map(|entry| entry.to_string().map(String::as_str).map_err(|_| bad()))
            .collect()
    }

    /// A size under the architecture's own prefix.
    fn size(&self, suffix: &str) -> Result<u64, GgufError> {
        let key = format!("{}.{suffix}", self.architecture);
        self.number(&key).ok_or(GgufError::Metadata(key))
    }

    fn rows(&self, tensor: &str) -> Option<u64> {
        let info = self.content.tensor_infos.get(tensor)?;
        info.shape.dims().first().map(|rows| *rows as u64)
    }

    fn config(&self) -> Result<Value, GgufError> {
        self.refuse_stretched_rope()?;
        let prefixed = |suffix: &str| format!("{}.{suffix}", self.architecture);
        let hidden = self.size("embedding_length")?;
        let heads = self.size("attention.head_count")?;
        let class = match self.architecture.as_str() {
            "llama" => "LlamaForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            _ => "Qwen3ForCausalLM",
        };
        let eps_key = prefixed("attention.layer_norm_rms_epsilon");
        let vocab = self.rows("token_embd.weight").ok_or_else(|| GgufError::Tensor {
            name: "token_embd.weight".to_owned(),
            reason: "it is missing".to_owned(),
        })?;
        Ok(json!({
            "architectures": [class],
            "model_type": self.architecture,
            "hidden_size": hidden,
            "intermediate_size": self.size("feed_forward_length")?,
            "num_hidden_layers": self.size("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads":
                self.number(&prefixed("attention.head_count_kv")).unwrap_or(heads),
            "head_dim":
                self.number(&prefixed("attention.key_length")).unwrap_or(hidden / heads.max(1)),
            "vocab_size": vocab,
            "max_position_embeddings": self.size("context_length")?,
            "rms_norm_eps": self.float(&eps_key).ok_or(GgufError::Metadata(eps_key))?,
            "rope_theta": self.float(&prefixed("rope.freq_base")).unwrap_or(10_000.0),
            "rope_scaling": null,
            "hidden_act": "silu",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "mlp_bias": false,
            "use_sliding_window": false,
            "tie_word_embeddings": !self.content.tensor_infos.contains_key("output.weight"),
            "bos_token_id": self.number("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.number("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.number("tokenizer.ggml.padding_token_id"),
            "initializer_range": 0.02,
            "use_cache": true,
            "torch_dtype": "float32",
        }))
    }

    fn generation_config(&self) -> Value {
        let mut config = serde_json::Map::new();
        for (name, key) in [
            ("bos_token_id", "tokenizer.ggml.bos_token_id"),
            ("eos_token_id", "tokenizer.ggml.eos_token_id"),
            ("pad_token_id", "tokenizer.ggml.padding_token_id"),
        ] {
            if let Some(id) = self.number(key) {
                config.insert(name.to_owned(), id.into());
            }
        }
        Value::Object(config)
    }

    fn refuse_stretched_rope(&self) -> Result<(), GgufError> {
        let kind = self.text(&format!("{}.rope.scaling.type", self.architecture));
        let factors = self.content.tensor_infos.contains_key("rope_freqs.weight");
        if factors || kind.is_some_and(|kind| kind != "none") {
            let what = "this GGUF stretches its rotary frequencies, which is not converted";
            return Err(GgufError::Unsupported(what.to_owned()));
        }
        Ok(())
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), GgufError> {
    use std::io::Write;
    let write = || {
        let mut file = std::io::BufWriter::new(File::create(path)?);
        serde_json::to_writer_pretty(&mut file, value)?;
        file.write_all(b"\n")?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(|source| GgufError::File { path: path.to_owned(), source })
}

#[cfg(test)]
pub(crate) mod tests;
