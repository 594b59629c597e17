//! Picks the tokens: a logits processor that sees the raw logits of every step of one
//! sequence, samples from them itself, and hands the engine a one-hot that leaves no choice.
//!
//! Why not the engine's sampler: its log-probabilities are base 10 and wrong at temperature 0, it
//! returns no token ids, it has one seed for all requests, and its penalties count the prompt.
//! Here a draw depends on the seed, the position and the logits only, so a seed gives the same
//! reply whatever else runs in the batch.
//!
//! Invariant: never an error and never a panic inside the engine (an error in one sequence would
//! disturb its whole batch); when there is nothing sensible to pick, the end token is forced.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};
use mistralrs::core::CustomLogitsProcessor;
use tokio::sync::OwnedSemaphorePermit;

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// 0 means greedy.
    pub temperature: f32,
    /// Nucleus: smallest set of tokens with this much probability; 1 for all.
    pub top_p: f32,
    /// Only this many tokens; 0 for all.
    pub top_k: usize,
    /// Only tokens with at least this share of the best one's probability.
    pub min_p: f32,
    /// Subtracted once from the logit of a token that the reply has already.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the reply.
    pub frequency_penalty: f32,
    /// Divides (or multiplies, below zero) the logit of a token that the reply has; 1 for none.
    pub repetition_penalty: f32,
    /// Added to the logits of tokens.
    pub bias: Vec<(u32, f32)>,
    /// Key of the random draws.
    pub seed: u64,
    /// How many alternatives to report per token; `None` for no log-probabilities at all.
    pub alternatives: Option<usize>,
}

impl Default for Draw {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            bias: Vec::new(),
            seed: 0,
            alternatives: None,
        }
    }
}

/// One token of a reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Picked {
    /// Token id.
    pub id: u32,
    /// ln p under the raw logits at temperature 1; 0 if not asked for.
    pub logprob: f32,
    /// The most probable tokens with their ln p, best first.
    pub alternatives: Vec<(u32, f32)>,
}

/// What of the model the sampler must know.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Tokens of prompt and reply together.
    pub context: usize,
    /// Tokens of the reply.
    pub tokens_max: usize,
    /// A token that ends a reply.
    pub end: u32,
    /// Whether a grammar guards the sequence: then the end token must not be forced, because the
    /// engine fails on a token that the grammar forbids.
    pub guarded: bool,
}

#[derive(Default)]
struct Progress {
    prompt: Option<usize>,
    picked: Vec<Picked>,
    broken: bool,
}

/// The sampler of one sequence, shared between the engine and the request that reads along.
pub struct Sampler {
    draw: Draw,
    bounds: Bounds,
    cancelled: AtomicBool,
    progress: Mutex<Progress>,
}

impl Sampler {
    /// A sampler for one sequence.
    pub fn new(draw: Draw, bounds: Bounds) -> Self {
        let cancelled = AtomicBool::new(false);
        Self { draw, bounds, cancelled, progress: Mutex::default() }
    }

    /// Makes the engine end the sequence at its next step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Tokens of the prompt, once the engine has read it.
    pub fn prompt_tokens(&self) -> Option<usize> {
        self.progress().prompt
    }

    /// The reply from token `from` on.
    pub fn picked_since(&self, from: usize) -> Vec<Picked> {
        self.progress().picked.get(from..).unwrap_or_default().to_vec()
    }

    /// Tokens that the reply may have: what was asked for, or what the context leaves.
    pub fn tokens_limit(&self) -> usize {
        let room = self.prompt_tokens().map(|prompt| self.bounds.context.saturating_sub(prompt));
        room.unwrap_or(usize::MAX).min(self.bounds.tokens_max)
    }

    /// Whether the model gave logits that are no numbers.
    pub fn is_broken(&self) -> bool {
        self.progress().broken
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token for the position after `context`, given its logits.
    fn pick(&self, logits: &[f32], context: &[u32]) -> u32 {
        let mut progress = self.progress();
        let prompt = *progress.prompt.get_or_insert(context.len());
        // Under a grammar the engine may ask twice for one position: the last answer counts.
        let position = context.len().saturating_sub(prompt);
        progress.picked.truncate(position);
        let room = self.bounds.context.saturating_sub(prompt);
        let over = position >= room || self.cancelled.load(Ordering::Relaxed);
        if over && !self.bounds.guarded {
            return self.bounds.end;
        }
        let reply = context.get(prompt..).unwrap_or_default();
        let Some(id) = choose(logits, reply, &self.draw, position as u64) else {
            progress.broken = true;
            return self.bounds.end;
        };
        let (logprob, alternatives) = match self.draw.alternatives {
            Some(count) => logprobs(logits, id, count),
            None => (0.0, Vec::new()),
        };
        progress.picked.push(Picked { id, logprob, alternatives });
        id
    }
}

/// The sampler as the engine holds it, with the turn that its sequence takes. The engine drops it
/// together with the sequence, and not before: so the next turn begins only when this sequence has
/// left the engine, however it ended.
pub struct Seat {
    sampler: Arc<Sampler>,
    _turn: OwnedSemaphorePermit,
}

impl Seat {
    /// Seats a sampler.
    pub fn new(sampler: Arc<Sampler>, turn: OwnedSemaphorePermit) -> Self {
        Self { sampler, _turn: turn }
    }
}

impl CustomLogitsProcessor for Seat {
    fn apply(&self, logits: &Tensor, context: &[u32]) -> candle_core::Result<Tensor> {
        let logits: Vec<f32> = logits.to_vec1()?;
        let id = self.sampler.pick(&logits, context);
        let mut one_hot = vec![0f32; logits.len()];
        if let Some(slot) = one_hot.get_mut(id as usize) {
            *slot = 1.0;
        }
        let length = one_hot.len();
        Tensor::from_vec(one_hot, length, &Device::Cpu)
    }
}

/// ln p of `id` and of the `count` best tokens, over the full softmax of `logits`.
fn logprobs(logits: &[f32], id: u32, count: usize) -> (f32, Vec<(u32, f32)>) {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - best).exp()).sum();
    let log_sum = f64::from(best) + sum.ln();
    let of = |logit: f32| (f64::from(logit) - log_sum).max(-9999.0) as f32;
    let top = best_first(logits, count).into_iter().map(|id| (id, of(logits[id as usize])));
    let own = logits.get(id as usize).map_or(-9999.0, |logit| of(*logit));
    (own, top.collect())
}

/// The ids of the `count` largest values, largest first; the smaller id first among equals.
fn best_first(values: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| {
        values[*b as usize].total_cmp(&values[*a as usize]).then_with(|| a.cmp(b))
    };
    let count = count.min(values.len());
    let mut ids: Vec<u32> = (0..values.len() as u32).collect();
    if count == 0 {
        return Vec::new();
    }
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// Draws a token; `None` if no logit is a number.
fn choose(logits: &[f32], reply: &[u32], draw: &Draw, position: u64) -> Option<u32> {
    let adjusted = adjust(logits, reply, draw);
    let logits = adjusted.as_deref().unwrap_or(logits);
    let (best_id, best) = argmax(logits)?;
    if draw.temperature <= 0.0 {
        return Some(best_id);
    }
    let temperature = f64::from(draw.temperature);
    let weight = |logit: f32| (f64::from(logit - best) / temperature).exp();
    let uniform = uniform(draw.seed, position);
    if draw.top_p >= 1.0 && draw.top_k == 0 && draw.min_p <= 0.0 {
        let sum: f64 = logits.iter().filter(|l| !l.is_nan()).map(|l| weight(*l)).sum();
        let ids = 0..logits.len() as u32;
        return Some(walk(ids, |id| weight(logits[id as usize]), uniform * sum, best_id));
    }
    let nucleus = nucleus(logits, draw, &weight);
    let sum: f64 = nucleus.iter().map(|id| weight(logits[*id as usize])).sum();
    Some(walk(nucleus.into_iter(), |id| weight(logits[id as usize]), uniform * sum, best_id))
}

fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best: Option<(u32, f32)> = None;
    for (id, logit) in logits.iter().enumerate() {
        let better = best.is_none_or(|(_, most)| *logit > most);
        if better && !logit.is_nan() && *logit > f32::NEG_INFINITY {
            best = Some((id as u32, *logit));
        }
    }
    best.filter(|(_, logit)| logit.is_finite())
}

/// The logits after penalties and bias, if there are any.
fn adjust(logits: &[f32], reply: &[u32], draw: &Draw) -> Option<Vec<f32>> {
    let penalised = draw.presence_penalty != 0.0
        || draw.frequency_penalty != 0.0
        || draw.repetition_penalty != 1.0;
    if draw.bias.is_empty() && (reply.is_empty() || !penalised) {
        return None;
    }
    let mut adjusted = logits.to_vec();
    let mut counts: HashMap<u32, f32> = HashMap::new();
    for id in reply {
        *counts.entry(*id).or_default() += 1.0;
    }
    for (id, count) in counts {
        if let Some(logit) = adjusted.get_mut(id as usize) {
            let repetition = draw.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            *logit -= draw.presence_penalty + count * draw.frequency_penalty;
        }
    }
    for (id, bias) in &draw.bias {
        if let Some(logit) = adjusted.get_mut(*id as usize) {
            *logit += bias;
        }
    }
    Some(adjusted)
}

/// The ids that top-k, top-p and min-p leave, best first. At least one.
fn nucleus(logits: &[f32], draw: &Draw, weight: &impl Fn(f32) -> f64) -> Vec<u32> {
    let total: f64 = logits.iter().filter(|l| !l.is_nan()).map(|l| weight(*l)).sum();
    let most = if draw.top_k == 0 { logits.len() } else { draw.top_k.min(logits.len()) };
    // Nearly always a few hundred tokens hold the nucleus: sort those first, all only if not.
    for count in [512.min(most), most] {
        let mut ids = best_first(logits, count);
        let scope: f64 = if draw.top_k == 0 {
            total
        } else {
            best_first(logits, most).iter().map(|id| weight(logits[*id as usize])).sum()
        };
        let mut mass = 0.0;
        let kept = ids.iter().position(|id| {
            let reached = mass >= f64::from(draw.top_p) * scope;
            let share = weight(logits[*id as usize]);
            mass += share;
            reached || share < f64::from(draw.min_p)
        });
        if kept.is_some() || count == most {
            ids.truncate(kept.unwrap_or(ids.len()).max(1));
            return ids;
        }
    }
    best_first(logits, 1)
}

/// The id in whose share of the summed weights `target` falls.
fn walk(
    ids: impl Iterator<Item = u32>,
    weight: impl Fn(u32) -> f64,
    target: f64,
    best: u32,
) -> u32 {
    let mut sum = 0.0;
    for id in ids {
        let share = weight(id);
        if share > 0.0 {
            sum += share;
            if sum > target {
                return id;
            }
        }
    }
    best
}

/// A number in [0, 1) from a seed and a position (SplitMix64, Steele et al. 2014).
fn uniform(seed: u64, position: u64) -> f64 {
    let mut bits = seed;
    for salt in [position, 0x5851_F42D_4C95_7F2D] {
        bits = bits.wrapping_add(salt).wrapping_add(0x9E37_79B9_7F4A_7C15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
    }
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
