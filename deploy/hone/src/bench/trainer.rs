//! `hone bench trainer`: tokens per second of scoring and of forward + backward, pair by pair
//! beside PyTorch + PEFT.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::Context;
use hone_model::config::ModelConfig;
use hone_model::lora::Lora;
use hone_trainer::compute::{Compute, CpuCompute, SampleParams, Sequence};
use serde::Serialize;
use serde_json::Value;

use super::median;
use crate::cli::BenchTrainerArgs;
use crate::model;

/// Shapes as (sequences, tokens each).
const SHAPES: [(usize, usize); 3] = [(1, 256), (1, 512), (4, 256)];
/// Interleaved pairs per shape.
const PAIRS: usize = 3;
const RANK: usize = 16;
const ALPHA: f64 = 32.0;

#[derive(Serialize)]
struct Row {
    task: &'static str,
    sequences: usize,
    tokens_each: usize,
    hone_tokens_per_second: f64,
    torch_tokens_per_second: Option<f64>,
    /// Median of the pairs' ratios, hone over PyTorch.
    ratio: Option<f64>,
}

/// Runs `hone bench trainer`.
pub fn run(args: BenchTrainerArgs) -> anyhow::Result<()> {
    let dir = model::ensure(&args.data, &args.model)?;
    let threads = match args.threads {
        0 => std::thread::available_parallelism()?.get(),
        threads => threads,
    };
    let mut bench = Bench::new(&dir, threads)?;
    let mut torch = args.python.as_deref().map(|py| Torch::start(py, &dir, threads)).transpose()?;
    let mut rows = Vec::new();
    for task in ["score", "train"] {
        for (sequences, tokens) in SHAPES {
            rows.push(bench.row(task, sequences, tokens, torch.as_mut())?);
        }
    }
    let sampled = bench.sample_tokens_per_second(16, 48)?;
    if args.json {
        let value = serde_json::json!({"threads": threads, "rows": rows,
            "sample_16_rows_tokens_per_second": sampled, "torch": torch.as_ref().map(|torch| &torch.version)});
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        print(&rows, sampled, threads);
    }
    Ok(())
}

struct Bench {
    compute: CpuCompute,
    lora: Lora,
    vocabulary: usize,
}

impl Bench {
    fn new(dir: &Path, threads: usize) -> anyhow::Result<Bench> {
        let config = ModelConfig::from_dir(dir)?;
        let mut lora = Lora::init(&config, RANK, ALPHA, 17);
        // B starts at zero, which would make half of the adapter's work trivial.
        lora.for_each_tensor_mut(|_, _, _, values| {
            values.iter_mut().filter(|v| **v == 0.0).for_each(|v| *v = 1e-3);
        });
        Ok(Bench { compute: CpuCompute::new(dir, threads)?, lora, vocabulary: config.vocab })
    }

    fn row(
        &mut self,
        task: &'static str,
        sequences: usize,
        tokens_each: usize,
        mut torch: Option<&mut Torch>,
    ) -> anyhow::Result<Row> {
        self.step(task, sequences, tokens_each)?;
        let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let started = Instant::now();
            self.step(task, sequences, tokens_each)?;
            let rate = (sequences * tokens_each) as f64 / started.elapsed().as_secs_f64();
            ours.push(rate);
            if let Some(torch) = torch.as_deref_mut() {
                let other = torch.rate(task, sequences, tokens_each)?;
                theirs.push(other);
                ratios.push(rate / other);
            }
        }
        Ok(Row {
            task,
            sequences,
            tokens_each,
            hone_tokens_per_second: median(&mut ours),
            torch_tokens_per_second: (!theirs.is_empty()).then(|| median(&mut theirs)),
            ratio: (!ratios.is_empty()).then(|| median(&mut ratios)),
        })
    }

    /// One pass; the first token is the prompt and all others are scored, as in the yardstick.
    fn step(&mut self, task: &str, sequences: usize, tokens_each: usize) -> anyhow::Result<()> {
        let token = |s: usize, t: usize| ((s * 7919 + t * 104_729 + 13) % self.vocabulary) as u32;
        let batch: Vec<Sequence> = (0..sequences)
            .map(|s| Sequence {
                prompt: vec![token(s, 0)],
                response: (1..tokens_each).map(|t| token(s, t)).collect(),
            })
            .collect();
        match task {
            "score" => drop(self.compute.score(Some(&self.lora), &batch)?),
            _ => {
                let weight = -1.0 / (sequences * (tokens_each - 1)) as f32;
                let mut loss = |_: usize, logprobs: &[f32]| vec![weight; logprobs.len()];
                drop(self.compute.gradient(&self.lora, &batch, &mut loss)?);
            }
        }
        Ok(())
    }

    /// Aggregate sampling rate over `rows` replies of one prompt that never end before the cap.
    fn sample_tokens_per_second(&mut self, rows: usize, tokens: usize) -> anyhow::Result<f64> {
        let prompt: Vec<u32> =
            (0..32).map(|t| ((t * 104_729 + 13) % self.vocabulary) as u32).collect();
        let params =
            SampleParams { temperature: 0.7, tokens_max: tokens, eos: Vec::new(), seed: 17 };
        let started = Instant::now();
        let replies = self.compute.sample(Some(&self.lora), &[prompt], rows, &params)?;
        let drawn: usize = replies.iter().flatten().map(|reply| reply.tokens.len()).sum();
        Ok(drawn as f64 / started.elapsed().as_secs_f64())
    }
}

/// PyTorch + PEFT in a Python of the caller's.
struct Torch {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    version: Value,
}

impl Torch {
    fn start(python: &Path, model_dir: &Path, threads: usize) -> anyhow::Result<Torch> {
        let mut child = Command::new(python)
            .args(["-c", include_str!("torch.py")])
            .arg(model_dir)
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", python.display()))?;
        let ask = child.stdin.take().context("no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut torch = Torch { child, ask, answers, version: Value::Null };
        torch.version =
            torch.answer().context("does this Python have torch, transformers and peft?")?;
        Ok(torch)
    }

    fn rate(&mut self, task: &str, sequences: usize, tokens: usize) -> anyhow::Result<f64> {
        writeln!(self.ask, "{task} {sequences} {tokens}")?;
        self.answer()?["tokens_per_second"].as_f64().context("no figure from PyTorch")
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        anyhow::ensure!(self.answers.read_line(&mut line)? > 0, "the Python process ended");
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It may have ended by itself; then both calls fail, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn print(rows: &[Row], sampled: f64, threads: usize) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["task", "batch", "hone tok/s", "PyTorch tok/s", "ratio"]);
    let or_blank =
        |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
    for row in rows {
        table.add_row([
            row.task.to_string(),
            format!("{} × {}", row.sequences, row.tokens_each),
            format!("{:.0}", row.hone_tokens_per_second),
            or_blank(row.torch_tokens_per_second),
            or_blank(row.ratio),
        ]);
    }
    println!("{table}\nsampling 16 replies at once: {sampled:.0} tokens/s, {threads} threads");
}
