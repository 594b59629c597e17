//! The output head on the rows that matter: log-probabilities and their gradient.
//!
//! Logits are made for some rows at a time and the whole vocabulary, in chunks of the vocabulary
//! that stay where they are: softmax, then gradient, in place. Rows without a target never reach
//! the head.

use rayon::prelude::*;

use super::batch::Target;
use super::kernels::{Job, Term, project, project_back};
use super::math;
use super::model::{Model, VOCAB_CHUNK};

/// Most rows whose logits exist at a time, for a number of bytes.
pub(super) fn rows_max(model: &Model, bytes: usize) -> usize {
    (bytes / (4 * model.config.vocab)).max(8)
}

/// Logits `(rows, outputs)` per chunk of the vocabulary for hidden states before the final norm.
pub(super) fn logits(model: &Model, hidden: &[f32]) -> Vec<Vec<f32>> {
    let rows = hidden.len() / model.config.hidden;
    let mut normed = vec![0.0; hidden.len()];
    math::norm(hidden, &model.norm, model.eps, &mut normed);
    let mut chunks: Vec<Vec<f32>> =
        model.head.iter().map(|part| vec![0.0; rows * part.outputs()]).collect();
    let jobs = chunks.iter_mut().zip(&model.head).map(|(y, w)| Job {
        y,
        add: false,
        terms: vec![Term { x: &normed, w }],
    });
    project(rows, &mut jobs.collect::<Vec<_>>());
    chunks
}

/// Log-probabilities of some targets, with what their gradient needs.
pub(super) struct Scored {
    /// ln p of each target.
    pub(super) logprobs: Vec<f32>,
    /// Hidden states before the final norm, one row per target.
    hidden: Vec<f32>,
    /// `e^(logit − shift)` per chunk of the vocabulary.
    chunks: Vec<Vec<f32>>,
    /// Each chunk's largest logit, per row.
    shifts: Vec<Vec<f32>>,
    /// Log-sum-exp per row.
    lse: Vec<f32>,
}

/// Copies the rows of `x (rows, hidden)` that the targets name.
fn gather(model: &Model, x: &[f32], targets: &[Target]) -> Vec<f32> {
    let width = model.config.hidden;
    targets.iter().flat_map(|t| &x[t.row * width..(t.row + 1) * width]).copied().collect()
}

/// Scores targets on the residual stream `x (rows, hidden)`, on the current pool.
pub(super) fn score(model: &Model, x: &[f32], targets: &[Target]) -> Scored {
    let hidden = gather(model, x, targets);
    let mut chunks = logits(model, &hidden);
    let rows = targets.len();
    let parts: Vec<Part> =
        chunks.par_iter_mut().enumerate().map(|(i, chunk)| part(i, chunk, targets)).collect();
    let lse: Vec<f32> = (0..rows)
        .map(|i| {
            let most = parts.iter().map(|p| p.shifts[i]).fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = parts.iter().map(|p| p.sums[i] * (p.shifts[i] - most).exp()).sum();
            most + sum.ln()
        })
        .collect();
    let mut logprobs = vec![0.0; rows];
    for &(i, logit) in parts.iter().flat_map(|part| &part.found) {
        logprobs[i] = logit - lse[i];
    }
    let shifts = parts.into_iter().map(|part| part.shifts).collect();
    Scored { logprobs, hidden, chunks, shifts, lse }
}

/// What one chunk of the vocabulary contributes to the softmax of every row.
struct Part {
    /// Largest logit.
    shifts: Vec<f32>,
    /// `Σ e^(logit − shift)`.
    sums: Vec<f32>,
    /// Rows whose target is in this chunk, with its logit.
    found: Vec<(usize, f32)>,
}

/// Reads chunk `index` of the vocabulary and leaves `e^(logit − shift)` in it.
fn part(index: usize, chunk: &mut [f32], targets: &[Target]) -> Part {
    let width = chunk.len() / targets.len().max(1);
    let mut part = Part { shifts: Vec::new(), sums: Vec::new(), found: Vec::new() };
    for (i, row) in chunk.chunks_exact_mut(width).enumerate() {
        let token = targets[i].token as usize;
        if token / VOCAB_CHUNK == index {
            part.found.push((i, row[token % VOCAB_CHUNK]));
        }
        let shift = math::max(row);
        part.sums.push(math::exp_in_place(row, shift, 1.0));
        part.shifts.push(shift);
    }
    part
}

impl Scored {
    /// Adds to `dx (rows, hidden)` the gradient of `Σ slope · ln p`:
    /// `d logit_j = slope · (1{j = target} − p_j)`. On the current pool.
    pub(super) fn back(
        mut self,
        model: &Model,
        targets: &[Target],
        slopes: &[f32],
        dx: &mut [f32],
    ) {
        let (rows, width) = (targets.len(), model.config.hidden);
        let (shifts, lse) = (&self.shifts, &self.lse);
        self.chunks.par_iter_mut().enumerate().for_each(|(index, chunk)| {
            let outputs = chunk.len() / rows.max(1);
            for (i, row) in chunk.chunks_exact_mut(outputs).enumerate() {
                let factor = -slopes[i] * (shifts[index][i] - lse[i]).exp();
                row.iter_mut().for_each(|value| *value *= factor);
                let token = targets[i].token as usize;
                if token / VOCAB_CHUNK == index {
                    row[token % VOCAB_CHUNK] += slopes[i];
                }
            }
        });
        let mut dnormed = vec![0.0; rows * width];
        let terms = self.chunks.iter().zip(&model.head).map(|(x, w)| Term { x, w });
        project_back(rows, &mut dnormed, false, &terms.collect::<Vec<_>>());
        // Rows may repeat (a shared prompt's last one), so they are added one after another.
        let states = self.hidden.chunks_exact(width).zip(dnormed.chunks_exact(width));
        for (target, (hidden, dy)) in targets.iter().zip(states) {
            let to = &mut dx[target.row * width..(target.row + 1) * width];
            math::norm_row_back(hidden, &model.norm, model.eps, dy, to);
        }
    }
}
