//! Rewards of the steps of an episode, and their advantages.
//!
//! `R_t = o + c · r_t`: the outcome `o` of the episode and the verdict `r_t` of the step, so that a
//! wrong step of a good episode is worth less than its right ones. Standardised within a (task, step)
//! group: `A = (R − μ) / (σ + 1e-6)`, population σ. A group of equal rewards teaches nothing and is
//! dropped; a step without company keeps its raw reward.
//! Source: OpenClaw-RL (arXiv 2603.10165) §step-wise reward, where `r_t` is the mean of the votes on
//! the step. Here it is their majority, because asking ends once that stands; "keep at least one" is
//! left out, for a constant group carries no preference.
//!
//! Invariant: the advantages of a group sum to zero, and none is larger than √(n − 1).

/// Added to σ.
const EPSILON: f64 = 1e-6;
/// Rewards that differ by less are equal.
const EQUAL: f64 = 1e-9;

/// The reward of a step: the outcome of its episode, and its own verdict, of which 0 says nothing.
/// Without one, the other stands alone. `None`: neither is there.
pub fn reward(outcome: Option<f64>, verdict: f64, coefficient: f64) -> Option<f64> {
    match (outcome, verdict == 0.0) {
        (None, true) => None,
        (outcome, _) => Some(outcome.unwrap_or(0.0) + coefficient * verdict),
    }
}

/// What becomes of the rewards of one (task, step) group.
#[derive(Debug, Clone, PartialEq)]
pub enum Group {
    /// The advantage of each.
    Standardised(Vec<f64>),
    /// All rewards are equal: nothing to learn from.
    Constant,
    /// Alone: the raw reward.
    Single(f64),
}

/// Standardises the rewards of one group.
pub fn standardise(rewards: &[f64]) -> Group {
    if let [only] = rewards {
        return Group::Single(*only);
    }
    let n = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / n;
    let variance = rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / n;
    if rewards.iter().all(|r| (r - mean).abs() < EQUAL) {
        return Group::Constant;
    }
    let spread = variance.sqrt() + EPSILON;
    Group::Standardised(rewards.iter().map(|r| (r - mean) / spread).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steps_reward_is_the_outcome_and_its_own_verdict() {
        assert_eq!(reward(Some(1.0), 1.0, 1.0), Some(2.0));
        assert_eq!(reward(Some(1.0), -1.0, 1.0), Some(0.0), "a wrong step of a good episode");
        assert_eq!(reward(Some(-1.0), 1.0, 0.5), Some(-0.5));
        assert_eq!(reward(None, -1.0, 0.5), Some(-0.5));
        assert_eq!(reward(Some(1.0), 0.0, 1.0), Some(1.0));
        assert_eq!(reward(None, 0.0, 1.0), None);
    }

    #[test]
    fn a_group_worked_by_hand() {
        let Group::Standardised(found) = standardise(&[2.0, 0.0, 0.0, 0.0]) else { panic!() };
        // μ = ½, σ = √¾: (1.5, −0.5, −0.5, −0.5) / 0.866.
        assert!((found[0] - 3f64.sqrt()).abs() < 1e-5, "{found:?}");
        assert!((found[1] + 1.0 / 3f64.sqrt()).abs() < 1e-5);
        assert!(found.iter().sum::<f64>().abs() < 1e-9);
    }

    #[test]
    fn equal_rewards_teach_nothing_and_a_lone_one_keeps_its_value() {
        assert_eq!(standardise(&[0.5, 0.5, 0.5]), Group::Constant);
        assert_eq!(standardise(&[0.7]), Group::Single(0.7));
        assert_eq!(standardise(&[]), Group::Constant);
    }
}
