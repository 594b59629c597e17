//! What the spool thread takes from the queue at once.
//!
//! Small records are framed when they are taken ([`super::tail`] needs their frames anyway), one
//! after the other in one buffer; large ones are framed, and packed, by the thread that writes.
//!
//! Invariant: items stand in the order in which they were taken.

use super::frame;
use crate::turn::Record;

/// A buffer of frames is not added to beyond this.
const FRAMES_BYTES_MAX: usize = 64 << 10;
/// What it is made with: the last record may go beyond.
const CAPACITY_BYTES: usize = 80 << 10;

/// Records in the order in which they came.
#[derive(Debug)]
pub(super) enum Item {
    Record(Box<Record>),
    Frames(Frames),
}

/// Small records, framed.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pub(super) bytes: Vec<u8>,
    /// What the records weighed.
    weight: usize,
    records: u64,
    begins: u64,
}

impl Frames {
    /// An empty one that uses a buffer again, if there is one.
    pub(super) fn reusing(bytes: Option<Vec<u8>>) -> Self {
        let bytes = bytes.unwrap_or_else(|| Vec::with_capacity(CAPACITY_BYTES));
        Self { bytes, ..Self::default() }
    }

    /// Whether there is room for another record.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() < FRAMES_BYTES_MAX
    }

    /// Frames a record; the frame.
    pub(super) fn add(&mut self, record: &Record) -> &[u8] {
        let start = self.bytes.len();
        frame::encode(record, &mut self.bytes);
        self.weight += record.weight();
        self.records += 1;
        self.begins += u64::from(matches!(record, Record::Begin(_)));
        self.bytes.get(start..).unwrap_or_default()
    }
}

impl Item {
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Record(record) => record.weight(),
            Self::Frames(frames) => frames.weight,
        }
    }

    pub(super) fn records(&self) -> u64 {
        match self {
            Self::Record(_) => 1,
            Self::Frames(frames) => frames.records,
        }
    }

    /// How many of them begin a turn.
    pub(super) fn begins(&self) -> u64 {
        match self {
            Self::Record(record) => u64::from(matches!(**record, Record::Begin(_))),
            Self::Frames(frames) => frames.begins,
        }
    }

    /// Appends the frames to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Record(record) => frame::encode(record, out),
            Self::Frames(frames) => out.extend_from_slice(&frames.bytes),
        }
    }
}
