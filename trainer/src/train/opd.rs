//! On-policy distillation by the log-ratio of the sampled token.
//!
//! `A_t = clip(ln π_T(a_t | s + hint, a_<t) − ln π_θ(a_t | s, a_<t), ±C)`, detached, in the clipped
//! surrogate. On the student's own samples the expectation of this gradient is the gradient of the
//! reverse KL(π_θ ‖ π_T). The samples are drawn at `train.temperature` (0.7, where a small model is
//! readable) and scored at 1, so that this is a sharpened estimate and not an unbiased one. Source: OpenClaw-RL (arXiv 2603.10165) §OPD; "On-Policy Distillation"
//! (Thinking Machines 2025). Unlike the reference, the advantage is bounded, and a missing teacher
//! value is an error and never 0.
//!
//! Invariant: where teacher and student agree the gradient is zero.

use super::surrogate::{Clip, Term, surrogate};

/// The bounded advantage of one token. `bound` is `C` in nats.
pub fn advantage(teacher: f64, now: f64, bound: f64) -> f64 {
    (teacher - now).clamp(-bound, bound)
}

/// One token: `teacher`, `now` and `old` are `ln p` at temperature 1.
pub fn term(teacher: f64, now: f64, old: f64, bound: f64, clip: Clip) -> Term {
    surrogate(now, old, advantage(teacher, now, bound), clip)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: Clip = Clip { low: 0.2, high: 0.28 };

    #[test]
    fn the_student_is_drawn_towards_what_the_teacher_would_say() {
        assert_eq!(term(-1.0, -3.0, -3.0, 5.0, CLIP).gradient, -2.0);
        assert_eq!(term(-3.0, -1.0, -1.0, 5.0, CLIP).gradient, 2.0);
        assert_eq!(term(-1.5, -1.5, -1.5, 5.0, CLIP).gradient, 0.0);
    }

    #[test]
    fn one_surprising_token_is_bounded() {
        assert_eq!(advantage(-60.0, -0.1, 5.0), -5.0);
        assert_eq!(advantage(-0.1, -60.0, 5.0), 5.0);
    }
}
