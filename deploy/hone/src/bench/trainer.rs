//! `hone bench trainer`: tokens per second and memory of scoring and of forward + backward, pair by
//! pair beside PyTorch + PEFT.
//!
//! Every row has fresh processes, ours and theirs, so that the peak of resident memory belongs to
//! that shape. They take turns, and the ratio is the median over the pairs.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context;
use hone_model::config::ModelConfig;
use hone_trainer::compute::Precision;
use hone_trainer::compute::bench::{About, Done, Worker, flop_per_token};
use serde::Serialize;

use super::median;
use crate::cli::{BenchTrainerArgs, BenchTrainerWorkerArgs, Task};
use crate::model;

const MIB: f64 = (1u64 << 20) as f64;

/// Runs `hone bench trainer-worker`.
pub fn work(args: &BenchTrainerWorkerArgs) -> anyhow::Result<()> {
    if args.nice > 0 {
        crate::os::lower_priority(args.nice).context("cannot lower the priority")?;
    }
    let mut worker = Worker::new(&args.model_dir, args.threads, precision(&args.precision))?;
    worker.serve(std::io::stdin().lock(), std::io::stdout()).map_err(anyhow::Error::msg)
}

fn precision(word: &str) -> Precision {
    if word == "bf16" { Precision::Bf16 } else { Precision::F32 }
}

/// What one side did in one row.
#[derive(Serialize)]
struct Figures {
    name: String,
    tokens_per_second: f64,
    /// Most resident memory of the process, from its start on.
    peak_mib: f64,
}

#[derive(Serialize)]
struct Row {
    task: String,
    sequences: usize,
    tokens_each: usize,
    precision: Precision,
    hone: Figures,
    torch: Option<Figures>,
    /// Median, smallest and largest of the pairs' ratios, hone over PyTorch.
    ratio: Option<[f64; 3]>,
    /// Peak memory, hone over PyTorch.
    memory_ratio: Option<f64>,
    gflops: Option<f64>,
    /// Of what the micro-kernel alone does on all threads.
    peak_share: Option<f64>,
}

/// Runs `hone bench trainer`.
pub fn run(args: &BenchTrainerArgs) -> anyhow::Result<()> {
    let bench = Bench { dir: model::ensure(&args.data, &args.model)?, args };
    let config = ModelConfig::from_dir(&bench.dir)?;
    let mut rows = Vec::new();
    for precision in &args.precision {
        for task in &args.tasks {
            rows.push(bench.row(precision, task, &config)?);
        }
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&rows)?),
        false => print(&rows),
    }
    Ok(())
}

struct Bench<'a> {
    dir: PathBuf,
    args: &'a BenchTrainerArgs,
}

impl Bench<'_> {
    fn row(&self, precision: &str, task: &Task, config: &ModelConfig) -> anyhow::Result<Row> {
        let mut hone = Side::ours(&self.dir, self.args.threads, precision, 0)?;
        let python = self.args.python.as_deref().filter(|_| task.name != "sample");
        let mut torch = python.map(|python| self.theirs(python, precision)).transpose()?;
        let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        // The first pair warms both up.
        for pair in 0..=self.args.pairs {
            let mine = hone.rate(task)?;
            let other = torch.as_mut().map(|torch| torch.rate(task)).transpose()?;
            if pair > 0 {
                ours.push(mine);
                theirs.extend(other);
                ratios.extend(other.map(|other| mine / other));
            }
        }
        let hone_figures = hone.figures(&mut ours)?;
        let torch_figures = torch.as_ref().map(|torch| torch.figures(&mut theirs)).transpose()?;
        let flop = flop_per_token(config, task.name == "train", task.tokens);
        let gflops = (task.name != "sample").then(|| hone_figures.tokens_per_second * flop / 1e9);
        let middle = median(&mut ratios);
        let ends = ratios.first().zip(ratios.last());
        Ok(Row {
            task: task.name.clone(),
            sequences: task.sequences,
            tokens_each: task.tokens,
            precision: hone.about.precision,
            memory_ratio: torch_figures.as_ref().map(|t| hone_figures.peak_mib / t.peak_mib),
            hone: hone_figures,
            torch: torch_figures,
            ratio: ends.map(|(least, most)| [middle, *least, *most]),
            gflops,
            peak_share: gflops.map(|gflops| gflops / hone.about.peak_gflops),
        })
    }

    fn theirs(&self, python: &Path, precision: &str) -> anyhow::Result<Side> {
        let mut command = Command::new(python);
        command.args(["-c", include_str!("torch.py")]).arg(&self.dir);
        command.args([&threads(self.args.threads)?, precision]).env("HF_HUB_OFFLINE", "1");
        Side::start(command).context("does this Python have torch, transformers and peft?")
    }
}

/// As many as asked for; 0: as many as there are cores.
fn threads(asked: usize) -> anyhow::Result<String> {
    let all = std::thread::available_parallelism()?.get();
    Ok(if asked == 0 { all } else { asked }.to_string())
}

/// A process that does tasks.
pub(super) struct Side {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    about: About,
}

impl Side {
    /// One that computes with hone's kernels.
    pub(super) fn ours(
        dir: &Path,
        asked: usize,
        precision: &str,
        nice: i32,
    ) -> anyhow::Result<Side> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "trainer-worker", "--threads", &threads(asked)?]);
        command.args(["--nice", &nice.to_string(), "--precision", precision, "--model-dir"]);
        command.arg(dir);
        Side::start(command)
    }

    fn start(mut command: Command) -> anyhow::Result<Side> {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = pipes.spawn().context("cannot start a process to measure")?;
        let ask = child.stdin.take().context("no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        let about = About { name: String::new(), precision: Precision::F32, peak_gflops: 0.0 };
        let mut side = Side { child, ask, answers, about };
        side.about = side.answer()?;
        Ok(side)
    }

    /// Tokens per second of one task.
    pub(super) fn rate(&mut self, task: &Task) -> anyhow::Result<f64> {
        writeln!(self.ask, "{} {} {}", task.name, task.sequences, task.tokens)?;
        let done: Done = self.answer()?;
        Ok(done.tokens as f64 / done.seconds)
    }

    fn answer<T: serde::de::DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        anyhow::ensure!(self.answers.read_line(&mut line)? > 0, "a measured process ended");
        Ok(serde_json::from_str(&line)?)
    }

    fn figures(&self, rates: &mut [f64]) -> anyhow::Result<Figures> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: f64 = peak.context("no VmHWM")?.trim().trim_end_matches(" kB").parse()?;
        let (name, tokens_per_second) = (self.about.name.clone(), median(rates));
        Ok(Figures { name, tokens_per_second, peak_mib: kib * 1024.0 / MIB })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It may have ended by itself; then both calls fail, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn print(rows: &[Row]) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "task",
        "batch",
        "precision",
        "hone tok/s",
        "PyTorch tok/s",
        "ratio (range)",
        "of kernel peak",
        "hone MiB",
        "PyTorch MiB",
        "memory",
    ]);
    let or_blank = |value: Option<String>| value.unwrap_or_default();
    for row in rows {
        let torch = row.torch.as_ref();
        table.add_row([
            row.task.clone(),
            format!("{} × {}", row.sequences, row.tokens_each),
            format!("{:?}", row.precision).to_lowercase(),
            format!("{:.0}", row.hone.tokens_per_second),
            or_blank(torch.map(|t| format!("{:.0}", t.tokens_per_second))),
            or_blank(row.ratio.map(|[m, least, most]| format!("{m:.2} ({least:.2}–{most:.2})"))),
            or_blank(row.peak_share.map(|share| format!("{:.0} %", 100.0 * share))),
            format!("{:.0}", row.hone.peak_mib),
            or_blank(torch.map(|t| format!("{:.0}", t.peak_mib))),
            or_blank(row.memory_ratio.map(|ratio| format!("{ratio:.2}"))),
        ]);
    }
    println!("{table}");
}
