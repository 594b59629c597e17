//! Prints tokens per second of the trainer's arithmetic on a real model.
//!
//! `HONE_MODEL_DIR=<model directory> cargo bench -p hone-trainer --bench compute`; threads by
//! `HONE_THREADS` (default: all).

use std::path::PathBuf;

fn main() {
    let Some(dir) = std::env::var_os("HONE_MODEL_DIR").map(PathBuf::from) else {
        eprintln!("skipped: HONE_MODEL_DIR is not set");
        return;
    };
    let threads = std::env::var("HONE_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(0);
    match hone_trainer::compute::bench(&dir, threads) {
        Err(error) => eprintln!("failed: {error}"),
        Ok(report) => {
            let (kernels, threads) = (&report.kernels, report.threads);
            println!("{kernels}, {threads} threads, loaded in {:.1} s", report.load_seconds);
            for row in &report.rows {
                let (median, best) = (row.tokens_per_second, row.tokens_per_second_best);
                println!("{:<22} {median:>8.0} tok/s   best {best:>8.0}", row.name);
            }
        }
    }
}
