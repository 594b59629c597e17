//! Working memory of one thread, used again instead of being asked for each time.
//!
//! Why: allocators give large buffers back to the system, and fresh pages of the system cost up to
//! a tenth of a training step. The buffer that was given back last is also the one that still is in
//! the core's cache.
//!
//! Invariant: what stands in a buffer is arbitrary. A thread keeps at most [`KEPT_MAX`] buffers of a
//! kind, none of which outlives it.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// Buffers that a thread keeps of each kind; the one that was not used for longest is given up.
const KEPT_MAX: usize = 24;

type Kept<T> = RefCell<Vec<Vec<T>>>;

/// What a buffer is made of.
pub(super) trait Word: Copy + Default + 'static {
    /// What the current thread keeps.
    fn kept() -> &'static LocalKey<Kept<Self>>;
}

impl Word for f32 {
    fn kept() -> &'static LocalKey<Kept<f32>> {
        thread_local!(static KEPT: Kept<f32> = const { RefCell::new(Vec::new()) });
        &KEPT
    }
}

impl Word for u32 {
    fn kept() -> &'static LocalKey<Kept<u32>> {
        thread_local!(static KEPT: Kept<u32> = const { RefCell::new(Vec::new()) });
        &KEPT
    }
}

/// A buffer of a given length, which its thread keeps when it is dropped.
pub(super) struct Scratch<T: Word> {
    held: Vec<T>,
    len: usize,
}

impl<T: Word> Scratch<T> {
    /// `len` arbitrary values.
    pub(super) fn take(len: usize) -> Scratch<T> {
        // Not one of another size altogether: that would be missed where it is needed.
        let fits = |held: &Vec<T>| held.len() >= len && held.len() / 4 <= len;
        let found = T::kept().try_with(|kept| {
            let mut kept = kept.borrow_mut();
            kept.iter().rposition(fits).map(|place| kept.remove(place))
        });
        // A thread that is ending keeps nothing any more.
        let held = found.ok().flatten().unwrap_or_else(|| vec![T::default(); len]);
        Scratch { held, len }
    }

    /// As [`Scratch::take`], all zero.
    pub(super) fn zeros(len: usize) -> Scratch<T> {
        let mut scratch = Scratch::take(len);
        scratch.fill(T::default());
        scratch
    }
}

impl<T: Word> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.held[..self.len]
    }
}

impl<T: Word> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.held[..self.len]
    }
}

impl<T: Word> Drop for Scratch<T> {
    fn drop(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return;
        }
        // Where the thread is ending, the buffer simply ends too.
        let _ = T::kept().try_with(|kept| {
            let mut kept = kept.borrow_mut();
            kept.push(held);
            if kept.len() > KEPT_MAX {
                kept.remove(0);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_was_given_back_is_the_next_one_of_its_size() {
        let first = Scratch::<f32>::take(1000);
        let place = first.as_ptr();
        drop(first);
        assert_ne!(Scratch::<f32>::take(10).as_ptr(), place, "far too large");
        let again = Scratch::<f32>::take(900);
        assert_eq!((again.as_ptr(), again.len()), (place, 900));
        assert_ne!(Scratch::<f32>::take(900).as_ptr(), place, "in use");
    }

    #[test]
    fn a_thread_keeps_a_limited_number_of_buffers() {
        let many: Vec<_> = (0..2 * KEPT_MAX).map(|i| Scratch::<u32>::zeros(100 + i)).collect();
        drop(many);
        assert_eq!(u32::kept().with(|kept| kept.borrow().len()), KEPT_MAX);
    }
}
