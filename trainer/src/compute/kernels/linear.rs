//! Weights packed once, multiplied both ways on all threads.
//!
//! `W (out, in)` lies as panels of 32 outputs, each `(in, 32)`: the forward product streams them
//! as they are (also for the few rows of a decoding step), the backward product turns 32 by 32
//! squares on the fly, so one copy of the weights serves both. A LoRA pair is simply a second
//! term of the same sum, added while the tile is still in registers.

use rayon::prelude::*;

use super::micro::{Block, Kernels, NR, Segment, kernels};

/// Longest contraction per pass: 1024 x 32 values (128 KiB) stay in a core's L2 cache.
const PASS: usize = 1024;
/// How much a pass may exceed it, so that a LoRA term does not need one of its own.
const PASS_SLACK: usize = 128;
/// Rows and panels of a forward task; 120 is a multiple of the kernels' strips.
const TASK_ROWS: usize = 120;
const TASK_PANELS: usize = 4;
/// Fewest tasks that a backward product is cut into by rows, and fewest rows of one.
const BACK_TASKS: usize = 16;
const BACK_ROWS: usize = 48;

/// A packed weight matrix `(outputs, inputs)`.
pub(in crate::compute) struct Linear {
    outputs: usize,
    inputs: usize,
    panels: Vec<f32>,
}

/// One summand: rows `x` times a weight. Forward: `x (rows, inputs)`; backward: `(rows, outputs)`.
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

impl Linear {
    /// Packs `scale · weights`, row-major `(outputs, inputs)`.
    ///
    /// # Panics
    /// When `weights` has another length: a bug of the caller.
    pub(in crate::compute) fn pack(
        weights: &[f32],
        outputs: usize,
        inputs: usize,
        scale: f32,
    ) -> Linear {
        assert_eq!(weights.len(), outputs * inputs, "a weight of another shape");
        let mut panels = vec![0.0; outputs.div_ceil(NR) * inputs * NR];
        panels.par_chunks_mut((inputs * NR).max(1)).enumerate().for_each(|(index, panel)| {
            let first = index * NR;
            for (j, row) in weights[first * inputs..].chunks_exact(inputs).take(NR).enumerate() {
                for (k, value) in row.iter().enumerate() {
                    panel[k * NR + j] = scale * value;
                }
            }
        });
        Linear { outputs, inputs, panels }
    }

    /// Copies row `index` of the weight (`inputs` values) to `to`.
    pub(in crate::compute) fn row(&self, index: usize, to: &mut [f32]) {
        let panel = &self.panels[index / NR * self.inputs * NR..];
        for (k, value) in to.iter_mut().enumerate().take(self.inputs) {
            *value = panel[k * NR + index % NR];
        }
    }

    /// Number of outputs.
    pub(in crate::compute) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Start of panel `index`'s row `k`.
    fn panel(&self, index: usize, k: usize) -> *const f32 {
        self.panels[(index * self.inputs + k) * NR..].as_ptr()
    }
}

/// A piece of the contraction: term, first index, length.
type Piece = (usize, usize, usize);

/// Cuts the contraction over all terms into passes that fit the cache.
fn passes(lengths: impl Iterator<Item = usize>) -> Vec<Vec<Piece>> {
    let mut passes: Vec<Vec<Piece>> = Vec::new();
    let mut room = 0;
    for (term, length) in lengths.enumerate() {
        for first in (0..length).step_by(PASS) {
            let count = PASS.min(length - first);
            match passes.last_mut() {
                Some(pass) if count <= room => pass.push((term, first, count)),
                _ => {
                    passes.push(vec![(term, first, count)]);
                    room = PASS + PASS_SLACK;
                }
            }
            room -= count;
        }
    }
    passes
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

/// Runs all jobs, each over the same number of rows, on the threads of the current pool.
///
/// # Panics
/// When a length does not fit: a bug of the caller, caught before memory is touched.
pub(in crate::compute) fn project(rows: usize, jobs: &mut [Job<'_>]) {
    let mut tasks = Vec::new();
    let mut plans = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter_mut().enumerate() {
        let outputs = job.terms.first().map_or(0, |term| term.w.outputs);
        assert_eq!(job.y.len(), rows * outputs, "a destination of another shape");
        for term in &job.terms {
            assert_eq!(term.w.outputs, outputs, "terms of different widths");
            assert_eq!(term.x.len(), rows * term.w.inputs, "an operand of another shape");
        }
        for row in (0..rows).step_by(TASK_ROWS) {
            for panel in (0..outputs.div_ceil(NR)).step_by(TASK_PANELS) {
                tasks.push((index, row, panel));
            }
        }
        let shared = Shared(job.y.as_mut_ptr());
        plans.push((shared, outputs, passes(job.terms.iter().map(|t| t.w.inputs))));
    }
    let (kernels, jobs) = (kernels(), &*jobs);
    tasks.into_par_iter().with_max_len(1).for_each(|(index, row, first)| {
        let (job, (shared, outputs, passes)) = (&jobs[index], &plans[index]);
        let count = TASK_ROWS.min(rows - row);
        for (pass, pieces) in passes.iter().enumerate() {
            for panel in first..(first + TASK_PANELS).min(outputs.div_ceil(NR)) {
                let segments: Vec<Segment> = pieces
                    .iter()
                    .map(|&(term, k, count)| {
                        let Term { x, w } = job.terms[term];
                        let x = x[row * w.inputs + k..].as_ptr();
                        Segment { x, ldx: w.inputs, k: count, panel: w.panel(panel, k) }
                    })
                    .collect();
                let width = NR.min(outputs - panel * NR);
                // SAFETY: row < rows and the panel's columns are inside y, whose length was
                // checked; so were the operands'. Tiles of different tasks are disjoint.
                unsafe {
                    let y = shared.at(row * outputs + panel * NR);
                    let add = job.add || pass > 0;
                    let block = Block { y, ldy: *outputs, rows: count, width, add };
                    (kernels.multiply)(&segments, &block);
                }
            }
        }
    });
}

/// `dx (rows, inputs) (+)= Σ dy W` over all terms, on the threads of the current pool.
///
/// # Panics
/// When a length does not fit: a bug of the caller, caught before memory is touched.
pub(in crate::compute) fn project_back(rows: usize, dx: &mut [f32], add: bool, terms: &[Term<'_>]) {
    let inputs = terms.first().map_or(0, |term| term.w.inputs);
    assert_eq!(dx.len(), rows * inputs, "a destination of another shape");
    for term in terms {
        assert_eq!(term.w.inputs, inputs, "terms of different widths");
        assert_eq!(term.x.len(), rows * term.w.outputs, "an operand of another shape");
    }
    let panels = inputs.div_ceil(NR);
    let parts = BACK_TASKS.div_ceil(panels.max(1));
    let step = rows.div_ceil(parts).max(BACK_ROWS);
    let mut tasks = Vec::new();
    for row in (0..rows).step_by(step) {
        tasks.extend((0..panels).map(|panel| (row, panel)));
    }
    let passes = passes(terms.iter().map(|t| t.w.outputs));
    let (kernels, shared) = (kernels(), Shared(dx.as_mut_ptr()));
    tasks.into_par_iter().with_max_len(1).for_each_init(
        || vec![0.0f32; (PASS + PASS_SLACK) * NR],
        |turned, (row, panel)| {
            let count = step.min(rows - row);
            let width = NR.min(inputs - panel * NR);
            for (pass, pieces) in passes.iter().enumerate() {
                let segments = turn(terms, pieces, row, panel * NR, width, turned, kernels);
                // SAFETY: as in `project`; `turned` holds the pass's panels.
                unsafe {
                    let y = shared.at(row * inputs + panel * NR);
                    let add = add || pass > 0;
                    let block = Block { y, ldy: inputs, rows: count, width, add };
                    (kernels.multiply)(&segments, &block);
                }
            }
        },
    );
}

/// Writes inputs `column..column + width` of a pass's weights as `(outputs, NR)` panels.
fn turn(
    terms: &[Term<'_>],
    pieces: &[Piece],
    row: usize,
    column: usize,
    width: usize,
    turned: &mut [f32],
    kernels: Kernels,
) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(pieces.len());
    let mut rest = turned;
    for &(term, first, count) in pieces {
        let Term { x, w } = terms[term];
        let (mine, left) = rest.split_at_mut(count * NR);
        rest = left;
        for from in (0..count).step_by(NR) {
            let square = NR.min(count - from);
            let source = w.panel((first + from) / NR, column);
            // SAFETY: `first` is a multiple of NR (PASS is), so source is the panel of these
            // outputs, with `width` rows from `column` on; `mine` has `count` rows.
            unsafe {
                (kernels.transpose)(source, mine[from * NR..].as_mut_ptr(), width, square);
            }
        }
        let x = x[row * w.outputs + first..].as_ptr();
        segments.push(Segment { x, ldx: w.outputs, k: count, panel: mine.as_ptr() });
    }
    segments
}

/// Which instruction set the kernels use.
pub(in crate::compute) fn kernel_name() -> &'static str {
    kernels().name
}
