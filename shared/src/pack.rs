//! zstd with one context per thread.
//!
//! Why: making a context clears more memory than a turn has; one per call took a fifth of the
//! ingest's time. Invariant: output is at most as long as the caller says.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

/// Fast, and enough for text that repeats itself.
const LEVEL: i32 = 1;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses; `None` when zstd refuses, and the caller keeps the bytes as they are.
pub(crate) fn pack(bytes: &[u8]) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(Compressor::new(LEVEL).ok()?),
        };
        compressor.compress(bytes).ok()
    })
}

/// Decompresses to exactly `len` bytes; `None` when the bytes are damaged.
pub(crate) fn unpack(packed: &[u8], len: usize) -> Option<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new().ok()?),
        };
        decompressor.decompress(packed, len).ok().filter(|raw| raw.len() == len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_damage_does_not() {
        for bytes in [vec![], vec![b'a'; 100_000], (0..=255).collect::<Vec<u8>>()] {
            let packed = pack(&bytes).unwrap();
            assert_eq!(unpack(&packed, bytes.len()).unwrap(), bytes);
            assert_eq!(unpack(&packed, bytes.len() + 1), None);
            assert_eq!(unpack(&packed[1..], bytes.len()), None);
            // A damaged call leaves the context usable.
            assert_eq!(unpack(&packed, bytes.len()).unwrap(), bytes);
        }
    }
}
