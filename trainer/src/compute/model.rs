//! The frozen base model, packed for the kernels.
//!
//! Invariant: every weight exists once. A tied head is also the embedding table; a model that says
//! it has a head of its own and has none is refused.

use std::path::Path;

use hone_model::config::ModelConfig;
use hone_model::lora::Proj;
use hone_model::weights::Weights;

use super::ComputeError;
use super::kernels::{Linear, Precision};

/// Outputs of the head that are packed and worked on together.
pub(super) const VOCAB_CHUNK: usize = 4096;

/// One decoder layer.
pub(super) struct Layer {
    pub(super) norm1: Vec<f32>,
    pub(super) norm2: Vec<f32>,
    /// Indexed by [`Proj::index`].
    pub(super) proj: [Linear; 7],
    /// Biases of q, k and v.
    pub(super) bias: Option<[Vec<f32>; 3]>,
    /// Norm weights of q and k, `head_dim` each.
    pub(super) qk_norm: Option<[Vec<f32>; 2]>,
}

/// The base model.
pub(super) struct Model {
    pub(super) config: ModelConfig,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Vec<f32>,
    /// The output head in chunks of [`VOCAB_CHUNK`] outputs.
    pub(super) head: Vec<Linear>,
    /// `(vocab, hidden)`; `None` when the head is the embedding.
    embedding: Option<Vec<f32>>,
    pub(super) eps: f32,
    pub(super) precision: Precision,
}

impl Model {
    /// Reads and packs a model directory. Peak memory is the model in f32 plus one tensor. A
    /// precision that the processor does not have becomes f32.
    ///
    /// Weights that products backward need turned are kept so once they were, as long as those of
    /// all layers take at most `turned_bytes_max`. The head is multiplied with so many rows at a time
    /// that turning it each time costs nothing.
    pub(super) fn load(
        dir: &Path,
        precision: Precision,
        turned_bytes_max: usize,
    ) -> Result<Model, ComputeError> {
        let (config, precision) = (ModelConfig::from_dir(dir)?, precision.supported());
        let mut weights = Weights::load(dir)?;
        let per_layer: usize =
            Proj::ALL.map(|proj| config.proj_shape(proj)).map(|s| s.0 * s.1).iter().sum();
        let keep = config.layers * per_layer * precision.bytes() <= turned_bytes_max;
        let layers = (0..config.layers)
            .map(|index| load_layer(&config, &mut weights, index, (precision, keep)))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = weights.take_shaped("model.norm.weight", &[config.hidden])?;
        let shape = [config.vocab, config.hidden];
        let embedding = weights.take_shaped("model.embed_tokens.weight", &shape)?;
        let head = match config.tied {
            true => &embedding,
            false => &weights.take_shaped("lm_head.weight", &shape)?,
        };
        let head = head
            .chunks(VOCAB_CHUNK * config.hidden)
            .map(|part| {
                let outputs = part.len() / config.hidden;
                Linear::pack(part, outputs, config.hidden, 1.0, precision)
            })
            .collect();
        let embedding = (!config.tied).then_some(embedding);
        let eps = config.rms_eps as f32;
        Ok(Model { config, layers, norm, head, embedding, eps, precision })
    }

    /// Copies the embeddings of `tokens` to the rows of `x (tokens.len(), hidden)`.
    pub(super) fn embed(&self, tokens: &[u32], x: &mut [f32]) {
        let width = self.config.hidden;
        for (token, row) in tokens.iter().map(|t| *t as usize).zip(x.chunks_exact_mut(width)) {
            match &self.embedding {
                Some(table) => row.copy_from_slice(&table[token * width..(token + 1) * width]),
                None => self.head[token / VOCAB_CHUNK].row(token % VOCAB_CHUNK, row),
            }
        }
    }

    /// Width of the queries and of the attention output.
    pub(super) fn q_width(&self) -> usize {
        self.config.heads * self.config.head_dim
    }

    /// Width of the keys and of the values.
    pub(super) fn kv_width(&self) -> usize {
        self.config.kv_heads * self.config.head_dim
    }
}

fn load_layer(
    config: &ModelConfig,
    weights: &mut Weights,
    index: usize,
    (precision, keep): (Precision, bool),
) -> Result<Layer, ComputeError> {
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let mut proj = Vec::with_capacity(Proj::ALL.len());
    for which in Proj::ALL {
        let (out, width) = config.proj_shape(which);
        let weight = weights.take_shaped(&name(&format!("{}.weight", which.path())), &[out, width]);
        proj.push(Linear::pack(&weight?, out, width, 1.0, precision).keeping(keep));
    }
    let mut vector = |part: &str, length: usize| weights.take_shaped(&name(part), &[length]);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let bias = match config.qkv_bias {
        true => Some([
            vector("self_attn.q_proj.bias", q)?,
            vector("self_attn.k_proj.bias", kv)?,
            vector("self_attn.v_proj.bias", kv)?,
        ]),
        false => None,
    };
    let qk_norm = match config.qk_norm {
        true => Some([
            vector("self_attn.q_norm.weight", config.head_dim)?,
            vector("self_attn.k_norm.weight", config.head_dim)?,
        ]),
        false => None,
    };
    let norm1 = vector("input_layernorm.weight", config.hidden)?;
    let norm2 = vector("post_attention_layernorm.weight", config.hidden)?;
    // Seven were pushed, one per projection.
    let proj = <[Linear; 7]>::try_from(proj).map_err(|_| ComputeError::AdapterShape)?;
    Ok(Layer { norm1, norm2, proj, bias, qk_norm })
}
