//! The append side: one process's segments, group fdatasync, and recovery from write errors.
//!
//! Bytes are written at once (so that they survive the process) and synced in groups (so that they
//! survive the power). What is written but not yet synced is kept in memory: when a write or sync
//! fails, the segment is cut back to what is known to be durable and the kept frames are written
//! again to a fresh one: in the spool if it takes them, else in the reserve.
//!
//! Invariant: bytes below the position that [`SpoolWriter::synced`] reports are durable and never
//! change; a number is given to one segment only, in whichever place it lies.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::batch::Item;
use super::sync::Job;
use super::{Position, SpoolConfig, SpoolError, at, frame, segment_path};
use crate::data_dir::sync_parent;
use crate::turn::Record;

/// Appends records to the segments of one process. Holds the locks that say that the process is
/// alive.
#[derive(Debug)]
pub struct SpoolWriter {
    boot: String,
    /// The spool, then the reserve.
    tiers: Vec<Tier>,
    segment_bytes_max: u64,
    /// How long a tier that failed is passed over.
    avoid: Duration,
    segment: u32,
    file: Option<Open>,
    /// Ended segments and their durable lengths, until somebody asks.
    sealed: Vec<(u32, u64)>,
    unsynced: Vec<u8>,
    unsynced_since: Option<Instant>,
}

/// A place for segments.
#[derive(Debug)]
struct Tier {
    dir: PathBuf,
    /// Held as long as the process lives; `None`: the place could not be made yet.
    alive: Option<File>,
    /// Its quota is used up.
    full: bool,
    failed_at: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    tier: usize,
    /// Bytes written and bytes known to be durable.
    written: u64,
    synced: u64,
    /// The file's name is durable, too. Not waited for before the first bytes are written: they are
    /// safe from the death of the process only then.
    named: bool,
    opened: Instant,
}

impl SpoolWriter {
    /// Makes directories for this process and locks them. Errors: the spool's cannot be made. The
    /// reserve's is made when it is needed, if it cannot be now.
    pub fn create(cfg: &SpoolConfig) -> Result<Self, SpoolError> {
        let boot = Uuid::now_v7().hyphenated().to_string();
        let tier =
            |root: &Path| Tier { dir: root.join(&boot), alive: None, full: false, failed_at: None };
        let mut tiers = vec![tier(&cfg.dir)];
        tiers.extend(cfg.reserve_dir.as_deref().map(tier));
        for (number, tier) in tiers.iter_mut().enumerate() {
            match (make_alive(&tier.dir), number) {
                (Ok(alive), _) => tier.alive = Some(alive),
                (Err(error), 0) => return Err(error),
                (Err(error), _) => tracing::warn!(%error, "the spool has no reserve for now"),
            }
        }
        Ok(Self {
            boot,
            tiers,
            segment_bytes_max: cfg.segment_bytes_max,
            avoid: Duration::from_millis(cfg.recover_ms),
            segment: 0,
            file: None,
            sealed: Vec::new(),
            unsynced: Vec::new(),
            unsynced_since: None,
        })
    }

    /// The directory of this process in the spool.
    pub fn dir(&self) -> &Path {
        self.tiers.first().map_or(Path::new(""), |tier| &tier.dir)
    }

    /// The directories of this process: in the spool, and in the reserve if there is one.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.tiers.iter().map(|tier| tier.dir.clone()).collect()
    }

    /// The name of this process's directories.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Everything before this position is durable.
    pub fn synced(&self) -> Position {
        Position { segment: self.segment, offset: self.file.as_ref().map_or(0, |open| open.synced) }
    }

    /// Takes the segments that ended since the last call, with their durable lengths.
    pub(super) fn take_sealed(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.sealed)
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

    /// Which place the open segment lies in: 0 the spool, 1 the reserve.
    pub(super) fn tier(&self) -> Option<usize> {
        self.file.as_ref().map(|open| open.tier)
    }

    /// Says whether a place's quota is used up.
    pub(super) fn set_full(&mut self, tier: usize, full: bool) {
        if let Some(tier) = self.tiers.get_mut(tier) {
            tier.full = full;
        }
    }

    /// Whether a place's quota was said to be used up.
    pub(super) fn is_full(&self, tier: usize) -> bool {
        self.tiers.get(tier).is_some_and(|tier| tier.full)
    }

    /// Whether the open segment should end: the spool would take a new one again, or somebody has
    /// moved or deleted the file.
    pub(super) fn should_move(&self) -> bool {
        let Some(open) = &self.file else { return false };
        let same = |ours: &fs::Metadata| {
            fs::metadata(&open.path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
        };
        let moved = open.file.metadata().is_ok_and(|ours| !same(&ours));
        let first = self.tiers.first().is_some_and(|tier| !tier.full && !self.avoided(tier));
        moved || (open.tier > 0 && first)
    }

    fn avoided(&self, tier: &Tier) -> bool {
        tier.failed_at.is_some_and(|failed| failed.elapsed() < self.avoid)
    }

    /// Frames a record and writes it. After an error the record is kept and written by the next
    /// [`SpoolWriter::sync`].
    pub fn append(&mut self, record: &Record) -> Result<(), SpoolError> {
        let start = self.unsynced.len();
        frame::encode(record, &mut self.unsynced);
        self.write_from(start)
    }

    /// As [`SpoolWriter::append`], with one write for all.
    pub(super) fn append_all(&mut self, items: &[Item]) -> Result<(), SpoolError> {
        let start = self.unsynced.len();
        items.iter().for_each(|item| item.encode(&mut self.unsynced));
        self.write_from(start)
    }

    /// Writes what was kept from `start` on.
    fn write_from(&mut self, start: usize) -> Result<(), SpoolError> {
        if self.unsynced.len() == start {
            return Ok(());
        }
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
        let done = open.file.sync_data().and_then(|()| match open.named {
            true => Ok(()),
            false => sync_parent(&open.path),
        });
        let done = done.map_err(at(&open.path));
        if let Err(error) = done {
            self.abandon();
            return Err(error);
        }
        (open.synced, open.named) = (open.written, true);
        self.unsynced.clear();
        self.unsynced.shrink_to(4 << 20);
        self.unsynced_since = None;
        if open.written >= self.segment_bytes_max {
            self.seal();
        }
        Ok(())
    }

    /// What a sync of all that is written would be; `None` when nothing waits for one, or what
    /// waits is not written.
    pub(super) fn sync_job(&self, begins: u64) -> Option<Job> {
        let open = self.file.as_ref().filter(|_| !self.unsynced.is_empty())?;
        let file = open.file.try_clone().ok()?;
        let (segment, bytes) = (self.segment, self.unsynced.len());
        let name = (!open.named).then(|| open.path.clone());
        Some(Job { file, name, segment, upto: open.written, bytes, begins })
    }

    /// A sync has ended. Returns whether its frames are durable; else they are kept. Errors: it
    /// failed.
    pub(super) fn synced_by(
        &mut self,
        job: &Job,
        result: std::io::Result<()>,
    ) -> Result<bool, SpoolError> {
        // After a failed write everything was begun again in another segment.
        let Some(open) = self.file.as_mut().filter(|_| self.segment == job.segment) else {
            return Ok(false);
        };
        if let Err(source) = result {
            let error = at(&open.path)(source);
            self.abandon();
            return Err(error);
        }
        (open.synced, open.named) = (job.upto, true);
        self.unsynced.drain(..job.bytes.min(self.unsynced.len()));
        self.unsynced.shrink_to(4 << 20);
        self.unsynced_since = (!self.unsynced.is_empty()).then(Instant::now);
        Ok(true)
    }

    /// Whether the open segment is as long as it may get.
    pub(super) fn is_long(&self) -> bool {
        self.file.as_ref().is_some_and(|open| open.written >= self.segment_bytes_max)
    }

    /// Ends the open segment, so that it can be deleted once it is stored. Call only with nothing
    /// unsynced.
    pub fn seal(&mut self) {
        if let Some(open) = self.file.take() {
            self.sealed.push((self.segment, open.synced));
            self.segment += 1;
        }
    }

    /// Drops what is not durable. For a spool that must be closed while its disk refuses writes.
    pub fn give_up(&mut self) {
        self.unsynced.clear();
        self.unsynced_since = None;
        self.abandon();
    }

    /// Opens a fresh segment in the best place that takes it and writes all kept frames to it.
    fn rewrite(&mut self) -> Result<(), SpoolError> {
        // Best first: with room and no recent failure; then without room (the ends of turns are
        // small and always taken); then those that failed.
        let mut order: Vec<usize> = (0..self.tiers.len()).collect();
        let rank = |tier: &Tier| (self.avoided(tier), tier.full);
        order.sort_by_key(|number| self.tiers.get(*number).map(rank));
        let mut first_error = None;
        for number in order {
            match self.open_in(number) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    if let Some(tier) = self.tiers.get_mut(number) {
                        tier.failed_at = Some(Instant::now());
                    }
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or(SpoolError::ThreadGone))
    }

    fn open_in(&mut self, number: usize) -> Result<(), SpoolError> {
        let Some(tier) = self.tiers.get_mut(number) else { return Err(SpoolError::ThreadGone) };
        if tier.alive.is_none() || !tier.dir.exists() {
            // Never made yet, or deleted by somebody.
            tier.alive = Some(make_alive(&tier.dir)?);
        }
        let path = segment_path(&tier.dir, self.segment);
        let mut options = OpenOptions::new();
        let file =
            options.create(true).write(true).truncate(true).open(&path).map_err(at(&path))?;
        let opened = Instant::now();
        let open = Open { file, path, tier: number, written: 0, synced: 0, named: false, opened };
        let open = self.file.insert(open);
        let wrote = open.file.write_all(&self.unsynced).map_err(at(&open.path));
        open.written = self.unsynced.len() as u64;
        wrote.inspect_err(|_| self.abandon())
    }

    /// Cuts the open segment back to what is durable and moves on to the next number.
    fn abandon(&mut self) {
        let Some(open) = self.file.take() else { return };
        if let Some(tier) = self.tiers.get_mut(open.tier) {
            tier.failed_at = Some(Instant::now());
        }
        let cut = match open.synced {
            0 => fs::remove_file(&open.path),
            synced => open.file.set_len(synced),
        };
        if let Err(error) = cut {
            let path = open.path.display();
            tracing::warn!(%path, %error, "a failed segment could not be cut back");
        }
        self.sealed.push((self.segment, open.synced));
        self.segment += 1;
    }
}

/// Makes a directory and locks it. The name appears only once the lock is held, so that nobody
/// takes the directory for a dead process's.
fn make_alive(dir: &Path) -> Result<File, SpoolError> {
    let name = dir.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let hidden = dir.with_file_name(format!(".{name}.new"));
    fs::create_dir_all(&hidden).map_err(at(&hidden))?;
    let alive = File::open(&hidden).map_err(at(&hidden))?;
    alive.try_lock().map_err(|e| at(&hidden)(e.into()))?;
    fs::rename(&hidden, dir).map_err(at(dir))?;
    sync_parent(dir).map_err(at(dir))?;
    Ok(alive)
}
