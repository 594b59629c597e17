//! The output head on the rows that matter: log-probabilities and their gradient.
//!
//! Logits are made for some rows at a time and the whole vocabulary, in chunks of the vocabulary
//! that stay where they are: softmax, then gradient, in place. Rows without a target never reach
//! the head. Besides its target a row may ask for other tokens, for the likeliest ones ([`top`])
//! and for its divergence from another model's row ([`divergence`]).
//!
//! Invariant: nothing of the size of the vocabulary outlives the rows of one call.

mod divergence;
mod top;

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::batch::{Batch, Target};
use super::kernels::{Job, Term, project, project_back};
use super::look::{Direction, Look, Sight, Slopes};
use super::math;
use super::model::{Model, VOCAB_CHUNK};
use super::scratch::Scratch;
use divergence::Other;
pub(in crate::compute) use top::largest;

/// Fewest rows of logits that are worth a task.
const ROWS_MIN: usize = 8;

/// Most rows whose logits exist at a time, for a number of bytes.
pub(super) fn rows_max(model: &Model, bytes: usize) -> usize {
    (bytes / (4 * model.config.vocab)).max(8)
}

/// Logits `(rows, outputs)` per chunk of the vocabulary for hidden states before the final norm, in
/// the memory of earlier ones.
pub(super) fn logits(model: &Model, hidden: &[f32], mut chunks: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let rows = hidden.len() / model.config.hidden;
    let mut normed = Scratch::take(hidden.len());
    math::norm(hidden, &model.norm, model.eps, &mut normed);
    chunks.resize_with(model.head.len(), Vec::new);
    for (chunk, part) in chunks.iter_mut().zip(&model.head) {
        chunk.resize(rows * part.outputs(), 0.0);
    }
    let jobs = chunks.iter_mut().zip(&model.head).map(|(y, w)| Job {
        y,
        add: false,
        terms: vec![Term { x: &normed, w }],
    });
    project(rows, &mut jobs.collect::<Vec<_>>());
    chunks
}

/// One row of the head and what is asked about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// Row of the batch, and the response token that it predicts.
    pub(super) target: Target,
    /// Other tokens whose ln p is wanted.
    pub(super) at: &'a [u32],
    /// How many of the likeliest tokens are wanted.
    pub(super) top: usize,
    /// The hidden state of another model at this row.
    pub(super) against: Option<(&'a [f32], Direction)>,
}

/// The rows of a batch, with what `looks` (one per sequence, or none) ask about them.
pub(super) fn rows<'a>(model: &Model, batch: &Batch, looks: &'a [Look]) -> Vec<Row<'a>> {
    let width = model.config.hidden;
    let mut out = Vec::with_capacity(batch.targets.len());
    for span in &batch.spans {
        let look = looks.get(span.sequence);
        let against = look.and_then(|look| look.against.as_ref());
        for (i, target) in batch.targets[span.targets.clone()].iter().enumerate() {
            out.push(Row {
                target: *target,
                at: look.and_then(|look| look.at.get(i)).map_or(&[], Vec::as_slice),
                top: look.map_or(0, |look| look.top),
                against: against.map(|a| (&a.state[i * width..(i + 1) * width], a.direction)),
            });
        }
    }
    out
}

/// What was seen of one row.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    own: f32,
    at: Vec<f32>,
    top: Vec<(u32, f32)>,
    kl: f32,
}

/// The rows of one sequence as its caller sees them.
pub(super) fn sight(seen: &[Seen], look: Option<&Look>) -> Sight {
    let mut out = Sight { own: seen.iter().map(|s| s.own).collect(), ..Sight::default() };
    let Some(look) = look else { return out };
    if look.top > 0 {
        out.top = seen.iter().map(|s| s.top.clone()).collect();
    }
    if !look.at.is_empty() {
        out.at = seen.iter().map(|s| s.at.clone()).collect();
    }
    if look.against.is_some() {
        out.kl = seen.iter().map(|s| s.kl).collect();
    }
    out
}

/// dL by what was seen of one row.
#[derive(Debug, Clone, Default)]
pub(super) struct Slope {
    own: f32,
    at: Vec<f32>,
    kl: f32,
}

/// The rows of one sequence's slopes, `tokens` of them.
pub(super) fn slopes(slopes: Slopes, tokens: usize) -> Vec<Slope> {
    let mut out = vec![Slope::default(); tokens];
    for (to, own) in out.iter_mut().zip(slopes.own) {
        to.own = own;
    }
    for (to, at) in out.iter_mut().zip(slopes.at) {
        to.at = at;
    }
    for (to, kl) in out.iter_mut().zip(slopes.kl) {
        to.kl = kl;
    }
    out
}

/// What some rows are like, with what their gradient needs.
pub(super) struct Scored {
    /// One per row.
    pub(super) seen: Vec<Seen>,
    /// Hidden states before the final norm, one per row.
    hidden: Vec<f32>,
    /// `e^(logit − shift)` per chunk of the vocabulary.
    chunks: Vec<Vec<f32>>,
    /// Each chunk's largest logit, per row.
    shifts: Vec<Vec<f32>>,
    /// Log-sum-exp per row.
    lse: Vec<f32>,
    /// The other model's rows.
    other: Other,
}

/// Scores rows of the residual stream `x (rows, hidden)`, on the current pool; `chunks` are logits
/// whose memory is taken.
pub(super) fn score(model: &Model, x: &[f32], rows: &[Row<'_>], chunks: Vec<Vec<f32>>) -> Scored {
    let width = model.config.hidden;
    let of = |row: &Row<'_>| row.target.row * width..(row.target.row + 1) * width;
    let hidden: Vec<f32> = rows.iter().flat_map(|row| &x[of(row)]).copied().collect();
    let mut chunks = logits(model, &hidden, chunks);
    let mut other = Other::new(model, rows);
    let work = chunks.par_iter_mut().zip(other.chunks_mut()).enumerate();
    let parts: Vec<Part> = work.map(|(i, (chunk, others))| part(i, chunk, others, rows)).collect();
    let shifts = |row: usize| parts.iter().map(move |p| (p.shifts[row], p.sums[row]));
    let lse: Vec<f32> = (0..rows.len()).map(|row| log_sum(shifts(row))).collect();
    let mut seen: Vec<Seen> =
        rows.iter().map(|row| Seen { at: vec![0.0; row.at.len()], ..Seen::default() }).collect();
    for &(row, place, logit) in parts.iter().flat_map(|part| &part.found) {
        let value = logit - lse[row];
        match place {
            None => seen[row].own = value,
            Some(place) => seen[row].at[place] = value,
        }
    }
    for (i, row) in rows.iter().enumerate().filter(|(_, row)| row.top > 0) {
        let found = parts.iter().flat_map(|part| part.top[i].iter().copied());
        let best = top::best(found, row.top);
        seen[i].top = best.into_iter().map(|(token, logit)| (token, logit - lse[i])).collect();
    }
    other.finish(rows, &parts, &lse, &mut seen);
    let shifts = parts.into_iter().map(|part| part.shifts).collect();
    Scored { seen, hidden, chunks, shifts, lse, other }
}

/// `ln Σ e^shift · sum` over the chunks of a row.
fn log_sum(parts: impl Iterator<Item = (f32, f32)> + Clone) -> f32 {
    let most = parts.clone().map(|(shift, _)| shift).fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = parts.map(|(shift, sum)| sum * (shift - most).exp()).sum();
    most + sum.ln()
}

/// What one chunk of the vocabulary contributes to the softmax of every row.
struct Part {
    /// Largest logit.
    shifts: Vec<f32>,
    /// `Σ e^(logit − shift)`.
    sums: Vec<f32>,
    /// Wanted tokens of this chunk: row, place among the row's others (or its own), logit.
    found: Vec<(usize, Option<usize>, f32)>,
    /// Largest logits of each row.
    top: Vec<Vec<(u32, f32)>>,
    /// What the other model's rows contribute, in their order.
    others: Vec<divergence::Share>,
}

/// Reads chunk `index` of the vocabulary and leaves `e^(logit − shift)` in it; `others` is the same
/// chunk of the other model's rows.
fn part(index: usize, chunk: &mut [f32], others: &mut [f32], rows: &[Row<'_>]) -> Part {
    let width = chunk.len() / rows.len().max(1);
    let mut part = Part {
        shifts: Vec::with_capacity(rows.len()),
        sums: Vec::with_capacity(rows.len()),
        found: Vec::new(),
        top: Vec::new(),
        others: Vec::new(),
    };
    let asks_top = rows.iter().any(|row| row.top > 0);
    let mut others = others.chunks_exact_mut(width);
    for (i, (values, row)) in chunk.chunks_exact_mut(width).zip(rows).enumerate() {
        let here = |token: u32| {
            let token = token as usize;
            (token / VOCAB_CHUNK == index).then_some(token % VOCAB_CHUNK)
        };
        part.found.extend(here(row.target.token).map(|at| (i, None, values[at])));
        let wanted = row.at.iter().enumerate();
        part.found.extend(wanted.filter_map(|(p, t)| Some((i, Some(p), values[here(*t)?]))));
        if asks_top {
            part.top.push(top::largest(values, index * VOCAB_CHUNK, row.top));
        }
        let shift = math::max(values);
        let before = match row.against {
            Some((_, direction)) => others.next().map(|o| divergence::before(values, o, direction)),
            None => None,
        };
        part.sums.push(math::exp_in_place(values, shift, 1.0));
        part.shifts.push(shift);
        part.others.extend(before.map(|(share, other)| share.after(values, other)));
    }
    part
}

impl Scored {
    /// The memory of its logits.
    pub(super) fn release(self) -> Vec<Vec<f32>> {
        self.chunks
    }

    /// Adds to `dx (rows, hidden)` the gradient of `Σ slope · seen`; for a token `v` of a row
    /// `d ln p_v / d logit_j = 1{j = v} − p_j`. On the current pool. Gives back the memory of the logits.
    pub(super) fn back(
        mut self,
        model: &Model,
        rows: &[Row<'_>],
        slopes: &[Slope],
        dx: &mut [f32],
    ) -> Vec<Vec<f32>> {
        let width = model.config.hidden;
        let (shifts, lse, other) = (&self.shifts, &self.lse, &self.other);
        let mut dnormed = Scratch::zeros(rows.len() * width);
        // Chunk by chunk: it still is in the cache when it is multiplied.
        for (index, (chunk, w)) in self.chunks.iter_mut().zip(&model.head).enumerate() {
            let outputs = w.outputs();
            let values = chunk.par_chunks_exact_mut(outputs).enumerate().with_min_len(ROWS_MIN);
            values.for_each(|(i, values)| {
                let (row, slope) = (&rows[i], &slopes[i]);
                let total = slope.own + slope.at.iter().sum::<f32>();
                let scale = (shifts[index][i] - lse[i]).exp();
                match other.row(index, i, outputs) {
                    Some(row) if slope.kl != 0.0 => row.back(values, scale, -total, slope.kl),
                    _ => values.iter_mut().for_each(|value| *value *= -total * scale),
                }
                let own = std::iter::once((&row.target.token, &slope.own));
                for (token, slope) in own.chain(row.at.iter().zip(&slope.at)) {
                    if *token as usize / VOCAB_CHUNK == index {
                        values[*token as usize % VOCAB_CHUNK] += slope;
                    }
                }
            });
            project_back(rows.len(), &mut dnormed, index > 0, &[Term { x: chunk, w }]);
        }
        // Rows may repeat (a shared prompt's last one), so they are added one after another.
        let states = self.hidden.chunks_exact(width).zip(dnormed.chunks_exact(width));
        for (row, (hidden, dy)) in rows.iter().zip(states) {
            let to = &mut dx[row.target.row * width..(row.target.row + 1) * width];
            math::norm_row_back(hidden, &model.norm, model.eps, dy, to);
        }
        self.chunks
    }
}
