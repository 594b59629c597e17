//! Writing a generation: all of it or nothing, whatever happens on the way.
//!
//! Order: lock, sweep, write the three files under a temporary name, fsync each, fsync the
//! directory, rename, fsync the registry. Publishing the same content again finds it and changes
//! nothing.
//!
//! Invariant: the rename is the only step that makes a generation's name exist.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::adapter::{AdapterConfig, check_weights};
use super::{
    CONFIG_FILE, MANIFEST_FILE, PUBLISH_LOCK, Registry, RegistryError, Result, TEMPORARY_PREFIX,
    WEIGHTS_FILE, at, sync_dir,
};
use crate::clock::now_ms;
use crate::turn::{Generation, TurnId};

/// Where the weights of a new generation come from.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// A safetensors file; it is copied.
    File(&'a Path),
    /// The bytes of a safetensors file.
    Bytes(&'a [u8]),
}

impl<'a> From<&'a Path> for Weights<'a> {
    fn from(path: &'a Path) -> Self {
        Self::File(path)
    }
}

impl<'a> From<&'a PathBuf> for Weights<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self::File(path)
    }
}

impl<'a> From<&'a [u8]> for Weights<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Weights<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// What a publisher knows about a new generation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ManifestDraft {
    /// sha256 of the base model's weights, hex; the generation is only meaningful on that model.
    pub base_model_hash: String,
    /// The generation that training began with.
    pub parent: Generation,
    /// The route whose turns it was trained on.
    pub route: String,
    /// The round that made it; `None` for an imported adapter.
    pub round_id: Option<String>,
    /// The turns it was trained on.
    pub turns: Vec<TurnId>,
    /// What was measured while training.
    pub metrics: Value,
    /// What the gate measured and decided.
    pub gate: Value,
}

/// `manifest.json`: provenance of a generation. Not part of its hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this file's shape: 1.
    pub schema: u32,
    /// The generation.
    pub generation: Generation,
    /// When it was published, milliseconds since 1970.
    pub created_ms: i64,
    /// LoRA rank.
    pub rank: u64,
    /// LoRA alpha.
    pub alpha: f64,
    /// Size of the weights, bytes.
    pub weights_bytes: u64,
    /// What the publisher said.
    #[serde(flatten)]
    pub draft: ManifestDraft,
}

impl Registry {
    /// Publishes an adapter and returns its generation. The same content is published once: the
    /// manifest of the first time stands. Errors: an adapter that engines would refuse, a damaged
    /// directory under the same name, I/O.
    pub fn publish<'a>(
        &self,
        config: &AdapterConfig,
        weights: impl Into<Weights<'a>>,
        draft: ManifestDraft,
    ) -> Result<Generation> {
        let lock = self.lock_file(PUBLISH_LOCK)?;
        lock.lock().map_err(at(&self.dir))?;
        self.sweep()?;
        if self.is_tainted(&draft.parent) {
            return Err(RegistryError::Tainted(draft.parent));
        }
        let temporary = self.dir.join(format!("{TEMPORARY_PREFIX}{}", Uuid::now_v7().simple()));
        let result = self.write_and_rename(&temporary, config, weights.into(), draft);
        if result.is_err() {
            // The error matters more than what is left; a leftover is swept by the next publisher.
            let _ = fs::remove_dir_all(&temporary);
        }
        result
    }

    fn write_and_rename(
        &self,
        temporary: &Path,
        config: &AdapterConfig,
        weights: Weights<'_>,
        draft: ManifestDraft,
    ) -> Result<Generation> {
        fs::create_dir(temporary).map_err(at(temporary))?;
        let mut hasher = Sha256::new();
        hasher.update(config.bytes());
        write_synced(&temporary.join(CONFIG_FILE), &mut config.bytes(), &mut |_| {})?;
        let path = temporary.join(WEIGHTS_FILE);
        let bytes = match weights {
            Weights::Bytes(bytes) => {
                write_synced(&path, &mut &bytes[..], &mut |b| hasher.update(b))?
            }
            Weights::File(source) => {
                let mut file = File::open(source).map_err(at(source))?;
                write_synced(&path, &mut file, &mut |b| hasher.update(b))?
            }
        };
        // Checked as written, so that nothing can change between the check and the copy.
        check_weights(&mut File::open(&path).map_err(at(&path))?, bytes)?;
        let generation = Generation::parse(&hex::encode(hasher.finalize()))
            .map_err(|e| RegistryError::Adapter(e.to_string()))?;
        if self.is_tainted(&generation) {
            return Err(RegistryError::Tainted(generation));
        }
        let manifest = Manifest {
            schema: 1,
            generation: generation.clone(),
            created_ms: now_ms(),
            rank: config.rank(),
            alpha: config.alpha(),
            weights_bytes: bytes,
            draft,
        };
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| RegistryError::Malformed {
            path: temporary.join(MANIFEST_FILE),
            problem: e.to_string(),
        })?;
        write_synced(&temporary.join(MANIFEST_FILE), &mut &text[..], &mut |_| {})?;
        sync_dir(temporary)?;
        let target = self.generation_path(&generation)?;
        if target.exists() {
            self.verify(&generation)?;
            fs::remove_dir_all(temporary).map_err(at(temporary))?;
            return Ok(generation);
        }
        fs::rename(temporary, &target).map_err(at(&target))?;
        sync_dir(&self.dir)?;
        Ok(generation)
    }
}

/// Copies a reader into a new file and fsyncs it; every block also goes to `seen`. Returns the
/// bytes written.
fn write_synced(path: &Path, source: &mut dyn Read, seen: &mut dyn FnMut(&[u8])) -> Result<u64> {
    let mut file = File::create_new(path).map_err(at(path))?;
    let mut block = vec![0u8; 1 << 20];
    let mut total = 0u64;
    loop {
        let read = match source.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(at(path)(error)),
        };
        let bytes = block.get(..read).unwrap_or_default();
        file.write_all(bytes).map_err(at(path))?;
        seen(bytes);
        total += bytes.len() as u64;
        if total > super::WEIGHTS_BYTES_MAX {
            return Err(RegistryError::Adapter(format!("{} is too large", path.display())));
        }
    }
    file.sync_all().map_err(at(path))?;
    Ok(total)
}
