//! Products of activations with packed weights.
//!
//! [`multiply`] works on a block of rows on the calling thread (or, for the few rows of a decoding
//! step, over panels on the current pool); [`project`] and [`project_back`] take many rows and use
//! all threads. A LoRA pair is simply a second part of the same sum, added while the tile is hot.

use rayon::prelude::*;

use super::linear::Linear;
use super::micro::{NR, Product, ROWS_MAX, accumulate_at, kernels};
use super::rows::{Rows, strips};
use super::words::Precision;

/// Words of the longest contraction per pass: 768 x 32 words (96 KiB) and a block of rows stay in a
/// core's L2.
const PASS: usize = 768;
/// How many values a pass may exceed it, so that a LoRA part does not need one of its own.
const PASS_SLACK: usize = 256;

/// Values of the longest contraction per pass.
fn pass_values(precision: Precision) -> usize {
    PASS * 4 / precision.bytes()
}
/// Most rows of a block that one thread works on at a time, and fewest worth a task.
const BLOCK: usize = 96;
const BLOCK_MIN: usize = 48;
/// Up to so many rows, threads share a product panel by panel.
const FEW_ROWS: usize = 32;
/// Panels of one such task.
const FEW_PANELS: usize = 4;

/// Rows per block, so that every thread gets equal work for `rows` rows.
pub(in crate::compute) fn block_rows(rows: usize) -> usize {
    let threads = rayon::current_num_threads().max(1);
    let blocks = rows.div_ceil(BLOCK).max(rows.div_ceil(BLOCK_MIN).min(2 * threads)).max(1);
    let blocks = if blocks > threads { blocks.next_multiple_of(threads) } else { blocks };
    rows.div_ceil(blocks).max(1)
}

/// One summand: packed rows times inputs `first..` of a weight.
#[derive(Clone, Copy)]
pub(in crate::compute) struct Part<'a> {
    rows: &'a Rows,
    w: &'a Linear,
    first: usize,
}

impl<'a> Part<'a> {
    /// Rows times the whole weight.
    ///
    /// # Panics
    /// When rows and weight do not fit: a bug of the caller.
    pub(in crate::compute) fn new(rows: &'a Rows, w: &'a Linear) -> Part<'a> {
        assert_eq!(rows.width(), w.inputs(), "rows of another width than the weight");
        Part { rows, w, first: 0 }
    }
}

/// Where a product goes: rows of `y` that begin `stride` values after each other.
pub(in crate::compute) struct Out<'a> {
    pub(in crate::compute) y: &'a mut [f32],
    pub(in crate::compute) stride: usize,
    /// Add to what stands there instead of overwriting it.
    pub(in crate::compute) add: bool,
}

/// A destination that tasks share; each writes its own tiles.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: tasks write disjoint tiles of the buffer, which outlives the parallel call.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Takes `self`, so that a closure captures the whole (Sync) wrapper and not the pointer.
    unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller keeps the offset inside the buffer.
        unsafe { self.0.add(offset) }
    }
}

/// A checked product.
struct Plan<'a> {
    y: Shared,
    stride: usize,
    add: bool,
    rows: usize,
    outputs: usize,
    parts: &'a [Part<'a>],
    passes: Vec<Vec<Piece>>,
}

/// A piece of the contraction: part, first index, length.
type Piece = (usize, usize, usize);

/// Cuts the contraction over all parts into passes that fit the cache.
fn passes(longest: usize, lengths: impl Iterator<Item = usize>) -> Vec<Vec<Piece>> {
    let mut passes: Vec<Vec<Piece>> = Vec::new();
    let mut room = 0;
    for (part, length) in lengths.enumerate() {
        for first in (0..length).step_by(longest) {
            let count = longest.min(length - first);
            match passes.last_mut() {
                Some(pass) if count <= room => pass.push((part, first, count)),
                _ => {
                    passes.push(vec![(part, first, count)]);
                    room = longest + PASS_SLACK;
                }
            }
            room -= count;
        }
    }
    passes
}

/// `y (+)= Σ rows Wᵀ` over all parts.
///
/// # Panics
/// When a length does not fit: a bug of the caller, caught before memory is touched.
pub(in crate::compute) fn multiply(out: Out<'_>, parts: &[Part<'_>]) {
    let Some(one) = parts.first() else { return };
    let (rows, outputs) = (one.rows.rows(), one.w.outputs());
    assert!(rows == 0 || out.y.len() >= (rows - 1) * out.stride + outputs, "a product past y");
    assert!(rows <= 1 || out.stride >= outputs, "rows of a product overlap");
    for part in parts {
        assert!(part.rows.rows() == rows && part.w.outputs() == outputs, "parts do not fit");
        assert!(part.first + part.rows.width() <= part.w.inputs(), "rows past the weight");
        assert_eq!(part.rows.precision(), part.w.precision(), "parts of different precision");
    }
    let longest = pass_values(one.rows.precision());
    let passes = passes(longest, parts.iter().map(|part| part.rows.width()));
    let (y, stride, add) = (Shared(out.y.as_mut_ptr()), out.stride, out.add);
    let plan = Plan { y, stride, add, rows, outputs, parts, passes };
    let panels = outputs.div_ceil(NR);
    if rows <= FEW_ROWS && panels > FEW_PANELS {
        let tasks = (0..panels.div_ceil(FEW_PANELS)).into_par_iter().with_max_len(1);
        tasks.for_each(|task| {
            let first = task * FEW_PANELS;
            plan.run(first..(first + FEW_PANELS).min(panels));
        });
    } else {
        plan.run(0..panels);
    }
}

impl Plan<'_> {
    /// Computes some panels of the product.
    fn run(&self, panels: std::ops::Range<usize>) {
        let strips: Vec<(usize, usize)> = strips(self.rows).collect();
        let mut tile = [0.0f32; ROWS_MAX * NR];
        let kernels = kernels();
        for (pass, pieces) in self.passes.iter().enumerate() {
            for panel in panels.clone() {
                let width = NR.min(self.outputs - panel * NR);
                for (index, strip) in strips.iter().enumerate() {
                    // SAFETY: the strip's rows and the panel's columns are inside y, whose length
                    // was checked; tiles of different tasks are disjoint.
                    let y = unsafe { self.y.at(strip.0 * self.stride + panel * NR) };
                    (kernels.fetch)(y, self.stride, strip.1);
                    let first = pass == 0 && !self.add;
                    // Later passes are summed by themselves: one running sum over a contraction
                    // as long as the vocabulary would lose a digit.
                    let whole = width == NR && first;
                    let (to, stride) =
                        if whole { (y, self.stride) } else { (tile.as_mut_ptr(), NR) };
                    let (share, narrow) = ((index, strips.len()), width <= NR / 2);
                    let product = |piece| self.product(piece, panel, *strip, share, narrow);
                    let mut fresh = true;
                    for pair in pieces.chunks(2) {
                        let (first, second) = (product(&pair[0]), pair.get(1).map(product));
                        // SAFETY: as above, or a tile of the most rows that a strip has.
                        unsafe { accumulate_at(to, stride, fresh, first, second) };
                        fresh = false;
                    }
                    if !whole {
                        // SAFETY: as above.
                        unsafe { store(y, self.stride, (strip.1, width), !first, &tile) };
                    }
                }
            }
        }
    }

    /// One strip times one panel, along one piece of the contraction. The same stretch of the next
    /// panel is fetched meanwhile, a part by each strip.
    fn product(
        &self,
        &(part, first, count): &Piece,
        panel: usize,
        strip: (usize, usize),
        (index, strips): (usize, usize),
        narrow: bool,
    ) -> Product<'_> {
        let Part { rows, w, first: start } = self.parts[part];
        let precision = w.precision();
        let (k, length) = (precision.words(start + first), precision.words(count) * NR);
        let next = w.panel((panel + 1).min(self.outputs.div_ceil(NR) - 1), k);
        let ahead = (&next[length / strips * index..], (4 * NR).div_ceil(strips));
        let left = rows.strip(strip, first);
        let panel = &w.panel(panel, k)[..length];
        Product { precision, left, panel, narrow, ahead }
    }
}

/// Writes or adds the first `width` columns of a tile's rows.
///
/// # Safety
/// `y` is writable for `rows` rows of `width` values at `stride`.
unsafe fn store(
    y: *mut f32,
    stride: usize,
    (rows, width): (usize, usize),
    add: bool,
    tile: &[f32; ROWS_MAX * NR],
) {
    for (r, from) in tile.as_chunks::<NR>().0.iter().enumerate().take(rows) {
        // SAFETY: by the caller's promise.
        let to = unsafe { std::slice::from_raw_parts_mut(y.add(r * stride), width) };
        // Stretches whose length the compiler knows, read as a whole before they are written.
        let (to, to_rest) = to.as_chunks_mut::<{ NR / 2 }>();
        let (from, from_rest) = from[..width].as_chunks::<{ NR / 2 }>();
        for (to, from) in to.iter_mut().zip(from) {
            *to = if add { std::array::from_fn(|i| to[i] + from[i]) } else { *from };
        }
        for (to, from) in to_rest.iter_mut().zip(from_rest) {
            *to = if add { *to + from } else { *from };
        }
    }
}

/// One summand over many rows. Forward: `x (rows, inputs)`; backward: `(rows, outputs)`.
#[derive(Clone, Copy)]
pub(in crate::compute) struct Term<'a> {
    pub(in crate::compute) x: &'a [f32],
    pub(in crate::compute) w: &'a Linear,
}

/// One output of a forward step: `y (rows, outputs) (+)= Σ x Wᵀ`.
pub(in crate::compute) struct Job<'a> {
    pub(in crate::compute) y: &'a mut [f32],
    pub(in crate::compute) add: bool,
    pub(in crate::compute) terms: Vec<Term<'a>>,
}

/// Runs all jobs, each over the same number of rows, on the threads of the current pool. Terms
/// with one `x` share its packing.
///
/// # Panics
/// When a length does not fit: a bug of the caller, caught before memory is touched.
pub(in crate::compute) fn project(rows: usize, jobs: &mut [Job<'_>]) {
    let step = block_rows(rows);
    let mut operands: Vec<Term<'_>> = Vec::new();
    for term in jobs.iter().flat_map(|job| &job.terms) {
        assert_eq!(term.x.len(), rows * term.w.inputs(), "an operand of another shape");
        if !operands.iter().any(|known| same(known, term)) {
            operands.push(*term);
        }
    }
    let starts: Vec<usize> = (0..rows).step_by(step).collect();
    let pairs = operands.iter().flat_map(|term| starts.iter().map(move |row| (term, *row)));
    let packed = pairs.collect::<Vec<_>>().into_par_iter().with_max_len(1).map(|(term, row)| {
        let width = term.w.inputs();
        let x = &term.x[row * width..];
        Rows::pack(x, width, step.min(rows - row), width, term.w.precision())
    });
    let packed: Vec<Rows> = packed.collect();
    let mut tasks = Vec::new();
    for job in jobs {
        let places: Vec<(usize, &Linear)> = job
            .terms
            .iter()
            .map(|term| (operands.iter().position(|o| same(o, term)).unwrap_or(0), term.w))
            .collect();
        let outputs = job.y.len() / rows.max(1);
        for (block, y) in job.y.chunks_mut((step * outputs).max(1)).enumerate() {
            tasks.push((places.clone(), block, y, outputs, job.add));
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(places, block, y, stride, add)| {
        let part = |&(place, w): &(usize, _)| Part::new(&packed[place * starts.len() + block], w);
        let parts: Vec<Part<'_>> = places.iter().map(part).collect();
        multiply(Out { y, stride, add }, &parts);
    });
}

/// Whether two terms read the same rows.
fn same(a: &Term<'_>, b: &Term<'_>) -> bool {
    std::ptr::eq(a.x, b.x) && a.w.precision() == b.w.precision()
}

/// `dx (rows, inputs) (+)= Σ dy W` over all terms, on the threads of the current pool.
///
/// # Panics
/// When a length does not fit: a bug of the caller, caught before memory is touched.
pub(in crate::compute) fn project_back(rows: usize, dx: &mut [f32], add: bool, terms: &[Term<'_>]) {
    let inputs = terms.first().map_or(0, |term| term.w.inputs());
    assert_eq!(dx.len(), rows * inputs, "a destination of another shape");
    let (step, mut add) = (block_rows(rows), add);
    // One after another, so that at most one weight stands turned beside itself.
    for Term { x, w } in terms {
        assert_eq!((x.len(), w.inputs()), (rows * w.outputs(), inputs), "another shape");
        let turned = w.turned();
        let (w, longest): (&Linear, _) = (&turned, pass_values(turned.precision()));
        let blocks = dx.par_chunks_mut((step * inputs).max(1)).enumerate().with_max_len(1);
        blocks.for_each(|(block, dx)| {
            let (row, count, mut add) = (block * step, dx.len() / inputs, add);
            for first in (0..w.inputs()).step_by(longest) {
                let width = longest.min(w.inputs() - first);
                let x = &x[row * w.inputs() + first..];
                let rows = &Rows::pack(x, w.inputs(), count, width, w.precision());
                let out = Out { y: &mut *dx, stride: inputs, add };
                multiply(out, &[Part { rows, w, first }]);
                add = true;
            }
        });
        add = true;
    }
}
