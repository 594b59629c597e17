//! Draws replies with a cache of keys and values: prompts in one packed batch, then one step for
//! all live replies at a time.
//!
//! A prompt's keys and values are kept once and seen by all its replies. Each reply has its own
//! generator, so what is drawn depends on the seed, the prompt's index and the reply's index, not
//! on what else is drawn or on the number of threads.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::attention::{Heads, softmax};
use super::batch::Batch;
use super::cpu::Limits;
use super::forward::Pass;
use super::head;
use super::math;
use super::model::VOCAB_CHUNK;
use super::state::State;
use super::{Rollout, SampleParams};

/// One call's worth of drawing.
pub(super) struct Sampler<'a> {
    pub(super) pass: Pass<'a>,
    pub(super) params: &'a SampleParams,
    pub(super) limits: &'a Limits,
    /// Most rows of a batch of prompts.
    pub(super) rows_max: usize,
}

/// A reply that is being drawn.
struct Live {
    prompt: usize,
    reply: usize,
    /// The prompt's rows in the cache.
    prefix: Range<usize>,
    /// Its place in the cache of drawn tokens.
    slot: usize,
    tokens_max: usize,
    rng: ChaCha8Rng,
    rollout: Rollout,
}

/// One layer's keys and values: of the prompts `(rows, kv)`, of the replies `(slots, cap, kv)`.
struct LayerCache {
    prompts: [Vec<f32>; 2],
    replies: [Vec<f32>; 2],
}

/// Keys and values of all layers.
struct Cache {
    layers: Vec<LayerCache>,
    cap: usize,
    width: usize,
}

impl Sampler<'_> {
    /// Replies per prompt, in order. Runs on the current pool.
    pub(super) fn run(&self, prompts: &[Vec<u32>], replies: usize) -> Vec<Vec<Rollout>> {
        let mut done: Vec<Vec<Rollout>> = prompts.iter().map(|_| Vec::new()).collect();
        for wave in self.waves(prompts, replies) {
            for live in self.draw(prompts, &wave) {
                // Waves are in order, and so are the replies of a wave.
                done[live.prompt].push(live.rollout);
            }
        }
        done
    }

    /// Splits all (prompt, reply) pairs so that each wave's cache fits.
    fn waves(&self, prompts: &[Vec<u32>], replies: usize) -> Vec<Vec<(usize, usize)>> {
        let model = self.pass.model;
        let token_bytes = 8 * model.kv_width() * model.layers.len();
        let mut waves: Vec<Vec<(usize, usize)>> = Vec::new();
        let mut bytes = 0;
        for (prompt, tokens) in prompts.iter().enumerate() {
            for reply in 0..replies {
                let new = waves.last().and_then(|w| w.last()).is_none_or(|last| last.0 != prompt);
                let own = token_bytes * self.params.tokens_max;
                let cost = own + if new { token_bytes * tokens.len() } else { 0 };
                match waves.last_mut() {
                    Some(wave)
                        if wave.len() < self.limits.replies_max
                            && bytes + cost <= self.limits.cache_bytes_max =>
                    {
                        wave.push((prompt, reply));
                        bytes += cost;
                    }
                    _ => {
                        waves.push(vec![(prompt, reply)]);
                        bytes = own + token_bytes * tokens.len();
                    }
                }
            }
        }
        waves
    }

    /// Draws one wave to the end; the result is in the wave's order.
    fn draw(&self, prompts: &[Vec<u32>], wave: &[(usize, usize)]) -> Vec<Live> {
        let mut cache = Cache::new(self, wave.len());
        let mut live = self.prefill(prompts, wave, &mut cache);
        let mut done: Vec<Live> = Vec::with_capacity(live.len());
        let model = self.pass.model;
        let rank = self.pass.rank();
        let mut state = State::new(model, live.len(), rank);
        let mut logits = Vec::new();
        loop {
            let (ended, going) = live.into_iter().partition(Live::is_done);
            live = going;
            done.extend::<Vec<Live>>(ended);
            if live.is_empty() || self.pass.stop.is_cancelled() {
                break;
            }
            state.resize(model, live.len(), rank);
            logits = self.step(&mut live, &mut cache, &mut state, logits);
        }
        done.sort_by_key(|live| (live.prompt, live.reply));
        done
    }

    /// Runs the wave's prompts and draws every reply's first token.
    fn prefill(
        &self,
        prompts: &[Vec<u32>],
        wave: &[(usize, usize)],
        cache: &mut Cache,
    ) -> Vec<Live> {
        let mut members: Vec<usize> = wave.iter().map(|(prompt, _)| *prompt).collect();
        members.dedup();
        let (mut live, mut start, mut first) = (Vec::with_capacity(wave.len()), 0, 0);
        while start < members.len() {
            let mut batch = Batch::default();
            let mut end = start;
            while end < members.len()
                && (end == start || batch.rows() + prompts[members[end]].len() <= self.rows_max)
            {
                batch.open(&prompts[members[end]]);
                end += 1;
            }
            let x = self.run_prompts(&batch, cache);
            for (prompt, group) in members[start..end].iter().zip(&batch.groups) {
                let prefix = first + group.rows.start..first + group.rows.end;
                let hidden = self.pass.model.config.hidden;
                let last = &x[(group.rows.end - 1) * hidden..group.rows.end * hidden];
                let logits = head::logits(self.pass.model, last, Vec::new());
                let own = wave.iter().enumerate().filter(|(_, pair)| pair.0 == *prompt);
                let mut fresh: Vec<Live> =
                    own.map(|(slot, pair)| self.begin(*pair, slot, prefix.clone())).collect();
                fresh.par_iter_mut().for_each(|live| self.choose(live, &logits, 0, 1));
                live.extend(fresh);
            }
            first += batch.rows();
            start = end;
        }
        live
    }

    /// Runs the layers over whole prompts and appends their keys and values to the cache.
    fn run_prompts(&self, batch: &Batch, cache: &mut Cache) -> Vec<f32> {
        let (model, rows) = (self.pass.model, batch.rows());
        let mut x = vec![0.0; rows * model.config.hidden];
        model.embed(&batch.tokens, &mut x);
        let mut state = State::new(model, rows, self.pass.rank());
        for (index, layer) in cache.layers.iter_mut().enumerate() {
            let positions = &batch.positions;
            self.pass.layer(index, &mut x, positions, &mut state, |s| {
                self.pass.attend(batch, s);
            });
            layer.prompts[0].extend_from_slice(&state.k);
            layer.prompts[1].extend_from_slice(&state.v);
        }
        x
    }

    fn begin(&self, (prompt, reply): (usize, usize), slot: usize, prefix: Range<usize>) -> Live {
        let rng = generator(self.params.seed, prompt, reply);
        let room = self.pass.model.config.max_positions.saturating_sub(prefix.len());
        let tokens_max = self.params.tokens_max.min(room);
        let rollout = Rollout { tokens: Vec::new(), logprobs: Vec::new(), ended: false };
        Live { prompt, reply, prefix, slot, tokens_max, rng, rollout }
    }

    /// Feeds every live reply's last token and draws its next one. Gives back the memory of `logits`.
    fn step(
        &self,
        live: &mut [Live],
        cache: &mut Cache,
        state: &mut State,
        logits: Vec<Vec<f32>>,
    ) -> Vec<Vec<f32>> {
        let (model, rows) = (self.pass.model, live.len());
        let tokens: Vec<u32> =
            live.iter().filter_map(|l| l.rollout.tokens.last().copied()).collect();
        let positions: Vec<u32> = live.iter().map(|l| (l.prefix.len() + l.fed()) as u32).collect();
        let mut x = vec![0.0; rows * model.config.hidden];
        model.embed(&tokens, &mut x);
        for index in 0..model.layers.len() {
            self.pass.layer(index, &mut x, &positions, state, |s| {
                cache.append(index, live, &s.k, &s.v);
                cache.attend(index, live, self.pass.heads(), &s.q, &mut s.att);
            });
        }
        let logits = head::logits(model, &x, logits);
        live.par_iter_mut()
            .with_max_len(1)
            .enumerate()
            .for_each(|(row, live)| self.choose(live, &logits, row, rows));
        logits
    }

    /// Draws a token from row `row` of `rows` rows of chunked logits.
    fn choose(&self, live: &mut Live, logits: &[Vec<f32>], row: usize, rows: usize) {
        if live.is_done() {
            return;
        }
        let chunks: Vec<&[f32]> = logits
            .iter()
            .map(|chunk| {
                let width = chunk.len() / rows;
                &chunk[row * width..(row + 1) * width]
            })
            .collect();
        choose(&mut live.rollout, &chunks, self.params, &mut live.rng);
    }
}

/// The generator of one reply.
pub(super) fn generator(seed: u64, prompt: usize, reply: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(((prompt as u64) << 32) | reply as u64);
    rng
}

/// Adds a token to a reply, drawn from the logits of the whole vocabulary in chunks of at most
/// [`VOCAB_CHUNK`], all but the last of them full.
pub(super) fn choose(
    rollout: &mut Rollout,
    chunks: &[&[f32]],
    params: &SampleParams,
    rng: &mut ChaCha8Rng,
) {
    let most = chunks.iter().map(|c| math::max(c)).fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = chunks.iter().map(|c| math::exp_sum(c, most, 1.0)).sum();
    let token = match params.temperature {
        t if t > 0.0 => draw(chunks, most, 1.0 / t, rng.random::<f32>()),
        _ => chunks.iter().flat_map(|c| c.iter()).position(|l| *l >= most).unwrap_or(0),
    };
    let logit = chunks[token / VOCAB_CHUNK][token % VOCAB_CHUNK];
    rollout.tokens.push(token as u32);
    rollout.logprobs.push(logit - most - sum.ln());
    rollout.ended = params.eos.contains(&(token as u32));
}

/// The token at quantile `u` of the distribution `e^((logit − most) · scale)`.
fn draw(chunks: &[&[f32]], most: f32, scale: f32, u: f32) -> usize {
    let sums: Vec<f32> = chunks.iter().map(|c| math::exp_sum(c, most, scale)).collect();
    let mut left = u * sums.iter().sum::<f32>();
    let mut place = 0;
    while place + 1 < chunks.len() && left >= sums[place] {
        left -= sums[place];
        place += 1;
    }
    // Rounding may leave a little at the end: then it is the last token that has any weight.
    let mut last = 0;
    for (index, logit) in chunks[place].iter().enumerate() {
        let weight = math::exp((logit - most) * scale);
        if weight > 1e-30 {
            last = index;
            if left < weight {
                break;
            }
        }
        left -= weight;
    }
    place * VOCAB_CHUNK + last
}

impl Live {
    fn is_done(&self) -> bool {
        self.rollout.ended || self.rollout.tokens.len() >= self.tokens_max
    }

    /// Drawn tokens whose keys and values are in the cache before this step.
    fn fed(&self) -> usize {
        self.rollout.tokens.len().saturating_sub(1)
    }
}

impl Cache {
    fn new(sampler: &Sampler<'_>, slots: usize) -> Cache {
        let (model, cap) = (sampler.pass.model, sampler.params.tokens_max);
        let width = model.kv_width();
        let own = || vec![0.0; slots * cap * width];
        let layer = || LayerCache { prompts: [Vec::new(), Vec::new()], replies: [own(), own()] };
        Cache { layers: model.layers.iter().map(|_| layer()).collect(), cap, width }
    }

    /// Stores one new row of keys and values per live reply.
    fn append(&mut self, index: usize, live: &[Live], k: &[f32], v: &[f32]) {
        let width = self.width;
        for (row, live) in live.iter().enumerate() {
            let to = (live.slot * self.cap + live.fed()) * width;
            for (cache, new) in self.layers[index].replies.iter_mut().zip([k, v]) {
                cache[to..to + width].copy_from_slice(&new[row * width..(row + 1) * width]);
            }
        }
    }

    /// One query row per live reply over its prompt and its own tokens.
    fn attend(&self, index: usize, live: &[Live], shape: Heads, q: &[f32], att: &mut [f32]) {
        let (layer, width) = (&self.layers[index], shape.heads * shape.dim);
        let rows = live.par_iter().zip(q.par_chunks_exact(width));
        let rows = rows.zip(att.par_chunks_exact_mut(width)).with_max_len(1);
        rows.for_each_init(Vec::new, |scores, ((live, q), att)| {
            let prefix = live.prefix.start * self.width..live.prefix.end * self.width;
            let own = live.slot * self.cap * self.width;
            let own = own..own + (live.fed() + 1) * self.width;
            let rows = |which: usize| {
                let (prompt, reply) = (&layer.prompts[which], &layer.replies[which]);
                let own = reply[own.clone()].chunks_exact(self.width);
                prompt[prefix.clone()].chunks_exact(self.width).chain(own)
            };
            for (head, (q, att)) in
                q.chunks_exact(shape.dim).zip(att.chunks_exact_mut(shape.dim)).enumerate()
            {
                let column = shape.kv_of(head) * shape.dim;
                let column = column..column + shape.dim;
                scores.clear();
                scores.extend(rows(0).map(|k| math::dot(q, &k[column.clone()]) * shape.scale()));
                let count = scores.len();
                softmax(scores, count);
                att.fill(0.0);
                for (p, v) in scores.iter().zip(rows(1)) {
                    math::add_scaled(att, *p, &v[column.clone()]);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_in_proportion_to_their_probability() {
        let logits: Vec<f32> = (0..VOCAB_CHUNK + 10).map(|i| (i % 7) as f32).collect();
        let chunks: Vec<&[f32]> = logits.chunks(VOCAB_CHUNK).collect();
        let mut counts = [0usize; 7];
        for i in 0..2000 {
            let token = draw(&chunks, 6.0, 1.0, (i as f32 + 0.5) / 2000.0);
            counts[token % 7] += 1;
        }
        let total: f64 = (0..7).map(|i| f64::from(i).exp()).sum();
        for (i, count) in counts.iter().enumerate() {
            let share = (i as f64).exp() / total;
            assert!((*count as f64 / 2000.0 - share).abs() < 0.01, "{i}: {count}");
        }
    }

    #[test]
    fn a_quantile_of_one_still_is_a_token_with_weight() {
        let logits = [0.0f32, 1.0, -200.0];
        assert_eq!(draw(&[&logits], 1.0, 1.0, 1.0), 1);
        assert_eq!(draw(&[&logits], 1.0, 1.0, 0.0), 0);
    }
}
