//! Weights packed once, multiplied both ways on all threads.
//!
//! `W (out, in)` lies as panels of 32 outputs, each `(in, 32)`: the forward product streams them
//! as they are (also for the few rows of a decoding step), the backward product turns 32 by 32
//! squares on the fly, so one copy of the weights serves both. A LoRA pair is simply a second
//! term of the same sum, added while the tile is still in registers.
//!
//! Weights are f32 or, at half the memory and up to twice the speed, bf16: then operands are
//! rounded to bf16 too, while sums stay f32. See [`super::words`] for the layout of bf16.

use std::borrow::Cow;

use rayon::prelude::*;

use super::micro::{Block, Kernel, Kernels, NR, Segment, kernels};
use super::words::{self, Precision};

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
    precision: Precision,
    /// `(outputs / 32, words of inputs, 32)`.
    panels: Vec<u32>,
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
        precision: Precision,
    ) -> Linear {
        assert_eq!(weights.len(), outputs * inputs, "a weight of another shape");
        let depth = precision.words(inputs);
        let mut panels = vec![0; outputs.div_ceil(NR) * depth * NR];
        panels.par_chunks_mut((depth * NR).max(1)).enumerate().for_each(|(index, panel)| {
            let first = index * NR;
            for (j, row) in weights[first * inputs..].chunks_exact(inputs).take(NR).enumerate() {
                for k in 0..depth {
                    panel[k * NR + j] = precision.word(row, k, scale);
                }
            }
        });
        Linear { outputs, inputs, precision, panels }
    }

    /// Copies row `index` of the weight (`inputs` values) to `to`.
    pub(in crate::compute) fn row(&self, index: usize, to: &mut [f32]) {
        let panel = &self.panels[index / NR * self.precision.words(self.inputs) * NR..];
        let word = |k: usize| panel[k * NR + index % NR];
        for (k, value) in to.iter_mut().enumerate().take(self.inputs) {
            *value = self.precision.value(k, word);
        }
    }

    /// Number of outputs.
    pub(in crate::compute) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Panel `index` from word row `word` on.
    fn panel(&self, index: usize, word: usize) -> &[u32] {
        &self.panels[(index * self.precision.words(self.inputs) + word) * NR..]
    }
}

/// The kernel for all terms of a product, which have one precision.
fn kernel(kernels: Kernels, terms: &[Term<'_>]) -> (Precision, Kernel) {
    let precision = terms.first().map_or(Precision::F32, |term| term.w.precision);
    assert!(terms.iter().all(|t| t.w.precision == precision), "terms of different precision");
    match (precision, kernels.multiply_pairs) {
        (Precision::Bf16, Some(pairs)) => (precision, pairs),
        (Precision::F32, _) => (precision, kernels.multiply),
        // `Precision::supported` never lets this be packed.
        (Precision::Bf16, None) => unreachable!("bf16 weights on a processor without bf16"),
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

/// What the tasks of one job need.
struct Plan<'a> {
    y: Shared,
    outputs: usize,
    kernel: (Precision, Kernel),
    passes: Vec<Vec<Piece>>,
    /// Each term's rows as words.
    operands: Vec<Cow<'a, [u32]>>,
}

/// Runs all jobs, each over the same number of rows, on the threads of the current pool.
///
/// # Panics
/// When a length does not fit: a bug of the caller, caught before memory is touched.
pub(in crate::compute) fn project(rows: usize, jobs: &mut [Job<'_>]) {
    let (mut tasks, kernels) = (Vec::new(), kernels());
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
        plans.push(Plan {
            y: Shared(job.y.as_mut_ptr()),
            outputs,
            kernel: kernel(kernels, &job.terms),
            passes: passes(job.terms.iter().map(|t| t.w.inputs)),
            operands: job.terms.iter().map(|t| t.w.precision.operand(t.x, t.w.inputs)).collect(),
        });
    }
    let jobs = &*jobs;
    tasks.into_par_iter().with_max_len(1).for_each(|(index, row, first)| {
        let (job, plan) = (&jobs[index], &plans[index]);
        let (outputs, (precision, kernel)) = (plan.outputs, plan.kernel);
        let count = TASK_ROWS.min(rows - row);
        for (pass, pieces) in plan.passes.iter().enumerate() {
            for panel in first..(first + TASK_PANELS).min(outputs.div_ceil(NR)) {
                let segment = |&(term, k, count): &Piece| {
                    let w = job.terms[term].w;
                    let (depth, k) = (precision.words(w.inputs), precision.words(k));
                    let x = plan.operands[term][row * depth + k..].as_ptr();
                    let panel = w.panel(panel, k).as_ptr();
                    Segment { x, ldx: depth, k: precision.words(count), panel }
                };
                let segments: Vec<Segment> = pieces.iter().map(segment).collect();
                let width = NR.min(outputs - panel * NR);
                // SAFETY: row < rows and the panel's columns are inside y, whose length was
                // checked; so were the operands'. Tiles of different tasks are disjoint.
                unsafe {
                    let y = plan.y.at(row * outputs + panel * NR);
                    let add = job.add || pass > 0;
                    kernel(&segments, &Block { y, ldy: outputs, rows: count, width, add });
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
    let operands: Vec<Cow<'_, [u32]>> =
        terms.iter().map(|t| t.w.precision.operand(t.x, t.w.outputs)).collect();
    let (kernels, shared) = (kernels(), Shared(dx.as_mut_ptr()));
    let (_, kernel) = kernel(kernels, terms);
    tasks.into_par_iter().with_max_len(1).for_each_init(
        || vec![0u32; (PASS + PASS_SLACK) * NR],
        |turned, (row, panel)| {
            let count = step.min(rows - row);
            let width = NR.min(inputs - panel * NR);
            for (pass, pieces) in passes.iter().enumerate() {
                let mut segments = turn(terms, pieces, panel * NR, width, turned, kernels);
                for (segment, &(term, first, _)) in segments.iter_mut().zip(pieces) {
                    let from = row * segment.ldx + terms[term].w.precision.words(first);
                    segment.x = operands[term][from..].as_ptr();
                }
                // SAFETY: as in `project`; `turned` holds the pass's panels.
                unsafe {
                    let y = shared.at(row * inputs + panel * NR);
                    let add = add || pass > 0;
                    kernel(&segments, &Block { y, ldy: inputs, rows: count, width, add });
                }
            }
        },
    );
}

/// Writes inputs `column..column + width` of a pass's weights as panels whose contraction runs
/// over the outputs. The segments' `x` is left to the caller.
fn turn(
    terms: &[Term<'_>],
    pieces: &[Piece],
    column: usize,
    width: usize,
    turned: &mut [u32],
    kernels: Kernels,
) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(pieces.len());
    let mut rest = turned;
    for &(term, first, count) in pieces {
        let w = terms[term].w;
        let (mine, left) = rest.split_at_mut(w.precision.words(count) * NR);
        rest = left;
        for from in (0..count).step_by(NR) {
            let square = w.precision.words(NR.min(count - from));
            let source = w.panel((first + from) / NR, w.precision.words(column));
            let to = &mut mine[w.precision.words(from) * NR..];
            assert!(to.len() >= square * NR, "a square past its panel");
            // `first` is a multiple of NR (PASS is), so the source is the panel of these outputs.
            match w.precision {
                Precision::F32 => {
                    assert!(source.len() >= width * NR, "a square past its panel");
                    // SAFETY: `width` rows to read and `square` rows to write, checked above.
                    unsafe {
                        (kernels.transpose)(source.as_ptr(), to.as_mut_ptr(), width, square);
                    }
                }
                Precision::Bf16 => {
                    let pairs = words::regroup(source, width);
                    // SAFETY: NR rows to read, `square` rows to write, checked above.
                    unsafe {
                        let from = pairs.as_flattened().as_ptr();
                        (kernels.transpose)(from, to.as_mut_ptr(), NR, square);
                    }
                }
            }
        }
        let ldx = w.precision.words(w.outputs);
        let k = w.precision.words(count);
        segments.push(Segment { x: std::ptr::null(), ldx, k, panel: mine.as_ptr() });
    }
    segments
}

/// Which instruction set the kernels use.
pub(in crate::compute) fn kernel_name() -> &'static str {
    kernels().name
}
