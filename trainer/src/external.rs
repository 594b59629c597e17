//! Training by somebody else's program: a round is exported, a command makes a PEFT adapter of it.
//!
//! ```text
//! <data>/rounds/<round_id>/external/      working directory of the command
//!   samples/train.jsonl, train.parquet    what it learns from (never the holdout)
//!   config.json                           model, incumbent, recipe, where the adapter belongs
//!   adapter/                              adapter_config.json, adapter_model.safetensors
//!   done                                  the command has ended well
//! <data>/rounds/<round_id>/external.log   what it said
//! ```
//! The command is an argument list, run without a shell, in a process group of its own with nothing
//! on its standard input. It may keep checkpoints in its directory: an interrupted round runs it
//! again there. Its adapter then meets the same gate as our own.
//!
//! Invariant: at most one command of a round runs, and none after the trainer has said how the
//! round ended; whatever it leaves behind is refused unless it is a whole adapter of this model.

use crate::export::{self, ExportError, Row};
use hone_model::config::ModelConfig;
use hone_model::lora::Lora;
use hone_shared::policy::{ExternalPolicy, TrainPolicy};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often the command is looked at.
const POLL: Duration = Duration::from_millis(100);
/// From the request to end to the end by force.
const GRACE: Duration = Duration::from_secs(5);
const DONE: &str = "done";
const PID: &str = "pid";

/// Why the command could not be run. Unlike a refusal, this is a fault of the machine.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// The round could not be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Its files could not be used.
    #[error("external trainer: {path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How it ended.
#[derive(Debug)]
pub enum ExternalEnd {
    /// With an adapter of this model.
    Adapter(Lora),
    /// With nothing that can be used, for this reason.
    Refused(String),
    /// Asked to stop; the command was ended.
    Interrupted,
}

/// A round for a command.
pub struct External<'a> {
    /// The round's directory.
    pub round: &'a Path,
    /// The command and its limits.
    pub policy: &'a ExternalPolicy,
    /// The route's recipe, for the command to heed.
    pub train: &'a TrainPolicy,
    /// The base model.
    pub model_dir: &'a Path,
    /// Its shapes.
    pub model: &'a ModelConfig,
    /// The served adapter's directory, where the round continues from it.
    pub incumbent: Option<PathBuf>,
}

impl External<'_> {
    /// Runs the command to its end, or takes what an earlier run left finished.
    pub fn run(
        &self,
        rows: &dyn Fn() -> Result<Vec<Row>, ExportError>,
        stop: &dyn Fn() -> bool,
    ) -> Result<ExternalEnd, ExternalError> {
        let dir = self.dir();
        if dir.join(DONE).exists() {
            return Ok(self.adapter());
        }
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        end_leftover(&dir.join(PID));
        self.prepare(&dir, rows)?;
        let mut child = match self.spawn(&dir) {
            Ok(child) => child,
            Err(error) => {
                let program = self.policy.command.first().map_or("", String::as_str);
                let why = format!("the external trainer `{program}` cannot be started: {error}");
                return Ok(ExternalEnd::Refused(why));
            }
        };
        let ended = self.watch(&mut child, stop);
        // Also after its own end: a launcher's workers may outlive it.
        end(&mut child);
        let _ = fs::remove_file(dir.join(PID));
        match ended.map_err(at(&dir))? {
            Watched::Stop => Ok(ExternalEnd::Interrupted),
            Watched::Limit(why) => Ok(ExternalEnd::Refused(why)),
            Watched::Ended(status) if status.success() => {
                let found = self.adapter();
                if matches!(found, ExternalEnd::Adapter(_)) {
                    let path = dir.join(DONE);
                    File::create(&path).and_then(|f| f.sync_all()).map_err(at(&path))?;
                }
                Ok(found)
            }
            Watched::Ended(status) => {
                Ok(ExternalEnd::Refused(format!("the external trainer failed: {status}")))
            }
        }
    }

    fn dir(&self) -> PathBuf {
        self.round.join("external")
    }

    /// Samples and configuration, each whole or not there.
    fn prepare(
        &self,
        dir: &Path,
        rows: &dyn Fn() -> Result<Vec<Row>, ExportError>,
    ) -> Result<(), ExternalError> {
        let (samples, temporary) = (dir.join("samples"), dir.join(".samples.new"));
        if !samples.exists() {
            let _ = fs::remove_dir_all(&temporary);
            export::make_dir(&temporary)?;
            export::write(&temporary, "train", &rows()?)?;
            fs::rename(&temporary, &samples).map_err(at(&samples))?;
        }
        let adapter = dir.join("adapter");
        match fs::remove_dir_all(&adapter) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&adapter)(e)),
            _ => {}
        }
        let path = dir.join("config.json");
        fs::write(&path, self.config(dir).to_string()).map_err(at(&path))
    }

    fn config(&self, dir: &Path) -> serde_json::Value {
        let train = self.train;
        json!({
            "model_dir": self.model_dir,
            "samples_dir": dir.join("samples"),
            "adapter_dir": dir.join("adapter"),
            "incumbent_dir": self.incumbent,
            "rank": train.rank,
            "alpha": train.alpha,
            "learning_rate": train.learning_rate,
            "updates": train.updates,
            "kl_beta": train.kl_beta,
            "weight_rl": train.weight_rl,
            "weight_opd": train.weight_opd,
            "weight_sft": train.weight_sft,
            "seed": train.seed,
            "threads": train.threads,
        })
    }

    fn spawn(&self, dir: &Path) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(self.log())?;
        let mut words = self.policy.command.iter();
        let program = words.next().ok_or(io::ErrorKind::InvalidInput)?;
        let child = Command::new(program)
            .args(words)
            .current_dir(dir)
            .env("HONE_CONFIG", dir.join("config.json"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let started = started(child.id()).unwrap_or_default();
        fs::write(dir.join(PID), format!("{} {started}", child.id()))?;
        Ok(child)
    }

    fn log(&self) -> PathBuf {
        self.round.join("external.log")
    }

    fn watch(&self, child: &mut Child, stop: &dyn Fn() -> bool) -> io::Result<Watched> {
        let (begun, limit) = (Instant::now(), Duration::from_secs(self.policy.timeout_s));
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Watched::Ended(status));
            }
            if stop() {
                return Ok(Watched::Stop);
            }
            if begun.elapsed() >= limit {
                let s = self.policy.timeout_s;
                return Ok(Watched::Limit(format!("the external trainer took over {s} s")));
            }
            let (said, most) = (fs::metadata(self.log())?.len(), self.policy.log_bytes_max);
            if said > most {
                return Ok(Watched::Limit(format!("the external trainer said over {most} bytes")));
            }
            std::thread::sleep(POLL);
        }
    }

    /// What the command left.
    fn adapter(&self) -> ExternalEnd {
        let dir = self.dir().join("adapter");
        if !dir.is_dir() {
            let why = "the external trainer ended without an adapter in `adapter/`";
            return ExternalEnd::Refused(why.to_owned());
        }
        match Lora::from_peft(&dir, self.model) {
            Ok(adapter) if adapter.is_finite() => ExternalEnd::Adapter(adapter),
            Ok(_) => {
                ExternalEnd::Refused("the external adapter holds numbers that are none".into())
            }
            Err(error) => {
                ExternalEnd::Refused(format!("the external adapter cannot be used: {error}"))
            }
        }
    }
}

enum Watched {
    Ended(ExitStatus),
    Stop,
    Limit(String),
}

/// Asks the whole group to end, and ends it by force after a while.
fn end(child: &mut Child) {
    let group = Pid::from_child(child);
    let _ = kill_process_group(group, Signal::Term);
    let begun = Instant::now();
    while begun.elapsed() < GRACE && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(POLL);
    }
    // Also what its leader has left behind.
    let _ = kill_process_group(group, Signal::Kill);
    let _ = child.wait();
}

/// Ends the command that a killed trainer left running in this round's directory, if there is one.
pub fn end_leftover_of(round: &Path) {
    end_leftover(&round.join("external").join(PID));
}

/// Ends the command of a trainer that was killed, if it still runs: the same process by its number
/// and its start.
fn end_leftover(path: &Path) {
    let Ok(text) = fs::read_to_string(path) else { return };
    let mut words = text.split_whitespace();
    let (Some(pid), Some(start)) = (words.next().and_then(|p| p.parse().ok()), words.next()) else {
        return;
    };
    let same = u32::try_from(pid).ok().and_then(started).is_some_and(|now| now == start);
    if let (true, Some(group)) = (same, Pid::from_raw(pid)) {
        tracing::warn!(pid, "ending an external trainer that outlived its round's last run");
        let _ = kill_process_group(group, Signal::Kill);
    }
    let _ = fs::remove_file(path);
}

/// When a process started, in ticks since boot: with its number, its identity.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the start is the 20th field after it.
    let after = stat.rsplit_once(')')?.1;
    after.split_whitespace().nth(19).map(str::to_owned)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ExternalError {
    let path = path.to_path_buf();
    move |source| ExternalError::Io { path, source }
}

#[cfg(test)]
#[path = "external_tests.rs"]
mod tests;
