//! Draws the replies to one prompt together: the prompt's keys and values once, then one step for all
//! replies at a time.
//!
//! All replies are equally long while they are drawn, so their positions are the same. A reply that has
//! ended is carried along until the last one ends. Tokens are chosen on the host by the processor's
//! sampler, with the same generators.
//!
//! Invariant: what is drawn depends on the seed, the prompt's index and the reply's index.

use candle_core::{D, Tensor};
use hone_model::frozen::Frozen;
use hone_model::ops::{self, rms_norm, softmax};
use rand_chacha::ChaCha8Rng;
use tokio_util::sync::CancellationToken;

use super::adapter::Adapter;
use super::layer::{Ground, Walk};
use crate::compute::model::VOCAB_CHUNK;
use crate::compute::sampler::{choose, generator};
use crate::compute::{ComputeError, Rollout, SampleParams};

/// One call's worth of drawing.
pub(super) struct Sampler<'a> {
    pub(super) model: &'a Frozen,
    pub(super) adapter: Option<&'a Adapter>,
    pub(super) params: &'a SampleParams,
    pub(super) stop: &'a CancellationToken,
}

/// Rotated keys, and values, of one layer.
struct Kept {
    /// Of the prompt, `(kv_heads, T, head_dim)` each.
    prompt: [Tensor; 2],
    /// Of the replies so far, `(replies, kv_heads, steps, head_dim)` each.
    replies: Option<[Tensor; 2]>,
}

impl Sampler<'_> {
    /// `replies` replies to a prompt.
    pub(super) fn draw(
        &self,
        index: usize,
        prompt: &[u32],
        replies: usize,
    ) -> Result<Vec<Rollout>, ComputeError> {
        let room = self.model.config.max_positions.saturating_sub(prompt.len());
        let tokens_max = self.params.tokens_max.min(room);
        let empty = Rollout { tokens: Vec::new(), logprobs: Vec::new(), ended: false };
        let mut drawn = vec![empty; replies];
        if replies == 0 || tokens_max == 0 {
            return Ok(drawn);
        }
        let ground = Ground::of(self.model, self.adapter, prompt.len())?;
        let (last, mut kept) = self.prefill(&ground, prompt)?;
        let mut logits = vec![self.logits(&last)?.remove(0); replies];
        let mut rngs: Vec<ChaCha8Rng> =
            (0..replies).map(|reply| generator(self.params.seed, index, reply)).collect();
        loop {
            for ((rollout, logits), rng) in drawn.iter_mut().zip(&logits).zip(&mut rngs) {
                if !rollout.ended {
                    let chunks: Vec<&[f32]> = logits.chunks(VOCAB_CHUNK).collect();
                    choose(rollout, &chunks, self.params, rng);
                }
            }
            let fed = drawn.iter().map(|rollout| rollout.tokens.len()).max().unwrap_or(0);
            if fed >= tokens_max || drawn.iter().all(|rollout| rollout.ended) {
                return Ok(drawn);
            }
            if self.stop.is_cancelled() {
                return Err(ComputeError::Interrupted);
            }
            let tokens: Vec<u32> =
                drawn.iter().filter_map(|rollout| rollout.tokens.last().copied()).collect();
            logits = self.step(&ground, &tokens, prompt.len() + fed - 1, &mut kept)?;
        }
    }

    /// The prompt's last hidden state `(1, hidden)`, and its keys and values.
    fn prefill(
        &self,
        ground: &Ground<'_>,
        prompt: &[u32],
    ) -> Result<(Tensor, Vec<Kept>), ComputeError> {
        let mut x = self.model.embed(prompt)?;
        let mut all = Vec::with_capacity(self.model.layers.len());
        for index in 0..self.model.layers.len() {
            if self.stop.is_cancelled() {
                return Err(ComputeError::Interrupted);
            }
            let walked = Walk::of(ground, index, &x, &mut |qkv| {
                let heads = ground.heads(index, qkv)?;
                let prompt = [heads[1].detach(), heads[2].detach()];
                all.push(Kept { prompt, replies: None });
                ground.attend(&heads)
            });
            x = walked?.out;
        }
        Ok((x.narrow(0, prompt.len() - 1, 1)?, all))
    }

    /// Feeds every reply's last token, all at `position`; returns the logits of the next.
    fn step(
        &self,
        ground: &Ground<'_>,
        tokens: &[u32],
        position: usize,
        kept: &mut [Kept],
    ) -> Result<Vec<Vec<f32>>, ComputeError> {
        let (cos, sin) = ops::rotation(&self.model.frequencies, position, 1, &self.model.device)?;
        let mut x = self.model.embed(tokens)?;
        for (index, kept) in kept.iter_mut().enumerate() {
            let walked = Walk::of(ground, index, &x, &mut |qkv| {
                let new = self.model.heads(index, qkv, &cos, &sin)?;
                self.attend(&new.map(|tensor| tensor.detach()), kept)
            });
            x = walked?.out;
        }
        self.logits(&x)
    }

    /// One query per reply over the prompt and the reply's own tokens. `q`, `k`, `v` are
    /// `(heads, replies, head_dim)`; the result is `(replies, heads · head_dim)`.
    fn attend(&self, [q, k, v]: &[Tensor; 3], kept: &mut Kept) -> candle_core::Result<Tensor> {
        let config = &self.model.config;
        let (kv, dim, group) = (config.kv_heads, config.head_dim, config.heads / config.kv_heads);
        let replies = q.dim(1)?;
        let row = |new: &Tensor| new.transpose(0, 1)?.contiguous()?.reshape((replies, kv, 1, dim));
        let grown = match kept.replies.take() {
            Some([keys, values]) => {
                [Tensor::cat(&[keys, row(k)?], 2)?, Tensor::cat(&[values, row(v)?], 2)?]
            }
            None => [row(k)?, row(v)?],
        };
        let steps = grown[0].dim(2)?;
        // By reply, then by key head: each has `group` queries.
        let by_reply = q.transpose(0, 1)?.contiguous()?.reshape((replies, kv, group, dim))?;
        // By key head, then by reply: the prompt is the same for all.
        let by_head =
            by_reply.transpose(0, 1)?.contiguous()?.reshape((kv, replies * group, dim))?;
        let prompt = by_head.matmul(&kept.prompt[0].t()?.contiguous()?)?;
        let length = prompt.dim(D::Minus1)?;
        let prompt = prompt.reshape((kv, replies, group, length))?.transpose(0, 1)?.contiguous()?;
        let flat = |grown: &Tensor| grown.reshape((replies * kv, steps, dim));
        let own = by_reply.reshape((replies * kv, group, dim))?;
        let own = own.matmul(&flat(&grown[0])?.t()?.contiguous()?)?;
        let own = own.reshape((replies, kv, group, steps))?;
        let scores = (Tensor::cat(&[prompt, own], D::Minus1)? / (dim as f64).sqrt())?;
        let weights = softmax(&scores)?;
        let of_prompt = weights.narrow(D::Minus1, 0, length)?.transpose(0, 1)?.contiguous()?;
        let of_prompt =
            of_prompt.reshape((kv, replies * group, length))?.matmul(&kept.prompt[1])?;
        let of_prompt = of_prompt.reshape((kv, replies, group, dim))?.transpose(0, 1)?;
        let of_own = weights.narrow(D::Minus1, length, steps)?.contiguous()?;
        let of_own = of_own.reshape((replies * kv, group, steps))?.matmul(&flat(&grown[1])?)?;
        let mixed = (of_prompt + of_own.reshape((replies, kv, group, dim))?)?;
        kept.replies = Some(grown);
        mixed.contiguous()?.reshape((replies, kv * group * dim))
    }

    /// Logits of hidden states before the final norm, on the host.
    fn logits(&self, x: &Tensor) -> Result<Vec<Vec<f32>>, ComputeError> {
        let normed = rms_norm(x, &self.model.norm, self.model.config.rms_eps)?;
        Ok(self.model.logits(&normed)?.to_vec2()?)
    }
}
