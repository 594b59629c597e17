//! The hybrid: per token, by what the sample carries.
//!
//! `L = w_rl · L_rl(r) + w_opd · L_opd(hint) + β · k3(base)`, each clipped by itself and then added
//! (OpenClaw-RL v2; not the older single advantage `w·r + w·gap`, which lets one signal use up the
//! clip range of the other). Divided by the number of tokens of the whole update (mean over
//! tokens).
//!
//! Invariant: a signal that is absent contributes exactly nothing; a list of a wrong length is an
//! error, never padded.

use super::TrainError;
use super::anchor;
use super::binary_rl;
use super::opd;
use super::surrogate::{Clip, Term};
use hone_shared::policy::TrainPolicy;

/// Weights and bounds of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Weight of the distillation term.
    pub opd: f64,
    /// Weight of the reward term.
    pub rl: f64,
    /// Weight of the anchor.
    pub kl: f64,
    /// Range of the probability ratio.
    pub clip: Clip,
    /// Bound of the distillation advantage in nats.
    pub advantage_max: f64,
}

impl Weights {
    /// The weights a route's policy asks for.
    pub fn of(policy: &TrainPolicy) -> Self {
        Self {
            opd: policy.weight_opd,
            rl: policy.weight_rl,
            kl: policy.kl_beta,
            clip: Clip { low: policy.clip_low, high: policy.clip_high },
            advantage_max: policy.advantage_max,
        }
    }
}

/// What is known about one reply; every list has one `ln p` per response token.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Under the policy that produced it; `None`: the current student produced it just now.
    pub old: Option<Vec<f32>>,
    /// Under the teacher that saw the hint.
    pub teacher: Option<Vec<f32>>,
    /// Under the base model, for the anchor.
    pub base: Option<Vec<f32>>,
    /// The verdict: +1, −1, or 0 for none.
    pub reward: f64,
}

impl Evidence {
    /// Fails unless every list present has exactly `tokens` finite entries.
    pub fn check(&self, tokens: usize) -> Result<(), TrainError> {
        for (what, list) in [("old", &self.old), ("teacher", &self.teacher), ("base", &self.base)] {
            let Some(list) = list else { continue };
            if list.len() != tokens || list.iter().any(|p| !p.is_finite()) {
                return Err(TrainError::Scores { what, want: tokens, got: list.len() });
            }
        }
        Ok(())
    }
}

/// Sums over the tokens of an update, for the metrics and the anomaly stops.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Tokens seen.
    pub tokens: f64,
    /// Weighted loss before the division by tokens.
    pub loss: f64,
    /// k3 to the base, over the tokens that have a base value, and how many those are.
    pub kl: f64,
    /// Tokens with a base value.
    pub kl_tokens: f64,
    /// |teacher − student| before the bound, over tokens with a teacher value.
    pub log_ratio: f64,
    /// Tokens with a teacher value.
    pub teacher_tokens: f64,
}

/// `dL / d ln π_θ` per token of one reply, already divided by `tokens_total`; adds to `sums`.
pub fn gradient(
    now: &[f32],
    evidence: &Evidence,
    weights: &Weights,
    tokens_total: f64,
    sums: &mut Sums,
) -> Vec<f32> {
    let at = |list: &Option<Vec<f32>>, i: usize| {
        list.as_ref().and_then(|l| l.get(i)).map(|p| f64::from(*p))
    };
    let mut out = Vec::with_capacity(now.len());
    for (i, now) in now.iter().enumerate() {
        let now = f64::from(*now);
        let old = at(&evidence.old, i).unwrap_or(now);
        let mut total = Term::default();
        let mut add = |weight: f64, term: Term| {
            total.loss += weight * term.loss;
            total.gradient += weight * term.gradient;
        };
        add(weights.rl, binary_rl::term(now, old, evidence.reward, weights.clip));
        if let Some(teacher) = at(&evidence.teacher, i) {
            let term = opd::term(teacher, now, old, weights.advantage_max, weights.clip);
            add(weights.opd, term);
            sums.log_ratio += (teacher - now).abs();
            sums.teacher_tokens += 1.0;
        }
        if let Some(base) = at(&evidence.base, i) {
            let term = anchor::k3(now, base);
            add(weights.kl, term);
            sums.kl += term.loss;
            sums.kl_tokens += 1.0;
        }
        sums.tokens += 1.0;
        sums.loss += total.loss;
        out.push((total.gradient / tokens_total) as f32);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHTS: Weights = Weights {
        opd: 1.0,
        rl: 0.5,
        kl: 0.1,
        clip: Clip { low: 0.2, high: 0.28 },
        advantage_max: 5.0,
    };

    #[test]
    fn both_signals_and_the_anchor_add_up() {
        let evidence = Evidence {
            old: None,
            teacher: Some(vec![-1.0]),
            base: Some(vec![-2.0 + 2f32.ln()]),
            reward: -1.0,
        };
        let mut sums = Sums::default();
        let got = gradient(&[-2.0], &evidence, &WEIGHTS, 4.0, &mut sums);
        // rl: 0.5·(+1); opd: 1·(−1); anchor: 0.1·(1 − 2). Sum −0.6, over 4 tokens.
        assert!((got[0] + 0.15).abs() < 1e-6, "{got:?}");
        assert_eq!(sums.tokens, 1.0);
        assert!((sums.log_ratio - 1.0).abs() < 1e-6);
        assert!((sums.kl - (1.0 - 2f64.ln())).abs() < 1e-6);
    }

    #[test]
    fn a_sample_with_nothing_but_a_reward_has_no_distillation_term() {
        let evidence = Evidence { old: Some(vec![-2.0]), reward: 1.0, ..Evidence::default() };
        let got = gradient(&[-2.0], &evidence, &WEIGHTS, 1.0, &mut Sums::default());
        assert_eq!(got, vec![-0.5]);
    }

    #[test]
    fn missing_scores_are_an_error_and_never_zero() {
        let short = Evidence { teacher: Some(vec![-1.0]), ..Evidence::default() };
        assert!(short.check(2).is_err());
        let nan = Evidence { base: Some(vec![f32::NAN]), ..Evidence::default() };
        assert!(nan.check(1).is_err());
        assert!(Evidence::default().check(7).is_ok());
    }
}
