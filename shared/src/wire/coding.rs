//! Content codings: gzip, deflate, brotli and zstd bodies, inflated with two caps.
//!
//! Invariant: at most [`inflated_bytes_max`] bytes come out of each layer, whatever goes in, and
//! there are at most four layers: a bomb costs bounded memory and time.

use std::borrow::Cow;
use std::io::{self, Read};

use super::WireError;

/// Largest inflated body, bytes.
pub const INFLATED_BYTES_MAX: u64 = 64 << 20;
/// Conversations shrink to a tenth or a thirtieth; what grows more than this is no conversation.
const RATIO_MAX: u64 = 100;
/// A small body may grow to this much, whatever the ratio, bytes.
const SMALL_BYTES_MAX: u64 = 8 << 20;
/// Two codings never occur in practice; four is a generous bound on the work.
const CODINGS_MAX: usize = 4;

/// Most bytes that a compressed body of `len` bytes is inflated to.
pub fn inflated_bytes_max(len: usize) -> u64 {
    (len as u64).saturating_mul(RATIO_MAX).clamp(SMALL_BYTES_MAX, INFLATED_BYTES_MAX)
}

/// The body without its content coding. Codings listed with commas are undone last first. A body
/// that was cut off is inflated as far as it goes.
pub fn inflate<'a>(encoding: Option<&str>, body: &'a [u8]) -> Result<Cow<'a, [u8]>, WireError> {
    let codings = encoding.unwrap_or_default().split(',').map(str::trim).filter(|c| !c.is_empty());
    let codings: Vec<&str> = codings.take(CODINGS_MAX + 1).collect();
    if codings.len() > CODINGS_MAX {
        return Err(WireError::Coding(codings.join(", ").chars().take(80).collect()));
    }
    // The ratio counts from what crossed the wire, not from layer to layer.
    let bytes_max = inflated_bytes_max(body.len());
    let mut plain = Cow::Borrowed(body);
    for coding in codings.iter().rev() {
        let bytes = plain.as_ref();
        plain = match coding.to_ascii_lowercase().as_str() {
            "identity" => plain,
            _ if bytes.is_empty() => plain,
            "gzip" | "x-gzip" => read_all(flate2::read::MultiGzDecoder::new(bytes), bytes_max)?,
            // Servers send both the raw and the zlib form; the first byte of the latter is always
            // 0x?8.
            "deflate" if bytes.first().is_some_and(|b| b & 0x0f == 8) => {
                read_all(flate2::read::ZlibDecoder::new(bytes), bytes_max)?
            }
            "deflate" => read_all(flate2::read::DeflateDecoder::new(bytes), bytes_max)?,
            "br" => read_all(Brotli::new(bytes), bytes_max)?,
            "zstd" => {
                let decoder = zstd::stream::read::Decoder::with_buffer(bytes);
                let mut decoder = decoder.map_err(|e| WireError::Inflate(e.to_string()))?;
                // 8 MiB is what RFC 9659 lets a server ask of a client; a frame could ask for GiB.
                decoder.window_log_max(23).map_err(|e| WireError::Inflate(e.to_string()))?;
                read_all(decoder, bytes_max)?
            }
            other => return Err(WireError::Coding(other.chars().take(40).collect())),
        };
    }
    Ok(plain)
}

fn read_all<'a>(reader: impl Read, bytes_max: u64) -> Result<Cow<'a, [u8]>, WireError> {
    let mut plain = Vec::new();
    let result = reader.take(bytes_max + 1).read_to_end(&mut plain);
    if plain.len() as u64 > bytes_max {
        return Err(WireError::Inflate(format!("more than {bytes_max} bytes")));
    }
    match result {
        Ok(_) => Ok(Cow::Owned(plain)),
        // The client or the engine went away: what came is still the beginning of the answer.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !plain.is_empty() => {
            Ok(Cow::Owned(plain))
        }
        Err(error) => Err(WireError::Inflate(error.to_string())),
    }
}

/// The decoder calls a body that was cut off damaged; whether it asked for more than there was tells
/// them apart.
struct Brotli<'a>(brotli_decompressor::Decompressor<Input<'a>>);

struct Input<'a> {
    rest: &'a [u8],
    ended: bool,
}

impl<'a> Brotli<'a> {
    fn new(body: &'a [u8]) -> Self {
        Self(brotli_decompressor::Decompressor::new(Input { rest: body, ended: false }, 4096))
    }
}

impl Read for Brotli<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let result = self.0.read(out);
        let cut = self.0.get_ref().ended;
        result.map_err(|error| if cut { io::ErrorKind::UnexpectedEof.into() } else { error })
    }
}

impl Read for Input<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.rest.read(out)?;
        self.ended |= read == 0;
        Ok(read)
    }
}
