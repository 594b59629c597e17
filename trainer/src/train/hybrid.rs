//! The hybrid: per token, by what the sample carries.
//!
//! `L = w_rl · h · L_rl(r) + w_opd · L_opd(hint) + β · k3(base)`, each clipped by itself and then added
//! (`h` = `weight_rl_hinted` where a hint teaches the same reply, 1 elsewhere; the reference has 1)
//! (OpenClaw-RL v2; not the older single advantage `w·r + w·gap`, which lets one signal use up the
//! clip range of the other). A demonstration is a sequence of its own, `w_sft · L_sft`. Divided by
//! the number of tokens of the whole update (mean over tokens).
//!
//! Invariant: a signal that is absent contributes exactly nothing; a list of a wrong length is an
//! error, never padded.

use super::surrogate::{Clip, Term};
use super::teach::Teaching;
use super::{TrainError, anchor, binary_rl, full_kl, opd, sft, tail_kl, topk};
use crate::compute::{Look, Sight, Slopes};
use hone_shared::policy::TrainPolicy;

/// Weights and bounds of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Weight of the distillation term.
    pub opd: f64,
    /// Weight of the reward term.
    pub rl: f64,
    /// Factor of `rl` on a reply that a hint teaches too.
    pub rl_hinted: f64,
    /// Weight of demonstrations.
    pub sft: f64,
    /// Weight of the anchor.
    pub kl: f64,
    /// Range of the probability ratio.
    pub clip: Clip,
    /// Bound of the sampled token's distillation advantage in nats.
    pub advantage_max: f64,
    /// Bound of each token's log-ratio in the distillation over several, in nats.
    pub delta_max: f64,
}

impl Weights {
    /// The weights a route's policy asks for.
    pub fn of(policy: &TrainPolicy) -> Self {
        Self {
            opd: policy.weight_opd,
            rl: policy.weight_rl,
            rl_hinted: policy.weight_rl_hinted,
            sft: policy.weight_sft,
            kl: policy.kl_beta,
            clip: Clip { low: policy.clip_low, high: policy.clip_high },
            advantage_max: policy.advantage_max,
            delta_max: policy.delta_max,
        }
    }
}

/// What is known about one reply; every list has one `ln p` per response token.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Under the policy that produced it; `None`: the current student produced it just now.
    pub old: Option<Vec<f32>>,
    /// The view of the teacher that saw the hint.
    pub teacher: Option<Teaching>,
    /// Under the base model, for the anchor.
    pub base: Option<Vec<f32>>,
    /// The advantage of the whole reply: the verdict (+1, −1) or a step's, 0 for none.
    pub reward: f64,
    /// A person wrote it.
    pub demonstration: bool,
}

impl Evidence {
    /// Fails unless every list present has exactly `tokens` finite entries.
    pub fn check(&self, tokens: usize) -> Result<(), TrainError> {
        for (what, list) in [("old", &self.old), ("base", &self.base)] {
            let Some(list) = list else { continue };
            if list.len() != tokens || list.iter().any(|p| !p.is_finite()) {
                return Err(TrainError::Scores { what, want: tokens, got: list.len() });
            }
        }
        match &self.teacher {
            Some(teacher) if !teacher.usable(tokens) => {
                Err(TrainError::Scores { what: "teacher", want: tokens, got: 0 })
            }
            _ => Ok(()),
        }
    }

    /// What the gradient pass must see of the reply.
    pub fn look(&self) -> Look {
        self.teacher.as_ref().map(Teaching::look).unwrap_or_default()
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
    /// Distance to the teacher before any bound, over tokens with a teacher: |log-ratio| or, where
    /// the loss is one, the divergence.
    pub log_ratio: f64,
    /// Tokens with a teacher value.
    pub teacher_tokens: f64,
}

/// dL by what was `seen` of one reply, already divided by `tokens_total`; adds to `sums`.
pub fn gradient(
    seen: &Sight,
    evidence: &Evidence,
    weights: &Weights,
    tokens_total: f64,
    sums: &mut Sums,
) -> Slopes {
    let at = |list: &Option<Vec<f32>>, i: usize| {
        list.as_ref().and_then(|l| l.get(i)).map(|p| f64::from(*p))
    };
    let per = |slope: f64| (slope / tokens_total) as f32;
    let hinted = if evidence.teacher.is_some() { weights.rl_hinted } else { 1.0 };
    let rl = weights.rl * hinted;
    let mut out = Slopes { own: Vec::with_capacity(seen.own.len()), ..Slopes::default() };
    for (i, now) in seen.own.iter().enumerate() {
        let now = f64::from(*now);
        let old = at(&evidence.old, i).unwrap_or(now);
        let mut total = Term::default();
        let mut add = |weight: f64, term: Term| {
            total.loss += weight * term.loss;
            total.gradient += weight * term.gradient;
        };
        add(rl, binary_rl::term(now, old, evidence.reward, weights.clip));
        if evidence.demonstration {
            add(weights.sft, sft::term(now));
        }
        if let Some(Teaching::Token(teacher)) = &evidence.teacher
            && let Some(teacher) = teacher.get(i).map(|p| f64::from(*p))
        {
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
        out.own.push(per(total.gradient));
    }
    distil(seen, evidence, weights, &per, sums, &mut out);
    out
}

/// The distillation losses that look at more than the sampled token.
fn distil(
    seen: &Sight,
    evidence: &Evidence,
    weights: &Weights,
    per: &dyn Fn(f64) -> f32,
    sums: &mut Sums,
    out: &mut Slopes,
) {
    let mut take = |loss: f64, distance: f64, slopes: Vec<f64>| -> Vec<f32> {
        sums.loss += weights.opd * loss;
        sums.log_ratio += distance;
        sums.teacher_tokens += 1.0;
        slopes.into_iter().map(|slope| per(weights.opd * slope)).collect()
    };
    match &evidence.teacher {
        None | Some(Teaching::Token(_)) => {}
        Some(Teaching::TopK(positions)) => {
            for (now, position) in seen.at.iter().zip(positions) {
                let (loss, slopes) = topk::term(now, position, weights.delta_max, weights.clip);
                out.at.push(take(loss, topk::distance(now, position), slopes));
            }
        }
        Some(Teaching::Tail(positions)) => {
            for (now, position) in seen.at.iter().zip(positions) {
                let teacher: Vec<f32> = position.iter().map(|(_, p)| *p).collect();
                let (loss, slopes) = tail_kl::term(now, &teacher);
                out.at.push(take(loss, loss, slopes));
            }
        }
        Some(Teaching::Full(_)) => {
            for kl in &seen.kl {
                let term = full_kl::term(f64::from(*kl));
                out.kl.extend(take(term.loss, term.loss, vec![term.gradient]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::{Against, Direction};

    const WEIGHTS: Weights = Weights {
        opd: 1.0,
        rl: 0.5,
        rl_hinted: 1.0,
        sft: 2.0,
        kl: 0.1,
        clip: Clip { low: 0.2, high: 0.28 },
        advantage_max: 5.0,
        delta_max: 1.0,
    };

    fn own(logprobs: &[f32]) -> Sight {
        Sight { own: logprobs.to_vec(), ..Sight::default() }
    }

    #[test]
    fn a_demonstration_is_made_more_likely_and_nothing_else() {
        let evidence = Evidence { demonstration: true, ..Evidence::default() };
        let mut sums = Sums::default();
        let got = gradient(&own(&[-2.0, -1.0]), &evidence, &WEIGHTS, 4.0, &mut sums);
        assert_eq!((got.own, sums.loss), (vec![-0.5, -0.5], 6.0));
    }

    #[test]
    fn several_tokens_and_whole_distributions_are_weighed_and_divided_like_all_else() {
        let weights = Weights { opd: 3.0, ..WEIGHTS };
        let position = topk::Position { ids: vec![7], old: vec![-1.0], teacher: vec![-1.5] };
        let teacher = Some(Teaching::TopK(vec![position]));
        let seen = Sight { at: vec![vec![-1.0]], ..own(&[-2.0]) };
        let mut sums = Sums::default();
        let evidence = Evidence { teacher, ..Evidence::default() };
        let got = gradient(&seen, &evidence, &weights, 6.0, &mut sums);
        assert_eq!((got.own, got.at), (vec![0.0], vec![vec![0.25]]));
        assert_eq!((sums.log_ratio, sums.teacher_tokens, sums.loss), (0.5, 1.0, 1.5));
        let against = Against { state: vec![0.0], direction: Direction::Reverse };
        let teacher = Some(Teaching::Full(against));
        let seen = Sight { kl: vec![0.4], ..own(&[-2.0]) };
        let evidence = Evidence { teacher, ..Evidence::default() };
        let got = gradient(&seen, &evidence, &weights, 6.0, &mut Sums::default());
        assert_eq!((got.own, got.kl), (vec![0.0], vec![0.5]));
    }

    #[test]
    fn both_signals_and_the_anchor_add_up() {
        let evidence = Evidence {
            old: None,
            teacher: Some(Teaching::Token(vec![-1.0])),
            base: Some(vec![-2.0 + 2f32.ln()]),
            reward: -1.0,
            demonstration: false,
        };
        let mut sums = Sums::default();
        let got = gradient(&own(&[-2.0]), &evidence, &WEIGHTS, 4.0, &mut sums).own;
        // rl: 0.5·(+1); opd: 1·(−1); anchor: 0.1·(1 − 2). Sum −0.6, over 4 tokens.
        assert!((got[0] + 0.15).abs() < 1e-6, "{got:?}");
        assert_eq!(sums.tokens, 1.0);
        assert!((sums.log_ratio - 1.0).abs() < 1e-6);
        assert!((sums.kl - (1.0 - 2f64.ln())).abs() < 1e-6);
    }

    #[test]
    fn a_hint_can_take_the_place_of_the_bare_reward_and_of_that_only() {
        let weights = Weights { rl_hinted: 0.0, ..WEIGHTS };
        let rewarded = Evidence { reward: -1.0, ..Evidence::default() };
        let taught = Evidence { teacher: Some(Teaching::Token(vec![-1.0])), ..rewarded.clone() };
        let of = |evidence| {
            gradient(&own(&[-2.0]), evidence, &weights, 1.0, &mut Sums::default()).own[0]
        };
        assert_eq!((of(&rewarded), of(&taught)), (0.5, -1.0));
    }
    #[test]
    fn a_sample_with_nothing_but_a_reward_has_no_distillation_term() {
        let evidence = Evidence { old: Some(vec![-2.0]), reward: 1.0, ..Evidence::default() };
        let got = gradient(&own(&[-2.0]), &evidence, &WEIGHTS, 1.0, &mut Sums::default());
        assert_eq!(got, vec![-0.5].into());
    }

    #[test]
    fn missing_scores_are_an_error_and_never_zero() {
        let short = Evidence { teacher: Some(Teaching::Token(vec![-1.0])), ..Evidence::default() };
        assert!(short.check(2).is_err());
        let nan = Evidence { base: Some(vec![f32::NAN]), ..Evidence::default() };
        assert!(nan.check(1).is_err());
        assert!(Evidence::default().check(7).is_ok());
    }
}
