//! Measures tokens per second of training, scoring and sampling on a real model.
//!
//! The same figures come out of `cargo bench -p hone-trainer` and `hone bench trainer`.

use std::path::Path;
use std::time::Instant;

use hone_model::lora::Lora;
use serde::{Deserialize, Serialize};

use super::kernels::linear::kernel_name;
use super::{Compute, ComputeError, CpuCompute, Limits, Precision, SampleParams, Sequence};

/// Runs of each measurement; the best and the median are reported.
const RUNS: usize = 3;

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// What was done, such as `train b4x256`.
    pub name: String,
    /// Tokens that one run processed (drawn tokens for sampling).
    pub tokens: usize,
    /// Tokens per second of the median run.
    pub tokens_per_second: f64,
    /// Tokens per second of the best run.
    pub tokens_per_second_best: f64,
}

/// All measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Compute threads.
    pub threads: usize,
    /// Instruction set of the matrix kernels.
    pub kernels: String,
    /// Of the matrix products; f32 if bf16 was asked for and the processor has none.
    pub precision: Precision,
    /// Seconds to load and pack the model.
    pub load_seconds: f64,
    /// One row per measurement.
    pub rows: Vec<BenchRow>,
}

/// Runs all measurements in f32 on a model directory. `threads` 0 takes all processors.
///
/// # Errors
/// An unusable model.
pub fn bench(model_dir: &Path, threads: usize) -> Result<BenchReport, ComputeError> {
    bench_with(model_dir, threads, Limits::default())
}

/// As [`bench`], with other limits or another precision.
///
/// # Errors
/// An unusable model.
pub fn bench_with(
    model_dir: &Path,
    threads: usize,
    limits: Limits,
) -> Result<BenchReport, ComputeError> {
    let start = Instant::now();
    let mut compute = CpuCompute::with_limits(model_dir, threads, limits)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let lora = Lora::init(compute.config(), 16, 32.0, 17);
    let vocab = compute.config().vocab;
    let mut rows = Vec::new();
    for (batch, length) in [(1, 256), (4, 256)] {
        let sequences: Vec<Sequence> = (0..batch).map(|i| sequence(i, length, vocab)).collect();
        let tokens = batch * length;
        rows.push(measure(format!("train b{batch}x{length}"), || {
            compute.gradient(&lora, &sequences, &mut |_, ln_p| vec![-1.0; ln_p.len()])?;
            Ok(tokens)
        })?);
        rows.push(measure(format!("score b{batch}x{length}"), || {
            compute.score(Some(&lora), &sequences)?;
            Ok(tokens)
        })?);
    }
    let prompts: Vec<Vec<u32>> = (0..2).map(|i| sequence(i, 32, vocab).prompt).collect();
    let params = SampleParams { temperature: 0.7, tokens_max: 64, eos: Vec::new(), seed: 17 };
    rows.push(measure("sample 16 rows x 64".to_owned(), || {
        let drawn = compute.sample(Some(&lora), &prompts, 8, &params)?;
        Ok(drawn.iter().flatten().map(|rollout| rollout.tokens.len()).sum())
    })?);
    let kernels = kernel_name().to_owned();
    let (threads, precision) = (compute.threads(), compute.precision());
    Ok(BenchReport { threads, kernels, precision, load_seconds, rows })
}

/// `length` arbitrary tokens; all but the first 8 are the response.
fn sequence(seed: usize, length: usize, vocab: usize) -> Sequence {
    let token = |i: usize| ((i * 7919 + seed * 104_729 + 13) % vocab) as u32;
    let tokens: Vec<u32> = (0..length + 1).map(token).collect();
    let split = 8.min(length);
    Sequence { prompt: tokens[..split].to_vec(), response: tokens[split..].to_vec() }
}

fn measure(
    name: String,
    mut run: impl FnMut() -> Result<usize, ComputeError>,
) -> Result<BenchRow, ComputeError> {
    run()?;
    let (mut speeds, mut tokens) = (Vec::with_capacity(RUNS), 0);
    for _ in 0..RUNS {
        let start = Instant::now();
        tokens = run()?;
        speeds.push(tokens as f64 / start.elapsed().as_secs_f64());
    }
    speeds.sort_by(f64::total_cmp);
    let (median, best) = (speeds[RUNS / 2], speeds[RUNS - 1]);
    Ok(BenchRow { name, tokens, tokens_per_second: median, tokens_per_second_best: best })
}
