//! Supervised tuning on a demonstration: the reply that a person wrote in place of the model's.
//!
//! `L = −ln π_θ(a_t)` per token of the demonstration, mean over tokens as every other term. Source:
//! maximum likelihood; InstructGPT (Ouyang et al. 2022) §3.5 for demonstrations by labelers.
//!
//! Invariant: only what a person wrote is taught like this, never a reply of the model.

use super::surrogate::Term;

/// One token of a demonstration; `now` is its ln p.
pub fn term(now: f64) -> Term {
    Term { loss: -now, gradient: -1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_pulled_up_alike() {
        assert_eq!(term(-3.0), Term { loss: 3.0, gradient: -1.0 });
        assert_eq!(term(-0.1), Term { loss: 0.1, gradient: -1.0 });
    }
}
