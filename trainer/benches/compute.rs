//! Prints tokens per second of the trainer's arithmetic on a real model.
//!
//! `HONE_MODEL_DIR=<model directory> cargo bench -p hone-trainer --bench compute`; threads by
//! `HONE_THREADS` (default: all).

use std::path::PathBuf;

use hone_trainer::compute::{BenchReport, Limits, Precision, bench_with};

fn main() {
    let Some(dir) = std::env::var_os("HONE_MODEL_DIR").map(PathBuf::from) else {
        eprintln!("skipped: HONE_MODEL_DIR is not set");
        return;
    };
    let threads = std::env::var("HONE_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(0);
    for precision in [Precision::F32, Precision::Bf16] {
        match bench_with(&dir, threads, Limits { precision, ..Limits::default() }) {
            Err(error) => eprintln!("failed: {error}"),
            Ok(report) => print(&report),
        }
    }
}

fn print(report: &BenchReport) {
    let BenchReport { kernels, precision, threads, load_seconds, rows } = report;
    println!("{kernels} {precision:?}, {threads} threads, loaded in {load_seconds:.1} s");
    for row in rows {
        let (median, best) = (row.tokens_per_second, row.tokens_per_second_best);
        println!("{:<22} {median:>8.0} tok/s   best {best:>8.0}", row.name);
    }
}
