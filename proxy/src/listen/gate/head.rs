//! The head of an HTTP/1 request, line by line, as its bytes arrive.
//!
//! Every byte is looked at once; a scan goes on where the last one had to stop.
//!
//! Invariant: the verdict depends on the bytes alone, not on how they were cut into packets.

use super::Caps;
use super::fields::{Fields, Framing, after_blanks, is_token, is_value};
use super::refusal::Refusal;
use super::target;

/// Longest method, bytes.
const METHOD_BYTES_MAX: usize = 24;

/// A place in the head, as offsets from its first byte.
type Place = (usize, usize);

/// A head of which a part has been seen.
#[derive(Debug, Default, Clone)]
pub struct Head {
    /// Everything before was looked at.
    at: usize,
    /// Where the current line begins.
    line: usize,
    request: Option<Request>,
    host: Place,
    fields: Fields,
}

/// What the request line says.
#[derive(Debug, Clone, Copy)]
struct Request {
    method: Place,
    http_10: bool,
    /// Of a target in absolute form.
    authority: Option<Place>,
}

/// A head that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its length, with the empty line.
    pub bytes: usize,
    /// How its body ends.
    pub framing: Framing,
    /// Whether it asks for a websocket.
    pub websocket: bool,
    /// Whether the client waits for an interim answer before it sends the body.
    pub expects: bool,
}

impl Head {
    /// Goes on over `bytes`, which begin with the first byte of the head. `None`: more is needed.
    pub fn scan(&mut self, bytes: &[u8], caps: &Caps) -> Result<Option<End>, Refusal> {
        if bytes.first().is_some_and(|b| !b.is_ascii_uppercase()) {
            return Err(Refusal::RequestLine);
        }
        loop {
            let rest = &bytes[self.at..];
            let stop = rest.iter().position(|b| !is_value(*b)).map(|n| self.at + n);
            self.at = stop.unwrap_or(bytes.len());
            if self.request.is_none() && self.at > caps.request_line_bytes_max {
                return Err(Refusal::TargetLong);
            }
            if self.at + 2 > caps.head_bytes_max {
                return Err(Refusal::HeadLarge);
            }
            match stop.map(|at| &bytes[at..]) {
                None | Some([b'\r']) => return Ok(None),
                Some([b'\r', b'\n', ..]) => {}
                Some([b'\r' | b'\n', ..]) => return Err(Refusal::LineEnd),
                Some(_) => return Err(Refusal::Control),
            }
            let (start, end) = (self.line, self.at);
            self.at = end + 2;
            self.line = self.at;
            if self.request.is_none() {
                self.request = Some(request_line(&bytes[..end])?);
            } else if start == end {
                return self.done(bytes).map(Some);
            } else {
                self.field(&bytes[start..end], start, caps)?;
            }
        }
    }

    fn field(&mut self, line: &[u8], start: usize, caps: &Caps) -> Result<(), Refusal> {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(Refusal::Folded);
        }
        let colon = line.iter().position(|b| !is_token(*b)).unwrap_or(line.len());
        if colon == 0 || line.get(colon) != Some(&b':') {
            return Err(Refusal::FieldName);
        }
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if self.fields.take(name, value, caps.fields_max)? {
            let end = start + line.len();
            self.host = (end - after_blanks(value).len(), end);
        }
        Ok(())
    }

    fn done(&self, bytes: &[u8]) -> Result<End, Refusal> {
        let Some(request) = self.request else { return Err(Refusal::RequestLine) };
        let at = |place: Place| &bytes[place.0..place.1];
        if !request.http_10 && !self.fields.has_host() {
            return Err(Refusal::Host);
        }
        if let Some(authority) = request.authority
            && self.fields.has_host()
            && !at(authority).eq_ignore_ascii_case(at(self.host))
        {
            return Err(Refusal::Host);
        }
        let (framing, websocket) = self.fields.done(at(request.method), request.http_10)?;
        Ok(End { bytes: self.at, framing, websocket, expects: self.fields.expects() })
    }
}

fn request_line(line: &[u8]) -> Result<Request, Refusal> {
    let first = line.iter().position(|b| *b == b' ').ok_or(Refusal::RequestLine)?;
    let last = line.iter().rposition(|b| *b == b' ').ok_or(Refusal::RequestLine)?;
    let method = &line[..first];
    let capital = |b: &u8| b.is_ascii_uppercase() || *b == b'-';
    if method.is_empty() || method.len() > METHOD_BYTES_MAX || !method.iter().all(capital) {
        return Err(Refusal::RequestLine);
    }
    let http_10 = match &line[last + 1..] {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(Refusal::Version);
        }
        _ => return Err(Refusal::RequestLine),
    };
    if first == last {
        return Err(Refusal::RequestLine);
    }
    if matches!(method, b"CONNECT" | b"TRACE" | b"TRACK") {
        return Err(Refusal::Method);
    }
    let target = &line[first + 1..last];
    let authority = target::check(target)?.map(|authority| {
        // It stands right behind `://`.
        let scheme = target.iter().position(|b| *b == b':').unwrap_or_default() + 3;
        let start = first + 1 + scheme;
        (start, start + authority.len())
    });
    Ok(Request { method: (0, first), http_10, authority })
}
