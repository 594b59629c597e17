//! Adapter generations on disk, and the aliases that name them.
//!
//! ```text
//! <registry>/<generation>/        adapter_config.json adapter_model.safetensors manifest.json
//! <registry>/aliases/<alias>.json  moved by compare-and-swap
//! <registry>/.tmp-<uuid>/          a publication in progress
//! <registry>/tainted/<generation>.json  must not be served or trained on any more
//! ```
//! A generation's name is the sha256 over the bytes of `adapter_config.json`, then those of
//! `adapter_model.safetensors`. It is written under a temporary name, fsynced, renamed, and the
//! directory fsynced; so a crash at any instruction leaves either nothing under the name, or all of
//! it. Temporary directories of dead publishers are swept.
//!
//! Invariant: a directory with a generation's name is complete, and its content has that hash.

mod adapter;
mod alias;
mod publish;
mod taint;
mod watch;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::turn::Generation;

pub use adapter::{AdapterConfig, CONFIG_BYTES_MAX, PROJECTIONS, RANK_MAX, WEIGHTS_BYTES_MAX};
pub(crate) use alias::valid_name;
pub use alias::{AliasState, PREVIOUS_MAX};
pub use publish::{Manifest, ManifestDraft, Weights};
pub use taint::{AliasMove, Taint};
pub use watch::{AliasMap, AliasWatch};

/// File name of the PEFT config within a generation.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File name of the weights within a generation.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// File name of the provenance within a generation; not part of the hash.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Most generations that [`Registry::list`] reads.
pub const GENERATIONS_MAX: usize = 10_000;

const TEMPORARY_PREFIX: &str = ".tmp-";
const ALIASES_DIR: &str = "aliases";
const PUBLISH_LOCK: &str = ".publish.lock";

/// Why the registry refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The adapter is not one that every engine accepts.
    #[error("unusable adapter: {0}")]
    Adapter(String),
    /// There is no such generation.
    #[error("generation {0} is not in the registry")]
    UnknownGeneration(Generation),
    /// The base model is no directory.
    #[error("`base` is the model without an adapter: it has no directory")]
    IsBase,
    /// The content of a generation does not have the hash that its name says.
    #[error("generation {expected} is damaged: its content hashes to {found}")]
    Damaged {
        /// The name of the directory.
        expected: Generation,
        /// The hash of what is in it.
        found: String,
    },
    /// An alias has a name that is not allowed.
    #[error("`{0}` is not an alias name: 1 to 64 of A-Z a-z 0-9 . _ -, first a letter or digit")]
    AliasName(String),
    /// An alias file does not hold what it should.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The generation learned from text that had to be forgotten.
    #[error("generation {0} is tainted: it learned from text that had to be forgotten")]
    Tainted(Generation),
    /// Compare-and-swap failed: somebody else moved the alias.
    #[error("alias `{alias}` is at {current}, not at {expected}: nothing was moved")]
    Moved {
        /// The alias.
        alias: String,
        /// Where the caller believed it to be.
        expected: Generation,
        /// Where it is.
        current: Generation,
    },
}

pub(crate) type Result<T> = std::result::Result<T, RegistryError>;

pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> RegistryError + '_ {
    move |source| RegistryError::Io { path: path.to_owned(), source }
}

/// One published generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationDir {
    /// Its name.
    pub generation: Generation,
    /// Its directory: what an engine is given as `lora_path`.
    pub path: PathBuf,
    /// Where it comes from.
    pub manifest: Manifest,
}

/// The registry of one data directory. Cheap to clone; any number of processes may use it at once.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// Opens (and creates) the registry in `dir`, and sweeps what dead publishers left behind.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let aliases = dir.join(ALIASES_DIR);
        fs::create_dir_all(&aliases).map_err(at(&aliases))?;
        let registry = Self { dir };
        let lock = registry.lock_file(PUBLISH_LOCK)?;
        // Held by a publisher: its temporary directory is alive, and it sweeps by itself.
        if lock.try_lock().is_ok() {
            registry.sweep()?;
        }
        Ok(registry)
    }

    /// The directory of the registry.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A published generation. Errors: [`RegistryError::IsBase`],
    /// [`RegistryError::UnknownGeneration`].
    pub fn get(&self, generation: &Generation) -> Result<GenerationDir> {
        let path = self.generation_path(generation)?;
        let file = path.join(MANIFEST_FILE);
        let text = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RegistryError::UnknownGeneration(generation.clone()));
            }
            other => other.map_err(at(&file))?,
        };
        let manifest = serde_json::from_slice(&text)
            .map_err(|e| RegistryError::Malformed { path: file, problem: e.to_string() })?;
        Ok(GenerationDir { generation: generation.clone(), path, manifest })
    }

    /// Hashes a generation's content again. Errors: as [`Registry::get`],
    /// [`RegistryError::Damaged`], [`RegistryError::Tainted`].
    pub fn verify(&self, generation: &Generation) -> Result<GenerationDir> {
        if self.is_tainted(generation) {
            return Err(RegistryError::Tainted(generation.clone()));
        }
        let found = self.get(generation)?;
        let hash = adapter::hash_dir(&found.path)?;
        if hash == generation.as_str() {
            return Ok(found);
        }
        Err(RegistryError::Damaged { expected: generation.clone(), found: hash })
    }

    /// All published generations, oldest first. Names that are not generations are ignored.
    pub fn list(&self) -> Result<Vec<GenerationDir>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(at(&self.dir))? {
            let name = entry.map_err(at(&self.dir))?.file_name();
            let generation = name.to_str().and_then(|text| Generation::parse(text).ok());
            let Some(generation) = generation.filter(|g| !g.is_base()) else { continue };
            if found.len() >= GENERATIONS_MAX {
                tracing::warn!(
                    limit = GENERATIONS_MAX,
                    "registry lists only its first generations"
                );
                break;
            }
            found.push(self.get(&generation)?);
        }
        found.sort_by(|a, b| {
            (a.manifest.created_ms, &a.generation).cmp(&(b.manifest.created_ms, &b.generation))
        });
        Ok(found)
    }

    /// Where a generation is or would be; [`Generation`] guarantees that the name is safe as a path
    /// component.
    fn generation_path(&self, generation: &Generation) -> Result<PathBuf> {
        if generation.is_base() {
            return Err(RegistryError::IsBase);
        }
        Ok(self.dir.join(generation.as_str()))
    }

    /// Opens a lock file; the lock is taken by the caller and ends when the file is dropped.
    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.dir.join(name);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).open(&path).map_err(at(&path))
    }

    /// Removes temporary directories. Call only while holding the publish lock: then none of them
    /// is alive.
    fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).map_err(at(&self.dir))? {
            let entry = entry.map_err(at(&self.dir))?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(TEMPORARY_PREFIX)) {
                let path = entry.path();
                tracing::info!(path = %path.display(), "sweeping an unfinished publication");
                fs::remove_dir_all(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }
}

/// Makes created and renamed names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(at(dir))
}
