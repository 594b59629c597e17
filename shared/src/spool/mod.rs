//! The spool: the first durable place of a turn, between the tap and the store.
//!
//! The tap hands a record to [`Spool::try_send`], which never blocks; one thread frames it, appends
//! it to a segment file and makes it durable in groups. Ingest follows the segments and deletes
//! them once they are stored.
//!
//! ```text
//! spool/<boot>/NNNNNN.seg     one directory per process; flock on it = the process is alive
//! reserve/<boot>/NNNNNN.seg   the same, while the spool is full or cannot be written; one numbering
//! spool/quarantine/           segments with damage, kept for people
//! frame = magic | len | kind | flags | turn id | crc32 of all else | payload (zstd above 64 KiB)
//! ```
//! A frame never spans segments. Sealed segments never change, but for what is forgotten on demand.
//! At most `sync_ms_max` of turns, and what the thread gathers, is at risk when the power fails. When
//! only the process dies, nothing is: what is not written yet is in the tail, in memory that outlives
//! it. Without a tail it is what came in the moment that a record takes to the page cache; while more
//! than 4,000 records a second come they are written together, so that this moment is a millisecond.
//!
//! A long response comes in parts between its `Begin` and its `Done`, so that memory holds little of
//! it; a part that finds no room stays with the tap.
//!
//! Tiers: memory, spool, reserve; then each route's policy decides whether traffic passes unrecorded
//! or is shed ([`Health::Full`]).
//!
//! Invariant: `requests = accepted + dropped{reason}`, and each accepted turn has a `Begin` frame
//! on disk or is counted as dropped in a `Gap` frame. An accepted turn always has room for its
//! `Done` (without its body, if need be).

mod batch;
mod claim;
mod frame;
mod handle;
mod health;
mod queue;
mod reader;
mod scrub;
mod sync;
mod tail;
mod task;
mod writer;
mod written;

use std::io;
use std::path::{Path, PathBuf};

pub use claim::{ClaimedDir, claim_dead, claim_dead_in};
pub use handle::{Follower, Spool, SpoolStats};
pub use health::Health;
pub use reader::{DirReader, Item};
pub use scrub::{Scrubbed, Unstored, scrub, unstored};
pub use writer::SpoolWriter;
pub use written::Place;

/// Name of the directory for damaged segments, beside the process directories.
pub const QUARANTINE: &str = "quarantine";
/// Largest payload of a frame, bytes; longer bodies are cut and marked as truncated.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Why the spool could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file or directory could not be read or written.
    #[error("spool {}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The thread that writes the spool ended early or could not be started.
    #[error("the spool thread is gone")]
    ThreadGone,
    /// Records could not be written before the spool was closed.
    #[error("{0} turns could not be written before the spool was closed")]
    Unwritten(u64),
}

/// Ties an I/O error to the path that caused it.
fn at(path: &Path) -> impl FnOnce(io::Error) -> SpoolError + '_ {
    move |source| SpoolError::Io { path: path.to_owned(), source }
}

/// A place in a process's spool. Ordered as the records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Position {
    /// Number of the segment, from 0.
    pub segment: u32,
    /// Byte offset within the segment.
    pub offset: u64,
}

/// Where the spool is and how large it may get.
#[derive(Debug, Clone)]
pub struct SpoolConfig {
    /// The directory of all processes' spools (`<data>/spool`).
    pub dir: PathBuf,
    /// A segment is sealed at this size, bytes.
    pub segment_bytes_max: u64,
    /// A segment is sealed at this age, milliseconds.
    pub segment_age_ms_max: u64,
    /// Longest time between a write and its fdatasync, milliseconds.
    pub sync_ms_max: u64,
    /// Most bytes between two fdatasyncs.
    pub sync_bytes_max: usize,
    /// Most records that wait in memory, with one place kept for the end of each open turn.
    pub queue_records_max: usize,
    /// Most bytes that wait in memory.
    pub queue_bytes_max: usize,
    /// Length of the parts in which a long response is handed over, bytes.
    pub part_bytes: usize,
    /// Most buffers of parts that are kept to be filled again.
    pub part_buffers_max: usize,
    /// Most bytes of all segments on disk, of all processes.
    pub disk_bytes_max: u64,
    /// Where segments go while `dir` is full or cannot be written; best on another disk.
    pub reserve_dir: Option<PathBuf>,
    /// Most bytes of all segments in the reserve.
    pub reserve_bytes_max: u64,
    /// A directory in a memory file system, where records outlive the process until they are
    /// written; `None`: they do not.
    pub tail_dir: Option<PathBuf>,
    /// Most bytes there. Records that find no room are written at once.
    pub tail_bytes_max: u64,
    /// How long a place that failed is passed over, and how long health stays degraded after the
    /// last trouble, milliseconds.
    pub recover_ms: u64,
    /// Pause before a failed write is tried again, milliseconds.
    pub retry_ms: u64,
    /// How long `close` tries to write what is left, milliseconds.
    pub close_ms_max: u64,
}

impl SpoolConfig {
    /// The defaults: 64 MiB / 60 s segments, 20 ms / 1 MiB groups, 65,536 records / 256 MiB queue,
    /// 10 KiB parts, 16 GiB on disk; no reserve (1 GiB where one is named), no tail (8 MiB).
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes_max: 64 << 20,
            segment_age_ms_max: 60_000,
            sync_ms_max: 20,
            sync_bytes_max: 1 << 20,
            queue_records_max: 65_536,
            queue_bytes_max: 256 << 20,
            part_bytes: 10 << 10,
            part_buffers_max: 64,
            disk_bytes_max: 16 << 30,
            reserve_dir: None,
            reserve_bytes_max: 1 << 30,
            tail_dir: None,
            tail_bytes_max: 8 << 20,
            recover_ms: 2_000,
            retry_ms: 250,
            close_ms_max: 5_000,
        }
    }
}

/// Path of segment `number` in a process's directory.
fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:06}.seg"))
}

/// The numbers of the segments in a process's directories, in order.
fn segment_numbers(dirs: &[PathBuf]) -> Result<Vec<u32>, SpoolError> {
    let mut numbers = Vec::new();
    for dir in dirs {
        let entries = match std::fs::read_dir(dir) {
            // Not made yet, or gone: the other place may still have some.
            Err(error) if is_missing(&error) => continue,
            entries => entries.map_err(at(dir))?,
        };
        for entry in entries {
            let name = entry.map_err(at(dir))?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".seg"));
            numbers.extend(stem.and_then(|stem| stem.parse::<u32>().ok()));
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Whether there is no such directory (any more).
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Where a segment of a process lies: in the spool, else in the reserve.
fn find_segment(dirs: &[PathBuf], number: u32) -> PathBuf {
    let mut paths = dirs.iter().map(|dir| segment_path(dir, number));
    let first = paths.next().unwrap_or_default();
    if first.exists() { first } else { paths.find(|path| path.exists()).unwrap_or(first) }
}

/// Bytes of all segments under a root, quarantine included; unreadable parts count as
/// nothing.
fn disk_bytes(spool: &Path) -> u64 {
    let list = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    list(spool)
        .flat_map(|process| list(&process.path()))
        .filter_map(|file| file.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}
