//! Binary RL: the verdict itself is the advantage of every token of the reply.
//!
//! `A_t = r ∈ {+1, −1}`, clipped surrogate against `π_old`, plus `β · k3` to the base.
//! Source: OpenClaw-RL (arXiv 2603.10165) §binary RL; no group, no baseline, no normalisation.
//!
//! Invariant: a reward of 0 contributes nothing.

use super::surrogate::{Clip, Term, surrogate};

/// One token of a judged reply. `now` and `old` are `ln p` at temperature 1.
pub fn term(now: f64, old: f64, reward: f64, clip: Clip) -> Term {
    if reward == 0.0 {
        return Term::default();
    }
    surrogate(now, old, reward, clip)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: Clip = Clip { low: 0.2, high: 0.28 };

    #[test]
    fn approval_raises_and_correction_lowers_the_token() {
        assert_eq!(term(-2.0, -2.0, 1.0, CLIP).gradient, -1.0);
        assert_eq!(term(-2.0, -2.0, -1.0, CLIP).gradient, 1.0);
    }

    #[test]
    fn a_neutral_verdict_teaches_nothing() {
        assert_eq!(term(-2.0, -1.0, 0.0, CLIP), Term::default());
    }
}
