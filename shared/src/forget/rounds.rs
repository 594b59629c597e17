//! The work files of rounds that used forgotten turns.
//!
//! Invariant: only the metrics stay: numbers per update, without text or token ids.

use std::fs;
use std::io;
use std::path::Path;

use super::ForgetError;

const KEPT: &str = "metrics.jsonl";

/// Removes all files of a round but its metrics. A round without files has none.
pub(super) fn empty(rounds: &Path, round_id: &str) -> Result<(), ForgetError> {
    let dir = rounds.join(round_id);
    let failed = |path: &Path, source: io::Error| ForgetError::Rounds {
        path: path.display().to_string(),
        source,
    };
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| failed(&dir, error))?,
    };
    for entry in entries {
        let path = entry.map_err(|error| failed(&dir, error))?.path();
        if path.file_name().is_some_and(|name| name == KEPT) {
            continue;
        }
        // A directory is another trainer's: it holds the samples.
        match if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) } {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&path, error));
            }
            _ => {}
        }
    }
    fs::File::open(&dir).and_then(|dir| dir.sync_all()).map_err(|error| failed(&dir, error))
}
