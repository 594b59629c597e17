//! Tiny random models for tests and benches: real directories, made in milliseconds.
//!
//! Two layers, hidden 64, grouped-query attention, a byte-level vocabulary of 264 tokens with a
//! ChatML template: everything that a real model directory has, small enough to check gradients by
//! finite differences. The same seed gives the same bytes.

use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use crate::config::{Family, ModelConfig};
use crate::lora::{Lora, Proj, Side};

/// Merges of the tiny vocabulary; each makes one more token.
const MERGES: [(&str, &str); 5] = [("Ġ", "t"), ("h", "e"), ("i", "n"), ("r", "e"), ("Ġt", "he")];
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
     message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ \
     '<|im_start|>assistant\n' }}{% endif %}";

/// Why a tiny model could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TinyError {
    /// The directory could not be written.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// What was written could not be read back.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The tensors could not be serialised.
    #[error(transparent)]
    Tensors(#[from] safetensors::SafeTensorError),
}

/// Writes a random Llama with tied embeddings into `path` (made if missing) and returns `path`.
///
/// # Errors
/// The directory cannot be written.
pub fn tiny_model_dir(path: &Path, seed: u64) -> Result<PathBuf, TinyError> {
    tiny_model_of(path, seed, Family::Llama, true)
}

/// As [`tiny_model_dir`], of another family, with its own output head unless `tied`.
///
/// # Errors
/// The directory cannot be written.
pub fn tiny_model_of(
    path: &Path,
    seed: u64,
    family: Family,
    tied: bool,
) -> Result<PathBuf, TinyError> {
    std::fs::create_dir_all(path)?;
    let write = |name: &str, value: &Value| std::fs::write(path.join(name), value.to_string());
    write("config.json", &config_json(family, tied))?;
    write("generation_config.json", &json!({"bos_token_id": 1, "eos_token_id": 2}))?;
    write("tokenizer.json", &tokenizer_json())?;
    write("tokenizer_config.json", &tokenizer_config_json())?;
    let config = ModelConfig::from_dir(path)?;
    std::fs::write(path.join("model.safetensors"), weights(&config, seed)?)?;
    Ok(path.to_owned())
}

/// An adapter whose B is not zero, as after some training, so that every tensor matters.
#[must_use]
pub fn random_lora(config: &ModelConfig, rank: usize, alpha: f64, seed: u64) -> Lora {
    let mut lora = Lora::init(config, rank, alpha, seed);
    let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(1));
    lora.for_each_tensor_mut(|_, _, side, values| {
        if side == Side::B {
            values.iter_mut().for_each(|v| *v = rng.random_range(-0.1..0.1));
        }
    });
    lora
}

fn config_json(family: Family, tied: bool) -> Value {
    let (class, model_type) = match family {
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Mistral => ("MistralForCausalLM", "mistral"),
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": SPECIAL.len() + 256 + MERGES.len(),
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_scaling": null,
        "hidden_act": "silu",
        "attention_bias": family == Family::Qwen2,
        "mlp_bias": false,
        "use_sliding_window": false,
        "sliding_window": 512,
        "max_window_layers": 2,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    })
}

fn tokenizer_json() -> Value {
    let mut vocab = Map::new();
    let merged = MERGES.iter().map(|(left, right)| format!("{left}{right}"));
    let tokens = SPECIAL.iter().map(|s| (*s).to_owned()).chain(byte_alphabet()).chain(merged);
    for (id, token) in tokens.enumerate() {
        vocab.insert(token, id.into());
    }
    let added: Vec<Value> = (0..SPECIAL.len())
        .map(|id| {
            json!({"id": id, "content": SPECIAL[id], "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": MERGES,
        },
    })
}

fn tokenizer_config_json() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 512,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    })
}

/// The printable stand-ins of the 256 bytes in byte-level BPE, by byte (GPT-2's table: printable
/// Latin-1 stands for itself, the rest is moved to U+0100 and up in order).
fn byte_alphabet() -> Vec<String> {
    let mut moved = 0x100;
    (0u32..256)
        .map(|byte| {
            let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let code = if printable {
                byte
            } else {
                moved += 1;
                moved - 1
            };
            char::from_u32(code).unwrap_or('?').to_string()
        })
        .collect()
}

/// The safetensors bytes: matrices of variance 1/in, norms near one, small biases.
fn weights(config: &ModelConfig, seed: u64) -> Result<Vec<u8>, TinyError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut buffers: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut add = |name: String, shape: &[usize], centre: f32, spread: f32| {
        let count: usize = shape.iter().product();
        let mut draw = || centre + spread * rng.random_range(-1.0f32..1.0);
        let bytes = (0..count).flat_map(|_| draw().to_le_bytes()).collect();
        buffers.push((name, shape.to_vec(), bytes));
    };
    let spread = |width: usize| (3.0 / width as f32).sqrt();
    let hidden = config.hidden;
    add("model.embed_tokens.weight".into(), &[config.vocab, hidden], 0.0, 1.0);
    add("model.norm.weight".into(), &[hidden], 1.0, 0.2);
    if !config.tied {
        add("lm_head.weight".into(), &[config.vocab, hidden], 0.0, spread(hidden));
    }
    for layer in 0..config.layers {
        let name = |suffix: &str| format!("model.layers.{layer}.{suffix}");
        for norm in ["input_layernorm.weight", "post_attention_layernorm.weight"] {
            add(name(norm), &[hidden], 1.0, 0.2);
        }
        for proj in Proj::ALL {
            let (out, width) = config.proj_shape(proj);
            add(name(&format!("{}.weight", proj.path())), &[out, width], 0.0, spread(width));
            if config.qkv_bias && matches!(proj, Proj::Q | Proj::K | Proj::V) {
                add(name(&format!("{}.bias", proj.path())), &[out], 0.0, 0.2);
            }
        }
        if config.qk_norm {
            for norm in ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] {
                add(name(norm), &[config.head_dim], 1.0, 0.2);
            }
        }
    }
    let mut views = Vec::with_capacity(buffers.len());
    for (name, shape, bytes) in &buffers {
        views.push((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?));
    }
    let format = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(format))?)
}
