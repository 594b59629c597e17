//! `hone bench proxy`: what a hop costs. Direct, nginx, plain pingora and hone in three modes take
//! turns, so that every ratio compares neighbours in time; the proxies are processes of their own,
//! so that their CPU can be read, thread by thread.
//!
//! A ratio is taken within one round and the median of the rounds is reported. Latencies in µs, CPU
//! in µs per request; hone's CPU includes what the spool and the ingest did for these requests
//! afterwards, until all are stored (`drain` is that part of it), and `path` is the part that
//! requests wait for.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::load::{self, Seen, Until};
use super::origin::{self, Shape};
use super::proc_stat::Usage;
use super::target::{NAMES, Target};
use super::{median, memory};
use crate::cli::BenchProxyArgs;

/// The figures of one target in one round.
#[derive(Debug, Clone, Default)]
struct Sample {
    p50: f64,
    p99: f64,
    first_byte: f64,
    rps: f64,
    cpu: f64,
    path: f64,
    spool: f64,
    ingest: f64,
    drain: f64,
    failed: f64,
}

type Round = BTreeMap<&'static str, Sample>;

#[derive(Serialize)]
struct Row {
    workload: &'static str,
    concurrency: usize,
    target: &'static str,
    p50_us: f64,
    p99_us: f64,
    first_byte_p50_us: f64,
    requests_per_second: f64,
    /// CPU of the whole process per request, and its parts.
    cpu_us: f64,
    path_us: f64,
    spool_us: f64,
    ingest_us: f64,
    /// How much of it was used after the last request, for those before.
    drain_us: f64,
    /// p50 minus direct's p50.
    added_p50_us: f64,
    /// The same over plain pingora's.
    added_p50_to_plain: f64,
    cpu_to_plain: f64,
    path_to_plain: f64,
    throughput_to_direct: f64,
    failed: f64,
}

/// Runs `hone bench proxy`.
pub fn run(args: BenchProxyArgs) -> anyhow::Result<()> {
    let home = tempfile::tempdir()?;
    if args.memory {
        let rows = memory::measure(&args, home.path())?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&serde_json::json!({"memory": rows}))?);
        } else {
            memory::print(&rows);
        }
        return Ok(());
    }
    let rows = measure(&args, home.path())?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({"rows": rows}))?);
    } else {
        print(&rows);
    }
    Ok(())
}

fn measure(args: &BenchProxyArgs, home: &Path) -> anyhow::Result<Vec<Row>> {
    let origin = origin::start()?;
    let mut targets = Vec::new();
    for name in NAMES.into_iter().filter(|name| args.wants(name)) {
        targets.extend(Target::start(name, origin, home)?);
    }
    let shapes = args.workloads.iter().filter_map(|name| Shape::parse(name));
    let mut rows = Vec::new();
    for shape in shapes {
        for &concurrency in &args.concurrency {
            let rounds = rounds(args, &targets, shape, concurrency)?;
            rows.extend(targets.iter().map(|t| row(shape, concurrency, t.name, &rounds)));
        }
    }
    Ok(rows)
}

fn rounds(
    args: &BenchProxyArgs,
    targets: &[Target],
    shape: Shape,
    concurrency: usize,
) -> anyhow::Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for number in 0..args.repeats {
        let mut order: Vec<&Target> = targets.iter().collect();
        if number % 2 == 1 {
            // So that no target always follows the same one.
            order.reverse();
        }
        let mut round = Round::new();
        for target in order {
            // Connections, caches and the processor's clock are warm afterwards.
            load::run(target.address, shape, concurrency, Until::Seconds(args.seconds / 5.0))?;
            target.settle()?;
            let before = target.usage()?;
            let until = Until::Seconds(args.seconds);
            let seen = load::run(target.address, shape, concurrency, until)?;
            let ended = target.usage()?;
            target.settle()?;
            let usage = before.zip(ended).zip(target.usage()?);
            round.insert(target.name, Sample::of(seen, usage));
        }
        rounds.push(round);
    }
    Ok(rounds)
}

impl Sample {
    /// With what was used before the first request, after the last one, and after all was stored.
    fn of(mut seen: Seen, usage: Option<((Usage, Usage), Usage)>) -> Self {
        let count = seen.latencies.len().max(1) as f64;
        let p50 = median(&mut seen.latencies);
        let last = seen.latencies.len().saturating_sub(1);
        let p99 = seen.latencies.get(last * 99 / 100).copied().unwrap_or(f64::NAN);
        let ((before, ended), after) = usage.unwrap_or_default();
        let thread = |name: &str| (after.of_thread(name) - before.of_thread(name)) / count * 1e6;
        Self {
            p50: p50 * 1e6,
            p99: p99 * 1e6,
            first_byte: median(&mut seen.first_bytes) * 1e6,
            rps: seen.latencies.len() as f64 / seen.elapsed,
            cpu: (after.total() - before.total()) / count * 1e6,
            path: thread("path"),
            spool: thread("spool"),
            ingest: thread("ingest"),
            drain: (after.total() - ended.total()) / count * 1e6,
            failed: seen.failed as f64,
        }
    }
}

fn row(workload: Shape, concurrency: usize, target: &'static str, rounds: &[Round]) -> Row {
    let own = |field: fn(&Sample) -> f64| over(rounds, |round| round.get(target).map(field));
    // Within a round, so that what disturbs the machine disturbs both.
    let ratio = |to: &'static str, top: fn(&Sample) -> f64, bottom: fn(&Sample) -> f64| {
        over(rounds, |round| Some(top(round.get(target)?) / bottom(round.get(to)?)))
    };
    let added = |round: &Round, name: &str| Some(round.get(name)?.p50 - round.get("direct")?.p50);
    let plain = "plain pingora";
    Row {
        workload: workload.title(),
        concurrency,
        target,
        p50_us: own(|s| s.p50),
        p99_us: own(|s| s.p99),
        first_byte_p50_us: own(|s| s.first_byte),
        requests_per_second: own(|s| s.rps),
        cpu_us: own(|s| s.cpu),
        path_us: own(|s| s.path),
        spool_us: own(|s| s.spool),
        ingest_us: own(|s| s.ingest),
        drain_us: own(|s| s.drain),
        added_p50_us: over(rounds, |round| added(round, target)),
        added_p50_to_plain: over(rounds, |r| Some(added(r, target)? / added(r, plain)?)),
        cpu_to_plain: ratio(plain, |s| s.cpu, |s| s.cpu),
        path_to_plain: ratio(plain, |s| s.path, |s| s.cpu),
        throughput_to_direct: ratio("direct", |s| s.rps, |s| s.rps),
        failed: own(|s| s.failed),
    }
}

/// The median over the rounds that have the figure.
fn over(rounds: &[Round], figure: impl Fn(&Round) -> Option<f64>) -> f64 {
    median(&mut rounds.iter().filter_map(figure).collect::<Vec<f64>>())
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
        "first byte",
        "req/s",
        "CPU µs/req",
        "path",
        "spool",
        "ingest",
        "drain",
        "added p50",
        "÷ plain",
        "CPU ÷ plain",
        "path ÷ plain",
        "req/s ÷ direct",
        "failed",
    ]);
    for row in rows {
        let number = |value: f64, digits: usize| match value.is_finite() && value != 0.0 {
            true => format!("{value:.digits$}"),
            false => String::new(),
        };
        table.add_row([
            row.workload.to_owned(),
            row.concurrency.to_string(),
            row.target.to_owned(),
            number(row.p50_us, 0),
            number(row.p99_us, 0),
            number(row.first_byte_p50_us, 0),
            number(row.requests_per_second, 0),
            number(row.cpu_us, 1),
            number(row.path_us, 1),
            number(row.spool_us, 1),
            number(row.ingest_us, 1),
            number(row.drain_us, 1),
            number(row.added_p50_us, 0),
            number(row.added_p50_to_plain, 2),
            number(row.cpu_to_plain, 2),
            number(row.path_to_plain, 2),
            number(row.throughput_to_direct, 2),
            format!("{:.0}", row.failed),
        ]);
    }
    println!("{table}");
}
