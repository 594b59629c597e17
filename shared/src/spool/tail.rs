//! The tail: what was taken and is not yet written, in memory that outlives this process.
//!
//! A file of a memory file system (`/dev/shm`) keeps its bytes when its writer is killed, and no
//! write to it waits for a disk. Each record goes there in the moment in which the queue takes it:
//! so an answer need not wait for the spool thread, which need not be woken for every record. Two
//! files take turns: one fills while what is in the other is written to a segment, which frees it. Its
//! pages are used again, for fresh memory costs more than the write; [`Tail::wipe`] empties them.
//!
//! ```text
//! <place>/hone-<boot>.{0,1}   turn u64 | (turn u64 | a frame of a segment)*
//! <spool>/<boot>/tail.{0,1}   links to them, for whoever adopts the spool of a dead process
//! ```
//! Each frame names its turn, because those of an earlier turn may lie behind it.
//!
//! Invariant: a record that was put here is here or in a segment from then on, whenever the process
//! is killed, and those that come back are the last ones, without a hole. Some are in both: readers
//! of a spool expect its end to be written twice. What a failing disk has already taken and loses
//! again waits in the process only.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use super::frame::{self, Frame};
use super::reader::DirReader;
use super::{SpoolError, at, segment_numbers, segment_path};
use crate::data_dir::sync_parent;

/// The links in a process's directory.
const LINKS: [&str; 2] = ["tail.0", "tail.1"];
/// The segment while it is made.
const PART: &str = "tail.part";
/// Bytes of a turn's number: before the first frame, and before each.
const HEADER_BYTES: u64 = 8;
/// The segment that a tail becomes: later than any that its process has begun, so that no reader
/// believes to have read it.
const SEGMENT: u32 = 1 << 30;

/// The tail of this process. Its files go when it is dropped.
#[derive(Debug)]
pub(super) struct Tail {
    files: [File; 2],
    names: Vec<PathBuf>,
    bytes_max: u64,
    /// Which file is filling, and up to where.
    filling: usize,
    at: u64,
    /// How often they took turns.
    turn: u64,
    /// Nothing of the other file is still needed.
    other_empty: bool,
    /// Something was put here since it was wiped.
    used: bool,
    /// A frame with its turn, for a single write.
    numbered: Vec<u8>,
}

impl Tail {
    /// Makes the two files, each of at most `bytes_max`, and links to them in the directory of this
    /// process. Errors: it cannot be done here; nothing is left behind.
    pub(super) fn create(place: &Path, dir: &Path, bytes_max: u64) -> io::Result<Self> {
        let boot = dir.file_name().unwrap_or_default().display().to_string();
        let mut names = Vec::new();
        let made = LINKS.iter().enumerate().map(|(number, link)| {
            let path = place.join(format!("hone-{boot}.{number}"));
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            names.push(path.clone());
            names.push(dir.join(link));
            symlink(&path, dir.join(link))?;
            Ok(file)
        });
        let made: io::Result<Vec<File>> = made.collect();
        let files = made.and_then(|files| {
            <[File; 2]>::try_from(files).map_err(|_| io::ErrorKind::InvalidData.into())
        });
        let files = files.inspect_err(|_| remove(&names))?;
        let mut tail = Self {
            files,
            names,
            bytes_max,
            filling: 1,
            at: 0,
            turn: 0,
            other_empty: true,
            used: false,
            numbered: Vec::new(),
        };
        tail.take_turns();
        tail.other_empty = true;
        Ok(tail)
    }

    /// Keeps a frame. `false`: there is no room for it, or the system has none.
    pub(super) fn put(&mut self, frame: &[u8]) -> bool {
        let end = self.at.saturating_add(HEADER_BYTES + frame.len() as u64);
        let fits = end <= self.bytes_max;
        let Some(file) = self.files.get(self.filling).filter(|_| fits) else { return false };
        self.used = true;
        self.numbered.clear();
        self.numbered.extend_from_slice(&self.turn.to_le_bytes());
        self.numbered.extend_from_slice(frame);
        let kept = file.write_all_at(&self.numbered, self.at).is_ok();
        if kept {
            self.at = end;
        }
        kept
    }

    /// All that was put here is about to be written: the other file fills from now on, if it can.
    pub(super) fn take_turns(&mut self) {
        if !self.other_empty {
            return;
        }
        self.turn += 1;
        self.filling = (self.filling + 1) % self.files.len();
        let file = self.files.get(self.filling);
        let begun = file.is_some_and(|f| f.write_all_at(&self.turn.to_le_bytes(), 0).is_ok());
        self.at = if begun { HEADER_BYTES } else { u64::MAX };
        self.other_empty = false;
    }

    /// Everything taken is written, and so are all frames of the other file: it can fill next.
    pub(super) fn wrote(&mut self) {
        if self.other_empty {
            return;
        }
        self.other_empty = true;
        // Without the number it counts as empty; with it, its frames would only be read twice.
        let _ = self.other().map(|file| file.write_all_at(&[0; HEADER_BYTES as usize], 0));
    }

    /// Takes texts that are written out of memory: of the file that is not filling, and of both
    /// where `nothing_waits` to be written.
    pub(super) fn wipe(&mut self, nothing_waits: bool) {
        if !self.used {
            return;
        }
        if let Some(other) = self.other().filter(|_| self.other_empty) {
            let _ = other.set_len(0);
        }
        if nothing_waits && let Some(file) = self.files.get(self.filling) {
            let wiped =
                file.set_len(0).and_then(|()| file.write_all_at(&self.turn.to_le_bytes(), 0));
            self.at = if wiped.is_ok() { HEADER_BYTES } else { u64::MAX };
            self.used = false;
        }
    }

    fn other(&self) -> Option<&File> {
        self.files.get((self.filling + 1) % self.files.len())
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        remove(&self.names);
    }
}

fn remove(names: &[PathBuf]) {
    for name in names {
        // The directory may be gone, with the links in it.
        let _ = fs::remove_file(name);
    }
}

/// Makes what is in the tail of a dead process, whose lock we hold, its last segment.
pub(super) fn adopt(dirs: &[PathBuf]) -> Result<(), SpoolError> {
    let Some(dir) = dirs.first() else { return Ok(()) };
    let unfinished = dir.join(PART);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at(&unfinished)(error));
        }
        _ => {}
    }
    let links: Vec<PathBuf> = LINKS.iter().map(|link| dir.join(link)).collect();
    let targets: Vec<PathBuf> = links.iter().filter_map(|l| fs::read_link(l).ok()).collect();
    if targets.is_empty() {
        return Ok(());
    }
    let owner = fs::metadata(dir).map_err(at(dir))?.uid();
    let mut tails = Vec::new();
    for target in &targets {
        match read(target, owner) {
            // Gone with the power, and what the disk has is all there is.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Somebody else's, who must not keep the spool from being read.
            Err(error) => tracing::error!(%error, tail = %target.display(), "left where it is"),
            Ok(found) => tails.extend(found),
        }
    }
    tails.sort_unstable_by_key(|(turn, _)| *turn);
    let frames: Vec<u8> = tails.into_iter().flat_map(|(_, frames)| frames).collect();
    if !frames.is_empty() {
        append_segment(dirs, dir, &frames)?;
        tracing::info!(bytes = frames.len(), spool = %dir.display(), "what a killed proxy had");
    }
    targets.iter().for_each(|target| drop(fs::remove_file(target)));
    links.iter().filter(|link| link.is_symlink()).try_for_each(|link| {
        fs::remove_file(link).map_err(at(link)) // The directory must be empty in the end.
    })
}

/// The whole frames of a file's turn, after its number. `None`: all were written. Errors: it is not a
/// file of this user's, or cannot be read.
fn read(path: &Path, owner: u32) -> io::Result<Option<(u64, Vec<u8>)>> {
    // Others can write to the directory, and know the name once the file is gone: a link or a pipe
    // is not opened.
    let meta = fs::symlink_metadata(path)?;
    if meta.uid() != owner || !meta.is_file() {
        return Err(io::Error::other("not a file of the owner of the spool"));
    }
    let file = File::open(path)?;
    let limit = meta.len();
    if limit <= HEADER_BYTES {
        return Ok(None);
    }
    let number = |offset: u64| -> io::Result<u64> {
        let mut bytes = [0; HEADER_BYTES as usize];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let turn = number(0)?;
    if turn == 0 {
        return Ok(None);
    }
    let (mut end, mut frames) = (HEADER_BYTES, Vec::new());
    while end + HEADER_BYTES < limit && number(end)? == turn {
        let begin = end + HEADER_BYTES;
        let Frame::Good { next, .. } = frame::read_at(&file, begin, limit)? else { break };
        let at = frames.len();
        frames.resize(at + usize::try_from(next - begin).unwrap_or(0), 0);
        file.read_exact_at(frames.get_mut(at..).unwrap_or_default(), begin)?;
        end = next;
    }
    Ok(Some((turn, frames)))
}

/// Whether a process left a tail here. Ask with its lock held: a living one has always one.
pub(super) fn is_left(dir: &Path) -> bool {
    LINKS.iter().any(|link| dir.join(link).exists())
}

fn append_segment(dirs: &[PathBuf], dir: &Path, frames: &[u8]) -> Result<(), SpoolError> {
    let last = segment_numbers(dirs)?.last().copied();
    if let Some(last) = last {
        // It will not be the last any more, so a frame that was being written must go now.
        let mut reader = DirReader::dead_from(dirs.to_owned(), last);
        while reader.read_next()?.is_some() {}
    }
    let number = last.map_or(SEGMENT, |last| SEGMENT.max(last.saturating_add(1)));
    let (path, part) = (segment_path(dir, number), dir.join(PART));
    fs::write(&part, frames).map_err(at(&part))?;
    let synced = File::open(&part).and_then(|file| file.sync_all());
    synced.and_then(|()| fs::rename(&part, &path)).map_err(at(&part))?;
    sync_parent(&path).map_err(at(&path))
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
