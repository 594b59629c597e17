//! What is kept of a body that is too long to keep: its beginning (by the capture), its end, and a
//! hash of all of it.
//!
//! The end of a stream says how it ended (`usage`, `finish_reason`, `[DONE]`), its beginning what
//! it was; with length and hash the whole can be recognised elsewhere. The beginning is short, so
//! that an enormous body holds little memory while the rest of it passes.
//!
//! Invariant: after [`Ends::new`] has allocated, passing a chunk allocates nothing.

/// Most bytes of the beginning that are kept.
const HEAD_BYTES_MAX: usize = 1 << 20;
/// Most bytes of the end that are kept.
const TAIL_BYTES_MAX: usize = 64 << 10;
/// The end's part of a cap that is smaller than both.
const TAIL_PART: usize = 4;

/// Hash and end of a body in progress.
#[derive(Debug)]
pub struct Ends {
    hash: blake3::Hasher,
    /// How many first bytes were in the hash already.
    hashed: u64,
    /// The last bytes, as a ring once it is full.
    ring: Vec<u8>,
    /// Where the ring begins.
    at: usize,
    max: usize,
    /// Bytes passed so far.
    len: u64,
    /// Where in the body the kept beginning ends: the end must not overlap it.
    from: u64,
}

impl Ends {
    /// How much of the beginning and of the end to keep under a cap of `max` bytes.
    pub fn sizes(max: usize) -> (usize, usize) {
        let tail = TAIL_BYTES_MAX.min(max / TAIL_PART);
        (HEAD_BYTES_MAX.min(max - tail), tail)
    }

    /// Keeps the last `max` bytes of what will pass.
    pub fn new(max: usize) -> Self {
        Self::after(0, blake3::Hasher::new(), 0, max)
    }

    /// As [`Ends::new`], of a body of which `len` bytes have passed before, and whose first
    /// `hashed` ones, not fewer, are in `hash`.
    pub fn after(len: u64, hash: blake3::Hasher, hashed: u64, max: usize) -> Self {
        Self { hash, hashed, ring: Vec::with_capacity(max), at: 0, max, len, from: 0 }
    }

    /// The first `from` bytes are kept elsewhere.
    pub fn begin_at(&mut self, from: u64) {
        self.from = from;
    }

    /// Takes note of the next bytes.
    pub fn pass(&mut self, chunk: &[u8]) {
        let known = usize::try_from(self.hashed.saturating_sub(self.len)).unwrap_or(usize::MAX);
        self.hash.update(chunk.get(known..).unwrap_or_default());
        self.len += chunk.len() as u64;
        let last = &chunk[chunk.len() - chunk.len().min(self.max)..];
        let (fill, over) = last.split_at(last.len().min(self.max - self.ring.len()));
        self.ring.extend_from_slice(fill);
        let (first, second) = over.split_at(over.len().min(self.ring.len() - self.at));
        self.ring[self.at..self.at + first.len()].copy_from_slice(first);
        self.ring[..second.len()].copy_from_slice(second);
        if self.max > 0 {
            self.at = (self.at + over.len()) % self.max;
        }
    }

    /// The end of the body that is not part of its beginning, and the hash of all of it.
    pub fn finish(mut self: Box<Self>) -> (Vec<u8>, blake3::Hash) {
        self.ring.rotate_left(self.at);
        let apart = usize::try_from(self.len.saturating_sub(self.from)).unwrap_or(usize::MAX);
        let overlap = self.ring.len().saturating_sub(apart);
        self.ring.drain(..overlap);
        (self.ring, self.hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_however_the_body_is_cut_into_chunks() {
        let body: Vec<u8> = (0..1_000u32).map(|n| (n % 251) as u8).collect();
        for size in [1, 2, 3, 7, 16, 17, 100, 999, 1_000] {
            let mut ends = Box::new(Ends::new(16));
            body.chunks(size).for_each(|chunk| ends.pass(chunk));
            let (tail, hash) = ends.finish();
            assert_eq!(tail, body[984..], "chunks of {size}");
            assert_eq!(hash, blake3::hash(&body));
        }
    }

    #[test]
    fn the_end_does_not_repeat_the_beginning() {
        let mut ends = Box::new(Ends::new(16));
        ends.pass(b"0123456789");
        ends.begin_at(7);
        assert_eq!(ends.finish().0, b"789");
    }

    #[test]
    fn without_memory_for_an_end_the_hash_remains() {
        let mut ends = Box::new(Ends::new(0));
        ends.pass(b"abc");
        assert_eq!(ends.finish(), (Vec::new(), blake3::hash(b"abc")));
    }
}
