//! The anchor against collapse: k3, the low-variance estimate of KL(π_θ ‖ π_base) per token.
//!
//! `L = e^d − 1 − d`, `d = ln π_base − ln π_θ`, `dL / d ln π_θ = 1 − e^d`.
//! Source: "Approximating KL divergence" (Schulman 2020), k3; clamp ±10 as OpenClaw-RL.
//!
//! Invariant: never negative, zero exactly where student and base agree.

use super::surrogate::Term;

/// Beyond this |d| (nats) the value is clamped and the gradient is zero.
const D_MAX: f64 = 10.0;

/// One token: `now` = `ln π_θ`, `base` = `ln π_base`, both at temperature 1.
pub fn k3(now: f64, base: f64) -> Term {
    let d = base - now;
    let bounded = d.clamp(-D_MAX, D_MAX);
    let loss = bounded.exp() - 1.0 - bounded;
    let gradient = if d.abs() > D_MAX { 0.0 } else { 1.0 - bounded.exp() };
    Term { loss, gradient }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_costs_nothing() {
        assert_eq!(k3(-1.2, -1.2), Term { loss: 0.0, gradient: 0.0 });
    }

    #[test]
    fn a_token_twice_as_likely_for_the_base_is_pulled_up() {
        // d = ln 2: L = 2 − 1 − ln 2, gradient 1 − 2.
        let term = k3(-1.0 - 2f64.ln(), -1.0);
        assert!((term.loss - (1.0 - 2f64.ln())).abs() < 1e-12);
        assert!((term.gradient + 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_token_half_as_likely_for_the_base_is_pushed_down() {
        let term = k3(-1.0 + 2f64.ln(), -1.0);
        assert!((term.loss - (0.5 - 1.0 + 2f64.ln())).abs() < 1e-12);
        assert!((term.gradient - 0.5).abs() < 1e-12);
    }

    #[test]
    fn beyond_the_clamp_nothing_explodes() {
        assert_eq!(k3(-50.0, -1.0).gradient, 0.0);
        assert!(k3(-1.0, -50.0).loss.is_finite());
    }
}
