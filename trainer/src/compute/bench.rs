//! The measured side of `hone bench trainer`: one process with one model, which does a task of a
//! given shape when it is asked to, and says how much arithmetic that was.
//!
//! Tasks are lines `score|train|sample <sequences> <tokens each>`; each is answered by one JSON
//! line. The yardstick, PyTorch + PEFT, understands the same lines.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use hone_model::config::ModelConfig;
use hone_model::lora::{Lora, Proj};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::kernels::{Left, NR, Product, Tile, accumulate, kernel_name};
use super::{Compute, ComputeError, CpuCompute, Limits, Precision, SampleParams, Sequence};

/// LoRA on all seven projections, as of the yardstick.
pub const RANK: usize = 16;
const ALPHA: f64 = 32.0;
/// Tokens of a prompt whose replies are drawn.
const PROMPT: usize = 32;

/// What one worker says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Instruction set of the matrix kernels, or the version of PyTorch.
    pub name: String,
    /// Of the matrix products; f32 if bf16 was asked for and the processor has none.
    pub precision: Precision,
    /// The most that the kernel alone does on all threads, GFLOP/s; 0 where it is not known.
    pub peak_gflops: f64,
}

/// One task, done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Tokens that were processed (drawn tokens for sampling).
    pub tokens: usize,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// Arithmetic per token, in FLOP (a multiplication and an addition are two): frozen weights and
/// head once forward and, for training, once backward (gradients of activations only), adapters
/// three times, causal attention with 2 products forward and 5 backward.
#[must_use]
pub fn flop_per_token(config: &ModelConfig, train: bool, tokens_each: usize) -> f64 {
    let shapes = Proj::ALL.map(|proj| config.proj_shape(proj));
    let body: usize = shapes.iter().map(|(out, width)| out * width).sum();
    let adapter: usize = shapes.iter().map(|(out, width)| RANK * (out + width)).sum();
    let attention = config.heads * config.head_dim * (tokens_each + 1) / 2;
    let (weights, adapters, products) = if train { (2, 3, 7) } else { (1, 1, 2) };
    let layer = weights * body + adapters * adapter + products * attention;
    2.0 * (config.layers * layer + weights * config.vocab * config.hidden) as f64
}

/// The most that the micro-kernel does on all threads of the current pool, in GFLOP/s: operands in
/// the cache, best of several runs.
fn peak_gflops(precision: Precision) -> f64 {
    const K: usize = 768;
    const CALLS: usize = 400;
    let threads = rayon::current_num_threads();
    let (rows, words) = (super::kernels::strips(12).next().map_or(1, |s| s.1), vec![0; K * 12]);
    let panel = vec![0; K * NR];
    let per_word = if precision == Precision::Bf16 { 4.0 } else { 2.0 };
    let run = |_| {
        let started = Instant::now();
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            let mut tile = vec![0.0; 12 * NR];
            for _ in 0..CALLS {
                let left = Left { words: &words, step: rows, rows };
                let (panel, narrow, ahead) = (&panel[..], false, (&panel[..], 0));
                accumulate(
                    Tile { values: &mut tile, stride: NR, fresh: false },
                    Product { precision, left, panel, narrow, ahead },
                );
            }
        });
        let flop = (threads * CALLS * rows * K * NR) as f64 * per_word;
        flop / started.elapsed().as_secs_f64() / 1e9
    };
    (0..40).map(run).fold(0.0, f64::max)
}

/// A model and an adapter, ready for tasks.
pub struct Worker {
    compute: CpuCompute,
    lora: Lora,
}

impl Worker {
    /// Loads a model directory. `threads` 0 takes all processors.
    ///
    /// # Errors
    /// An unusable model.
    pub fn new(
        model_dir: &Path,
        threads: usize,
        precision: Precision,
    ) -> Result<Worker, ComputeError> {
        let limits = Limits { precision, ..Limits::default() };
        let compute = CpuCompute::with_limits(model_dir, threads, limits)?;
        let mut lora = Lora::init(compute.config(), RANK, ALPHA, 17);
        // B starts at zero, which would make half of the adapter's work trivial.
        lora.for_each_tensor_mut(|_, _, _, values| {
            values.iter_mut().filter(|v| **v == 0.0).for_each(|v| *v = 1e-3);
        });
        Ok(Worker { compute, lora })
    }

    /// What it computes with. Measures the kernel's peak.
    #[must_use]
    pub fn about(&self) -> About {
        let precision = self.compute.precision();
        let peak_gflops = self.compute.on_threads(|| peak_gflops(precision));
        About { name: kernel_name().to_owned(), precision, peak_gflops }
    }

    /// Does one task.
    ///
    /// # Errors
    /// Sequences that the model does not take.
    pub fn run(
        &mut self,
        task: &str,
        sequences: usize,
        tokens_each: usize,
    ) -> Result<Done, ComputeError> {
        let vocab = self.compute.config().vocab;
        let token = |s: usize, t: usize| ((s * 7919 + t * 104_729 + 13) % vocab) as u32;
        // The first token is the prompt and all others are scored, as in the yardstick.
        let sequence = |s: usize| Sequence {
            prompt: vec![token(s, 0)],
            response: (1..tokens_each).map(|t| token(s, t)).collect(),
        };
        let batch: Vec<Sequence> = (0..sequences).map(sequence).collect();
        let mut tokens = sequences * tokens_each;
        let started = Instant::now();
        match task {
            "score" => drop(self.compute.score(Some(&self.lora), &batch)?),
            "sample" => {
                let prompt = (0..PROMPT).map(|t| token(0, t)).collect();
                let (tokens_max, eos) = (tokens_each, Vec::new());
                let params = SampleParams { temperature: 0.7, tokens_max, eos, seed: 17 };
                let drawn = self.compute.sample(Some(&self.lora), &[prompt], sequences, &params)?;
                tokens = drawn.iter().flatten().map(|rollout| rollout.tokens.len()).sum();
            }
            _ => {
                let weight = -1.0 / (sequences * tokens_each.saturating_sub(1)).max(1) as f32;
                let mut loss = |_: usize, logprobs: &[f32]| vec![weight; logprobs.len()];
                drop(self.compute.gradient(&self.lora, &batch, &mut loss)?);
            }
        }
        Ok(Done { tokens, seconds: started.elapsed().as_secs_f64() })
    }

    /// Says what it is, then answers every line of `input` until it ends.
    ///
    /// # Errors
    /// A line that is no task, a failed task, or a closed pipe; as text, for there is nobody else
    /// to tell.
    pub fn serve(&mut self, input: impl BufRead, mut output: impl Write) -> Result<(), String> {
        let mut say = |line: Result<String, serde_json::Error>| {
            let line = line.map_err(|e| e.to_string())?;
            writeln!(output, "{line}").and_then(|()| output.flush()).map_err(|e| e.to_string())
        };
        say(serde_json::to_string(&self.about()))?;
        for line in input.lines() {
            let line = line.map_err(|e| e.to_string())?;
            let words: Vec<&str> = line.split_whitespace().collect();
            let [task, sequences, tokens] = words[..] else {
                return Err(format!("{line:?} is no task"));
            };
            let number = |word: &str| word.parse::<usize>().map_err(|e| format!("{word}: {e}"));
            let done = self.run(task, number(sequences)?, number(tokens)?);
            say(serde_json::to_string(&done.map_err(|e| e.to_string())?))?;
        }
        Ok(())
    }
}
