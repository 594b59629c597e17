//! The append side: one process's directory of segments, group fdatasync, and recovery from write
//! errors.
//!
//! Bytes are written at once (so that they survive the process) and synced in groups (so that they
//! survive the power). What is written but not yet synced is kept in memory: when a write or sync
//! fails, the segment is cut back to what is known to be durable and the kept frames are written
//! again to a fresh one.
//!
//! Invariant: bytes below the position that [`SpoolWriter::synced`] reports are durable and never
//! change.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;

use super::{Position, SpoolConfig, SpoolError, at, frame, segment_path};
use crate::data_dir::sync_parent;
use crate::turn::Record;

/// Appends records to the segments of one process. Holds the lock that says that the process is
/// alive.
#[derive(Debug)]
pub struct SpoolWriter {
    dir: PathBuf,
    boot: String,
    _alive: File,
    segment_bytes_max: u64,
    segment: u32,
    file: Option<Open>,
    unsynced: Vec<u8>,
    unsynced_since: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    /// Bytes written and bytes known to be durable.
    written: u64,
    synced: u64,
    opened: Instant,
}

impl SpoolWriter {
    /// Makes a directory for this process and locks it. The name appears only once the lock is
    /// held, so that nobody takes the directory for a dead process's.
    pub fn create(cfg: &SpoolConfig) -> Result<Self, SpoolError> {
        let boot = Uuid::now_v7().hyphenated().to_string();
        let dir = cfg.dir.join(&boot);
        let hidden = cfg.dir.join(format!(".{boot}.new"));
        fs::create_dir_all(&hidden).map_err(at(&hidden))?;
        let alive = File::open(&hidden).map_err(at(&hidden))?;
        alive.try_lock().map_err(|e| at(&hidden)(e.into()))?;
        fs::rename(&hidden, &dir).map_err(at(&dir))?;
        sync_parent(&dir).map_err(at(&dir))?;
        Ok(Self {
            dir,
            boot,
            _alive: alive,
            segment_bytes_max: cfg.segment_bytes_max,
            segment: 0,
            file: None,
            unsynced: Vec::new(),
            unsynced_since: None,
        })
    }

    /// The directory of this process.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of this process's directory.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Everything before this position is durable.
    pub fn synced(&self) -> Position {
        Position { segment: self.segment, offset: self.file.as_ref().map_or(0, |open| open.synced) }
    }

    /// Bytes that are written, or wait to be written again, and are not yet durable.
    pub fn unsynced_bytes(&self) -> usize {
        self.unsynced.len()
    }

    /// How long the oldest of those bytes has waited; `None` when there are none.
    pub fn unsynced_since(&self) -> Option<Instant> {
        self.unsynced_since
    }

    /// When the open segment was opened; `None` when it holds nothing.
    pub fn segment_since(&self) -> Option<Instant> {
        self.file.as_ref().map(|open| open.opened)
    }

    /// Frames a record and writes it. After an error the record is kept and written by the next
    /// [`SpoolWriter::sync`].
    pub fn append(&mut self, record: &Record) -> Result<(), SpoolError> {
        let start = self.unsynced.len();
        frame::encode(record, &mut self.unsynced);
        self.unsynced_since.get_or_insert_with(Instant::now);
        if self.file.is_none() {
            return self.rewrite();
        }
        let Some(open) = &mut self.file else { return Ok(()) };
        let bytes = self.unsynced.get(start..).unwrap_or_default();
        let wrote = open.file.write_all(bytes).map_err(at(&open.path));
        open.written += bytes.len() as u64;
        wrote.inspect_err(|_| self.abandon())
    }

    /// Makes everything durable; seals the segment when it is full. After an error, what is not
    /// durable is kept.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        if self.unsynced.is_empty() {
            return Ok(());
        }
        if self.file.is_none() {
            self.rewrite()?;
        }
        let Some(open) = &mut self.file else { return Ok(()) };
        let done = open.file.sync_data().map_err(at(&open.path));
        if let Err(error) = done {
            self.abandon();
            return Err(error);
        }
        open.synced = open.written;
        self.unsynced.clear();
        self.unsynced.shrink_to(4 << 20);
        self.unsynced_since = None;
        if open.written >= self.segment_bytes_max {
            self.seal();
        }
        Ok(())
    }

    /// Ends the open segment, so that it can be deleted once it is stored. Call only with nothing
    /// unsynced.
    pub fn seal(&mut self) {
        if self.file.take().is_some() {
            self.segment += 1;
        }
    }

    /// Drops what is not durable. For a spool that must be closed while its disk refuses writes.
    pub fn give_up(&mut self) {
        self.unsynced.clear();
        self.unsynced_since = None;
        self.abandon();
    }

    /// Opens a fresh segment and writes all kept frames to it.
    fn rewrite(&mut self) -> Result<(), SpoolError> {
        let path = segment_path(&self.dir, self.segment);
        let mut options = OpenOptions::new();
        let file =
            options.create(true).write(true).truncate(true).open(&path).map_err(at(&path))?;
        sync_parent(&path).map_err(at(&path))?;
        let open = Open { file, path, written: 0, synced: 0, opened: Instant::now() };
        let open = self.file.insert(open);
        let wrote = open.file.write_all(&self.unsynced).map_err(at(&open.path));
        open.written = self.unsynced.len() as u64;
        wrote.inspect_err(|_| self.abandon())
    }

    /// Cuts the open segment back to what is durable and moves on to the next number.
    fn abandon(&mut self) {
        let Some(open) = self.file.take() else { return };
        if let Err(error) = open.file.set_len(open.synced) {
            let path = open.path.display();
            tracing::warn!(%path, %error, "a failed segment could not be cut back");
        }
        // A segment that never became durable keeps its number: it is truncated when it is opened
        // again.
        if open.synced > 0 {
            self.segment += 1;
        }
    }
}
