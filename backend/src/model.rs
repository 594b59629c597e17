//! The base model's directory: which files it has, what shapes its weights have, what it will cost.
//!
//! Why read the shapes here: an adapter that does not fit must be refused with a clear word before
//! an engine is built for it, and the cost of a resident must be known before memory is spent.
//!
//! Invariant: a [`ModelFiles`] names only files that existed when it was made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use mistralrs::core::NormalLoaderType;
use serde_json::Value;

use crate::error::BackendError;

/// Longest safetensors header that is read, in bytes.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// What an engine takes beside its weights (tokenizer, grammar tables, activations), in bytes.
const ENGINE_OVERHEAD_BYTES: u64 = 96 << 20;

/// Shape of a tensor by name, and the count of its elements.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// A checked model directory.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The directory.
    pub dir: PathBuf,
    /// `config.json`.
    pub config: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// `chat_template.jinja` if there is one, else `tokenizer_config.json`.
    pub template: PathBuf,
    /// The template renders `tool_calls` itself.
    pub tells_calls: bool,
    /// `generation_config.json`, if there is one.
    pub generation_config: Option<PathBuf>,
    /// The safetensors files.
    pub weights: Vec<PathBuf>,
    /// Which of the engine's model families this is.
    pub family: NormalLoaderType,
    /// Shapes of all weights, `(out, in)` for projections.
    pub shapes: Shapes,
    /// Estimated memory of one resident engine in f32, in bytes.
    pub resident_bytes: u64,
}

impl ModelFiles {
    /// Looks at a Hugging Face model directory.
    ///
    /// # Errors
    /// [`BackendError::Model`] says which file is missing or unreadable.
    pub fn read(dir: &Path) -> Result<Self, BackendError> {
        let fail = |reason: String| BackendError::Model { dir: dir.to_owned(), reason };
        let need = |name: &str| {
            let path = dir.join(name);
            if path.is_file() { Ok(path) } else { Err(fail(format!("`{name}` is missing"))) }
        };
        let config = need("config.json")?;
        let text = std::fs::read_to_string(&config).map_err(|e| fail(e.to_string()))?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| fail(format!("`config.json` is not JSON: {e}")))?;
        let architecture = json["architectures"][0]
            .as_str()
            .ok_or_else(|| fail("`config.json` names no architecture".to_owned()))?;
        let family = NormalLoaderType::from_causal_lm_name(architecture)
            .map_err(|e| fail(format!("architecture {architecture}: {e}")))?;
        let weights = weight_files(dir).map_err(&fail)?;
        let mut shapes = Shapes::new();
        for file in &weights {
            shapes.extend(shapes_of(file).map_err(&fail)?);
        }
        let elements: usize = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
        let jinja = dir.join("chat_template.jinja");
        let template = if jinja.is_file() { jinja } else { need("tokenizer_config.json")? };
        let template_text = std::fs::read_to_string(&template).map_err(|e| fail(e.to_string()))?;
        let generation_config = Some(dir.join("generation_config.json")).filter(|p| p.is_file());
        Ok(Self {
            tokenizer: need("tokenizer.json")?,
            dir: dir.to_owned(),
            config,
            template,
            tells_calls: template_text.contains("tool_calls"),
            generation_config,
            weights,
            family,
            shapes,
            resident_bytes: 4 * elements as u64 + ENGINE_OVERHEAD_BYTES,
        })
    }
}

fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index)
        .map_err(|_| "neither `model.safetensors` nor its index is there".to_owned())?;
    let json: Value = serde_json::from_str(&text).map_err(|e| format!("weight index: {e}"))?;
    let map = json["weight_map"].as_object().ok_or("weight index has no `weight_map`")?;
    let names: std::collections::BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    names
        .into_iter()
        .map(|name| {
            let path = dir.join(name);
            if path.is_file() { Ok(path) } else { Err(format!("weight file `{name}` is missing")) }
        })
        .collect()
}

/// Reads the shapes in the header of a safetensors file.
///
/// # Errors
/// Text that says what is wrong with the file.
pub fn shapes_of(path: &Path) -> Result<Shapes, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let fail = |what: &dyn std::fmt::Display| format!("`{name}`: {what}");
    let mut file = File::open(path).map_err(|e| fail(&e))?;
    let total = file.metadata().map_err(|e| fail(&e))?.len();
    let mut length = [0u8; 8];
    file.read_exact(&mut length).map_err(|_| fail(&"too short to be safetensors"))?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX || length.saturating_add(8) > total {
        return Err(fail(&"the safetensors header is damaged"));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(|e| fail(&e))?;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|e| fail(&format!("safetensors header: {e}")))?;
    let mut shapes = Shapes::new();
    let mut data_end = 0;
    for (tensor, entry) in header {
        if tensor == "__metadata__" {
            continue;
        }
        let list = |key: &str| {
            entry[key].as_array().map(|l| l.iter().filter_map(Value::as_u64).collect::<Vec<_>>())
        };
        let (Some(shape), Some(offsets)) = (list("shape"), list("data_offsets")) else {
            return Err(fail(&format!("tensor `{tensor}` has no shape or offsets")));
        };
        data_end = data_end.max(offsets.last().copied().unwrap_or(0));
        shapes.insert(tensor, shape.into_iter().map(|d| d as usize).collect());
    }
    if data_end.saturating_add(length).saturating_add(8) > total {
        return Err(fail(&"the file ends before its tensors do"));
    }
    Ok(shapes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_no_model_is_refused_with_the_command_that_makes_one() {
        let dir = tempfile::tempdir().unwrap();
        let refused = ModelFiles::read(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("config.json"), "{refused}");
        assert!(refused.contains("hone model get"), "{refused}");
    }

    #[test]
    fn a_cut_weight_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let header = br#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(&[0; 8]);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(shapes_of(&path).unwrap()["t"], vec![2]);
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(shapes_of(&path).unwrap_err().contains("ends before"));
        std::fs::write(&path, b"abc").unwrap();
        assert!(shapes_of(&path).unwrap_err().contains("too short"));
    }
}
