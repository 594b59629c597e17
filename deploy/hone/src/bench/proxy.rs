//! `hone bench proxy`: what a hop costs. Direct, plain pingora, hone observing and hone learning
//! take turns, so that every ratio compares neighbours in time; the proxies are processes of their
//! own, so that their CPU can be read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::{load, median, origin};
use crate::cli::BenchProxyArgs;
use crate::serve::runtime;

/// Clock ticks per second of `/proc/<pid>/stat` (USER_HZ, fixed by the Linux ABI).
const TICKS_PER_SECOND: f64 = 100.0;
const START_MAX: Duration = Duration::from_secs(20);

/// One way to reach the origin.
struct Target {
    name: &'static str,
    address: SocketAddr,
    process: Option<Process>,
}

/// A child that is killed when the benchmark ends, in whatever way.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already; both calls then fail, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Serialize)]
struct Row {
    workload: String,
    concurrency: usize,
    target: &'static str,
    p50_us: f64,
    p99_us: f64,
    requests_per_second: f64,
    cpu_us_per_request: Option<f64>,
    failed: u64,
    /// p50 minus direct's p50, over plain pingora's p50 minus direct's.
    added_p50_to_plain: Option<f64>,
    /// CPU per request over plain pingora's.
    cpu_to_plain: Option<f64>,
    /// Requests per second over direct's.
    throughput_to_direct: f64,
}

/// Runs `hone bench proxy`.
pub fn run(args: BenchProxyArgs) -> anyhow::Result<()> {
    let home = tempfile::tempdir()?;
    let rows = runtime()?.block_on(measure(&args, home.path()))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({"rows": rows}))?);
    } else {
        print(&rows);
    }
    Ok(())
}

async fn measure(args: &BenchProxyArgs, home: &Path) -> anyhow::Result<Vec<Row>> {
    let origin = origin::start().await?;
    let targets = [
        Target { name: "direct", address: origin, process: None },
        plain(origin)?,
        hone("hone observing", "observe", origin, home)?,
        hone("hone learning", "learn", origin, home)?,
    ];
    for target in &targets {
        wait_for(target).await?;
    }
    let mut rows = Vec::new();
    for streamed in [false, true] {
        for &concurrency in &args.concurrency {
            rows.extend(one_workload(args, &targets, streamed, concurrency).await?);
        }
    }
    Ok(rows)
}

async fn one_workload(
    args: &BenchProxyArgs,
    targets: &[Target],
    streamed: bool,
    concurrency: usize,
) -> anyhow::Result<Vec<Row>> {
    let mut samples: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
    for repeat in 0..args.repeats {
        // Every second repetition goes backwards, so that no target always follows the same one.
        let order: Vec<&Target> =
            if repeat % 2 == 0 { targets.iter().collect() } else { targets.iter().rev().collect() };
        for target in order {
            let before = target.cpu_seconds()?;
            let seen = load::run(target.address, streamed, concurrency, args.seconds).await;
            let cpu = target.cpu_seconds()?.zip(before).map(|(after, before)| after - before);
            samples.entry(target.name).or_default().push(Sample::of(seen, cpu));
        }
    }
    let mid = |name: &str, field: fn(&Sample) -> f64| {
        median(&mut samples.get(name).map_or_else(Vec::new, |all| all.iter().map(field).collect()))
    };
    let (direct_p50, direct_rps) = (mid("direct", |s| s.p50), mid("direct", |s| s.rps));
    let (plain_p50, plain_cpu) = (mid("plain pingora", |s| s.p50), mid("plain pingora", |s| s.cpu));
    let workload = if streamed { "SSE, 50 chunks" } else { "JSON, 2 KiB" };
    let rows = targets.iter().map(|target| {
        let (p50, cpu) = (mid(target.name, |s| s.p50), mid(target.name, |s| s.cpu));
        let proxied = target.process.is_some();
        Row {
            workload: workload.into(),
            concurrency,
            target: target.name,
            p50_us: p50 * 1e6,
            p99_us: mid(target.name, |s| s.p99) * 1e6,
            requests_per_second: mid(target.name, |s| s.rps),
            cpu_us_per_request: proxied.then_some(cpu * 1e6),
            failed: mid(target.name, |s| s.failed) as u64,
            added_p50_to_plain: proxied.then_some((p50 - direct_p50) / (plain_p50 - direct_p50)),
            cpu_to_plain: proxied.then_some(cpu / plain_cpu),
            throughput_to_direct: mid(target.name, |s| s.rps) / direct_rps,
        }
    });
    Ok(rows.collect())
}

/// The figures of one repetition.
struct Sample {
    p50: f64,
    p99: f64,
    rps: f64,
    cpu: f64,
    failed: f64,
}

impl Sample {
    fn of(mut seen: load::Seen, cpu: Option<f64>) -> Sample {
        let count = seen.latencies.len().max(1) as f64;
        let p99 = {
            seen.latencies.sort_by(f64::total_cmp);
            let last = seen.latencies.len().saturating_sub(1);
            seen.latencies.get(last * 99 / 100).copied().unwrap_or(f64::NAN)
        };
        Sample {
            p50: median(&mut seen.latencies),
            p99,
            rps: count / seen.elapsed,
            cpu: cpu.unwrap_or(f64::NAN) / count,
            failed: seen.failed as f64,
        }
    }
}

impl Target {
    /// CPU seconds that the process has used; `None` for direct.
    fn cpu_seconds(&self) -> anyhow::Result<Option<f64>> {
        let Some(process) = &self.process else { return Ok(None) };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.0.id()))
            .context("the proxy under test is gone")?;
        // Fields count from the closing bracket of the name, which may itself contain spaces.
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let tick =
            |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        Ok(Some((tick(11) + tick(12)) / TICKS_PER_SECOND))
    }
}

fn plain(origin: SocketAddr) -> anyhow::Result<Target> {
    let address = free_port()?;
    let process = spawn(&[
        "bench",
        "plain-proxy",
        "--listen",
        &address.to_string(),
        "--upstream",
        &origin.to_string(),
    ])?;
    Ok(Target { name: "plain pingora", address, process: Some(process) })
}

fn hone(name: &'static str, mode: &str, origin: SocketAddr, home: &Path) -> anyhow::Result<Target> {
    let address = free_port()?;
    let data = hone_shared::data_dir::DataDir::new(home.join(mode));
    data.create()?;
    hone_shared::policy::install_builtin(&data.policies_dir())?;
    let route = data.policies_dir().join("routes/chat.toml");
    let text = std::fs::read_to_string(&route)?;
    let lines = text.lines().map(|line| {
        if line.trim_start().starts_with("mode") {
            format!("mode = \"{mode}\"")
        } else {
            line.into()
        }
    });
    std::fs::write(&route, lines.collect::<Vec<_>>().join("\n"))?;
    let process = spawn(&[
        "proxy",
        "--data",
        &data.path().display().to_string(),
        "--listen",
        &address.to_string(),
        "--admin",
        &free_port()?.to_string(),
        "--engine",
        &format!("http://{origin}"),
        "--threads",
        "1",
    ])?;
    Ok(Target { name, address, process: Some(process) })
}

fn spawn(args: &[&str]) -> anyhow::Result<Process> {
    let child = Command::new(std::env::current_exe()?)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Process(child))
}

fn free_port() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

async fn wait_for(target: &Target) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let seen = load::run(target.address, false, 1, 0.05).await;
        if !seen.latencies.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(started.elapsed() < START_MAX, "{} does not answer", target.name);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn print(rows: &[Row]) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "workload",
        "clients",
        "target",
        "p50 µs",
        "p99 µs",
        "req/s",
        "CPU µs/req",
        "added p50 ÷ plain",
        "CPU ÷ plain",
        "req/s ÷ direct",
        "failed",
    ]);
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(String::new, |value| format!("{value:.digits$}"))
    };
    for row in rows {
        table.add_row([
            row.workload.clone(),
            row.concurrency.to_string(),
            row.target.to_string(),
            number(Some(row.p50_us), 0),
            number(Some(row.p99_us), 0),
            number(Some(row.requests_per_second), 0),
            number(row.cpu_us_per_request, 0),
            number(row.added_p50_to_plain, 2),
            number(row.cpu_to_plain, 2),
            number(Some(row.throughput_to_direct), 2),
            row.failed.to_string(),
        ]);
    }
    println!("{table}");
}
