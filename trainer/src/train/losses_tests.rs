//! Every loss and its gradient against PyTorch's autograd (`trainer/tests/golden/losses.py`).
//!
//! The golden gradients are by the student's logits; here each loss gives its slopes by ln p, from
//! which `d ln p_v / d z_j = 1{j = v} − p_j` makes the same.

use super::surrogate::{Clip, Term};
use super::teach::choose;
use super::*;
use crate::compute::Sight;
use hone_shared::policy::{HintSelect, Support};
use serde_json::Value;

/// Golden values are rounded to eight digits, ours computed from f32.
const TOLERANCE: f64 = 3e-6;

struct Golden {
    all: Value,
    tokens: Vec<usize>,
    positions: usize,
    vocab: usize,
    clip: Clip,
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn golden() -> Golden {
    let text = include_str!("../../tests/golden/losses.json");
    let all: Value = serde_json::from_str(text).unwrap();
    let shape: Vec<usize> = numbers(&all["shape"]).into_iter().map(|n| n as usize).collect();
    let tokens = numbers(&all["tokens"]).into_iter().map(|n| n as usize).collect();
    let bound = |name: &str| all["bounds"][name].as_f64().unwrap();
    let clip = Clip { low: bound("low"), high: bound("high") };
    Golden { tokens, positions: shape[0], vocab: shape[1], clip, all }
}

impl Golden {
    /// ln p by position of logits that begin at `from`.
    fn log_p(&self, name: &str, from: usize) -> Vec<Vec<f32>> {
        let logits = numbers(&self.all[name]);
        let logits = &logits[from * self.vocab..(from + self.positions) * self.vocab];
        let row = |z: &[f64]| {
            let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            z.iter().map(|z| (z - lse) as f32).collect()
        };
        logits.chunks(self.vocab).map(row).collect()
    }

    fn hint(&self, hint: usize) -> Vec<Vec<f32>> {
        self.log_p("hints", hint * self.positions)
    }

    /// The gradient by the logits of slopes by ln p: `(token, slope)` lists by position.
    fn by_logits(&self, slopes: &[Vec<(usize, f64)>]) -> Vec<f64> {
        let mut out = Vec::new();
        for (p, slopes) in self.log_p("now", 0).iter().zip(slopes) {
            let total: f64 = slopes.iter().map(|(_, slope)| slope).sum();
            let mut row: Vec<f64> = p.iter().map(|p| -total * f64::from(*p).exp()).collect();
            slopes.iter().for_each(|(token, slope)| row[*token] += slope);
            out.extend(row);
        }
        out
    }

    fn check(&self, what: &str, want: &Value, loss: f64, gradient: &[f64]) {
        let wanted = want["loss"].as_f64().unwrap();
        assert!((loss - wanted).abs() < TOLERANCE * 10.0, "{what}: loss {loss}, want {wanted}");
        let wanted = numbers(&want["gradient"]);
        assert_eq!(gradient.len(), wanted.len(), "{what}");
        assert!(wanted.iter().any(|g| g.abs() > 1e-3), "{what}: the golden gradient is empty");
        for (i, (found, want)) in gradient.iter().zip(&wanted).enumerate() {
            assert!((found - want).abs() < TOLERANCE, "{what} {i}: {found}, want {want}");
        }
    }

    /// A loss of the sampled tokens alone.
    fn check_own(&self, name: &str, term: impl Fn(f64, usize, usize) -> Term) {
        let (now, mut loss, mut slopes) = (self.log_p("now", 0), 0.0, Vec::new());
        for (i, token) in self.tokens.iter().enumerate() {
            let term = term(f64::from(now[i][*token]), i, *token);
            loss += term.loss;
            slopes.push(vec![(*token, term.gradient)]);
        }
        self.check(name, &self.all["losses"][name], loss, &self.by_logits(&slopes));
    }
}

#[test]
fn losses_of_the_sampled_token_are_pytorchs() {
    let it = golden();
    let (old, base, teacher) = (it.log_p("old", 0), it.log_p("base", 0), it.hint(0));
    let at = |list: &[Vec<f32>], i: usize, token: usize| f64::from(list[i][token]);
    it.check_own("approved", |now, i, t| binary_rl::term(now, at(&old, i, t), 1.0, it.clip));
    it.check_own("corrected", |now, i, t| binary_rl::term(now, at(&old, i, t), -1.0, it.clip));
    let bound = it.all["bounds"]["advantage"].as_f64().unwrap();
    it.check_own("token", |now, i, t| {
        opd::term(at(&teacher, i, t), now, at(&old, i, t), bound, it.clip)
    });
    it.check_own("anchor", |now, i, t| anchor::k3(now, at(&base, i, t)));
    it.check_own("sft", |now, _, _| sft::term(now));
}

#[test]
fn the_divergence_with_a_tail_is_pytorchs() {
    let it = golden();
    let k = it.all["shape"][3].as_u64().unwrap() as usize;
    let (now, teacher) = (it.log_p("now", 0), it.hint(0));
    let (mut loss, mut slopes) = (0.0, Vec::new());
    for (now, teacher) in now.iter().zip(&teacher) {
        let ids: Vec<usize> = top(teacher, k).iter().map(|(t, _)| *t as usize).collect();
        let of = |list: &[f32]| ids.iter().map(|t| list[*t]).collect::<Vec<_>>();
        let (term, gradient) = tail_kl::term(&of(now), &of(teacher));
        loss += term;
        slopes.push(ids.into_iter().zip(gradient).collect());
    }
    it.check("tail", &it.all["losses"]["tail"], loss, &it.by_logits(&slopes));
}

/// The head's divergences have tests of their own; here their formulae meet PyTorch's.
#[test]
fn whole_divergences_are_pytorchs() {
    let it = golden();
    let (now, teacher) = (it.log_p("now", 0), it.hint(0));
    for (name, reverse) in [("forward_kl", false), ("reverse_kl", true)] {
        let (mut loss, mut gradient) = (0.0, Vec::new());
        for (now, teacher) in now.iter().zip(&teacher) {
            let pairs: Vec<(f64, f64)> =
                now.iter().zip(teacher).map(|(p, q)| (f64::from(*p), f64::from(*q))).collect();
            let kl: f64 = match reverse {
                true => pairs.iter().map(|(p, q)| p.exp() * (p - q)).sum(),
                false => pairs.iter().map(|(p, q)| q.exp() * (q - p)).sum(),
            };
            let term = full_kl::term(kl);
            loss += term.loss;
            gradient.extend(pairs.iter().map(|(p, q)| match reverse {
                true => term.gradient * p.exp() * (p - q - kl),
                false => term.gradient * (p.exp() - q.exp()),
            }));
        }
        it.check(name, &it.all["losses"][name], loss, &gradient);
    }
}

fn top(log_p: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(log_p.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(k);
    all
}

#[test]
fn every_selection_over_every_support_is_pytorchs() {
    let it = golden();
    let k = it.all["shape"][3].as_u64().unwrap() as usize;
    let (now, old) = (it.log_p("now", 0), it.log_p("old", 0));
    let tops = |list: &[Vec<f32>]| list.iter().map(|p| top(p, k)).collect::<Vec<_>>();
    let own = Sight { top: tops(&old), ..Sight::default() };
    let views: Vec<Sight> = (0..3)
        .map(|hint| {
            let view = it.hint(hint);
            let at = own.top.iter().zip(&view);
            let at = at.map(|(top, p)| top.iter().map(|(t, _)| p[*t as usize]).collect());
            Sight { at: at.collect(), top: tops(&view), ..Sight::default() }
        })
        .collect();
    let selections = [
        ("sequence_optimal", HintSelect::SequenceOptimal),
        ("token_optimal", HintSelect::TokenOptimal),
        ("shortest", HintSelect::Shortest),
    ];
    let supports = [
        ("student", Support::Student),
        ("teacher", Support::Teacher),
        ("overlap", Support::Overlap),
    ];
    let mut policy = crate::testing::train_policy();
    let delta = it.all["bounds"]["delta"].as_f64().unwrap();
    for (select_name, select) in selections {
        for (support_name, support) in supports {
            (policy.hint_select, policy.support) = (select, support);
            let (mut loss, mut slopes, mut sizes) = (0.0, Vec::new(), Vec::new());
            for (i, mut position) in choose(&policy, &own, &views).into_iter().enumerate() {
                let of = |list: &[Vec<f32>]| -> Vec<f32> {
                    position.ids.iter().map(|t| list[i][*t as usize]).collect()
                };
                let (now, asked_later) = (of(&now), of(&old));
                if support == Support::Teacher {
                    position.old = asked_later;
                }
                let (term, gradient) = topk::term(&now, &position, delta, it.clip);
                loss += term;
                sizes.push(position.ids.len() as f64);
                let ids = position.ids.iter().map(|t| *t as usize);
                slopes.push(ids.zip(gradient).collect());
            }
            let name = format!("{select_name}/{support_name}");
            let want = &it.all["top_k"][&name];
            assert_eq!(sizes, numbers(&want["sizes"]), "{name}");
            it.check(&name, want, loss, &it.by_logits(&slopes));
        }
    }
}

#[test]
fn standardised_step_rewards_are_pytorchs() {
    let it = golden();
    let found = stepwise::standardise(&numbers(&it.all["stepwise"]["rewards"]));
    let stepwise::Group::Standardised(found) = found else { panic!("{found:?}") };
    for (found, want) in found.iter().zip(numbers(&it.all["stepwise"]["advantages"])) {
        assert!((found - want).abs() < 1e-7, "{found}, want {want}");
    }
}
