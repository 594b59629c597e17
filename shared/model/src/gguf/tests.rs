//! A tiny model written as GGUF in llama.cpp's layout must come back as what it was.

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};

use super::*;
use crate::chat::{Asked, ChatTemplate};
use crate::config::{Family, ModelConfig};
use crate::progress::Silent;
use crate::testing::tiny_model_of;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// Hugging Face's name of a layer's tensor, and llama.cpp's.
const NAMES: [(&str, &str); 14] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
    ("self_attn.q_proj.bias", "attn_q.bias"),
    ("self_attn.k_proj.bias", "attn_k.bias"),
    ("self_attn.v_proj.bias", "attn_v.bias"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
];

fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        "lm_head.weight" => return "output.weight".to_owned(),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let (_, gguf) = NAMES.iter().find(|(hf, _)| *hf == rest).unwrap();
    format!("blk.{layer}.{gguf}")
}

/// llama.cpp's order of rows, as its converter computes it: `(2, d/2)` becomes `(d/2, 2)`.
fn interleave(values: &[f32], heads: usize, width: usize) -> Vec<f32> {
    let half = values.len() / width / heads / 2;
    let mut out = Vec::new();
    for head in values.chunks(2 * half * width) {
        for pair in 0..half {
            out.extend_from_slice(&head[pair * width..(pair + 1) * width]);
            out.extend_from_slice(&head[(half + pair) * width..(half + pair + 1) * width]);
        }
    }
    out
}

fn metadata(dir: &Path, architecture: &str) -> Vec<(String, Entry)> {
    let tokenizer: Value =
        serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
    let text = |v: &str| Entry::String(v.to_owned());
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(&String, u64)> =
        vocab.iter().map(|(token, id)| (token, id.as_u64().unwrap())).collect();
    tokens.sort_by_key(|(_, id)| *id);
    let kinds = tokens.iter().map(|(_, id)| Entry::I32(if *id < 3 { 3 } else { 1 })).collect();
    let tokens = tokens.iter().map(|(token, _)| text(token)).collect();
    let merge = |m: &Value| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap());
    let merges = tokenizer["model"]["merges"].as_array().unwrap();
    let merges = merges.iter().map(|m| text(&merge(m))).collect();
    let template = ["{% for m in messages %}", "{{ m.content }}", "<|im_end|>{% endfor %}"];
    let own = |key: &str, value: Entry| (format!("{architecture}.{key}"), value);
    let ggml = |key: &str, value: Entry| (format!("tokenizer.ggml.{key}"), value);
    vec![
        ("general.architecture".to_owned(), text(architecture)),
        own("block_count", Entry::U32(2)),
        own("context_length", Entry::U32(512)),
        own("embedding_length", Entry::U32(64)),
        own("feed_forward_length", Entry::U32(160)),
        own("attention.head_count", Entry::U32(4)),
        own("attention.head_count_kv", Entry::U32(2)),
        own("attention.layer_norm_rms_epsilon", Entry::F32(1e-5)),
        own("rope.freq_base", Entry::F32(10_000.0)),
        ggml("model", text("gpt2")),
        ggml("pre", text("gpt-2")),
        ggml("tokens", Entry::Array(tokens)),
        ggml("token_type", Entry::Array(kinds)),
        ggml("merges", Entry::Array(merges)),
        ggml("bos_token_id", Entry::U32(1)),
        ggml("eos_token_id", Entry::U32(2)),
        ("tokenizer.chat_template".to_owned(), text(&template.concat())),
    ]
}

/// Writes a tiny model of a family as a directory and as GGUF; matrices in `dtype`.
fn both(
    dir: &Path,
    family: Family,
    dtype: GgmlDType,
    edit: impl FnOnce(&mut Vec<(String, Entry)>),
) -> (PathBuf, PathBuf) {
    let (source, gguf) = (dir.join("source"), dir.join("tiny.gguf"));
    tiny_model_of(&source, 5, family, false).unwrap();
    let config = ModelConfig::from_dir(&source).unwrap();
    let weights = Weights::load(&source).unwrap();
    let mut tensors = Vec::new();
    for name in weights.names() {
        let (mut values, shape) =
            (weights.get(name).unwrap().to_vec(), weights.shape(name).unwrap());
        let heads = match name {
            n if n.ends_with("q_proj.weight") => config.heads,
            n if n.ends_with("k_proj.weight") => config.kv_heads,
            _ => 0,
        };
        if heads > 0 && family == Family::Llama {
            values = interleave(&values, heads, shape[1]);
        }
        let kind = if shape.len() == 2 { dtype } else { GgmlDType::F32 };
        let dense = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        tensors.push((gguf_name(name), QTensor::quantize(&dense, kind).unwrap()));
    }
    let architecture = match family {
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        _ => "llama",
    };
    let mut entries = metadata(&source, architecture);
    edit(&mut entries);
    let entries: Vec<(&str, &Entry)> = entries.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let mut file = File::create(&gguf).unwrap();
    gguf_file::write(&mut file, &entries, &tensors).unwrap();
    (source, gguf)
}

/// A tiny Llama as GGUF, for tests of other modules.
pub(crate) fn tiny_gguf(dir: &Path) -> PathBuf {
    both(dir, Family::Llama, GgmlDType::F32, |_| {}).1
}

fn converted(gguf: &Path, dir: &Path) -> Result<PathBuf, GgufError> {
    let out = dir.join("out");
    std::fs::create_dir_all(&out).unwrap();
    convert(gguf, &out, &Silent).map(|()| out)
}

#[test]
fn an_unquantised_file_comes_back_bit_for_bit_in_every_architecture() {
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let dir = tempfile::tempdir().unwrap();
        let (source, gguf) = both(dir.path(), family, GgmlDType::F32, |_| {});
        let out = converted(&gguf, dir.path()).unwrap();
        let (before, after) = (Weights::load(&source).unwrap(), Weights::load(&out).unwrap());
        assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
        for name in before.names() {
            assert_eq!(before.get(name), after.get(name), "{family:?} {name}");
        }
        let config = ModelConfig::from_dir(&out).unwrap();
        assert_eq!(config, ModelConfig::from_dir(&source).unwrap(), "{family:?}");
    }
}

#[test]
fn a_quantised_file_comes_back_within_its_precision() {
    for (dtype, tolerance) in [(GgmlDType::Q8_0, 0.01), (GgmlDType::Q4_1, 0.1)] {
        let dir = tempfile::tempdir().unwrap();
        let (source, gguf) = both(dir.path(), Family::Llama, dtype, |_| {});
        let out = converted(&gguf, dir.path()).unwrap();
        let (before, after) = (Weights::load(&source).unwrap(), Weights::load(&out).unwrap());
        for name in before.names() {
            let pairs = before.get(name).unwrap().iter().zip(after.get(name).unwrap());
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < tolerance, "{dtype:?} {name}: {worst}");
        }
    }
}

#[test]
fn the_tokenizer_and_the_template_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (source, gguf) = both(dir.path(), Family::Llama, GgmlDType::F32, |_| {});
    let out = converted(&gguf, dir.path()).unwrap();
    let (before, after) =
        (Tokenizer::from_dir(&source).unwrap(), Tokenizer::from_dir(&out).unwrap());
    for text in ["the thing in there <|im_end|>", "12 345", "é🙂"] {
        assert_eq!(before.encode(text, true).unwrap(), after.encode(text, true).unwrap());
    }
    assert_eq!(after.eos_ids(), [2]);
    let template = ChatTemplate::from_dir(&out).unwrap();
    let messages = [json!({"role": "user", "content": "x"})];
    let rendered = template.render(&Asked::undated(&messages), false);
    assert_eq!(rendered.unwrap(), "x<|im_end|>");
}

#[test]
fn every_known_pre_tokenizer_loads_and_keeps_the_text() {
    for pre in ["smollm", "qwen2", "llama-bpe", "gpt-2", "default"] {
        let dir = tempfile::tempdir().unwrap();
        let (_, gguf) = both(dir.path(), Family::Llama, GgmlDType::F32, |entries| {
            let found = entries.iter_mut().find(|(k, _)| k == "tokenizer.ggml.pre");
            found.unwrap().1 = Entry::String(pre.to_owned());
            entries.push(("tokenizer.ggml.add_bos_token".to_owned(), Entry::Bool(false)));
        });
        let tokenizer = Tokenizer::from_dir(&converted(&gguf, dir.path()).unwrap()).unwrap();
        for text in ["2024 is it's\n\n  the  year", "é 你好, 12.5%"] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{pre}");
        }
    }
}

#[test]
fn a_first_token_is_added_where_the_file_asks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_, gguf) = both(dir.path(), Family::Llama, GgmlDType::F32, |entries| {
        entries.push(("tokenizer.ggml.add_bos_token".to_owned(), Entry::Bool(true)));
    });
    let tokenizer = Tokenizer::from_dir(&converted(&gguf, dir.path()).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap()[0], 1);
    assert_ne!(tokenizer.encode("a", false).unwrap()[0], 1);
}

#[test]
fn what_cannot_be_converted_is_refused_with_its_name() {
    let cases = [
        ("general.architecture", Some(Entry::String("gemma2".into())), "gemma2"),
        ("tokenizer.ggml.model", Some(Entry::String("llama".into())), "byte-level"),
        ("tokenizer.ggml.pre", Some(Entry::String("tekken".into())), "tekken"),
        ("tokenizer.chat_template", None, "tokenizer.chat_template"),
        ("llama.block_count", Some(Entry::U32(3)), "blk.2."),
        ("llama.block_count", Some(Entry::U32(1)), "blk.1."),
        ("llama.embedding_length", Some(Entry::U32(128)), "shape"),
        ("llama.embedding_length", None, "llama.embedding_length"),
    ];
    for (key, value, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (_, gguf) = both(dir.path(), Family::Llama, GgmlDType::F32, |entries| {
            entries.retain(|(k, _)| k != key);
            entries.extend(value.map(|v| (key.to_owned(), v)));
        });
        let error = converted(&gguf, dir.path()).unwrap_err().to_string();
        assert!(error.contains(says), "{key}: {error}");
    }
}

#[test]
fn stretched_rope_and_files_that_are_no_gguf_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_, gguf) = both(dir.path(), Family::Llama, GgmlDType::F32, |entries| {
        entries.push(("llama.rope.scaling.type".into(), Entry::String("yarn".into())));
    });
    assert!(matches!(converted(&gguf, dir.path()), Err(GgufError::Unsupported(_))));
    std::fs::write(&gguf, b"not a model").unwrap();
    assert!(matches!(converted(&gguf, dir.path()), Err(GgufError::Malformed(_))));
    assert!(matches!(converted(&dir.path().join("no"), dir.path()), Err(GgufError::File { .. })));
}
