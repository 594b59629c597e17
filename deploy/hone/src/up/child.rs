//! One supervised child process: started, restarted with backoff when it dies, stopped by SIGTERM.
//!
//! Its standard input is a pipe that we hold and never write to: when we die, it closes, and the
//! child ends.
//!
//! A proxy that was replaced by a new program ends, and its successor, which says in the run file who
//! it is and inherited the pipe, is supervised in its place.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use hone_shared::data_dir::{DataDir, RunFile};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::os;

/// First pause before a restart; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest pause before a restart.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A child that lived this long starts again with the shortest pause.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// How often a process that is no child of ours is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
/// A log file larger than this is put aside at the next start.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// A child under supervision.
pub struct Child {
    /// `backend`, `proxy` or `trainer`.
    pub name: &'static str,
    log: PathBuf,
    stop: CancellationToken,
    deaths: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Child {
    /// Starts `hone <args>` and keeps it running until [`Child::stop`].
    pub fn start(
        name: &'static str,
        args: Vec<OsString>,
        data: &DataDir,
        log_dir: &Path,
    ) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("where is my own binary?")?;
        let log = log_dir.join(format!("{name}.log"));
        set_aside(&log);
        let (stop, deaths) = (CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let (data, log_file) = (data.clone(), log.clone());
        let life = Life { name, program, args, data, log: log_file, deaths: deaths.clone() };
        let task = tokio::spawn(life.supervise(stop.clone()));
        Ok(Child { name, log, stop, deaths, task })
    }

    /// How often it has died so far.
    pub fn deaths(&self) -> u32 {
        self.deaths.load(Ordering::Relaxed)
    }

    /// The last lines of its log, for an error message.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Sends SIGTERM and waits; after `patience` the process is killed.
    pub async fn stop(self, patience: Duration) -> anyhow::Result<()> {
        self.stop.cancel();
        let abort = self.task.abort_handle();
        match tokio::time::timeout(patience, self.task).await {
            Ok(joined) => joined.with_context(|| format!("the supervisor of {} failed", self.name)),
            Err(_) => {
                // The task owns the process with kill_on_drop: aborting the one kills the other.
                abort.abort();
                anyhow::bail!("{} did not end in {patience:?} and was killed", self.name)
            }
        }
    }
}

struct Life {
    name: &'static str,
    program: PathBuf,
    args: Vec<OsString>,
    data: DataDir,
    log: PathBuf,
    deaths: Arc<AtomicU32>,
}

impl Life {
    async fn supervise(self, stop: CancellationToken) {
        let mut backoff = BACKOFF_MIN;
        while !stop.is_cancelled() {
            let born = Instant::now();
            match self.live_once(&stop).await {
                Ok(status) if !stop.is_cancelled() => {
                    tracing::warn!(child = self.name, %status, "died; starting it again");
                }
                Ok(_) => return,
                Err(error) => tracing::error!(child = self.name, %error, "cannot be started"),
            }
            self.deaths.fetch_add(1, Ordering::Relaxed);
            if born.elapsed() > STABLE_AFTER {
                backoff = BACKOFF_MIN;
            }
            tokio::select! { () = tokio::time::sleep(backoff) => {}, () = stop.cancelled() => {} }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn live_once(
        &self,
        stop: &CancellationToken,
    ) -> anyhow::Result<std::process::ExitStatus> {
        // Left over from one that was killed: it would name a stranger as the successor.
        RunFile::remove(&self.data, self.name)?;
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut process = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            // Its own group: Ctrl-C in a terminal reaches us alone, and we stop the children in
            // order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = process.id();
        // `wait` would close the pipe at once; it must stay open for as long as we want the child
        // to live.
        let lifeline = process.stdin.take();
        tokio::select! {
            status = process.wait() => {
                let status = status?;
                if let Some(successor) = pid.and_then(|pid| self.successor(pid)) {
                    self.follow(successor, stop).await?;
                }
                return Ok(status);
            }
            () = stop.cancelled() => {}
        }
        if let Some(pid) = pid {
            os::terminate(pid)?;
        }
        drop(lifeline);
        Ok(process.wait().await?)
    }
}

impl Life {
    /// The process that took over from `ended`, if one did.
    fn successor(&self, ended: u32) -> Option<u32> {
        let file = RunFile::read(&self.data, self.name).ok().flatten()?;
        (file.pid != ended && os::is_alive(file.pid)).then_some(file.pid)
    }

    /// Waits for the end of a process that is no child of ours, and of its successors; ends it when
    /// asked to.
    async fn follow(&self, first: u32, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut pid = first;
        tracing::info!(child = self.name, pid, "replaced by a new program");
        let mut told = false;
        loop {
            if stop.is_cancelled() && !std::mem::replace(&mut told, true) {
                os::terminate(pid)?;
            }
            if !os::is_alive(pid) {
                match self.successor(pid) {
                    Some(next) => (pid, told) = (next, false),
                    None => return Ok(()),
                }
            }
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    }
}

/// Keeps one older log file, so that logs are bounded.
fn set_aside(log: &Path) {
    if std::fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        // A failure only means a longer log.
        let _ = std::fs::rename(log, log.with_extension("log.1"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_file_that_was_left_over_names_no_successor() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        data.create().unwrap();
        let address = "127.0.0.1:1".to_owned();
        // A process that runs, and that nobody may follow or end.
        let pid = std::process::id();
        let left = RunFile { pid, address, admin_address: None, started_ms: 1 };
        left.write(&data, "proxy").unwrap();
        let life = Life {
            name: "proxy",
            program: "true".into(),
            args: Vec::new(),
            data,
            log: dir.path().join("proxy.log"),
            deaths: Arc::default(),
        };
        let stop = CancellationToken::new();
        let ended = tokio::time::timeout(Duration::from_secs(30), life.live_once(&stop)).await;
        assert!(ended.unwrap().unwrap().success());
    }
}
