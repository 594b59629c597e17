//! The neutral set: prompts nobody corrected, on which the candidate must stay itself.
//!
//! The candidate answers each prompt; per token of its own answers `k3` estimates
//! KL(candidate ‖ base). Repetition is the share of repeated 4-token groups; ended is the share of
//! replies that end by themselves; empty is the share without any text; refusal the share that
//! begins by refusing; phrase the share of replies that one group of six tokens occurs in, which is
//! how a reward-hacked phrase shows. The incumbent answers the same prompts beside it.
//!
//! Invariant: nothing measured means nothing passed.

use super::GateError;
use crate::compute::{Compute, Rollout, SampleParams, Sequence};
use crate::sample::filter::{is_refusal, repeated_share};
use crate::sample::render::Renderer;
use crate::train::anchor::k3;
use hone_model::lora::Lora;
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// Share of empty replies that is tolerated.
pub const EMPTY_SHARE_MAX: f64 = 0.1;

/// Measured on the neutral set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Neutral {
    /// Replies drawn.
    pub replies: usize,
    /// Mean k3 per token, in nats.
    pub kl: f64,
    /// Mean share of repeated 4-token groups.
    pub repetition: f64,
    /// Share of replies that ended by themselves.
    pub ended_share: f64,
    /// The same share among the incumbent's replies to the same prompts.
    pub ended_share_incumbent: f64,
    /// Share of replies without any token but the end.
    pub empty_share: f64,
    /// Mean length in tokens.
    pub tokens_mean: f64,
    /// Mean length of the incumbent's replies.
    pub tokens_mean_incumbent: f64,
    /// Share of replies that begin by refusing.
    pub refusal_share: f64,
    /// The same share among the incumbent's.
    pub refusal_share_incumbent: f64,
    /// Share of replies that the commonest phrase occurs in.
    pub phrase_share: f64,
    /// The same share among the incumbent's.
    pub phrase_share_incumbent: f64,
}

/// Tokens of a phrase.
const PHRASE_TOKENS: usize = 6;

/// Share of the replies that the commonest group of tokens occurs in; 0 where none occurs twice.
fn phrase_share(replies: &[&[u32]]) -> f64 {
    let mut counts: HashMap<&[u32], usize> = HashMap::new();
    for reply in replies {
        let own: HashSet<&[u32]> = reply.windows(PHRASE_TOKENS).collect();
        own.into_iter().for_each(|group| *counts.entry(group).or_default() += 1);
    }
    let most = counts.into_values().max().filter(|count| *count > 1).unwrap_or(0);
    most as f64 / replies.len().max(1) as f64
}

/// Share of the replies that begin by refusing.
fn refusal_share(renderer: &Renderer, replies: &[&[u32]]) -> f64 {
    let refusing = replies.iter().filter(|reply| is_refusal(&renderer.text(reply))).count();
    refusing as f64 / replies.len().max(1) as f64
}

/// A reply without the token that ends it.
fn said(reply: &Rollout) -> &[u32] {
    let end = usize::from(reply.ended && !reply.tokens.is_empty());
    &reply.tokens[..reply.tokens.len() - end]
}

/// Draws and measures.
pub fn measure(
    compute: &mut dyn Compute,
    renderer: &Renderer,
    candidate: &Lora,
    incumbent: Option<&Lora>,
    prompts: &[Vec<u32>],
    replies: usize,
    params: &SampleParams,
) -> Result<Neutral, GateError> {
    let groups = compute.sample(Some(candidate), prompts, replies, params)?;
    let mut out = Neutral::default();
    let mut sequences = Vec::new();
    for (prompt, group) in prompts.iter().zip(&groups) {
        for reply in group {
            out.replies += 1;
            out.repetition += repeated_share(said(reply));
            out.ended_share += f64::from(u8::from(reply.ended));
            out.empty_share += f64::from(u8::from(said(reply).is_empty()));
            out.tokens_mean += reply.tokens.len() as f64;
            let (prompt, response) = (prompt.clone(), reply.tokens.clone());
            sequences.push(Sequence { prompt, response });
        }
    }
    let own = compute.score(Some(candidate), &sequences)?;
    let base = compute.score(None, &sequences)?;
    let mut tokens = 0.0;
    for (own, base) in own.iter().zip(&base) {
        for (own, base) in own.iter().zip(base) {
            out.kl += k3(f64::from(*own), f64::from(*base)).loss;
            tokens += 1.0;
        }
    }
    if out.replies == 0 || tokens == 0.0 {
        return Err(GateError::Nothing("the candidate gave no neutral replies"));
    }
    let others = compute.sample(incumbent, prompts, replies, params)?;
    let others: Vec<&Rollout> = others.iter().flatten().collect();
    let count = others.len().max(1) as f64;
    out.ended_share_incumbent = others.iter().filter(|reply| reply.ended).count() as f64 / count;
    let said_there: usize = others.iter().map(|reply| reply.tokens.len()).sum();
    out.tokens_mean_incumbent = said_there as f64 / count;
    let own: Vec<&[u32]> = groups.iter().flatten().map(said).collect();
    let others: Vec<&[u32]> = others.into_iter().map(said).collect();
    (out.phrase_share, out.phrase_share_incumbent) = (phrase_share(&own), phrase_share(&others));
    out.refusal_share = refusal_share(renderer, &own);
    out.refusal_share_incumbent = refusal_share(renderer, &others);
    let n = out.replies as f64;
    out.kl /= tokens;
    out.repetition /= n;
    out.ended_share /= n;
    out.empty_share /= n;
    out.tokens_mean /= n;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phrase_counts_once_per_reply_and_alone_not_at_all() {
        let phrase = [1, 2, 3, 4, 5, 6];
        let with = |n: u32| [&[n + 100, n + 200][..], &phrase, &phrase].concat();
        let (a, b, c) = (with(1), with(2), vec![9; 4]);
        assert_eq!(phrase_share(&[&a, &b, &c, &c]), 0.5);
        assert_eq!(phrase_share(&[&a, &c]), 0.0);
        assert_eq!(phrase_share(&[]), 0.0);
    }
}
