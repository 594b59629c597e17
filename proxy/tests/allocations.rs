//! Invariant 1, counted: what a chunk costs the tap in allocations and locks: nothing.
//!
//! A binary of its own, because its allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use hone_proxy::tap::capture::{Budget, Capture};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: hands everything to the system's allocator; counting touches no memory of its own.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as demanded of our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as demanded of our caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as demanded of our caller.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.with(Cell::get);
    work();
    COUNT.with(Cell::get) - before
}

fn capture(max: u64) -> Capture {
    Capture::new(Budget::new(1 << 30), max)
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1u8; 100]))), 1);
}

#[test]
fn chunks_allocate_only_for_the_blocks_they_fill() {
    let chunk = [b'x'; 170];
    // (chunks, most blocks that they may need): the blocks grow with what is held.
    for (chunks, most) in [(10, 3), (50, 8), (350, 20), (10_000, 50)] {
        let mut capture = capture(8 << 20);
        let count = allocations(|| (0..chunks).for_each(|_| capture.push(&chunk)));
        assert!(count <= most, "{chunks} chunks made {count} allocations");
    }
}

#[test]
fn most_chunks_allocate_nothing() {
    let mut capture = capture(8 << 20);
    let chunk = [b'x'; 170];
    let with = (0..1_000).filter(|_| allocations(|| capture.push(&chunk)) > 0).count();
    assert!(with <= 35, "{with} of 1,000 chunks allocated");
}

#[test]
fn a_body_of_known_length_is_allocated_once() {
    let mut capture = capture(8 << 20);
    let count = allocations(|| {
        capture.expect(8_500);
        (0..50).for_each(|_| capture.push(&[b'x'; 170]));
    });
    // The block, and the list that it is in.
    assert!(count <= 2, "{count}");
}

#[test]
fn a_body_beyond_the_cap_allocates_nothing_more() {
    let mut capture = capture(64 << 10);
    (0..1_000).for_each(|_| capture.push(&[b'x'; 170]));
    let count = allocations(|| (0..10_000).for_each(|_| capture.push(&[b'x'; 170])));
    assert_eq!(count, 0);
}

#[test]
fn a_spent_budget_costs_no_allocation_per_chunk() {
    let budget = Budget::new(4 << 10);
    let mut first = Capture::new(Arc::clone(&budget), 1 << 20);
    first.push(&[1; 4 << 10]);
    let mut second = Capture::new(budget, 1 << 20);
    second.push(b"cut at once");
    assert_eq!(allocations(|| (0..1_000).for_each(|_| second.push(&[b'x'; 170]))), 0);
}

#[test]
fn a_capture_in_parts_allocates_nothing_once_it_has_its_buffers() {
    let mut capture = Capture::in_parts(Budget::new(1 << 30), 8 << 20, 16 << 10);
    let mut spare = None;
    let mut stream = |chunks: usize| {
        for _ in 0..chunks {
            if capture.is_part_due(170) {
                let part = capture.take_part();
                capture.refill(spare.take());
                spare = part.try_into_mut().ok().map(|buffer| {
                    let mut buffer = Vec::from(buffer);
                    buffer.clear();
                    buffer
                });
            }
            capture.push(&[b'x'; 170]);
        }
    };
    stream(1_000);
    // Ten parts: a handle for each, and no buffer.
    let count = allocations(|| stream(1_000));
    assert!(count <= 20, "{count}");
}
