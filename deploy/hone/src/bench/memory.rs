//! `hone bench proxy --memory`: what a proxy holds while many streams are open, and while one
//! enormous body passes in either direction.
//!
//! Every figure belongs to a fresh process that has answered a few requests before: what it holds
//! then is `idle`, the most that is seen afterwards is `peak`, both in bytes of resident memory.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::load::{self, Until};
use super::origin::{self, Shape};
use super::target::{NAMES, Target};
use crate::cli::BenchProxyArgs;

/// Between two looks at the memory of a process.
const LOOK: Duration = Duration::from_millis(20);
/// What a proxy still does right after a load counts too.
const AFTER: Duration = Duration::from_secs(1);
const MIB: f64 = (1u64 << 20) as f64;

/// One figure of the memory table.
#[derive(Serialize)]
pub struct Row {
    load: String,
    target: &'static str,
    idle_mib: f64,
    peak_mib: f64,
    growth_mib: f64,
    seconds: f64,
    failed: u64,
}

/// Measures every target of `args` but direct.
pub fn measure(args: &BenchProxyArgs, home: &Path) -> anyhow::Result<Vec<Row>> {
    let origin = origin::start()?;
    let bulk = args.bulk_mib << 20;
    let loads = [
        (format!("{} streams of 60 kB", args.streams), Shape::Slow, args.streams),
        (format!("{} MiB of response", args.bulk_mib), Shape::Download(bulk), 1),
        (format!("{} MiB of request", args.bulk_mib), Shape::Upload(bulk), 1),
    ];
    let mut rows = Vec::new();
    for (number, (title, shape, connections)) in loads.iter().enumerate() {
        for name in NAMES.into_iter().filter(|name| *name != "direct" && args.wants(name)) {
            let home = home.join(format!("memory-{number}"));
            let row = one(name, title, *shape, *connections, origin, &home)?;
            rows.extend(row);
        }
    }
    Ok(rows)
}

fn one(
    name: &'static str,
    title: &str,
    shape: Shape,
    connections: usize,
    origin: SocketAddr,
    home: &Path,
) -> anyhow::Result<Option<Row>> {
    let Some(target) = Target::start(name, origin, home)? else { return Ok(None) };
    target.settle()?;
    let rss = || anyhow::Ok(target.usage()?.map_or(0, |usage| usage.rss_bytes));
    let idle = rss()?;
    let done = AtomicBool::new(false);
    let (peak, seen) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = idle;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(rss()?);
                std::thread::sleep(LOOK);
            }
            anyhow::Ok(peak)
        });
        let seen = load::run(target.address, shape, connections, Until::Once);
        std::thread::sleep(AFTER);
        done.store(true, Ordering::Relaxed);
        (watch.join(), seen)
    });
    let peak = peak.map_err(|_| anyhow::anyhow!("the watch of the memory died"))??;
    let seen = seen?;
    Ok(Some(Row {
        load: title.to_owned(),
        target: name,
        idle_mib: idle as f64 / MIB,
        peak_mib: peak as f64 / MIB,
        growth_mib: (peak - idle) as f64 / MIB,
        seconds: seen.elapsed,
        failed: seen.failed,
    }))
}

/// Prints the rows as a table.
pub fn print(rows: &[Row]) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["load", "target", "idle MiB", "peak MiB", "growth MiB", "s", "failed"]);
    for row in rows {
        table.add_row([
            row.load.clone(),
            row.target.to_owned(),
            format!("{:.1}", row.idle_mib),
            format!("{:.1}", row.peak_mib),
            format!("{:.1}", row.growth_mib),
            format!("{:.1}", row.seconds),
            row.failed.to_string(),
        ]);
    }
    println!("{table}");
}
