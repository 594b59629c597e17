//! Taking over the spools of dead processes.
//!
//! A process holds an flock on each of its directories (in the spool, in the reserve) for as long
//! as it lives; the kernel releases them at death, however it dies.
//! Invariant: a directory is read by its own process or by the one process that holds its lock,
//! never by two.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{QUARANTINE, SpoolError, at, is_missing};

/// The directories of a dead process, locked by us until this is dropped.
#[derive(Debug)]
pub struct ClaimedDir {
    /// The first of the directories.
    pub path: PathBuf,
    /// Their name.
    pub boot: String,
    /// All of them: in the spool and in the reserve.
    pub dirs: Vec<PathBuf>,
    _locks: Vec<File>,
}

impl ClaimedDir {
    /// Removes the directories once all their segments are gone.
    pub fn remove(self) -> Result<(), SpoolError> {
        self.dirs.iter().try_for_each(|dir| fs::remove_dir(dir).map_err(at(dir)))
    }
}

/// Claims every directory under `spool` whose process is dead, oldest first, except those that
/// `skip` names.
pub fn claim_dead(
    spool: &Path,
    skip: &dyn Fn(&str) -> bool,
) -> Result<Vec<ClaimedDir>, SpoolError> {
    claim_dead_in(&[spool.to_owned()], skip)
}

/// As [`claim_dead`], over a spool and its reserve. A root that does not exist is empty.
pub fn claim_dead_in(
    roots: &[PathBuf],
    skip: &dyn Fn(&str) -> bool,
) -> Result<Vec<ClaimedDir>, SpoolError> {
    let mut boots = BTreeSet::new();
    for root in roots {
        let entries = match fs::read_dir(root) {
            Err(error) if is_missing(&error) => continue,
            entries => entries.map_err(at(root))?,
        };
        for entry in entries {
            let entry = entry.map_err(at(root))?;
            let Ok(boot) = entry.file_name().into_string() else { continue };
            let ours = boot == QUARANTINE || boot.starts_with('.') || skip(&boot);
            if !ours && entry.file_type().map_err(at(root))?.is_dir() {
                boots.insert(boot);
            }
        }
    }
    let claimed = |boot: String| match claim(roots, boot.clone()) {
        Ok(claimed) => claimed,
        Err(error) => {
            // The others may well be readable, and reading them may be what frees the disk.
            tracing::error!(boot, %error, "the spool of a dead process cannot be taken now");
            None
        }
    };
    Ok(boots.into_iter().filter_map(claimed).collect())
}

fn claim(roots: &[PathBuf], boot: String) -> Result<Option<ClaimedDir>, SpoolError> {
    let (mut dirs, mut locks) = (Vec::new(), Vec::new());
    for dir in roots.iter().map(|root| root.join(&boot)) {
        let Ok(lock) = File::open(&dir) else { continue };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(at(&dir)(source)),
        }
        // Another process may have finished and removed it, and even made it anew, between our open
        // and our lock.
        let held = lock.metadata().map_err(at(&dir))?;
        let same =
            fs::metadata(&dir).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
        if !same {
            return Ok(None);
        }
        dirs.push(dir);
        locks.push(lock);
    }
    super::tail::adopt(&dirs)?;
    let Some(path) = dirs.first().cloned() else { return Ok(None) };
    Ok(Some(ClaimedDir { path, boot, dirs, _locks: locks }))
}
