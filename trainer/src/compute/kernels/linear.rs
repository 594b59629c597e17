//! Weights packed once.
//!
//! `W (out, in)` lies as panels of 32 outputs, each `(in, 32)`: products forward stream them as
//! they are. Products backward need the turned weight; it is made from the panels, and kept where
//! memory allows. Weights are f32 or, at half the memory and twice the speed, bf16: then operands
//! are rounded to bf16 too, while sums stay f32. See [`super::words`] for the layout of bf16.

use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use rayon::prelude::*;

use super::micro::{NR, kernels};
use super::rows::interleave_panel;
use super::words::{self, Precision};
use crate::compute::scratch::Scratch;

/// A packed weight matrix `(outputs, inputs)`.
pub(in crate::compute) struct Linear {
    outputs: usize,
    inputs: usize,
    precision: Precision,
    /// `(outputs / 32, words of inputs, 32)`.
    panels: Panels,
    /// Whether to keep the turned weight once it was made.
    keep: bool,
    turned: OnceLock<Box<Linear>>,
}

/// Memory of panels: a weight's own, or a thread's for a while.
enum Panels {
    Own(Vec<u32>),
    Lent(Scratch<u32>),
}

impl Deref for Panels {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Panels::Own(words) => words,
            Panels::Lent(words) => words,
        }
    }
}

/// A turned weight, `(inputs, outputs)`.
pub(in crate::compute) enum Turned<'a> {
    /// It is kept with its weight.
    Kept(&'a Linear),
    /// It was made for this use.
    Made(Box<Linear>),
}

impl Deref for Turned<'_> {
    type Target = Linear;

    fn deref(&self) -> &Linear {
        match self {
            Turned::Kept(linear) => linear,
            Turned::Made(linear) => linear,
        }
    }
}

impl DerefMut for Panels {
    fn deref_mut(&mut self) -> &mut [u32] {
        match self {
            Panels::Own(words) => words,
            Panels::Lent(words) => words,
        }
    }
}

impl Linear {
    /// Packs `scale · weights`, row-major `(outputs, inputs)`, on the threads of the current pool.
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
        let mut linear = Linear::blank(outputs, inputs, precision);
        linear.fill(weights, scale);
        linear
    }

    /// Room for a weight of this shape, all zero.
    pub(in crate::compute) fn blank(outputs: usize, inputs: usize, precision: Precision) -> Linear {
        let panels = Panels::Own(vec![0; outputs.div_ceil(NR) * precision.words(inputs) * NR]);
        Linear { outputs, inputs, precision, panels, keep: false, turned: OnceLock::new() }
    }

    /// As [`Linear::pack`], in the place of what was packed before; a turned form that was kept is
    /// made again.
    ///
    /// # Panics
    /// As [`Linear::pack`].
    pub(in crate::compute) fn fill(&mut self, weights: &[f32], scale: f32) {
        let (inputs, precision) = (self.inputs, self.precision);
        assert_eq!(weights.len(), self.outputs * inputs, "a weight of another shape");
        let (size, parts) =
            (precision.words(inputs) * NR, weights.par_chunks((NR * inputs).max(1)));
        self.panels.par_chunks_mut(size.max(1)).zip(parts).for_each(|(panel, part)| {
            let shape = (inputs, part.len() / inputs, inputs);
            interleave_panel(panel, part, shape, scale, precision);
        });
        if let Some(mut turned) = self.turned.take() {
            self.turn_into(&mut turned.panels);
            self.turned = OnceLock::from(turned);
        }
    }

    /// The same weight, which keeps its turned form once that was needed.
    pub(in crate::compute) fn keeping(self, keep: bool) -> Linear {
        Linear { keep, ..self }
    }

    /// The turned weight, for products backward. Made on the threads of the current pool.
    pub(in crate::compute) fn turned(&self) -> Turned<'_> {
        match self.keep {
            true => Turned::Kept(self.turned.get_or_init(|| Box::new(self.turn()))),
            false => Turned::Made(Box::new(self.turn())),
        }
    }

    fn turn(&self) -> Linear {
        let (outputs, inputs, precision) = (self.inputs, self.outputs, self.precision);
        let words = outputs.div_ceil(NR) * precision.words(inputs) * NR;
        // In columns past the last output stands what stood there: nobody reads their products.
        let mut panels = match self.keep {
            true => Panels::Own(vec![0; words]),
            false => Panels::Lent(Scratch::take(words)),
        };
        self.turn_into(&mut panels);
        Linear { outputs, inputs, precision, panels, keep: false, turned: OnceLock::new() }
    }

    /// Writes the turned weight's panels.
    fn turn_into(&self, to: &mut [u32]) {
        let size = self.precision.words(self.outputs) * NR;
        to.par_chunks_mut(size.max(1)).enumerate().for_each(|(index, panel)| {
            self.turn_panel(index * NR, panel);
        });
    }

    /// Writes inputs from `column` on as a panel whose contraction runs over the outputs.
    fn turn_panel(&self, column: usize, to: &mut [u32]) {
        let (kernels, width) = (kernels(), NR.min(self.inputs - column));
        for from in (0..self.outputs).step_by(NR) {
            let square = self.precision.words(NR.min(self.outputs - from));
            let source = self.panel(from / NR, self.precision.words(column));
            let to = &mut to[self.precision.words(from) * NR..];
            assert!(to.len() >= square * NR, "a square past its panel");
            match self.precision {
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
    }

    /// Copies row `index` of the weight (`inputs` values) to `to`.
    pub(in crate::compute) fn row(&self, index: usize, to: &mut [f32]) {
        let panel = self.panel(index / NR, 0);
        let word = |k: usize| panel[k * NR + index % NR];
        for (k, value) in to.iter_mut().enumerate().take(self.inputs) {
            *value = self.precision.value(k, word);
        }
    }

    /// Number of outputs.
    pub(in crate::compute) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// How the values are held.
    pub(in crate::compute) fn precision(&self) -> Precision {
        self.precision
    }

    /// Panel `index` and what follows it, from word row `word` on.
    pub(super) fn panel(&self, index: usize, word: usize) -> &[u32] {
        &self.panels[(index * self.precision.words(self.inputs) + word) * NR..]
    }
}
