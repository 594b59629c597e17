//! The event-stream grammar (WHATWG HTML §9.2), incremental.
//!
//! Lines end in LF, CR or CRLF; `data` lines of one event are joined by LF; comments and unknown
//! fields are ignored; a BOM may lead. An event that the stream ends in the middle of is handed out
//! all the same, because engines forget the last blank line; its data may be incomplete.
//!
//! Invariant: the events do not depend on how the bytes are cut into chunks.

use std::cell::Cell;
use std::ops::ControlFlow;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// The `event` field; empty when not sent.
    pub name: String,
    /// The `data` lines, joined by LF; invalid UTF-8 is replaced.
    pub data: String,
}

/// An event that is looked at where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    /// The `event` field; empty when not sent.
    pub(super) name: &'a str,
    /// The `data` lines, joined by LF, as they were sent.
    pub(super) data: &'a [u8],
}

/// Turns chunks into events.
#[derive(Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
    name: String,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
    lines: u64,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a chunk; hands complete events to `out`.
    pub fn feed(&mut self, chunk: &[u8], out: &mut impl FnMut(Event)) {
        self.look(chunk, &mut |seen| out(seen.into()));
    }

    /// Ends the stream; hands out an event that lacks its blank line.
    pub fn finish(self, out: &mut impl FnMut(Event)) {
        self.look_at_end(&mut |seen| out(seen.into()));
    }

    /// As [`Decoder::feed`], without a copy of what the chunk holds in one piece.
    fn look(&mut self, mut chunk: &[u8], out: &mut impl FnMut(Seen<'_>)) {
        while let Some(&first) = chunk.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                chunk = chunk.get(1..).unwrap_or_default();
                continue;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', chunk) else {
                self.line.extend_from_slice(chunk);
                return;
            };
            let (line, rest) = chunk.split_at(end);
            self.after_cr = rest.first() == Some(&b'\r');
            chunk = rest.get(1..).unwrap_or_default();
            if !self.line.is_empty() {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.end_line(&whole, out);
                whole.clear();
                self.line = whole;
            } else if let (Some(data), Some(b'\n')) = (self.alone(line), chunk.first()) {
                // The usual event: one line of data, and the blank line behind it.
                chunk = chunk.get(1..).unwrap_or_default();
                self.lines += 2;
                let name = std::mem::take(&mut self.name);
                out(Seen { name: &name, data });
            } else {
                self.end_line(line, out);
            }
        }
    }

    /// The value of a data line that ends in LF, if its event has no other so far.
    fn alone<'a>(&self, line: &'a [u8]) -> Option<&'a [u8]> {
        let first = !self.has_data && !self.after_cr;
        let value = line.strip_prefix(b"data:").filter(|_| first)?;
        Some(value.strip_prefix(b" ").unwrap_or(value))
    }

    fn look_at_end(mut self, out: &mut impl FnMut(Seen<'_>)) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.end_line(&line, out);
        }
        self.dispatch(out);
    }

    fn end_line(&mut self, mut line: &[u8], out: &mut impl FnMut(Seen<'_>)) {
        if self.lines == 0 {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        self.lines += 1;
        if line.is_empty() {
            self.dispatch(out);
            return;
        }
        let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
        let (field, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => self.name = String::from_utf8_lossy(value).into_owned(),
            // Comments (an empty field name), `id` and `retry` carry nothing for us.
            _ => {}
        }
    }

    fn dispatch(&mut self, out: &mut impl FnMut(Seen<'_>)) {
        let name = std::mem::take(&mut self.name);
        if std::mem::take(&mut self.has_data) {
            out(Seen { name: &name, data: &self.data });
        }
        self.data.clear();
    }
}

impl From<Seen<'_>> for Event {
    fn from(seen: Seen<'_>) -> Self {
        let data = String::from_utf8_lossy(seen.data).into_owned();
        Self { name: seen.name.to_owned(), data }
    }
}

/// The chunks of a stream, however it was cut.
pub type Chunks<'i, 'c> = &'i mut dyn Iterator<Item = &'c [u8]>;

/// Hands the events of a stream to `take`, one at a time, until it breaks off.
pub(super) fn for_each(chunks: Chunks<'_, '_>, mut take: impl FnMut(Seen<'_>) -> ControlFlow<()>) {
    let over = Cell::new(false);
    let mut out = |seen: Seen<'_>| over.set(over.get() || take(seen).is_break());
    let mut decoder = Decoder::new();
    for chunk in chunks.take_while(|_| !over.get()) {
        decoder.look(chunk, &mut out);
    }
    decoder.look_at_end(&mut out);
}

/// All events of a whole stream.
pub fn events(body: &[u8]) -> Vec<Event> {
    let mut found = Vec::new();
    for_each(&mut std::iter::once(body), |seen| {
        found.push(seen.into());
        ControlFlow::Continue(())
    });
    found
}
