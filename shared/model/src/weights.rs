//! A model's weights as plain `f32` buffers, by their Hugging Face names.
//!
//! Files are streamed tensor by tensor (no memory map, no second copy of the model), from one
//! `model.safetensors` or from shards named by `model.safetensors.index.json`. F32, F16 and BF16
//! are understood. Invariant: a buffer's length is the product of its shape.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Largest safetensors header that is read, in bytes (the format's own limit).
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Why weights could not be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path} is not usable: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The model has no tensor of this name.
    #[error("the model has no tensor `{0}`")]
    Missing(String),
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` has shape {found:?}, the configuration says {wanted:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by `config.json`.
        wanted: Vec<usize>,
    },
}

#[derive(Debug)]
struct Stored {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Tensors by name. [`Weights::take`] moves them out, so that a consumer that repacks them never
/// holds the model twice.
#[derive(Debug)]
pub struct Weights {
    tensors: BTreeMap<String, Stored>,
}

impl Weights {
    /// Reads every tensor of a model directory.
    ///
    /// # Errors
    /// Missing files, malformed safetensors, or a dtype other than F32, F16 and BF16.
    pub fn load(dir: &Path) -> Result<Weights, WeightsError> {
        let mut tensors = BTreeMap::new();
        for file in weight_files(dir)? {
            read_safetensors(&file, &mut tensors)?;
        }
        Ok(Weights { tensors })
    }

    /// Moves a tensor out, row-major.
    ///
    /// # Errors
    /// [`WeightsError::Missing`] when there is none (any more).
    pub fn take(&mut self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let stored = self.tensors.remove(name);
        Ok(stored.ok_or_else(|| WeightsError::Missing(name.to_owned()))?.values)
    }

    /// Moves a tensor out after checking its shape.
    ///
    /// # Errors
    /// [`WeightsError::Missing`] or [`WeightsError::Shape`].
    pub fn take_shaped(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let found = self.shape(name).ok_or_else(|| WeightsError::Missing(name.to_owned()))?;
        if found != shape {
            return Err(WeightsError::Shape {
                name: name.to_owned(),
                found: found.to_vec(),
                wanted: shape.to_vec(),
            });
        }
        self.take(name)
    }

    /// A tensor's values, row-major.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.tensors.get(name).map(|stored| stored.values.as_slice())
    }

    /// A tensor's shape.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|stored| stored.shape.as_slice())
    }

    /// All names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

/// The weight files of a model directory, ascending by name.
///
/// # Errors
/// Neither `model.safetensors` nor a readable index is there, or the index names a path outside.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![dir.join("model.safetensors")]);
    }
    let bytes = std::fs::read(&index).map_err(|e| read_error(&index, e))?;
    let parsed: Index = serde_json::from_slice(&bytes).map_err(|e| malformed(&index, e))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if let Some(bad) = names.iter().find(|name| name.contains(['/', '\\']) || name.contains("..")) {
        return Err(malformed(&index, format!("`{bad}` is not a plain file name")));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Identity of a base model: sha256 (hex) over name, length and content of `config.json`,
/// `tokenizer.json` and every weight file.
///
/// # Errors
/// A file that cannot be read.
pub fn model_hash(dir: &Path) -> Result<String, WeightsError> {
    let mut files = vec![dir.join("config.json"), dir.join("tokenizer.json")];
    files.extend(weight_files(dir)?);
    let mut hasher = Sha256::new();
    for path in files {
        let mut file = File::open(&path).map_err(|e| read_error(&path, e))?;
        let length = file.metadata().map_err(|e| read_error(&path, e))?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(length.to_le_bytes());
        std::io::copy(&mut file, &mut hasher).map_err(|e| read_error(&path, e))?;
    }
    Ok(hex::encode(hasher.finalize()))
}

/// Little-endian bytes of a dtype as `f32`; `None` for a dtype that is not understood.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
    match dtype {
        Dtype::F32 => {
            Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        Dtype::BF16 => Some(pairs().map(|b| f32::from_bits(u32::from(b) << 16)).collect()),
        Dtype::F16 => Some(pairs().map(|b| half::f16::from_bits(b).to_f32()).collect()),
        _ => None,
    }
}

/// Opens every weight file and checks its header and length, without reading the tensors.
///
/// # Errors
/// As [`Weights::load`], or no file holds the embedding.
pub fn check_files(dir: &Path) -> Result<(), WeightsError> {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    let mut embedded = false;
    for path in weight_files(dir)? {
        embedded |= Opened::new(&path)?.metadata.info(EMBEDDING).is_some();
    }
    if embedded { Ok(()) } else { Err(WeightsError::Missing(EMBEDDING.to_owned())) }
}

/// A safetensors file with its header read and its length checked.
struct Opened {
    reader: BufReader<File>,
    metadata: Metadata,
    data_start: u64,
}

impl Opened {
    fn new(path: &Path) -> Result<Opened, WeightsError> {
        let io = |e| read_error(path, e);
        let file = File::open(path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut word = [0u8; 8];
        reader.read_exact(&mut word).map_err(io)?;
        let header_bytes = u64::from_le_bytes(word);
        if header_bytes > HEADER_BYTES_MAX || header_bytes + 8 > file_bytes {
            return Err(malformed(path, "it is truncated or not a safetensors file"));
        }
        let mut header = vec![0u8; header_bytes as usize];
        reader.read_exact(&mut header).map_err(io)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| malformed(path, e))?;
        let data_start = 8 + header_bytes;
        if data_start + metadata.data_len() as u64 != file_bytes {
            let reason = "its length is not what its header says (interrupted copy?)";
            return Err(malformed(path, reason));
        }
        Ok(Opened { reader, metadata, data_start })
    }
}

fn read_safetensors(path: &Path, into: &mut BTreeMap<String, Stored>) -> Result<(), WeightsError> {
    let io = |e| read_error(path, e);
    let Opened { mut reader, metadata, data_start } = Opened::new(path)?;
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).ok_or_else(|| malformed(path, "its header is broken"))?;
        let (from, to) = info.data_offsets;
        reader.seek(SeekFrom::Start(data_start + from as u64)).map_err(io)?;
        let mut bytes = vec![0u8; to - from];
        reader.read_exact(&mut bytes).map_err(io)?;
        let values = to_f32(info.dtype, &bytes).ok_or_else(|| {
            malformed(path, format!("tensor `{name}` is {:?}; F32, F16, BF16 work", info.dtype))
        })?;
        into.insert(name, Stored { shape: info.shape.clone(), values });
    }
    Ok(())
}

fn read_error(path: &Path, source: std::io::Error) -> WeightsError {
    WeightsError::Read { path: path.to_owned(), source }
}

fn malformed(path: &Path, reason: impl ToString) -> WeightsError {
    WeightsError::Malformed { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
