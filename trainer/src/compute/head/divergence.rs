//! The Kullback–Leibler divergence of a row's whole distribution from another model's, with its
//! gradient, from logits that exist for a moment only.
//!
//! With `p` the model's and `q` the other's distribution, `z` and `y` their logits:
//! `KL(p ‖ q) = Σ p_j (z_j − y_j) − lse_z + lse_y`, by `z_j`: `p_j (ln p_j − ln q_j − KL)`;
//! `KL(q ‖ p) = Σ q_j (y_j − z_j) − lse_y + lse_z`, by `z_j`: `p_j − q_j`.
//! The other's logits are made again from its last hidden state, which is `hidden / vocab` of their
//! size (`reference/training.md` §6).
//!
//! Invariant: the other's rows are those of `rows` with [`Row::against`], in the same order.

use super::super::look::Direction;
use super::super::math;
use super::super::model::Model;
use super::{Part, Row, Seen, log_sum, logits};

/// The other model's rows.
pub(super) struct Other {
    /// Per chunk of the vocabulary, `(rows, outputs)`: after [`before`] `z − y` for a reverse
    /// divergence and `e^(y − shift)` for a forward one.
    chunks: Vec<Vec<f32>>,
    /// Per row of the head: its place here and what its gradient needs.
    rows: Vec<Option<Known>>,
}

/// What a row's gradient needs beside its chunk.
struct Known {
    place: usize,
    direction: Direction,
    /// The divergence.
    kl: f32,
    /// `lse_y − lse_z`.
    gap: f32,
    /// `e^(shift − lse_y)` per chunk.
    scales: Vec<f32>,
}

/// What a chunk contributes to the other's softmax and to the divergence.
pub(super) struct Share {
    direction: Direction,
    /// The other's largest logit.
    shift: f32,
    /// `Σ e^(y − shift)`.
    sum: f32,
    /// Reverse: `Σ e^(z − shift_z) (z − y)`; forward: `Σ e^(y − shift) (y − z)`.
    inner: f32,
}

/// Takes the other's logits `other` of one row and chunk before the row's own `values` are changed.
pub(super) fn before<'a>(
    values: &[f32],
    other: &'a mut [f32],
    direction: Direction,
) -> (Share, &'a [f32]) {
    let shift = math::max(other);
    let mut share = Share { direction, shift, sum: 0.0, inner: 0.0 };
    match direction {
        Direction::Reverse => {
            share.sum = math::exp_sum(other, shift, 1.0);
            other.iter_mut().zip(values).for_each(|(y, z)| *y = z - *y);
        }
        Direction::Forward => {
            let gaps: Vec<f32> = other.iter().zip(values).map(|(y, z)| y - z).collect();
            share.sum = math::exp_in_place(other, shift, 1.0);
            share.inner = math::dot(other, &gaps);
        }
    }
    (share, other)
}

impl Share {
    /// Completes the share once `values` hold `e^(z − shift_z)`.
    pub(super) fn after(mut self, values: &[f32], other: &[f32]) -> Share {
        if self.direction == Direction::Reverse {
            self.inner = math::dot(values, other);
        }
        self
    }
}

impl Other {
    /// Makes the other's logits.
    pub(super) fn new(model: &Model, rows: &[Row<'_>]) -> Other {
        let states: Vec<f32> = rows
            .iter()
            .filter_map(|row| row.against)
            .flat_map(|(state, _)| state)
            .copied()
            .collect();
        let chunks = match states.is_empty() {
            true => model.head.iter().map(|_| Vec::new()).collect(),
            false => logits(model, &states, Vec::new()),
        };
        Other { chunks, rows: Vec::new() }
    }

    /// One list per chunk of the vocabulary, empty without rows.
    pub(super) fn chunks_mut(&mut self) -> &mut [Vec<f32>] {
        &mut self.chunks
    }

    /// Puts the chunks' shares together and writes every row's divergence.
    pub(super) fn finish(
        &mut self,
        rows: &[Row<'_>],
        parts: &[Part],
        lse: &[f32],
        seen: &mut [Seen],
    ) {
        let mut place = 0;
        for (i, row) in rows.iter().enumerate() {
            let Some((_, direction)) = row.against else {
                self.rows.push(None);
                continue;
            };
            let shares = || parts.iter().map(|part| &part.others[place]);
            let other_lse = log_sum(shares().map(|share| (share.shift, share.sum)));
            let scales: Vec<f32> = shares().map(|s| (s.shift - other_lse).exp()).collect();
            let gap = other_lse - lse[i];
            let kl = match direction {
                Direction::Reverse => {
                    let parts = parts.iter().zip(shares());
                    let own = parts.map(|(p, s)| (p.shifts[i] - lse[i]).exp() * s.inner);
                    own.sum::<f32>() + gap
                }
                Direction::Forward => {
                    scales.iter().zip(shares()).map(|(f, s)| f * s.inner).sum::<f32>() - gap
                }
            };
            seen[i].kl = kl;
            self.rows.push(Some(Known { place, direction, kl, gap, scales }));
            place += 1;
        }
    }

    /// The other's part of a row of the head in one chunk of `outputs` tokens.
    pub(super) fn row(&self, chunk: usize, row: usize, outputs: usize) -> Option<OtherRow<'_>> {
        let known = self.rows.get(row)?.as_ref()?;
        let values = &self.chunks[chunk][known.place * outputs..(known.place + 1) * outputs];
        Some(OtherRow { known, values, scale: known.scales[chunk] })
    }
}

/// One row and chunk of the other model.
pub(super) struct OtherRow<'a> {
    known: &'a Known,
    values: &'a [f32],
    scale: f32,
}

impl OtherRow<'_> {
    /// `values` hold `e^(z − shift)`, `scale` makes probabilities of them; they become
    /// `p · weight + slope · dKL/dz`.
    pub(super) fn back(&self, values: &mut [f32], scale: f32, weight: f32, slope: f32) {
        let both = values.iter_mut().zip(self.values);
        match self.known.direction {
            Direction::Reverse => {
                let offset = self.known.gap - self.known.kl;
                both.for_each(|(p, d)| *p *= scale * slope.mul_add(d + offset, weight));
            }
            Direction::Forward => {
                let (of_p, of_q) = (scale * (weight + slope), -slope * self.scale);
                both.for_each(|(p, q)| *p = p.mul_add(of_p, q * of_q));
            }
        }
    }
}
