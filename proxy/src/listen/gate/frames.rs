//! Counts the frames of an HTTP/2 connection that cost work and carry nothing, as they arrive.
//!
//! The h2 crate bounds what such frames can make it remember; this bounds how many of them a client
//! can have looked at.
//!
//! Invariant: payloads are skipped, never looked at; a client that stays below the rate is never
//! cut.

use std::time::{Duration, Instant};

use super::refusal::Refusal;

/// What an HTTP/2 client with prior knowledge sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's header, bytes.
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;

/// The frames of one connection. Settings, pings, resets, priorities, continuations, empty data and
/// unknown types are counted. Not counted: headers and data, which are bounded by streams and
/// windows; window updates, of which an honest reader of many small chunks sends many.
#[derive(Debug)]
pub struct Frames {
    /// Bytes of preface and payloads that are still to be skipped.
    skip: usize,
    header: [u8; HEADER],
    have: usize,
    /// Frames that may still come before the next refill.
    left: u32,
    per_s: u32,
    since: Option<Instant>,
}

impl Frames {
    /// From the preface on: `per_s` counted frames each second, ten times that at once.
    pub const fn new(per_s: u32) -> Self {
        let left = per_s.saturating_mul(10);
        Self { skip: PREFACE.len(), header: [0; HEADER], have: 0, left, per_s, since: None }
    }

    /// Looks at what arrived. Errors: too many.
    pub fn scan(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let here = self.skip.min(bytes.len());
                self.skip -= here;
                bytes = &bytes[here..];
                continue;
            }
            let here = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + here].copy_from_slice(&bytes[..here]);
            self.have += here;
            bytes = &bytes[here..];
            if self.have == HEADER {
                self.have = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), Refusal> {
        let [a, b, c, kind, flags, ..] = self.header;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let free = match kind {
            DATA => self.skip > 0 || flags & END_STREAM != 0,
            HEADERS | WINDOW_UPDATE => true,
            _ => false,
        };
        if free {
            return Ok(());
        }
        if self.left == 0 {
            self.refill();
        }
        self.left = self.left.checked_sub(1).ok_or(Refusal::FrameFlood)?;
        Ok(())
    }

    /// What the time since the last refill allows, at most the burst.
    fn refill(&mut self) {
        let now = Instant::now();
        let passed = self.since.map_or(Duration::from_secs(1), |since| now - since);
        let frames = passed.as_secs_f64() * f64::from(self.per_s);
        // The cast saturates.
        self.left = (frames as u32).min(self.per_s.saturating_mul(10));
        if self.left > 0 {
            self.since = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, 0], payload].concat()
    }

    #[test]
    fn a_flood_is_cut_however_it_is_packed_and_content_is_free() {
        for packet in [1, 7, 4096] {
            let mut frames = Frames::new(10);
            let honest = [PREFACE.to_vec(), frame(DATA, 0, b"x").repeat(500)].concat();
            let updates = [frame(WINDOW_UPDATE, 0, b"1234"), frame(HEADERS, 4, b"abc")].concat();
            for bytes in honest.chunks(packet).chain(updates.repeat(500).chunks(packet)) {
                assert_eq!(frames.scan(bytes), Ok(()));
            }
            let pings = frame(6, 0, b"12345678").repeat(100);
            assert!(pings.chunks(packet).all(|bytes| frames.scan(bytes).is_ok()), "the burst");
            let flood = frame(6, 0, b"12345678").repeat(100);
            let cut = flood.chunks(packet).any(|bytes| frames.scan(bytes).is_err());
            assert!(cut, "the flood in packets of {packet}");
        }
    }
}
