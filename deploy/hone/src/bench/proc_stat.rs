//! CPU by thread and memory of a process and its children, from `/proc`.
//!
//! `schedstat` counts nanoseconds, where `stat` counts ticks of 10 ms. A thread that ended is no
//! longer counted; the proxies under test keep theirs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;

/// Threads of hone that work off the path of requests, as the beginning of their names.
const BACKGROUND: [&str; 2] = ["spool", "ingest"];

/// What a process has used.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// CPU seconds by thread name: `spool`, `ingest`, and `path` for all others.
    pub cpu: BTreeMap<&'static str, f64>,
    /// Resident memory now, bytes.
    pub rss_bytes: u64,
}

impl Usage {
    /// Reads `/proc` for `pid` and its direct children. Errors: the process is gone.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let mut usage = Self::default();
        let own = format!("/proc/{pid}");
        let children = std::fs::read_to_string(format!("{own}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let pids = children.split_whitespace().map(|child| format!("/proc/{child}"));
        for process in std::iter::once(own).chain(pids) {
            usage.add(Path::new(&process)).context("the proxy under test is gone")?;
        }
        Ok(usage)
    }

    /// CPU seconds of all threads.
    pub fn total(&self) -> f64 {
        self.cpu.values().sum()
    }

    /// CPU seconds of the threads that requests do not wait for.
    pub fn background(&self) -> f64 {
        BACKGROUND.iter().filter_map(|name| self.cpu.get(name)).sum()
    }

    /// CPU seconds of one kind of thread.
    pub fn of_thread(&self, name: &str) -> f64 {
        self.cpu.get(name).copied().unwrap_or(0.0)
    }

    fn add(&mut self, process: &Path) -> std::io::Result<()> {
        for thread in std::fs::read_dir(process.join("task"))? {
            let thread = thread?.path();
            // A thread may end between the listing and the reading.
            let Ok(name) = std::fs::read_to_string(thread.join("comm")) else { continue };
            let Ok(stat) = std::fs::read_to_string(thread.join("schedstat")) else { continue };
            let ns = stat.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok());
            let kind = BACKGROUND.iter().find(|kind| name.starts_with(**kind));
            *self.cpu.entry(kind.unwrap_or(&"path")).or_default() += ns.unwrap_or(0.0) / 1e9;
        }
        let status = std::fs::read_to_string(process.join("status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = rss.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        self.rss_bytes += kib.unwrap_or(0) << 10;
        Ok(())
    }
}
