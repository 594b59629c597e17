//! Text to token ids and back, exactly as the engine does it, and the ids that end a reply.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::chat::ChatTemplate;
use crate::config::{ConfigError, ModelConfig};

/// Tokens that end a turn in some chat format, whatever `eos_token` says. The engine (mistral.rs)
/// stops at those that the vocabulary has and the template mentions, so the trainer does too.
const TURN_ENDS: [&str; 5] =
    ["<|im_end|>", "<end_of_turn>", "<|end_of_text|>", "<|end|>", "<|eot_id|>"];

/// Why a tokenizer could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// `tokenizer.json` is missing or malformed.
    #[error("cannot load {path}: {reason}")]
    Load {
        /// The file.
        path: PathBuf,
        /// What the tokenizers library said.
        reason: String,
    },
    /// The model's configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A text could not be encoded, or ids could not be decoded.
    #[error("{0}")]
    Convert(String),
}

/// A model's tokenizer. Cheap to share behind an `Arc`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    eos_ids: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and the end-of-reply ids from the files beside it.
    ///
    /// # Errors
    /// Missing or malformed files.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let inner = tokenizers::Tokenizer::from_file(&path)
            .map_err(|e| TokenizerError::Load { path, reason: e.to_string() })?;
        let mut eos: BTreeSet<u32> = ModelConfig::from_dir(dir)?.eos_ids.into_iter().collect();
        if let Ok(template) = ChatTemplate::from_dir(dir) {
            eos.extend(template.eos_token().and_then(|token| inner.token_to_id(token)));
            let ends = TURN_ENDS.iter().filter(|token| template.mentions(token));
            eos.extend(ends.filter_map(|token| inner.token_to_id(token)));
        }
        Ok(Tokenizer { inner, eos_ids: eos.into_iter().collect() })
    }

    /// Token ids of a text. Special tokens written out in the text become their ids;
    /// `add_special` also applies the model's own additions (such as a first token), which is what
    /// the engine does with a rendered chat template.
    ///
    /// # Errors
    /// The tokenizers library refuses the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoded = self.inner.encode_fast(text, add_special);
        let encoded = encoded.map_err(|e| TokenizerError::Convert(e.to_string()))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The text of token ids, with or without the special ones.
    ///
    /// # Errors
    /// The tokenizers library refuses the ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let text = self.inner.decode(ids, skip_special);
        text.map_err(|e| TokenizerError::Convert(e.to_string()))
    }

    /// Ids that end a reply, ascending.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The id of one token, special ones included.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens, special ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

#[cfg(test)]
mod tests;
