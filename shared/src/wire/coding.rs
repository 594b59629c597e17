//! Content codings: gzip, deflate and zstd bodies, inflated with a cap.
//!
//! Invariant: at most [`INFLATED_BYTES_MAX`] bytes come out, whatever goes in.

use std::borrow::Cow;
use std::io::Read;

use super::WireError;

/// Largest inflated body, bytes. A bomb stops here.
pub const INFLATED_BYTES_MAX: u64 = 64 << 20;

/// The body without its content coding. Codings listed with commas are undone last first. A body
/// that was cut off is inflated as far as it goes.
pub fn inflate<'a>(encoding: Option<&str>, body: &'a [u8]) -> Result<Cow<'a, [u8]>, WireError> {
    let mut plain = Cow::Borrowed(body);
    // Two codings never occur in practice; four is a generous bound on the work.
    let codings = encoding.unwrap_or_default().split(',').map(str::trim).filter(|c| !c.is_empty());
    let codings: Vec<&str> = codings.collect();
    if codings.len() > 4 {
        return Err(WireError::Coding(codings.join(", ")));
    }
    for coding in codings.iter().rev() {
        plain = match coding.to_ascii_lowercase().as_str() {
            "identity" => plain,
            "gzip" | "x-gzip" => read_all(flate2::read::MultiGzDecoder::new(plain.as_ref()))?,
            // Servers send both the raw and the zlib form; the first byte of the latter is always
            // 0x?8.
            "deflate" if plain.first().is_some_and(|b| b & 0x0f == 8) => {
                read_all(flate2::read::ZlibDecoder::new(plain.as_ref()))?
            }
            "deflate" => read_all(flate2::read::DeflateDecoder::new(plain.as_ref()))?,
            "zstd" => {
                let decoder = zstd::stream::read::Decoder::with_buffer(plain.as_ref());
                read_all(decoder.map_err(|e| WireError::Inflate(e.to_string()))?)?
            }
            other => return Err(WireError::Coding(other.chars().take(40).collect())),
        };
    }
    Ok(plain)
}

fn read_all<'a>(reader: impl Read) -> Result<Cow<'a, [u8]>, WireError> {
    let mut plain = Vec::new();
    let result = reader.take(INFLATED_BYTES_MAX + 1).read_to_end(&mut plain);
    if plain.len() as u64 > INFLATED_BYTES_MAX {
        return Err(WireError::Inflate(format!("more than {INFLATED_BYTES_MAX} bytes")));
    }
    match result {
        Ok(_) => Ok(Cow::Owned(plain)),
        // The client or the engine went away: what came is still the beginning of the answer.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && !plain.is_empty() => {
            Ok(Cow::Owned(plain))
        }
        Err(error) => Err(WireError::Inflate(error.to_string())),
    }
}
