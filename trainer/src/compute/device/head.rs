//! The output head on the rows of a response: what is seen of them, and dL by them.
//!
//! Rows go through the head some at a time, for logits are as wide as the vocabulary; backwards they go
//! through it again. The gradient by the logits is written down, not differentiated:
//!
//! * `ln p(t)` with slope `s`: `s · (1_t − p)`;
//! * `KL(T ‖ θ)`: `p − p_T`, and `KL(θ ‖ T)`: `p · (ln p − ln p_T − KL)`.
//!
//! Invariant: no more than `logits_bytes_max` bytes of one matrix of logits exist at a time.

use candle_core::{D, Tensor, Var};
use hone_model::frozen::Frozen;
use hone_model::ops::{log_softmax, rms_norm};

use super::layer::piece;
use crate::compute::ComputeError;
use crate::compute::head::largest;
use crate::compute::look::{Direction, Look, Sight, Slopes};

/// The head of a model.
pub(super) struct Head<'a> {
    pub(super) model: &'a Frozen,
    pub(super) logits_bytes_max: usize,
}

/// Rows `at..at + count` of a response.
struct Part {
    at: usize,
    count: usize,
}

impl Head<'_> {
    fn parts(&self, rows: usize) -> impl Iterator<Item = Part> {
        let most = (self.logits_bytes_max / (4 * self.model.config.vocab)).max(1);
        (0..rows).step_by(most).map(move |at| Part { at, count: most.min(rows - at) })
    }

    fn log_probabilities(&self, rows: &Tensor) -> candle_core::Result<Tensor> {
        let normed = rms_norm(rows, &self.model.norm, self.model.config.rms_eps)?;
        log_softmax(&self.model.logits(&normed)?)
    }

    /// The other model's log-probabilities `(rows, vocab)` of a part.
    fn other(
        &self,
        look: Option<&Look>,
        part: &Part,
    ) -> candle_core::Result<Option<(Tensor, Direction)>> {
        let Some(against) = look.and_then(|look| look.against.as_ref()) else { return Ok(None) };
        let width = self.model.config.hidden;
        let state = &against.state[part.at * width..(part.at + part.count) * width];
        let state = Tensor::from_slice(state, (part.count, width), &self.model.device)?;
        Ok(Some((self.log_probabilities(&state)?, against.direction)))
    }

    /// What is seen of hidden states `(R, hidden)` before the final norm that predict `response`.
    pub(super) fn sight(
        &self,
        rows: &Tensor,
        response: &[u32],
        look: Option<&Look>,
    ) -> Result<Sight, ComputeError> {
        let mut sight = Sight::default();
        for part in self.parts(response.len()) {
            let own = self.log_probabilities(&rows.narrow(0, part.at, part.count)?)?;
            let (tokens, widths) = asked(response, look, &part);
            let found = own.gather(&self.table(&tokens, part.count)?, 1)?.to_vec2::<f32>()?;
            for (row, width) in found.into_iter().zip(widths) {
                sight.own.push(row[0]);
                if look.is_some_and(|look| !look.at.is_empty()) {
                    sight.at.push(row[1..width].to_vec());
                }
            }
            if let Some(top) = look.map(|look| look.top).filter(|top| *top > 0) {
                let all = own.to_vec2::<f32>()?;
                sight.top.extend(all.iter().map(|row| largest(row, 0, top)));
            }
            if let Some((other, direction)) = self.other(look, &part)? {
                let kl = match direction {
                    Direction::Forward => (other.exp()? * (&other - &own)?)?,
                    Direction::Reverse => (own.exp()? * (&own - &other)?)?,
                };
                sight.kl.extend(kl.sum(D::Minus1)?.to_vec1::<f32>()?);
            }
        }
        Ok(sight)
    }

    /// dL by those hidden states.
    pub(super) fn back(
        &self,
        rows: &Tensor,
        response: &[u32],
        look: Option<&Look>,
        slopes: &Slopes,
    ) -> Result<Tensor, ComputeError> {
        let mut all = Vec::new();
        for part in self.parts(response.len()) {
            let rows = Var::from_tensor(&rows.narrow(0, part.at, part.count)?.contiguous()?)?;
            let normed = rms_norm(&rows, &self.model.norm, self.model.config.rms_eps)?;
            let own = log_softmax(&self.model.logits(&normed.detach())?)?;
            let p = own.exp()?;
            let (tokens, widths) = asked(response, look, &part);
            let (table, weights) =
                (self.table(&tokens, part.count)?, weigh(slopes, &part, &widths));
            let weights = Tensor::from_vec(weights, table.shape(), &self.model.device)?;
            let total = weights.sum_keepdim(1)?;
            let mut d = own.zeros_like()?.scatter_add(&table, &weights, 1)?;
            d = (d - p.broadcast_mul(&total)?)?;
            if let (Some((other, direction)), false) =
                (self.other(look, &part)?, slopes.kl.is_empty())
            {
                let slope = &slopes.kl[part.at..part.at + part.count];
                let slope = Tensor::from_slice(slope, (part.count, 1), &self.model.device)?;
                let by_logits = match direction {
                    Direction::Forward => (&p - other.exp()?)?,
                    Direction::Reverse => {
                        let ratio = (&own - &other)?;
                        let kl = (&p * &ratio)?.sum_keepdim(1)?;
                        (&p * ratio.broadcast_sub(&kl)?)?
                    }
                };
                d = (d + by_logits.broadcast_mul(&slope)?)?;
            }
            let [drows] = piece(&normed, &self.model.logits_back(&d)?, [&rows])?;
            all.push(drows);
        }
        Ok(Tensor::cat(&all, 0)?)
    }

    fn table(&self, tokens: &[u32], rows: usize) -> candle_core::Result<Tensor> {
        Tensor::from_slice(tokens, (rows, tokens.len() / rows), &self.model.device)
    }
}

/// The tokens of a part's rows whose ln p matters, its own first, as a table filled up with its own;
/// and how many of each row are meant.
fn asked(response: &[u32], look: Option<&Look>, part: &Part) -> (Vec<u32>, Vec<usize>) {
    let others = |row: usize| look.and_then(|look| look.at.get(row)).map_or(&[][..], Vec::as_slice);
    let range = part.at..part.at + part.count;
    let width = 1 + range.clone().map(|row| others(row).len()).max().unwrap_or(0);
    let (mut tokens, mut widths) = (Vec::with_capacity(width * part.count), Vec::new());
    for row in range {
        let others = others(row);
        tokens.push(response[row]);
        tokens.extend_from_slice(others);
        tokens.resize(tokens.len() + width - 1 - others.len(), response[row]);
        widths.push(1 + others.len());
    }
    (tokens, widths)
}

/// dL by the ln p of that table's entries; 0 for those that fill it up.
fn weigh(slopes: &Slopes, part: &Part, widths: &[usize]) -> Vec<f32> {
    let width = widths.iter().copied().max().unwrap_or(1);
    let mut weights = vec![0.0; width * widths.len()];
    for (i, row) in weights.chunks_exact_mut(width).enumerate() {
        row[0] = slopes.own.get(part.at + i).copied().unwrap_or(0.0);
        for (weight, slope) in
            row[1..].iter_mut().zip(slopes.at.get(part.at + i).into_iter().flatten())
        {
            *weight = *slope;
        }
    }
    weights
}
