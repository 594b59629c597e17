//! Dequantises a GGUF file's tensors and streams them into one safetensors file.
//!
//! One tensor is in memory at a time, so converting a model needs its largest tensor, not itself.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::Path;

use candle_core::Device;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::Value;

use super::{GgufError, Source};
use crate::progress::Progress;

/// Name under which progress is reported.
const STAGE: &str = "dequantise";

/// One tensor to write: names in both worlds, shape `(out, in)` or `(n)`, and for `q` and `k` the
/// number of heads whose rows llama.cpp reordered.
struct Planned {
    gguf: String,
    name: String,
    shape: Vec<usize>,
    reordered_heads: Option<usize>,
}

/// Writes `model.safetensors`.
pub(super) fn write<R: Read + Seek>(
    source: &Source,
    reader: &mut R,
    config: &Value,
    path: &Path,
    progress: &dyn Progress,
) -> Result<(), GgufError> {
    let mut plan = plan(source, config)?;
    plan.sort_by(|a, b| a.name.cmp(&b.name));
    let failed = |source| GgufError::File { path: path.to_owned(), source };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
    let (header, total) = header(&plan)?;
    file.write_all(&header).map_err(failed)?;
    let mut done = 0;
    progress.update(STAGE, done, Some(total));
    for tensor in &plan {
        for value in read_tensor(source, reader, tensor)? {
            file.write_all(&value.to_le_bytes()).map_err(failed)?;
        }
        done += bytes(&tensor.shape) as u64;
        progress.update(STAGE, done, Some(total));
    }
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

fn bytes(shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * size_of::<f32>()
}

/// The safetensors header (length word included, padded to 8 bytes) and the bytes that follow it.
fn header(plan: &[Planned]) -> Result<(Vec<u8>, u64), GgufError> {
    let mut offset = 0;
    let mut infos = Vec::with_capacity(plan.len());
    for tensor in plan {
        let end = offset + bytes(&tensor.shape);
        let info = TensorInfo {
            dtype: Dtype::F32,
            shape: tensor.shape.clone(),
            data_offsets: (offset, end),
        };
        infos.push((tensor.name.clone(), info));
        offset = end;
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos).map_err(|e| malformed(&e))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| malformed(&e))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(&json);
    Ok((header, offset as u64))
}

/// Every tensor of the model, checked against the shapes that the configuration implies.
fn plan(source: &Source, config: &Value) -> Result<Vec<Planned>, GgufError> {
    let size = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
    let (hidden, ffn, vocab) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let (heads, kv_heads) = (size("num_attention_heads"), size("num_key_value_heads"));
    let head_dim = size("head_dim");
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let llama = source.architecture == "llama";
    let mut plan = Vec::new();
    let mut add = |gguf: String, name: String, shape: Vec<usize>, heads: Option<usize>| {
        plan.push(Planned { gguf, name, shape, reordered_heads: heads.filter(|_| llama) });
    };
    add("token_embd.weight".into(), "model.embed_tokens.weight".into(), vec![vocab, hidden], None);
    add("output_norm.weight".into(), "model.norm.weight".into(), vec![hidden], None);
    if config.get("tie_word_embeddings") == Some(&Value::Bool(false)) {
        add("output.weight".into(), "lm_head.weight".into(), vec![vocab, hidden], None);
    }
    for layer in 0..size("num_hidden_layers") {
        let gguf = |suffix: &str| format!("blk.{layer}.{suffix}");
        let hf = |suffix: &str| format!("model.layers.{layer}.{suffix}");
        let mut both = |from: &str, to: &str, shape: &[usize], heads: Option<usize>| {
            add(gguf(from), hf(to), shape.to_vec(), heads);
        };
        both("attn_norm.weight", "input_layernorm.weight", &[hidden], None);
        both("ffn_norm.weight", "post_attention_layernorm.weight", &[hidden], None);
        both("attn_q.weight", "self_attn.q_proj.weight", &[q, hidden], Some(heads));
        both("attn_k.weight", "self_attn.k_proj.weight", &[kv, hidden], Some(kv_heads));
        both("attn_v.weight", "self_attn.v_proj.weight", &[kv, hidden], None);
        both("attn_output.weight", "self_attn.o_proj.weight", &[hidden, q], None);
        both("ffn_gate.weight", "mlp.gate_proj.weight", &[ffn, hidden], None);
        both("ffn_up.weight", "mlp.up_proj.weight", &[ffn, hidden], None);
        both("ffn_down.weight", "mlp.down_proj.weight", &[hidden, ffn], None);
        if source.architecture == "qwen2" {
            both("attn_q.bias", "self_attn.q_proj.bias", &[q], None);
            both("attn_k.bias", "self_attn.k_proj.bias", &[kv], None);
            both("attn_v.bias", "self_attn.v_proj.bias", &[kv], None);
        } else if source.architecture == "qwen3" {
            both("attn_q_norm.weight", "self_attn.q_norm.weight", &[head_dim], None);
            both("attn_k_norm.weight", "self_attn.k_norm.weight", &[head_dim], None);
        }
    }
    refuse_unknown(source, &plan)?;
    Ok(plan)
}

fn refuse_unknown(source: &Source, plan: &[Planned]) -> Result<(), GgufError> {
    for tensor in plan {
        let problem = match source.content.tensor_infos.get(&tensor.gguf) {
            None => "it is missing".to_owned(),
            Some(info) if info.shape.dims() != tensor.shape => {
                format!("shape {:?} instead of {:?}", info.shape.dims(), tensor.shape)
            }
            Some(_) => continue,
        };
        return Err(GgufError::Tensor { name: tensor.gguf.clone(), reason: problem });
    }
    let known: std::collections::HashSet<&str> = plan.iter().map(|t| t.gguf.as_str()).collect();
    match source.content.tensor_infos.keys().find(|name| !known.contains(name.as_str())) {
        Some(extra) => Err(GgufError::Tensor {
            name: extra.clone(),
            reason: "a model of this architecture has no such tensor".to_owned(),
        }),
        None => Ok(()),
    }
}

fn read_tensor<R: Read + Seek>(
    source: &Source,
    reader: &mut R,
    tensor: &Planned,
) -> Result<Vec<f32>, GgufError> {
    let values = source
        .content
        .tensor(reader, &tensor.gguf, &Device::Cpu)
        .and_then(|quantised| quantised.dequantize(&Device::Cpu))
        .and_then(|dense| dense.flatten_all()?.to_vec1::<f32>())
        .map_err(|e| GgufError::Tensor { name: tensor.gguf.clone(), reason: e.to_string() })?;
    Ok(match tensor.reordered_heads {
        Some(heads) => restore_rows(&values, heads, tensor.shape[0] / heads, tensor.shape[1]),
        None => values,
    })
}

/// llama.cpp puts the two halves of each rotary pair next to each other: its row `2 j + s` of a
/// head is Hugging Face's row `s · head_dim/2 + j`.
pub(super) fn restore_rows(
    values: &[f32],
    heads: usize,
    head_dim: usize,
    width: usize,
) -> Vec<f32> {
    let mut restored = Vec::with_capacity(values.len());
    for head in 0..heads {
        for row in 0..head_dim {
            let (half, pair) = (row / (head_dim / 2), row % (head_dim / 2));
            let from = (head * head_dim + 2 * pair + half) * width;
            restored.extend_from_slice(&values[from..from + width]);
        }
    }
    restored
}

fn malformed(error: &dyn std::fmt::Display) -> GgufError {
    GgufError::Malformed(error.to_string())
}
