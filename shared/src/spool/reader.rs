//! The read side: one directory's records in order, live or dead, damaged or not.
//!
//! A live directory is read up to what its writer says is durable. In a dead one, a last segment
//! may end in a frame that was being written: it is cut off. Damage anywhere else loses the damaged
//! frame, or, where the extent of a frame cannot be told, the rest of its segment; such a segment
//! is moved to quarantine instead of being deleted.
//!
//! Invariant: no record is returned unless its checksum holds, and reading never stops for ever at
//! damage.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use super::frame::{self, Frame, Window};
use super::{Follower, Position, QUARANTINE, SpoolError, at, find_segment, segment_numbers};
use crate::data_dir::sync_parent;
use crate::turn::{Record, TurnId};

/// What was read.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one at a time, and nearly always the large one")]
pub enum Item {
    /// A whole record.
    Record(Record),
    /// A damaged frame of known extent; kind and id are as the damaged frame says.
    Damaged {
        /// 1 begin, 2 done, 3 gap, 4 feedback, 5 part; anything else is damage too.
        kind: u8,
        /// The turn, probably.
        turn_id: TurnId,
    },
    /// The rest of a segment, in which no frame can be told.
    Lost {
        /// How many bytes.
        bytes: u64,
    },
}

/// The open segment.
#[derive(Debug)]
struct Segment {
    file: File,
    window: Window,
    /// Whether it is the last one of a dead process.
    last: bool,
    /// Its length when it was opened: a dead process's does not grow.
    len: u64,
}

/// Reads one process's directory in order.
#[derive(Debug)]
pub struct DirReader {
    /// Where its segments may lie: in the spool and in the reserve.
    dirs: Vec<PathBuf>,
    live: Option<Follower>,
    at: Position,
    file: Option<Segment>,
    damaged: BTreeSet<u32>,
}

impl DirReader {
    /// Reads the directory of a process that is dead and whose lock we hold.
    pub fn dead(dir: &Path) -> Self {
        Self::dead_in(vec![dir.to_owned()])
    }

    /// As [`DirReader::dead`], for a process with several directories.
    pub fn dead_in(dirs: Vec<PathBuf>) -> Self {
        Self::new(dirs, None)
    }

    /// As [`DirReader::dead_in`], from a segment on.
    pub(super) fn dead_from(dirs: Vec<PathBuf>, segment: u32) -> Self {
        Self { at: Position { segment, offset: 0 }, ..Self::dead_in(dirs) }
    }

    /// Reads along with the writer of this process.
    pub fn live(follower: Follower) -> Self {
        Self::new(follower.dirs().to_owned(), Some(follower))
    }

    fn new(dirs: Vec<PathBuf>, live: Option<Follower>) -> Self {
        Self { dirs, live, at: Position::default(), file: None, damaged: BTreeSet::new() }
    }

    /// Where the next item will be read.
    pub fn position(&self) -> Position {
        self.at
    }

    /// The next item with the position of its first byte; `None` when there is nothing more, for
    /// now or for ever.
    pub fn read_next(&mut self) -> Result<Option<(Position, Item)>, SpoolError> {
        loop {
            let (limit, sealed) = match self.open()? {
                Some(extent) => extent,
                None => return Ok(None),
            };
            let Some(Segment { file, window, .. }) = &mut self.file else { return Ok(None) };
            let start = self.at;
            let read = window.read_at(file, start.offset, limit);
            let path = || find_segment(&self.dirs, start.segment);
            let frame = match read {
                Ok(frame) => frame,
                Err(error) => {
                    // Another try opens it anew: the disk may have been mounted again.
                    self.file = None;
                    return Err(at(&path())(error));
                }
            };
            let torn_end = !sealed && self.live.is_none();
            match frame {
                Frame::Good { record, next } => {
                    self.at.offset = next;
                    return Ok(Some((start, Item::Record(record))));
                }
                Frame::Damaged { next, .. } if torn_end && next == limit => self.cut(&path())?,
                Frame::Broken if torn_end => self.cut(&path())?,
                Frame::Damaged { kind, turn_id, next } => {
                    self.damaged.insert(start.segment);
                    self.at.offset = next;
                    return Ok(Some((start, Item::Damaged { kind, turn_id })));
                }
                Frame::Broken => {
                    self.damaged.insert(start.segment);
                    self.at.offset = limit;
                    return Ok(Some((start, Item::Lost { bytes: limit - start.offset })));
                }
                Frame::End if sealed => self.advance()?,
                Frame::End => return Ok(None),
            }
        }
    }

    /// Reads one record again. Errors: I/O, a segment that is gone; `None`: the record is no longer
    /// whole.
    pub fn read_again(&self, position: Position) -> Result<Option<Record>, SpoolError> {
        let good = |frame| match frame {
            Frame::Good { record, .. } => Some(record),
            _ => None,
        };
        if let Some(open) = &self.file
            && (position.segment, position.offset < self.at.offset) == (self.at.segment, true)
        {
            let frame = frame::read_at(&open.file, position.offset, self.at.offset);
            return Ok(good(frame.map_err(at(&find_segment(&self.dirs, position.segment)))?));
        }
        let path = find_segment(&self.dirs, position.segment);
        let file = File::open(&path).map_err(at(&path))?;
        let limit = file.metadata().map_err(at(&path))?.len();
        Ok(good(frame::read_at(&file, position.offset, limit).map_err(at(&path))?))
    }

    /// Deletes the segments before `segment`, but for those in `keep`; damaged ones go to
    /// quarantine.
    pub fn delete_before(&mut self, segment: u32, keep: &BTreeSet<u32>) -> Result<(), SpoolError> {
        for number in segment_numbers(&self.dirs)? {
            if number >= segment || keep.contains(&number) {
                continue;
            }
            let path = find_segment(&self.dirs, number);
            if self.damaged.contains(&number) {
                self.quarantine(&path)?;
                self.damaged.remove(&number);
            } else {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    fn quarantine(&self, path: &Path) -> Result<(), SpoolError> {
        let own = path.parent().unwrap_or(path);
        let (Some(boot), Some(name)) = (own.file_name(), path.file_name()) else {
            return Ok(());
        };
        let dir = own.with_file_name(QUARANTINE);
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let target = dir.join(format!("{}-{}", boot.display(), name.display()));
        fs::rename(path, &target).map_err(at(path))?;
        tracing::warn!(segment = %target.display(), "a damaged segment is kept in quarantine");
        sync_parent(&target).map_err(at(&target))
    }

    /// Opens the segment to read. Returns how far it may be read and whether it will never grow.
    fn open(&mut self) -> Result<Option<(u64, bool)>, SpoolError> {
        let upto = self.live.as_ref().map(Follower::upto);
        if self.file.is_none() {
            self.open_next(upto)?;
        }
        let Some(Segment { file, last, len, .. }) = &self.file else { return Ok(None) };
        if let Some(upto) = upto
            && upto.segment == self.at.segment
        {
            return Ok(Some((upto.offset, false)));
        }
        // A live writer knows how much of an ended segment is sound; a failed one may be longer.
        if let Some(len) = self.live.as_ref().and_then(|live| live.sealed(self.at.segment)) {
            return Ok(Some((len, true)));
        }
        if self.live.is_none() {
            return Ok(Some((*len, !last)));
        }
        let path = find_segment(&self.dirs, self.at.segment);
        let len = file.metadata().map_err(at(&path))?.len();
        Ok(Some((len, !last)))
    }

    fn open_next(&mut self, upto: Option<Position>) -> Result<(), SpoolError> {
        let numbers = segment_numbers(&self.dirs)?;
        let Some(&first) = numbers.iter().find(|&&n| n >= self.at.segment) else { return Ok(()) };
        if upto.is_some_and(|upto| Position { segment: first, offset: 0 } >= upto) {
            return Ok(());
        }
        if first > self.at.segment {
            self.at = Position { segment: first, offset: 0 };
        }
        let path = find_segment(&self.dirs, first);
        let last = self.live.is_none() && numbers.last() == Some(&first);
        let file = File::open(&path).map_err(at(&path))?;
        let len = file.metadata().map_err(at(&path))?.len();
        self.file = Some(Segment { file, window: Window::sequential(), last, len });
        Ok(())
    }

    /// Goes on to the next segment: past the end of a sealed one.
    fn advance(&mut self) -> Result<(), SpoolError> {
        self.file = None;
        self.at = Position { segment: self.at.segment + 1, offset: 0 };
        if let Some(live) = &self.live {
            live.passed(self.at.segment);
        }
        Ok(())
    }

    /// Cuts a frame that was never finished off the end of a dead process's last segment.
    fn cut(&mut self, path: &Path) -> Result<(), SpoolError> {
        let file = OpenOptions::new().write(true).open(path).map_err(at(path))?;
        let len = file.metadata().map_err(at(path))?.len();
        file.set_len(self.at.offset).map_err(at(path))?;
        file.sync_all().map_err(at(path))?;
        if let Some(segment) = &mut self.file {
            segment.len = self.at.offset;
        }
        let bytes = len.saturating_sub(self.at.offset);
        tracing::info!(path = %path.display(), bytes, "cut an unfinished frame");
        Ok(())
    }
}
