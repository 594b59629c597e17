//! Budgets: how far a round may carry its adapter, and how long it may take.
//!
//! Unlike an anomaly, a spent budget is no failure: the updates end and the candidate so far goes to
//! the gate. `θ₀` is the adapter at the beginning of the round:
//!
//! * update norm: `‖θ − θ₀‖₂ ≤ c · ‖θ₀‖₂`; after an update that went further the difference is shortened
//!   to that length, which is the projection onto the ball (a trust region of the whole round);
//! * divergence: mean k3 to the base on the student's own fresh replies, which bounds what the norm
//!   cannot see;
//! * wall and CPU seconds, counted in `metrics.jsonl`, so that a round that is killed and resumed does
//!   not begin to count anew.
//!
//! Invariant: norm and divergence depend on the plan alone, so that equal seeds give equal bytes; only
//! the two clocks may end equal plans after different updates.

use super::update::Measured;
use hone_model::lora::Lora;
use hone_shared::policy::BudgetPolicy;

/// CPU time of this process so far, in seconds.
pub fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// What the updates of a round have used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Used {
    wall_s: f64,
    cpu_s: f64,
}

impl Used {
    /// By the updates of these lines.
    pub fn by(lines: &[Measured]) -> Self {
        lines.iter().fold(Self::default(), |mut used, line| {
            used.add(line);
            used
        })
    }

    /// Adds an update.
    pub fn add(&mut self, update: &Measured) {
        self.wall_s += update.seconds;
        self.cpu_s += update.cpu_seconds;
    }

    /// Which of the two clocks has run out.
    pub fn spent(&self, budget: &BudgetPolicy) -> Option<String> {
        let over = |what: &str, used: f64, most: f64| {
            (used >= most).then(|| format!("{used:.0} of {most:.0} {what} are used"))
        };
        over("seconds", self.wall_s, budget.wall_s_max)
            .or_else(|| over("CPU seconds", self.cpu_s, budget.cpu_s_max))
    }
}

/// Whether the student has gone as far from the base as it may.
pub fn is_too_far(seen: &Measured, budget: &BudgetPolicy) -> Option<String> {
    let far = seen.fresh_replies > 0 && seen.kl >= budget.kl_max;
    far.then(|| format!("KL to the base is {:.3} of {} nats per token", seen.kl, budget.kl_max))
}

/// Shortens the change since `start` to the part `most` of `start`'s own length. Returns the part that
/// it then is.
pub fn pull_back(adapter: &mut Lora, start: &Lora, most: f64) -> f64 {
    let length: f64 = start.norm();
    let pairs = adapter.tensors().zip(start.tensors());
    let squares = pairs.flat_map(|(now, before)| now.iter().zip(before)).map(|(now, before)| {
        let moved = f64::from(*now) - f64::from(*before);
        moved * moved
    });
    let part = squares.sum::<f64>().sqrt() / length.max(f64::MIN_POSITIVE);
    if part <= most {
        return part;
    }
    let keep = most / part;
    for (now, before) in adapter.tensors_mut().zip(start.tensors()) {
        for (now, before) in now.iter_mut().zip(before) {
            let before = f64::from(*before);
            *now = (before + (f64::from(*now) - before) * keep) as f32;
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::train_policy;
    use hone_model::lora::Pair;

    fn adapter(values: &[f32]) -> Lora {
        let layer = std::array::from_fn(|i| Pair {
            a: if i == 0 { values.to_vec() } else { Vec::new() },
            b: Vec::new(),
        });
        Lora { rank: 1, alpha: 1.0, layers: vec![layer] }
    }

    #[test]
    fn a_change_within_the_budget_stays_as_it_is() {
        let (start, mut now) = (adapter(&[3.0, 4.0]), adapter(&[3.0, 5.0]));
        assert_eq!(pull_back(&mut now, &start, 0.2), 0.2);
        assert_eq!(now, adapter(&[3.0, 5.0]));
    }

    #[test]
    fn a_longer_change_keeps_its_direction_and_loses_length() {
        let (start, mut now) = (adapter(&[3.0, 4.0]), adapter(&[3.0, 9.0]));
        assert_eq!(pull_back(&mut now, &start, 0.5), 0.5);
        assert_eq!(now, adapter(&[3.0, 6.5]));
    }

    #[test]
    fn each_clock_and_the_divergence_say_what_is_spent() {
        let mut budget = train_policy().budget;
        (budget.wall_s_max, budget.cpu_s_max, budget.kl_max) = (10.0, 15.0, 0.5);
        let update =
            |seconds, cpu_seconds| Measured { seconds, cpu_seconds, ..Measured::default() };
        let spent = |lines: &[Measured]| Used::by(lines).spent(&budget).unwrap_or_default();
        assert_eq!(spent(&[update(4.0, 7.0), update(4.0, 7.0)]), "");
        assert_eq!(spent(&[update(4.0, 7.0), update(6.0, 7.0)]), "10 of 10 seconds are used");
        assert_eq!(spent(&[update(4.0, 8.0), update(4.0, 8.0)]), "16 of 15 CPU seconds are used");
        let far = |kl, fresh_replies| {
            is_too_far(&Measured { kl, fresh_replies, ..Measured::default() }, &budget)
        };
        assert!(far(0.4, 2).is_none() && far(0.9, 0).is_none());
        assert!(far(0.5, 2).is_some_and(|why| why.contains("KL to the base")));
    }

    #[test]
    fn the_clock_of_the_processor_runs_while_it_computes() {
        let before = cpu_seconds();
        let mut sum = 0_u64;
        while cpu_seconds() - before < 0.01 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_seconds() > before);
    }
}
