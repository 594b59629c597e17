//! On-policy distillation over several tokens of a position.
//!
//! For the support `S` of a position, with `ℓ` the ln p over the whole vocabulary:
//! `w_v = softmax_{v∈S} ℓ_old(v)`, `Δ_v = clip(ℓ_T(v) − ℓ_old(v), ±C)`, `A_v = w_v Δ_v` (detached),
//! `L = Σ_{v∈S} max(−A_v ρ_v, −A_v clip(ρ_v, 1 − ε_low, 1 + ε_high))`, `ρ_v = exp(ℓ(v) −
//! ℓ_old(v))`.
//! Source: OpenClaw-RL v2 (arXiv 2603.10165v2) eq. 1. The ratio is global: one that is
//! renormalised within `S` could be satisfied by draining mass out of `S`.
//!
//! Invariant: an empty support contributes nothing; where teacher and old policy agree the gradient
//! is zero.

use super::surrogate::{Clip, surrogate};

/// The tokens of one position, with ln p of each under the old policy and the teacher.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Position {
    /// The tokens.
    pub ids: Vec<u32>,
    /// ln π_old of each.
    pub old: Vec<f32>,
    /// ln π_T of each, with the hint.
    pub teacher: Vec<f32>,
}

/// The loss of one position and its derivative by the current ln p of each token of the support.
pub fn term(now: &[f32], at: &Position, delta_max: f64, clip: Clip) -> (f64, Vec<f64>) {
    let weights = weights(&at.old);
    let mut loss = 0.0;
    let tokens = now.iter().zip(&at.old).zip(&at.teacher).zip(weights);
    let gradient = tokens.map(|(((now, old), teacher), weight)| {
        let (now, old) = (f64::from(*now), f64::from(*old));
        let delta = (f64::from(*teacher) - old).clamp(-delta_max, delta_max);
        let term = surrogate(now, old, weight * delta, clip);
        loss += term.loss;
        term.gradient
    });
    let gradient = gradient.collect();
    (loss, gradient)
}

/// Mean |ln π_T − ln π_θ| of a position by the old policy's weights, for the metrics.
pub fn distance(now: &[f32], at: &Position) -> f64 {
    let gaps = now.iter().zip(&at.teacher).map(|(now, teacher)| f64::from((teacher - now).abs()));
    weights(&at.old).iter().zip(gaps).map(|(weight, gap)| weight * gap).sum()
}

/// Softmax over the support.
fn weights(old: &[f32]) -> Vec<f64> {
    let most = old.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let raw: Vec<f64> = old.iter().map(|p| f64::from(p - most).exp()).collect();
    let sum: f64 = raw.iter().sum();
    raw.into_iter().map(|p| p / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: Clip = Clip { low: 0.2, high: 0.28 };

    fn position(old: &[f32], teacher: &[f32]) -> Position {
        let ids = (0..old.len() as u32).collect();
        Position { ids, old: old.to_vec(), teacher: teacher.to_vec() }
    }

    #[test]
    fn two_tokens_worked_by_hand() {
        // Probabilities ½ and ¼ of the whole: weights ⅔ and ⅓. The teacher has ¼ and ½.
        let (half, quarter) = (0.5f32.ln(), 0.25f32.ln());
        let at = position(&[half, quarter], &[quarter, half]);
        let (loss, gradient) = term(&[half, quarter], &at, 1.0, CLIP);
        let gap = 2f64.ln();
        // A = (−⅔ ln 2, ⅓ ln 2), ρ = 1: L = −ΣA, gradient −A.
        assert!((loss - gap / 3.0).abs() < 1e-6);
        assert!((gradient[0] - 2.0 * gap / 3.0).abs() < 1e-6);
        assert!((gradient[1] + gap / 3.0).abs() < 1e-6);
        assert!((distance(&[half, quarter], &at) - gap).abs() < 1e-6);
    }

    #[test]
    fn one_surprising_token_is_bounded_and_one_that_moved_far_enough_is_left_alone() {
        let at = position(&[-1.0], &[-40.0]);
        assert_eq!(term(&[-1.0], &at, 1.0, CLIP), (1.0, vec![1.0]));
        // ρ = e^−1 is under 0.8 and A is negative: flat.
        assert_eq!(term(&[-2.0], &at, 1.0, CLIP).1, [0.0]);
    }

    #[test]
    fn an_empty_support_teaches_nothing() {
        assert_eq!(term(&[], &Position::default(), 1.0, CLIP), (0.0, vec![]));
        assert_eq!(distance(&[], &Position::default()), 0.0);
    }
}
