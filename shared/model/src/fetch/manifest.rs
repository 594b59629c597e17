//! What a finished model directory says about itself, so that asking again is a no-op.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{FetchError, sync_dir};
use crate::progress::Progress;

/// Name of the manifest inside a model directory.
pub const MANIFEST: &str = "hone-model.json";

/// Rises when a conversion writes something else than before; older directories are made anew.
const FORMAT: u32 = 1;

/// The manifest of a model directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the conversion that made the directory.
    pub format: u32,
    /// Where the model came from, with its version or hash.
    pub origin: String,
    /// Every file with its size and hash.
    pub files: BTreeMap<String, ManifestFile>,
}

/// One file of a model directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Size in bytes.
    pub bytes: u64,
    /// sha256 in hex.
    pub sha256: String,
}

impl Manifest {
    /// Reads a model directory's manifest; `None` when there is none that this version wrote.
    #[must_use]
    pub fn read(dir: &Path) -> Option<Manifest> {
        let bytes = std::fs::read(dir.join(MANIFEST)).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|m: &Manifest| m.format == FORMAT)
    }
}

/// The directory is finished, of this origin, and its files have the recorded sizes.
pub(super) fn is_complete(dir: &Path, origin: &str) -> bool {
    let size = |name: &str| std::fs::metadata(dir.join(name)).map(|m| m.len()).ok();
    Manifest::read(dir).is_some_and(|manifest| {
        manifest.origin == origin
            && manifest.files.iter().all(|(name, file)| size(name) == Some(file.bytes))
    })
}

/// Records every file of the directory and fsyncs manifest, files and directory.
pub(super) fn write(dir: &Path, origin: &str, progress: &dyn Progress) -> Result<(), FetchError> {
    let failed = |source| FetchError::File { path: dir.to_owned(), source };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let file = File::open(&path).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let sha256 = sha256_file(&path, "record", progress)?;
        files.insert(name, ManifestFile { bytes, sha256 });
    }
    let manifest = Manifest { format: FORMAT, origin: origin.to_owned(), files };
    let path = dir.join(MANIFEST);
    let store = || {
        let mut file = File::create(&path)?;
        serde_json::to_writer_pretty(&mut file, &manifest)?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    store().map_err(failed)?;
    sync_dir(dir)
}

/// sha256 (hex) of a file; progress is reported under `stage`.
pub(super) fn sha256_file(
    path: &Path,
    stage: &str,
    progress: &dyn Progress,
) -> Result<String, FetchError> {
    let failed = |source| FetchError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut done = 0;
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
        done += count as u64;
        if total > 1 << 24 {
            progress.update(stage, done, Some(total));
        }
    }
}
