//! The parts of a response that has not ended: where they lie, and how they become one body.
//!
//! Only positions are kept; the bytes stay in the spool until the turn ends, so that thousands of
//! open streams cost the ingest nothing. Parts that a failed write left twice are noticed by where
//! they begin.
//!
//! Invariant: the body that comes out is a prefix of what the client was sent, never with a hole.

use std::io::ErrorKind;

use bytes::Bytes;
use hone_shared::spool::{DirReader, PAYLOAD_BYTES_MAX, Position, SpoolError};
use hone_shared::turn::{Done, Part, PartHead, Record, TurnId};

/// What is known of an open turn's response.
#[derive(Debug, Default)]
pub(super) struct Parts {
    head: Option<Box<PartHead>>,
    after_ms: u64,
    /// Where each part lies, and where in the body it ends.
    places: Vec<(Position, u64)>,
    /// The segments of `places`, each once, in order.
    segments: Vec<u32>,
    /// The first bytes, where their segments had to go.
    early: Vec<u8>,
    /// Bytes in `early` and `places`.
    len: u64,
    /// What follows is missing.
    broken: bool,
}

impl Parts {
    /// Notes a part that lies at `at`.
    pub(super) fn note(&mut self, at: Position, part: Part) {
        let end = part.at.saturating_add(part.body.len() as u64);
        if end <= self.len {
            return; // It was written twice.
        }
        self.broken |= part.at != self.len || end > PAYLOAD_BYTES_MAX as u64;
        if self.broken {
            return;
        }
        (self.len, self.after_ms) = (end, part.after_ms);
        self.head = self.head.take().or(part.head);
        self.places.push((at, end));
        if self.segments.last() != Some(&at.segment) {
            self.segments.push(at.segment);
        }
    }

    /// A part is damaged: nothing after it can be used.
    pub(super) fn damaged(&mut self) {
        self.broken = true;
    }

    /// The segments that are still needed for them.
    pub(super) fn segments(&self) -> &[u32] {
        &self.segments
    }

    /// Bytes that are held in memory.
    pub(super) fn held(&self) -> usize {
        self.early.len()
    }

    /// The whole turn's end: with the bytes of all parts before its own.
    pub(super) fn join(&self, mut done: Done, spool: &DirReader) -> Result<Done, SpoolError> {
        let at = std::mem::take(&mut done.body_at);
        if at == 0 {
            return Ok(done); // A response without parts, nearly always.
        }
        let head = done.body_cut.as_ref().map_or(at, |cut| cut.head_bytes.min(at));
        let head = usize::try_from(head).unwrap_or(usize::MAX);
        let needed = self.places.partition_point(|(_, end)| *end < head as u64) + 1;
        let places = self.places.get(..needed).unwrap_or(&self.places);
        let mut body = self.read(places, spool, usize::MAX)?;
        if body.len() < head {
            (done.body_truncated, done.body_cut) = (true, None);
        } else {
            body.truncate(head);
            body.extend_from_slice(&done.body);
        }
        Ok(Done { body: Bytes::from(body), ..done })
    }

    /// The end of a turn that nobody wrote; `None`: nothing of its response is known.
    pub(super) fn unended(
        &self,
        id: TurnId,
        spool: &DirReader,
    ) -> Result<Option<Done>, SpoolError> {
        let Some(head) = &self.head else { return Ok(None) };
        let body = self.read(&self.places, spool, usize::MAX)?;
        Ok(Some(head.as_ref().clone().crashed(id, Bytes::from(body), self.after_ms)))
    }

    /// Takes what lies in the first `segment`s up to and with this one into memory, at most
    /// `bytes_max`, so that they can be deleted. What does not fit is lost, with all after it.
    pub(super) fn load(
        &mut self,
        segment: u32,
        spool: &DirReader,
        bytes_max: usize,
    ) -> Result<(), SpoolError> {
        let upto = self.places.partition_point(|(place, _)| place.segment <= segment);
        let (first, later) = self.places.split_at(upto);
        let Some((_, end)) = first.last() else { return Ok(()) };
        let early = self.read(first, spool, self.held().saturating_add(bytes_max))?;
        let whole = early.len() as u64 == *end;
        self.places = if whole { later.to_vec() } else { Vec::new() };
        self.segments.retain(|number| whole && *number > segment);
        if !whole {
            (self.broken, self.len) = (true, early.len() as u64);
        }
        self.early = early;
        Ok(())
    }

    /// The bytes, as far as they are there, at most `bytes_max`.
    fn read(
        &self,
        places: &[(Position, u64)],
        spool: &DirReader,
        bytes_max: usize,
    ) -> Result<Vec<u8>, SpoolError> {
        let len = places.last().map_or(0, |(_, end)| *end).max(self.early.len() as u64);
        let mut body = Vec::with_capacity(usize::try_from(len).unwrap_or(0).min(bytes_max));
        body.extend_from_slice(&self.early);
        for (place, _) in places {
            let part = match spool.read_again(*place) {
                Ok(Some(Record::Part(part))) if part.at == body.len() as u64 => part,
                Err(error) if !is_gone(&error) => return Err(error),
                Ok(_) | Err(_) => break,
            };
            if body.len() + part.body.len() > bytes_max {
                break;
            }
            body.extend_from_slice(&part.body);
        }
        Ok(body)
    }
}

/// Whether the segment is no longer there.
fn is_gone(error: &SpoolError) -> bool {
    matches!(error, SpoolError::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}
