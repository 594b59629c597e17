//! Frames: how a record lies in a segment, and how damage to it is seen.
//!
//! ```text
//! 0 magic u32 | 4 len u32 | 8 kind u8 | 9 flags u8 | 10 turn id 16 B | 26 crc32 u32 | 30 payload
//! little-endian; flags: 1 = the payload is `raw length u32 | zstd`
//! ```
//! Invariant: the crc covers every byte of the frame but itself, so a frame is read whole and
//! right, or not at all.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use uuid::Uuid;

use super::PAYLOAD_BYTES_MAX;
use crate::pack;
use crate::turn::{Record, TurnId};

const MAGIC: u32 = u32::from_le_bytes(*b"HNE1");
const CRC_AT: usize = 26;
/// Bytes of a frame before its payload.
pub(super) const HEADER_BYTES: usize = 30;
const ZSTD: u8 = 1;
const GAP: u8 = 3;
/// A segment lives for seconds, and a turn of a few KiB is written faster than it is packed; long
/// contexts repeat themselves and would fill the disk's bandwidth.
const ZSTD_ABOVE_BYTES: usize = 64 << 10;
/// Bytes of a segment that are read at once.
const WINDOW_BYTES: u64 = 128 << 10;

/// What lies at an offset of a segment.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one at a time, and nearly always the large one")]
pub(super) enum Frame {
    /// A whole record, and the offset after it.
    Good { record: Record, next: u64 },
    /// A frame whose extent is known but whose content is damaged. Kind and id come from the
    /// damaged frame.
    Damaged { kind: u8, turn_id: TurnId, next: u64 },
    /// From here to the limit there is no frame whose extent can be told.
    Broken,
    /// The limit itself.
    End,
}

/// Appends the frame of a record to `out`. A body that makes the payload too long is cut and marked
/// as truncated.
pub(super) fn encode(record: &Record, out: &mut Vec<u8>) {
    encode_if(record, true, out);
}

/// As [`encode`], without packing.
pub(super) fn encode_plain(record: &Record, out: &mut Vec<u8>) {
    encode_if(record, false, out);
}

fn encode_if(record: &Record, pack: bool, out: &mut Vec<u8>) {
    let start = out.len();
    let payload_at = start + HEADER_BYTES;
    out.resize(payload_at, 0);
    record.encode_to(out);
    let len = out.len() - payload_at;
    if len > PAYLOAD_BYTES_MAX {
        out.truncate(payload_at);
        out.extend_from_slice(&cut(record, len));
    }
    let mut flags = 0;
    if let Some(packed) = out.get(payload_at..).filter(|_| pack).and_then(compress) {
        out.truncate(payload_at);
        out.extend_from_slice(&packed);
        flags = ZSTD;
    }
    let Some((header, payload)) =
        out.get_mut(start..).and_then(|frame| frame.split_at_mut_checked(HEADER_BYTES))
    else {
        return;
    };
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let (fields, crc) = header.split_at_mut(CRC_AT);
    let turn_id = record.turn_id().0;
    let parts: [&[u8]; 4] =
        [&MAGIC.to_le_bytes(), &len.to_le_bytes(), &[record.kind(), flags], turn_id.as_bytes()];
    let mut at = fields.iter_mut();
    parts.into_iter().flatten().zip(&mut at).for_each(|(byte, field)| *field = *byte);
    crc.copy_from_slice(&checksum(fields, payload).to_le_bytes());
}

/// The payload with so much less body that it fits.
fn cut(record: &Record, payload_len: usize) -> Vec<u8> {
    // 64 bytes of room: `false` becomes `true`, and the lengths may gain digits.
    let excess = payload_len.saturating_sub(PAYLOAD_BYTES_MAX) + 64;
    let mut record = record.clone();
    match &mut record {
        Record::Begin(begin) => {
            begin.body.truncate(begin.body.len().saturating_sub(excess));
            begin.body_truncated = true;
        }
        Record::Done(done) => {
            done.body.truncate(done.body.len().saturating_sub(excess));
            done.body_truncated = true;
        }
        Record::Part(part) => part.body.truncate(part.body.len().saturating_sub(excess)),
        // Bounded where they are made.
        Record::Gap(_) | Record::Feedback(_) => {}
    }
    record.encode()
}

fn compress(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() <= ZSTD_ABOVE_BYTES {
        return None;
    }
    let packed = pack::pack(payload)?;
    let mut out = Vec::with_capacity(4 + packed.len());
    out.extend_from_slice(&u32::try_from(payload.len()).ok()?.to_le_bytes());
    out.extend_from_slice(&packed);
    (out.len() < payload.len()).then_some(out)
}

fn unpack(payload: &[u8]) -> Option<Vec<u8>> {
    let (len, packed) = payload.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    if len > PAYLOAD_BYTES_MAX {
        return None;
    }
    pack::unpack(packed, len)
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

struct Header {
    len: u64,
    kind: u8,
    flags: u8,
    turn_id: TurnId,
    crc: u32,
}

/// Reads a header; `None` when the magic or the length cannot be right.
fn parse_header(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
    let u32_at = |from: usize| bytes.get(from..from + 4)?.try_into().ok().map(u32::from_le_bytes);
    let len = u64::from(u32_at(4)?);
    if u32_at(0)? != MAGIC || len > PAYLOAD_BYTES_MAX as u64 {
        return None;
    }
    let id: [u8; 16] = bytes.get(10..CRC_AT)?.try_into().ok()?;
    Some(Header {
        len,
        kind: *bytes.get(8)?,
        flags: *bytes.get(9)?,
        turn_id: TurnId(Uuid::from_bytes(id)),
        crc: u32_at(CRC_AT)?,
    })
}

/// What was read of a segment last: frames are small, and a system call for each half of one costs
/// more than decoding it.
#[derive(Debug, Default)]
pub(super) struct Window {
    start: u64,
    bytes: Bytes,
    /// How much is read at once.
    ahead: u64,
}

impl Window {
    /// For reading one frame after the other.
    pub(super) fn sequential() -> Self {
        Self { ahead: WINDOW_BYTES, ..Self::default() }
    }

    /// `len` bytes at `offset`, of a segment of which only those before `limit` may be read.
    fn get(&mut self, file: &File, offset: u64, len: u64, limit: u64) -> io::Result<Bytes> {
        let skipped = offset.checked_sub(self.start).and_then(|n| usize::try_from(n).ok());
        let wanted = usize::try_from(len).unwrap_or(usize::MAX);
        if let Some(from) = skipped
            && let Some(end) = from.checked_add(wanted).filter(|end| *end <= self.bytes.len())
        {
            return Ok(self.bytes.slice(from..end));
        }
        let ahead = limit.saturating_sub(offset).min(self.ahead).max(len);
        let mut bytes = vec![0u8; usize::try_from(ahead).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, offset)?;
        let bytes = Bytes::from(bytes);
        let found = bytes.slice(..wanted);
        // What is larger than a window is read once and not kept.
        let kept = if len <= WINDOW_BYTES { bytes } else { Bytes::new() };
        *self = Self { start: offset, bytes: kept, ahead: self.ahead };
        Ok(found)
    }

    /// The header at `offset`; `None` where there cannot be one.
    fn header(
        &mut self,
        file: &File,
        offset: u64,
        limit: u64,
    ) -> io::Result<Option<([u8; HEADER_BYTES], Header)>> {
        if limit.saturating_sub(offset) < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let bytes = self.get(file, offset, HEADER_BYTES as u64, limit)?;
        let bytes: Option<&[u8; HEADER_BYTES]> = bytes.first_chunk();
        Ok(bytes.and_then(|bytes| Some((*bytes, parse_header(bytes)?))))
    }

    /// Reads what lies at `offset` of a segment of which only the bytes before `limit` may be read.
    pub(super) fn read_at(&mut self, file: &File, offset: u64, limit: u64) -> io::Result<Frame> {
        if offset >= limit {
            return Ok(Frame::End);
        }
        let Some((bytes, header)) = self.header(file, offset, limit)? else {
            return Ok(Frame::Broken);
        };
        let payload_at = offset + HEADER_BYTES as u64;
        let next = payload_at + header.len;
        if next > limit {
            return Ok(Frame::Broken);
        }
        let payload = self.get(file, payload_at, header.len, limit)?;
        let whole = checksum(bytes.get(..CRC_AT).unwrap_or_default(), &payload) == header.crc;
        if let Some(record) = whole.then(|| decode(&header, &payload)).flatten() {
            return Ok(Frame::Good { record, next });
        }
        // The length is believed only where another frame, or the end, lies right behind it.
        if next == limit || self.header(file, next, limit)?.is_some() {
            let Header { kind, turn_id, .. } = header;
            return Ok(Frame::Damaged { kind, turn_id, next });
        }
        Ok(Frame::Broken)
    }
}

/// Reads a single frame; see [`Window::read_at`].
pub(super) fn read_at(file: &File, offset: u64, limit: u64) -> io::Result<Frame> {
    Window::default().read_at(file, offset, limit)
}

fn decode(header: &Header, payload: &Bytes) -> Option<Record> {
    if header.flags & ZSTD != 0 {
        return Record::decode_shared(header.kind, &Bytes::from(unpack(payload)?)).ok();
    }
    Record::decode_shared(header.kind, payload).ok()
}

/// A whole frame of exactly `len` bytes that says nothing: a gap of no turns, padded with spaces.
/// Shorter than such a note can be, it is zeros, which read as damage.
pub(super) fn nothing(len: u64) -> Vec<u8> {
    const NOTE: &[u8] = br#"{"route":"","reason":"closed","count":0,"from_ms":0,"at_ms":0}"#;
    let len = usize::try_from(len).unwrap_or(0);
    let mut frame = vec![0u8; len];
    let meta = len.saturating_sub(HEADER_BYTES + 4);
    if meta < NOTE.len() {
        return frame;
    }
    frame.clear();
    frame.extend_from_slice(&MAGIC.to_le_bytes());
    frame.extend_from_slice(&u32::try_from(meta + 4).unwrap_or(0).to_le_bytes());
    frame.extend_from_slice(&[GAP, 0]);
    frame.extend_from_slice(&[0u8; 16]);
    let mut payload = u32::try_from(meta).unwrap_or(0).to_le_bytes().to_vec();
    payload.extend_from_slice(NOTE);
    payload.resize(meta + 4, b' ');
    let crc = checksum(&frame, &payload);
    frame.extend_from_slice(&crc.to_le_bytes());
    frame.extend_from_slice(&payload);
    frame
}
