//! Taking over the spools of dead processes.
//!
//! A process holds an flock on its directory for as long as it lives; the kernel releases it at
//! death, however it dies.
//! Invariant: a directory is read by its own process or by the one process that holds its lock,
//! never by two.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{QUARANTINE, SpoolError, at};

/// The directory of a dead process, locked by us until this is dropped.
#[derive(Debug)]
pub struct ClaimedDir {
    /// The directory.
    pub path: PathBuf,
    /// Its name.
    pub boot: String,
    _lock: File,
}

impl ClaimedDir {
    /// Removes the directory once all its segments are gone.
    pub fn remove(self) -> Result<(), SpoolError> {
        fs::remove_dir(&self.path).map_err(at(&self.path))
    }
}

/// Claims every directory under `spool` whose process is dead, oldest first, except those that
/// `skip` names.
pub fn claim_dead(
    spool: &Path,
    skip: &dyn Fn(&str) -> bool,
) -> Result<Vec<ClaimedDir>, SpoolError> {
    let mut claimed = Vec::new();
    for entry in fs::read_dir(spool).map_err(at(spool))? {
        let entry = entry.map_err(at(spool))?;
        let Ok(boot) = entry.file_name().into_string() else { continue };
        let ours = boot == QUARANTINE || boot.starts_with('.') || skip(&boot);
        if ours || !entry.file_type().map_err(at(spool))?.is_dir() {
            continue;
        }
        claimed.extend(claim(&entry.path(), boot)?);
    }
    claimed.sort_by(|a, b| a.boot.cmp(&b.boot));
    Ok(claimed)
}

fn claim(path: &Path, boot: String) -> Result<Option<ClaimedDir>, SpoolError> {
    let Ok(lock) = File::open(path) else { return Ok(None) };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(source)) => return Err(at(path)(source)),
    }
    // Another process may have finished and removed it, and even made it anew, between our open and
    // our lock.
    let held = lock.metadata().map_err(at(path))?;
    let same =
        fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
    Ok(same.then(|| ClaimedDir { path: path.to_owned(), boot, _lock: lock }))
}
