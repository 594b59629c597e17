//! The neutral set: prompts nobody corrected, on which the candidate must stay itself.
//!
//! The candidate answers each prompt; per token of its own answers `k3` estimates
//! KL(candidate ‖ base). Repetition is the share of repeated 4-token groups; ended is the share of
//! replies that end by themselves, beside the incumbent's; empty is the share without any text.
//!
//! Invariant: nothing measured means nothing passed.

use super::GateError;
use crate::compute::{Compute, SampleParams, Sequence};
use crate::sample::filter::repeated_share;
use crate::train::anchor::k3;
use hone_model::lora::Lora;
use serde::Serialize;

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
}

/// Draws and measures.
pub fn measure(
    compute: &mut dyn Compute,
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
            let said = reply.tokens.len() - usize::from(reply.ended && !reply.tokens.is_empty());
            out.replies += 1;
            out.repetition += repeated_share(&reply.tokens[..said]);
            out.ended_share += f64::from(u8::from(reply.ended));
            out.empty_share += f64::from(u8::from(said == 0));
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
    let others: Vec<bool> = others.iter().flatten().map(|reply| reply.ended).collect();
    let ended = others.iter().filter(|ended| **ended).count();
    out.ended_share_incumbent = ended as f64 / others.len().max(1) as f64;
    let n = out.replies as f64;
    out.kl /= tokens;
    out.repetition /= n;
    out.ended_share /= n;
    out.empty_share /= n;
    out.tokens_mean /= n;
    Ok(out)
}
