//! Prints tokens per second of the trainer's arithmetic on a real model.
//!
//! `HONE_MODEL_DIR=<model directory> cargo bench -p hone-trainer --bench compute`; threads by
//! `HONE_THREADS` (default: all). With `HONE_BENCH_SERVE=f32|bf16` it reads tasks from standard
//! input instead, as `hone bench trainer` starts it.

use std::error::Error;
use std::path::PathBuf;

use hone_model::config::ModelConfig;
use hone_trainer::compute::Precision;
use hone_trainer::compute::bench::{Worker, flop_per_token};

/// Runs of each task; the best is printed.
const RUNS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let Some(dir) = std::env::var_os("HONE_MODEL_DIR").map(PathBuf::from) else {
        eprintln!("skipped: HONE_MODEL_DIR is not set");
        return Ok(());
    };
    let threads = std::env::var("HONE_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(0);
    if let Ok(precision) = std::env::var("HONE_BENCH_SERVE") {
        let precision = if precision == "bf16" { Precision::Bf16 } else { Precision::F32 };
        let mut worker = Worker::new(&dir, threads, precision)?;
        return Ok(worker.serve(std::io::stdin().lock(), std::io::stdout())?);
    }
    let config = ModelConfig::from_dir(&dir)?;
    for precision in [Precision::F32, Precision::Bf16] {
        let mut worker = Worker::new(&dir, threads, precision)?;
        let about = worker.about();
        println!(
            "{} {:?}: kernel peak {:.0} GFLOP/s",
            about.name, about.precision, about.peak_gflops
        );
        for (task, sequences, tokens) in [
            ("train", 1, 256),
            ("train", 1, 512),
            ("train", 4, 256),
            ("score", 1, 512),
            ("sample", 16, 64),
        ] {
            let mut best = 0.0f64;
            for _ in 0..RUNS {
                let done = worker.run(task, sequences, tokens)?;
                best = best.max(done.tokens as f64 / done.seconds);
            }
            let gflops = best * flop_per_token(&config, task == "train", tokens) / 1e9;
            let share = 100.0 * gflops / about.peak_gflops;
            println!(
                "{task:<6} {sequences:>2} x {tokens:<4} {best:>7.0} tok/s {gflops:>6.0} GFLOP/s {share:>4.0} %"
            );
        }
    }
    Ok(())
}
