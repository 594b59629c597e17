//! Erasure in the spool: records of forgotten turns are overwritten where they lie.
//!
//! The open segment of a living process cannot be deleted, and a segment is kept for as long as a
//! turn that began in it is open; so text would outlive its erasure there. Each frame of a forgotten
//! turn, all of which are stored already, becomes a note about nothing of the same length.
//!
//! Invariant: frames keep their extents and checksums, so readers go on undisturbed; only records
//! that the store has are touched.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::frame::{self, Frame, Window};
use super::{Position, QUARANTINE, SpoolError, at, tail};
use crate::turn::{Record, TurnId};

/// What is in the spool beyond the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unstored {
    /// Turns that ended, and feedback, that are not stored yet.
    pub ended: u64,
    /// Turns that have not ended.
    pub open: u64,
}

/// What was overwritten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Records.
    pub frames: u64,
    /// Segments in quarantine that were deleted: damage hides what is in them.
    pub quarantined: u64,
}

/// Counts what is not stored yet. `stored` says how far a process's spool is.
pub fn unstored(
    spool: &Path,
    stored: &mut dyn FnMut(&str) -> Option<Position>,
) -> Result<Unstored, SpoolError> {
    let mut count = Unstored::default();
    for dir in dirs(spool)? {
        let boot = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if boot == QUARANTINE || boot.starts_with('.') {
            continue;
        }
        // The last of a killed process, which nobody has adopted yet: read as if it were one turn.
        let is_dead = || File::open(&dir).is_ok_and(|lock| lock.try_lock().is_ok());
        count.ended += u64::from(tail::is_left(&dir) && is_dead());
        let upto = stored(&boot).unwrap_or_default();
        let mut open = BTreeSet::new();
        for (number, path) in segments(&dir)? {
            let mut each = |_: &File, offset: u64, _: u64, frame: &Frame| {
                let at = Position { segment: number, offset };
                match frame {
                    Frame::Good { record: Record::Begin(begin), .. } => {
                        open.insert(begin.turn_id);
                    }
                    Frame::Good { record: Record::Done(done), .. } => {
                        count.ended += u64::from(open.remove(&done.turn_id) && at >= upto);
                    }
                    Frame::Good { record: Record::Feedback(_), .. } => {
                        count.ended += u64::from(at >= upto);
                    }
                    _ => {}
                }
                Ok(())
            };
            walk(&path, false, &mut each)?;
        }
        count.open += open.len() as u64;
    }
    Ok(count)
}

/// Overwrites every record of the turns that `is_forgotten` names, in all processes' segments and
/// in quarantine.
pub fn scrub(spool: &Path, is_forgotten: &dyn Fn(TurnId) -> bool) -> Result<Scrubbed, SpoolError> {
    let mut scrubbed = Scrubbed::default();
    for dir in dirs(spool)? {
        let quarantine = dir.file_name().is_some_and(|name| name == QUARANTINE);
        for (_, path) in segments(&dir)? {
            let mut frames = 0;
            let mut each = |file: &File, offset: u64, next: u64, frame: &Frame| {
                let turn = match frame {
                    Frame::Good { record, .. } => record.turn_id(),
                    Frame::Damaged { turn_id, .. } => *turn_id,
                    _ => return Ok(()),
                };
                if is_forgotten(turn) {
                    file.write_all_at(&frame::nothing(next - offset), offset)?;
                    frames += 1;
                }
                Ok(())
            };
            let whole = walk(&path, true, &mut each)?;
            scrubbed.frames += frames;
            if quarantine && !whole {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(at(&path)(error));
                    }
                    _ => scrubbed.quarantined += 1,
                }
            }
        }
    }
    Ok(scrubbed)
}

type Each<'a> = &'a mut dyn FnMut(&File, u64, u64, &Frame) -> io::Result<()>;

/// Calls `each` with every frame of a segment and its extent. Returns whether all of it could be
/// told. A segment that is deleted meanwhile is empty.
fn walk(path: &Path, write: bool, each: Each<'_>) -> Result<bool, SpoolError> {
    let file = match OpenOptions::new().read(true).write(write).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        file => file.map_err(at(path))?,
    };
    let limit = file.metadata().map_err(at(path))?.len();
    let (mut window, mut offset) = (Window::sequential(), 0);
    let whole = loop {
        let found = window.read_at(&file, offset, limit).map_err(at(path))?;
        let next = match &found {
            Frame::Good { next, .. } | Frame::Damaged { next, .. } => *next,
            Frame::Broken => break false,
            Frame::End => break true,
        };
        each(&file, offset, next, &found).map_err(at(path))?;
        offset = next;
    };
    if write {
        file.sync_data().map_err(at(path))?;
    }
    Ok(whole)
}

fn dirs(spool: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let entries = match fs::read_dir(spool) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(spool))?,
    };
    let mut dirs = Vec::new();
    for entry in entries {
        let path = entry.map_err(at(spool))?.path();
        if path.is_dir() {
            dirs.push(path);
        }
    }
    dirs.sort();
    Ok(dirs)
}

/// Segments of a directory in order; in quarantine, their names begin with the process's.
fn segments(dir: &Path) -> Result<Vec<(u32, PathBuf)>, SpoolError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(at(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(stem) = name.strip_suffix(".seg") else { continue };
        let number = stem.rsplit('-').next().and_then(|number| number.parse().ok());
        found.push((number.unwrap_or(0), path));
    }
    found.sort();
    Ok(found)
}
