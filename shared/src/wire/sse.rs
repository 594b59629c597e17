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
    pub fn feed(&mut self, mut chunk: &[u8], out: &mut impl FnMut(Event)) {
        while let Some(&first) = chunk.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                chunk = chunk.get(1..).unwrap_or_default();
                continue;
            }
            let Some(end) = chunk.iter().position(|b| matches!(b, b'\n' | b'\r')) else {
                self.line.extend_from_slice(chunk);
                return;
            };
            let (line, rest) = chunk.split_at(end);
            self.line.extend_from_slice(line);
            self.after_cr = rest.first() == Some(&b'\r');
            chunk = rest.get(1..).unwrap_or_default();
            self.end_line(out);
        }
    }

    /// Ends the stream; hands out an event that lacks its blank line.
    pub fn finish(mut self, out: &mut impl FnMut(Event)) {
        if !self.line.is_empty() {
            self.end_line(out);
        }
        self.dispatch(out);
    }

    fn end_line(&mut self, out: &mut impl FnMut(Event)) {
        let taken = std::mem::take(&mut self.line);
        let mut line = taken.as_slice();
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

    fn dispatch(&mut self, out: &mut impl FnMut(Event)) {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            out(Event { name, data: String::from_utf8_lossy(&data).into_owned() });
        }
    }
}

/// The chunks of a stream, however it was cut.
pub type Chunks<'i, 'c> = &'i mut dyn Iterator<Item = &'c [u8]>;

/// Hands the events of a stream to `take`, one at a time, until it breaks off.
pub fn for_each(chunks: Chunks<'_, '_>, mut take: impl FnMut(Event) -> ControlFlow<()>) {
    let over = Cell::new(false);
    let mut out = |event| over.set(over.get() || take(event).is_break());
    let mut decoder = Decoder::new();
    for chunk in chunks.take_while(|_| !over.get()) {
        decoder.feed(chunk, &mut out);
    }
    decoder.finish(&mut out);
}

/// All events of a whole stream.
pub fn events(body: &[u8]) -> Vec<Event> {
    let mut found = Vec::new();
    for_each(&mut std::iter::once(body), |event| {
        found.push(event);
        ControlFlow::Continue(())
    });
    found
}
