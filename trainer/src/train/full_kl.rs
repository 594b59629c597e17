//! Divergence of whole distributions, position by position.
//!
//! `KL(π_T ‖ π_θ)` (forward: the student covers what the teacher says) or `KL(π_θ ‖ π_T)` (reverse:
//! the student says nothing that the teacher would not). Sources: "On-Policy Distillation of
//! Language Models" (GKD, Agarwal et al. 2024) eq. 1–3 with λ = 1; MiniLLM (Gu et al. 2024) for the
//! reverse one. The head computes value and gradient from the teacher's last hidden state
//! (`compute/head/divergence.rs`), so that no `(tokens, vocabulary)` exists.
//!
//! Invariant: the loss is the divergence itself; its slope is one.

use super::surrogate::Term;
use crate::compute::Direction;
use hone_shared::policy::Loss;

/// The direction that a policy's loss asks for; `None`: it is none of these.
pub fn direction(loss: Loss) -> Option<Direction> {
    match loss {
        Loss::ForwardKl => Some(Direction::Forward),
        Loss::ReverseKl => Some(Direction::Reverse),
        Loss::Token | Loss::TopK | Loss::TopKTail => None,
    }
}

/// One position; the derivative is by the divergence.
pub fn term(kl: f64) -> Term {
    Term { loss: kl, gradient: 1.0 }
}
