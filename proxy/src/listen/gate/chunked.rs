//! A chunked body, as its bytes arrive: where it ends, and that nobody could see another end.
//!
//! Invariant: data is skipped, never copied or looked at; the verdict depends on the bytes alone,
//! not on how they were cut into packets.

use super::fields::{is_token, is_value, no_trailer};
use super::refusal::Refusal;

/// Hexadecimal digits of a chunk size; below 2^60, so that no sum overflows anywhere.
const SIZE_DIGITS_MAX: u8 = 15;
/// Extensions of one chunk, bytes.
const EXTENSION_BYTES_MAX: usize = 256;
/// Extensions of a body, bytes: they are work without content.
const EXTENSIONS_BYTES_MAX: usize = 16 << 10;
/// The trailer section, bytes.
const TRAILER_BYTES_MAX: usize = 8 << 10;
/// Fields in the trailer section.
const TRAILERS_MAX: usize = 32;

/// What is expected next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Size { value: u64, digits: u8 },
    Extension { value: u64, bytes: usize },
    SizeEnd { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailer,
    TrailerLf,
    Nothing,
}

const SIZE: Next = Next::Size { value: 0, digits: 0 };

/// A chunked body of which a part has been seen.
#[derive(Debug, Clone)]
pub struct Chunked {
    next: Next,
    extensions: usize,
    trailer_bytes: usize,
    trailers: usize,
    /// The trailer that is being read.
    line: Vec<u8>,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { next: SIZE, extensions: 0, trailer_bytes: 0, trailers: 0, line: Vec::new() }
    }
}

impl Chunked {
    /// Goes on over `bytes`. Returns how many of them belong to the body: all, unless it ended.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut at = 0;
        while at < bytes.len() && self.next != Next::Nothing {
            if let Next::Data { left } = self.next {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += here;
                let left = left - here as u64;
                self.next = if left == 0 { Next::DataCr } else { Next::Data { left } };
            } else {
                self.next = self.byte(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    /// Whether the body has ended.
    pub fn ended(&self) -> bool {
        self.next == Next::Nothing
    }

    fn byte(&mut self, byte: u8) -> Result<Next, Refusal> {
        Ok(match (self.next, byte) {
            (Next::Size { value, digits: 1.. }, b'\r') => Next::SizeEnd { value },
            (Next::Size { value, digits: 1.. }, b';') => Next::Extension { value, bytes: 0 },
            (Next::Size { value, digits }, byte) => {
                let digit = char::from(byte).to_digit(16).ok_or(Refusal::ChunkSize)?;
                if digits == SIZE_DIGITS_MAX {
                    return Err(Refusal::ChunkSize);
                }
                Next::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Next::Extension { value, .. }, b'\r') => Next::SizeEnd { value },
            (Next::Extension { value, bytes }, byte) => {
                self.extensions += 1;
                let long = bytes == EXTENSION_BYTES_MAX || self.extensions > EXTENSIONS_BYTES_MAX;
                if long || !is_value(byte) {
                    return Err(Refusal::ChunkExtension);
                }
                Next::Extension { value, bytes: bytes + 1 }
            }
            (Next::SizeEnd { value: 0 }, b'\n') => Next::Trailer,
            (Next::SizeEnd { value }, b'\n') => Next::Data { left: value },
            (Next::DataCr, b'\r') => Next::DataLf,
            (Next::DataLf, b'\n') => SIZE,
            (Next::SizeEnd { .. } | Next::DataCr | Next::DataLf, _) => {
                return Err(Refusal::ChunkEnd);
            }
            (Next::Trailer, b'\r') => Next::TrailerLf,
            (Next::Trailer, byte) => {
                self.trailer_bytes += 1;
                if !is_value(byte) || self.trailer_bytes > TRAILER_BYTES_MAX {
                    return Err(Refusal::Trailer);
                }
                self.line.push(byte);
                Next::Trailer
            }
            (Next::TrailerLf, b'\n') if self.line.is_empty() => Next::Nothing,
            (Next::TrailerLf, b'\n') => {
                self.trailer()?;
                Next::Trailer
            }
            (Next::TrailerLf | Next::Data { .. } | Next::Nothing, _) => {
                return Err(Refusal::Trailer);
            }
        })
    }

    /// A line of the trailer section is complete.
    fn trailer(&mut self) -> Result<(), Refusal> {
        let colon = self.line.iter().position(|b| !is_token(*b)).unwrap_or(self.line.len());
        self.trailers += 1;
        let named = colon > 0 && self.line.get(colon) == Some(&b':');
        if !named || no_trailer(&self.line[..colon]) || self.trailers > TRAILERS_MAX {
            return Err(Refusal::Trailer);
        }
        self.line.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> Result<(usize, bool), Refusal> {
        let mut body = Chunked::default();
        let n = body.scan(bytes)?;
        Ok((n, body.ended()))
    }

    #[test]
    fn a_body_ends_after_its_trailers_and_what_follows_is_not_part_of_it() {
        for (body, rest) in [
            ("5\r\nhello\r\n0\r\n\r\n", ""),
            ("5;a=\"b;c\"\r\nhello\r\n00\r\nx-sum: 1\r\ny:\r\n\r\n", "GET"),
            ("0\r\n\r\n", "\r\n"),
        ] {
            let whole = [body, rest].concat();
            assert_eq!(scan(whole.as_bytes()), Ok((body.len(), true)), "{whole:?}");
            for cut in 0..body.len() {
                let mut pieces = Chunked::default();
                let n = pieces.scan(&whole.as_bytes()[..cut]).unwrap();
                assert_eq!((n, pieces.ended()), (cut, false));
                assert_eq!(pieces.scan(&whole.as_bytes()[cut..]), Ok(body.len() - cut));
            }
        }
    }

    #[test]
    fn anything_ambiguous_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(257));
        let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(33));
        for (body, refusal) in [
            ("+5\r\n", Refusal::ChunkSize),
            ("0x5\r\n", Refusal::ChunkSize),
            (" 5\r\n", Refusal::ChunkSize),
            ("5 \r\n", Refusal::ChunkSize),
            ("5\n", Refusal::ChunkSize),
            ("\r\n", Refusal::ChunkSize),
            ("1000000000000000\r\n", Refusal::ChunkSize),
            ("5\rx", Refusal::ChunkEnd),
            ("5\r\nhelloX", Refusal::ChunkEnd),
            ("5\r\nhello\n", Refusal::ChunkEnd),
            ("5;a\nhello", Refusal::ChunkExtension),
            (&long, Refusal::ChunkExtension),
            ("0\r\nHost: a\r\n", Refusal::Trailer),
            ("0\r\n folded\r\n", Refusal::Trailer),
            ("0\r\na b: c\r\n", Refusal::Trailer),
            ("0\r\nx: y\n", Refusal::Trailer),
            ("0\r\n\rx", Refusal::Trailer),
            (&many, Refusal::Trailer),
        ] {
            assert_eq!(scan(body.as_bytes()), Err(refusal), "{body:?}");
        }
        let drip = "1;xxxxxxxxxxxxxxx\r\na\r\n".repeat(2000);
        assert_eq!(scan(drip.as_bytes()), Err(Refusal::ChunkExtension));
    }
}
