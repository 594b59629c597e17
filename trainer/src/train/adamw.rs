//! AdamW with bias correction and decoupled weight decay, over the tensors of a LoRA.
//!
//! `m ← β1 m + (1−β1) g`, `v ← β2 v + (1−β2) g²`,
//! `w ← w − lr · ( (m/(1−β1^t)) / (√(v/(1−β2^t)) + ε) + λ w )`.
//! Sources: Kingma & Ba 2015 (bias correction), Loshchilov & Hutter 2019 (decoupled decay).
//! The gradient is first scaled to a norm of at most `grad_norm_max` (Pascanu et al. 2013).
//!
//! Invariant: one thread, one fixed order of tensors, so equal inputs give equal bytes.

use super::TrainError;
use hone_model::lora::Lora;
use hone_shared::policy::TrainPolicy;

/// Added to the root of the second moment.
const EPSILON: f64 = 1e-8;

/// Both moments and the number of steps taken.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Steps taken so far.
    pub step: u64,
    /// First moment, shapes of the adapter.
    pub first: Lora,
    /// Second moment, shapes of the adapter.
    pub second: Lora,
}

impl AdamW {
    /// Zero moments for an adapter of these shapes.
    pub fn new(adapter: &Lora) -> Self {
        Self { step: 0, first: adapter.zeros_like(), second: adapter.zeros_like() }
    }

    /// Changes `adapter` by one step; `norm` is the gradient's Euclidean norm (see [`norm`]).
    /// Fails, and changes nothing, when shapes differ.
    pub fn step(
        &mut self,
        adapter: &mut Lora,
        gradient: &Lora,
        norm: f64,
        policy: &TrainPolicy,
    ) -> Result<(), TrainError> {
        if !same_shapes(adapter, gradient) || !same_shapes(adapter, &self.first) {
            return Err(TrainError::Shapes);
        }
        self.step += 1;
        let scale = if norm > policy.grad_norm_max { policy.grad_norm_max / norm } else { 1.0 };
        let (b1, b2) = (policy.adam_beta1, policy.adam_beta2);
        let t = i32::try_from(self.step).unwrap_or(i32::MAX);
        let (fix1, fix2) = (1.0 - b1.powi(t), 1.0 - b2.powi(t));
        let (rate, decay) = (policy.learning_rate, policy.weight_decay);
        let moments = self.first.tensors_mut().zip(self.second.tensors_mut());
        for ((w, g), (m, v)) in adapter.tensors_mut().zip(gradient.tensors()).zip(moments) {
            for (((w, g), m), v) in w.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
                let g = f64::from(*g) * scale;
                let first = b1 * f64::from(*m) + (1.0 - b1) * g;
                let second = b2 * f64::from(*v) + (1.0 - b2) * g * g;
                let move_by = (first / fix1) / ((second / fix2).sqrt() + EPSILON);
                let now = f64::from(*w);
                *w = (now - rate * (move_by + decay * now)) as f32;
                *m = first as f32;
                *v = second as f32;
            }
        }
        Ok(())
    }
}

/// Whether two adapters have tensor for tensor the same lengths.
fn same_shapes(a: &Lora, b: &Lora) -> bool {
    a.layers.len() == b.layers.len()
        && a.tensors().zip(b.tensors()).all(|(a, b)| a.len() == b.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::train_policy;
    use hone_model::lora::Pair;

    /// One layer whose only non-empty tensor is a single number.
    fn number(value: f32) -> Lora {
        let empty = || Pair { a: vec![], b: vec![] };
        let layer = std::array::from_fn(|i| match i {
            0 => Pair { a: vec![value], b: vec![] },
            _ => empty(),
        });
        Lora { rank: 1, alpha: 1.0, layers: vec![layer] }
    }

    fn value(lora: &Lora) -> f32 {
        lora.layers[0][0].a[0]
    }

    #[test]
    fn the_first_step_moves_by_the_learning_rate_whatever_the_gradients_size() {
        for g in [1e-3f32, 0.5, -0.5] {
            let (mut w, gradient) = (number(1.0), number(g));
            let mut adam = AdamW::new(&w);
            adam.step(&mut w, &gradient, f64::from(g.abs()), &train_policy()).unwrap();
            let moved = f64::from(value(&w)) - 1.0;
            assert!((moved + 1e-3 * f64::from(g.signum())).abs() < 1e-6, "{moved}");
        }
    }

    #[test]
    fn two_steps_match_the_formula_worked_by_hand() {
        let policy = TrainPolicy { adam_beta1: 0.9, adam_beta2: 0.98, ..train_policy() };
        let mut w = number(1.0);
        let mut adam = AdamW::new(&w);
        adam.step(&mut w, &number(0.5), 0.5, &policy).unwrap();
        adam.step(&mut w, &number(-0.25), 0.25, &policy).unwrap();
        // m = .9·.05 + .1·(−.25) = .02, /(1−.81) = .105263; v = .98·.005 + .02·.0625 = .00615,
        // /(1−.9604) = .155303, root .394085; step .267108.
        let want = 1.0 - 1e-3 - 1e-3 * 0.267_108;
        assert!((f64::from(value(&w)) - want).abs() < 1e-6, "{}", value(&w));
        assert_eq!(adam.step, 2);
    }

    #[test]
    fn a_large_gradient_is_scaled_to_the_norm_bound() {
        let policy = TrainPolicy { grad_norm_max: 1.0, ..train_policy() };
        let mut w = number(0.0);
        let mut adam = AdamW::new(&w);
        adam.step(&mut w, &number(100.0), 100.0, &policy).unwrap();
        assert!((value(&adam.first) - 0.1).abs() < 1e-6);
    }

    #[test]
    fn decay_pulls_towards_zero_without_a_gradient() {
        let policy = TrainPolicy { weight_decay: 0.5, ..train_policy() };
        let mut w = number(2.0);
        AdamW::new(&w).step(&mut w, &number(0.0), 0.0, &policy).unwrap();
        assert!((value(&w) - (2.0 - 1e-3)).abs() < 1e-6);
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        let mut w = number(0.0);
        let mut adam = AdamW::new(&w);
        let mut other = number(0.0);
        other.layers[0][1].a.push(1.0);
        assert!(adam.step(&mut w, &other, 1.0, &train_policy()).is_err());
        assert_eq!(adam.step, 0);
    }
}
