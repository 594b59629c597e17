//! [`Compute`] on the processor: validates, packs, runs the passes on its own threads.
//!
//! Invariant: memory is bounded by [`Limits`], however many sequences come in; a caller's mistake
//! is an error before any work is done.

use std::mem::take;
use std::path::Path;

use hone_model::config::ModelConfig;
use hone_model::lora::Lora;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio_util::sync::CancellationToken;

use super::adapter::{Collector, Packed};
use super::backward::{Backward, Buffers};
use super::batch::{self, Batch, Span};
use super::forward::Pass;
use super::head::{self, Row, Scored, Seen};
use super::kernels::Precision;
use super::look::{Look, Sight, Slopes};
use super::math::Rope;
use super::model::Model;
use super::sampler::Sampler;
use super::state::{State, Trail};
use super::{Compute, ComputeError, Gradient, Rollout, SampleParams, Sequence, check};

/// What a [`CpuCompute`] may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of activations that are kept for a backward pass. Layers of a sequence that needs more
    /// are computed again.
    pub activation_bytes_max: usize,
    /// Bytes of keys and values that are kept while sampling.
    pub cache_bytes_max: usize,
    /// Bytes that a second, turned copy of the weights may take, which makes gradients faster. A
    /// model that needs more is turned layer by layer each time.
    pub turned_bytes_max: usize,
    /// Bytes of logits that exist at a time.
    pub logits_bytes_max: usize,
    /// Most replies that are drawn at the same time.
    pub replies_max: usize,
    /// Equal prompts are computed once.
    pub share_prompts: bool,
    /// Of weights and of the activations that are multiplied with them.
    pub precision: Precision,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            activation_bytes_max: 704 << 20,
            cache_bytes_max: 512 << 20,
            turned_bytes_max: 1 << 30,
            logits_bytes_max: 104 << 20,
            replies_max: 64,
            share_prompts: true,
            precision: Precision::F32,
        }
    }
}

/// A base model in memory and the threads that compute with it.
pub struct CpuCompute {
    model: Model,
    rope: Rope,
    pool: ThreadPool,
    limits: Limits,
    stop: CancellationToken,
    room: Room,
}

/// Memory of the last call, which the next one takes.
#[derive(Default)]
struct Room {
    trail: Trail,
    backward: Buffers,
    logits: Vec<Vec<f32>>,
    packed: Option<Packed>,
    collector: Option<Collector>,
    x: Vec<f32>,
    dx: Vec<f32>,
}

impl CpuCompute {
    /// Loads a model directory. `threads` 0 takes all processors.
    ///
    /// # Errors
    /// An unusable model, or threads that cannot be started.
    pub fn new(model_dir: &Path, threads: usize) -> Result<CpuCompute, ComputeError> {
        CpuCompute::with_limits(model_dir, threads, Limits::default())
    }

    /// As [`CpuCompute::new`] with other limits.
    ///
    /// # Errors
    /// As [`CpuCompute::new`].
    pub fn with_limits(
        model_dir: &Path,
        threads: usize,
        limits: Limits,
    ) -> Result<CpuCompute, ComputeError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("compute-{index}"))
            .build()
            .map_err(|e| ComputeError::Threads(e.to_string()))?;
        let model =
            pool.install(|| Model::load(model_dir, limits.precision, limits.turned_bytes_max))?;
        let rope = Rope::new(model.config.rope_frequencies());
        let (stop, room) = (CancellationToken::new(), Room::default());
        Ok(CpuCompute { model, rope, pool, limits, stop, room })
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    /// The precision in use: what the limits ask for, as far as the processor has it.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.model.precision
    }

    /// Number of compute threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn pass<'a>(&'a self, adapter: Option<&'a Packed>) -> Pass<'a> {
        Pass { model: &self.model, adapter, rope: &self.rope, stop: &self.stop }
    }

    /// A call that was asked to stop left out layers: its numbers are not to be used.
    fn uninterrupted(&self) -> Result<(), ComputeError> {
        if self.stop.is_cancelled() { Err(ComputeError::Interrupted) } else { Ok(()) }
    }

    /// Runs something on the compute threads.
    pub(super) fn on_threads<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        self.pool.install(run)
    }

    /// Rows of a batch whose activations stay within the limit.
    fn rows_max(&self, rank: usize, layers: usize) -> usize {
        let row_bytes = State::row_bytes(&self.model, rank) * layers.max(1);
        (self.limits.activation_bytes_max / row_bytes).clamp(64, 4096)
    }

    /// Checks tokens and lengths, and makes the rotary table long enough.
    fn check<'a>(
        &mut self,
        sequences: impl Iterator<Item = (&'a [u32], &'a [u32])>,
    ) -> Result<(), ComputeError> {
        let longest = check::sequences(&self.model.config, sequences)?;
        self.rope.reserve(longest);
        Ok(())
    }

    /// Packs an adapter where the last one of its rank was packed.
    fn packed<'r>(
        &self,
        adapter: Option<&Lora>,
        kept: &'r mut Option<Packed>,
    ) -> Result<Option<&'r Packed>, ComputeError> {
        let Some(lora) = adapter else { return Ok(None) };
        check::adapter(&self.model.config, lora)?;
        let packed = match kept.take().filter(|packed| packed.rank == lora.rank) {
            Some(packed) => kept.insert(packed),
            None => kept.insert(Packed::new(&self.model, lora.rank)),
        };
        self.pool.install(|| packed.fill(lora));
        Ok(Some(packed))
    }

    /// Most rows that go through the head at a time.
    fn head_rows(&self, looks: &[Look]) -> usize {
        // The other model's logits take as much again.
        let both = looks.iter().any(|look| look.against.is_some());
        head::rows_max(&self.model, self.limits.logits_bytes_max / (1 + usize::from(both)))
    }

    /// Scores rows after the layers, as many at a time as the head takes.
    fn score_rows(
        &self,
        x: &[f32],
        rows: &[Row<'_>],
        most: usize,
        logits: &mut Vec<Vec<f32>>,
    ) -> Vec<Seen> {
        let mut seen = Vec::with_capacity(rows.len());
        for part in rows.chunks(most) {
            let mut scored = head::score(&self.model, x, part, take(logits));
            seen.append(&mut scored.seen);
            *logits = scored.release();
        }
        seen
    }

    /// The head of one batch: calls the loss for every span; `dx` becomes dL / dx.
    fn head(
        &self,
        batch: &Batch,
        x: &[f32],
        looks: &[Look],
        (found, logits): (&mut [Vec<f32>], &mut Vec<Vec<f32>>),
        dx: &mut Vec<f32>,
        loss: &mut dyn FnMut(usize, &Sight) -> Slopes,
    ) -> Result<(), ComputeError> {
        dx.clear();
        dx.resize(x.len(), 0.0);
        let (all, most) = (head::rows(&self.model, batch, looks), self.head_rows(looks));
        for spans in units(&batch.spans, most) {
            let range = spans[0].targets.start..spans[spans.len() - 1].targets.end;
            let rows = &all[range.clone()];
            let (mut seen, mut kept): (Vec<Seen>, Option<Scored>) = (Vec::new(), None);
            for part in rows.chunks(most) {
                let free = kept.take().map_or_else(|| take(logits), Scored::release);
                let scored = self.pool.install(|| head::score(&self.model, x, part, free));
                seen.extend_from_slice(&scored.seen);
                kept = Some(scored);
            }
            // A sequence longer than the head takes is scored again, part by part.
            if rows.len() > most {
                *logits = kept.take().map(Scored::release).unwrap_or_default();
            }
            let mut slopes = Vec::with_capacity(rows.len());
            for span in spans {
                let own = span.targets.start - range.start..span.targets.end - range.start;
                let (index, wanted) = (span.sequence, own.len());
                let sight = head::sight(&seen[own], looks.get(index));
                let given = loss(index, &sight);
                check::slopes(index, &given, &sight)?;
                slopes.extend(head::slopes(given, wanted));
                found[index] = sight.own;
            }
            self.pool.install(|| {
                for (part, slopes) in rows.chunks(most).zip(slopes.chunks(most)) {
                    let again = || head::score(&self.model, x, part, take(logits));
                    let scored = kept.take().unwrap_or_else(again);
                    *logits = scored.back(&self.model, part, slopes, dx);
                }
            });
        }
        Ok(())
    }
}

/// Consecutive spans with at most `most` targets together; a longer span is alone.
fn units(spans: &[Span], most: usize) -> Vec<&[Span]> {
    let (mut units, mut start) = (Vec::new(), 0);
    for end in 1..=spans.len() {
        let first = spans[start].targets.start;
        if spans.get(end).is_none_or(|next| next.targets.end - first > most) {
            units.push(&spans[start..end]);
            start = end;
        }
    }
    units
}

impl Compute for CpuCompute {
    fn interrupt_by(&mut self, stop: CancellationToken) {
        self.stop = stop;
    }

    fn sample(
        &mut self,
        adapter: Option<&Lora>,
        prompts: &[Vec<u32>],
        replies: usize,
        params: &SampleParams,
    ) -> Result<Vec<Vec<Rollout>>, ComputeError> {
        self.check(prompts.iter().map(|prompt| (prompt.as_slice(), [].as_slice())))?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let positions = longest.saturating_add(params.tokens_max);
        self.rope.reserve(positions.min(self.model.config.max_positions));
        let mut kept = self.room.packed.take();
        let pass = self.pass(self.packed(adapter, &mut kept)?);
        let rows_max = self.rows_max(pass.rank(), 1);
        let sampler = Sampler { pass, params, limits: &self.limits, rows_max };
        let drawn = self.pool.install(|| sampler.run(prompts, replies));
        self.room.packed = kept;
        self.uninterrupted()?;
        Ok(drawn)
    }

    fn look(
        &mut self,
        adapter: Option<&Lora>,
        sequences: &[Sequence],
        looks: &[Look],
    ) -> Result<Vec<Sight>, ComputeError> {
        self.check(check::pairs(sequences))?;
        check::looks(&self.model.config, sequences, looks)?;
        let mut room = take(&mut self.room);
        let Room { trail, logits, packed, x, .. } = &mut room;
        let pass = self.pass(self.packed(adapter, packed)?);
        let rows_max = self.rows_max(pass.rank(), 1).min(1024);
        let (width, most) = (self.model.config.hidden, self.head_rows(looks));
        let mut found = vec![Sight::default(); sequences.len()];
        for batch in batch::plan(sequences, rows_max, self.limits.share_prompts) {
            let rows = head::rows(&self.model, &batch, looks);
            let seen = self.pool.install(|| {
                trail.resize_to_one(&self.model, batch.rows(), pass.rank());
                pass.run(&batch, trail, x);
                self.score_rows(x, &rows, most, logits)
            });
            self.uninterrupted()?;
            for span in &batch.spans {
                let look = looks.get(span.sequence);
                let mut sight = head::sight(&seen[span.targets.clone()], look);
                if look.is_some_and(|look| look.state) {
                    let rows = batch.targets[span.targets.clone()].iter().map(|t| t.row * width);
                    sight.state = rows.flat_map(|at| &x[at..at + width]).copied().collect();
                }
                found[span.sequence] = sight;
            }
        }
        self.room = room;
        check::sights(found)
    }

    fn differentiate(
        &mut self,
        adapter: &Lora,
        sequences: &[Sequence],
        looks: &[Look],
        loss: &mut dyn FnMut(usize, &Sight) -> Slopes,
    ) -> Result<Gradient, ComputeError> {
        self.check(check::pairs(sequences))?;
        check::looks(&self.model.config, sequences, looks)?;
        let mut room = take(&mut self.room);
        let Room { trail, backward, logits, packed, collector, x, dx } = &mut room;
        let packed = self.packed(Some(adapter), packed)?.ok_or(ComputeError::AdapterShape)?;
        let rows_max = self.rows_max(adapter.rank, self.model.config.layers);
        let pass = self.pass(Some(packed));
        let collector = match collector.take().filter(|old| old.rank == adapter.rank) {
            Some(old) => collector.insert(old),
            None => collector.insert(Collector::new(&self.model, adapter.rank)),
        };
        collector.reset();
        let mut logprobs = vec![Vec::new(); sequences.len()];
        for batch in batch::plan(sequences, rows_max, self.limits.share_prompts) {
            let bytes_max = self.limits.activation_bytes_max;
            trail.resize(&self.model, batch.rows(), adapter.rank, bytes_max);
            self.pool.install(|| pass.run(&batch, trail, x));
            self.uninterrupted()?;
            self.head(&batch, x, looks, (&mut logprobs, logits), dx, loss)?;
            let way = Backward { pass, adapter: packed, batch: &batch };
            self.pool.install(|| way.run(dx, trail, backward, collector));
            self.uninterrupted()?;
        }
        let lora = self.pool.install(|| collector.finish(adapter));
        self.room = room;
        check::gradient(Gradient { lora, logprobs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_taken_together_up_to_the_limit_and_a_longer_one_alone() {
        let span = |start: usize, end: usize| Span { sequence: 0, targets: start..end };
        let spans = [span(0, 3), span(3, 5), span(5, 15), span(15, 16)];
        let counts: Vec<usize> = units(&spans, 5).iter().map(|unit| unit.len()).collect();
        assert_eq!(counts, [2, 1, 1]);
        assert!(units(&[], 5).is_empty());
    }
}
