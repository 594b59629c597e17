//! The clipped policy-gradient surrogate that both signals share.
//!
//! For one token with advantage `A` and `ρ = π_θ / π_old`:
//! `L = −min(ρ·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A)`.
//! Source: PPO (Schulman et al. 2017, eq. 7); the asymmetric range 0.2 / 0.28 is "clip-higher" of
//! DAPO (2025) and what OpenClaw-RL uses.
//!
//! Invariant: the gradient is zero exactly where the clipped branch is the smaller one, so a token
//! that has already moved far enough is not pushed further.

/// The range of `ρ` inside which the gradient flows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// `ε_low`: the lower bound is `1 − low`.
    pub low: f64,
    /// `ε_high`: the upper bound is `1 + high`.
    pub high: f64,
}

/// Loss of one token and its derivative by `ln π_θ` of that token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Term {
    /// The loss, in nats or dimensionless.
    pub loss: f64,
    /// `dL / d ln π_θ(token)`.
    pub gradient: f64,
}

/// |ln ρ| is clamped here before `exp`, so that one absurd token cannot overflow.
const LOG_RATIO_MAX: f64 = 20.0;

/// The surrogate of one token: `ln p` now, `ln p` when it was produced, and its advantage.
pub fn surrogate(now: f64, old: f64, advantage: f64, clip: Clip) -> Term {
    let ratio = (now - old).clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX).exp();
    let plain = ratio * advantage;
    let clipped = ratio.clamp(1.0 - clip.low, 1.0 + clip.high) * advantage;
    // dρ/d ln π_θ = ρ, so the plain branch has the gradient −ρ·A; the clipped branch is constant.
    if plain <= clipped {
        Term { loss: -plain, gradient: -plain }
    } else {
        Term { loss: -clipped, gradient: 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: Clip = Clip { low: 0.2, high: 0.28 };

    #[test]
    fn on_policy_the_gradient_is_minus_the_advantage() {
        assert_eq!(surrogate(-1.0, -1.0, 0.7, CLIP), Term { loss: -0.7, gradient: -0.7 });
        assert_eq!(surrogate(-3.0, -3.0, -2.0, CLIP), Term { loss: 2.0, gradient: 2.0 });
    }

    #[test]
    fn a_good_token_is_not_pushed_beyond_the_upper_bound() {
        // ρ = 1.5: min(1.5, 1.28) = 1.28.
        let term = surrogate(1.5_f64.ln(), 0.0, 1.0, CLIP);
        assert!((term.loss + 1.28).abs() < 1e-12);
        assert_eq!(term.gradient, 0.0);
        // ρ = 1.2 is inside: gradient −1.2.
        let term = surrogate(1.2_f64.ln(), 0.0, 1.0, CLIP);
        assert!((term.gradient + 1.2).abs() < 1e-12);
    }

    #[test]
    fn a_bad_token_is_not_pushed_below_the_lower_bound_but_is_pushed_back_from_above() {
        // ρ = 0.5, A = −1: min(−0.5, −0.8) = −0.8, flat.
        let term = surrogate(0.5_f64.ln(), 0.0, -1.0, CLIP);
        assert!((term.loss - 0.8).abs() < 1e-12);
        assert_eq!(term.gradient, 0.0);
        // ρ = 2, A = −1: min(−2, −1.28) = −2, still falling.
        let term = surrogate(2.0_f64.ln(), 0.0, -1.0, CLIP);
        assert!((term.loss - 2.0).abs() < 1e-12);
        assert!((term.gradient - 2.0).abs() < 1e-12);
    }

    #[test]
    fn an_absurd_ratio_stays_finite() {
        assert!(surrogate(0.0, -1e6, -1.0, CLIP).gradient.is_finite());
        assert!(surrogate(-1e6, 0.0, 1.0, CLIP).gradient.is_finite());
    }
}
