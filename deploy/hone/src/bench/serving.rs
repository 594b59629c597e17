//! `hone bench serving`: tokens per second that clients get while the trainer computes, beside what
//! they get without it.
//!
//! The whole system serves; a process that does what a round does (forward and backward, bf16 where
//! the processor has it) runs beside it at the trainer's priority, or is stopped. They take turns,
//! and the ratio is the median over the pairs.
//!
//! Invariant: the process that trains runs during the whole of a "beside" part and never in an
//! "alone" part.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::median;
use super::trainer::Side;
use crate::cli::{BenchServingArgs, DataArgs, Task, UpArgs};
use crate::demo::client::{Client, user};
use crate::demo::questions::ASKED;
use crate::model;
use crate::serve::runtime;
use crate::up::System;

const GRACE_MS: u64 = 5_000;

/// What was measured. Field names are the `--json` contract.
#[derive(Serialize)]
struct Figures {
    /// Niceness of the process that trains.
    nice: i32,
    /// Tokens per second that one client gets, alone; median of the pairs.
    alone: f64,
    /// The same beside training.
    beside_training: f64,
    /// Median, smallest and largest of the pairs' ratios.
    ratio: [f64; 3],
    /// Tokens per second that training makes beside serving.
    training: f64,
}

/// Runs `hone bench serving`.
pub fn run(args: &BenchServingArgs) -> anyhow::Result<()> {
    let dir = model::ensure(&args.data, &args.model)?;
    let home = tempfile::tempdir().context("no temporary directory")?;
    let figures = runtime()?.block_on(async {
        let up = UpArgs {
            data: DataArgs { data: Some(home.path().to_owned()) },
            model: args.model.clone(),
            listen: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            engine: None,
            grace_ms: GRACE_MS,
        };
        let system = System::start(&up, dir.clone()).await?;
        let measured = measure(args, &dir, &system.base_url).await;
        system.stop(Duration::from_millis(GRACE_MS)).await?;
        measured
    })?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&figures)?),
        false => print(&figures),
    }
    Ok(())
}

async fn measure(args: &BenchServingArgs, dir: &Path, url: &str) -> anyhow::Result<Figures> {
    let model_id = crate::model::name_of(dir);
    let client = Client::new(url, &model_id)?;
    let (mut alone, mut beside, mut training) = (Vec::new(), Vec::new(), Vec::new());
    rate(&client, args.seconds).await?;
    for _ in 0..args.pairs {
        alone.push(rate(&client, args.seconds).await?);
        let trains = Training::start(dir, args.nice).await?;
        beside.push(rate(&client, args.seconds).await?);
        training.push(trains.stop().await?);
    }
    let mut ratios: Vec<f64> = alone.iter().zip(&beside).map(|(a, b)| b / a).collect();
    let middle = median(&mut ratios);
    let (least, most) = ratios.first().zip(ratios.last()).context("--pairs: at least 1")?;
    Ok(Figures {
        nice: args.nice,
        alone: median(&mut alone),
        beside_training: median(&mut beside),
        ratio: [middle, *least, *most],
        training: median(&mut training),
    })
}

/// Tokens per second that one client gets which asks one question after the other. Nobody replies
/// to the answers, so nothing is judged and the system's own trainer has nothing to do.
async fn rate(client: &Client, seconds: f64) -> anyhow::Result<f64> {
    let (started, mut tokens) = (Instant::now(), 0);
    for (seed, question) in ASKED.iter().cycle().enumerate() {
        tokens += client.chat(&[user(question)], seed as u64).await?.tokens;
        if started.elapsed().as_secs_f64() >= seconds {
            break;
        }
    }
    Ok(tokens as f64 / started.elapsed().as_secs_f64())
}

/// A process that trains until it is stopped.
struct Training {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<anyhow::Result<f64>>,
}

impl Training {
    /// Starts it and waits until it computes.
    async fn start(dir: &Path, nice: i32) -> anyhow::Result<Training> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let task = Task { name: "train".into(), sequences: 4, tokens: 64 };
        let (dir, asked) = (dir.to_owned(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut side = Side::ours(&dir, 0, "bf16", nice)?;
            side.rate(&task)?;
            let mut rates = Vec::new();
            // The receiver is gone only when the whole measurement was given up.
            let _ = ready.send(());
            while !asked.load(Ordering::Relaxed) {
                rates.push(side.rate(&task)?);
            }
            Ok(median(&mut rates))
        });
        is_ready.await.context("the process that trains ended")?;
        Ok(Training { stop, thread })
    }

    async fn stop(self) -> anyhow::Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        tokio::task::spawn_blocking(|| self.thread.join())
            .await?
            .map_err(|_| anyhow::anyhow!("the thread that measures training panicked"))?
    }
}

fn print(figures: &Figures) {
    let [middle, least, most] = figures.ratio;
    println!(
        "one client, alone: {:.1} tokens/s\nbeside training at nice {}: {:.1} tokens/s, {:.0} % \
         ({:.0}–{:.0} %)\ntraining meanwhile: {:.0} tokens/s",
        figures.alone,
        figures.nice,
        figures.beside_training,
        100.0 * middle,
        100.0 * least,
        100.0 * most,
        figures.training
    );
}
