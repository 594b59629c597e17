//! The work files of one round: frozen samples, checkpoint, metrics, number of starts.
//!
//! ```text
//! <data>/rounds/<round_id>/
//!   samples.json            what the round learns from: token ids, rewards, provenance
//!   checkpoint.safetensors  adapter, Adam moments, step
//!   metrics.jsonl           one line per update
//!   starts                  how often this round was begun or resumed
//!   report.svg              updates and gate as a picture
//!   external/               see external.rs
//! ```
//! Invariant: every file but `metrics.jsonl` appears whole or not at all (temporary name, fsync,
//! rename, fsync of the directory); `metrics.jsonl` has exactly one line per update in the
//! checkpoint once training goes on.

use crate::sample::Batch;
use crate::train::checkpoint::{Checkpoint, CheckpointError};
use crate::train::update::Measured;
use hone_model::config::ModelConfig;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const SAMPLES: &str = "samples.json";
const CHECKPOINT: &str = "checkpoint.safetensors";
const METRICS: &str = "metrics.jsonl";
const STARTS: &str = "starts";
const PLOT: &str = "report.svg";
const EXTERNAL: &str = "external";
/// Directories of finished rounds that are kept, newest first.
pub const ROUNDS_KEPT_MAX: usize = 100;

/// Why a work file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// Reading or writing failed.
    #[error("round files in {path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A JSON file does not parse.
    #[error("round file {path}: {source}")]
    Json {
        /// File.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The checkpoint does not fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// One round's directory.
#[derive(Debug, Clone)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// Opens, or makes, the directory of a round.
    pub fn open(rounds: &Path, round_id: &str) -> Result<Self, WorkError> {
        let path = rounds.join(round_id);
        fs::create_dir_all(&path).map_err(at(&path))?;
        sync_dir(rounds)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Counts one more start of this round and returns how many there have been.
    pub fn count_start(&self) -> Result<u32, WorkError> {
        let now = self.starts()? + 1;
        self.put(STARTS, |file| write!(file, "{now}"))?;
        Ok(now)
    }

    /// Takes one start back: it ended because the trainer was asked to stop.
    pub fn forgive_start(&self) -> Result<(), WorkError> {
        let now = self.starts()?.saturating_sub(1);
        self.put(STARTS, |file| write!(file, "{now}"))
    }

    fn starts(&self) -> Result<u32, WorkError> {
        let path = self.0.join(STARTS);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().parse().unwrap_or(0)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(at(&path)(e)),
        }
    }

    /// The frozen samples, if the round got that far.
    pub fn samples(&self) -> Result<Option<Batch>, WorkError> {
        let path = self.0.join(SAMPLES);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(at(&path)(e)),
        };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|source| WorkError::Json { path, source })
    }

    /// Freezes the samples: from here on the round's input does not change.
    pub fn freeze(&self, batch: &Batch) -> Result<(), WorkError> {
        let json = serde_json::to_vec(batch)
            .map_err(|source| WorkError::Json { path: self.0.join(SAMPLES), source })?;
        self.put(SAMPLES, |file| file.write_all(&json))
    }

    /// The last checkpoint of the plan with this fingerprint, if there is one.
    pub fn checkpoint(
        &self,
        model: &ModelConfig,
        plan: &str,
    ) -> Result<Option<Checkpoint>, WorkError> {
        let path = self.0.join(CHECKPOINT);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Checkpoint::read(&path, model, plan)?)
    }

    /// Replaces the checkpoint.
    pub fn save(&self, checkpoint: &Checkpoint, plan: &str) -> Result<(), WorkError> {
        let (temporary, path) = (self.temporary(CHECKPOINT), self.0.join(CHECKPOINT));
        checkpoint.write(&temporary, plan)?;
        File::open(&temporary).and_then(|f| f.sync_all()).map_err(at(&temporary))?;
        fs::rename(&temporary, &path).map_err(at(&path))?;
        sync_dir(&self.0)
    }

    /// Appends one line to the metrics.
    pub fn log(&self, seen: &Measured) -> Result<(), WorkError> {
        let path = self.0.join(METRICS);
        let mut line = serde_json::to_vec(seen)
            .map_err(|source| WorkError::Json { path: path.clone(), source })?;
        line.push(b'\n');
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        opened.and_then(|mut file| file.write_all(&line)).map_err(at(&path))
    }

    /// The lines of the metrics that parse, in order.
    pub fn metrics(&self) -> Result<Vec<Measured>, WorkError> {
        let path = self.0.join(METRICS);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(at(&path)(e)),
        }
    }

    /// Drops lines of updates that the checkpoint does not contain; they will be done again.
    pub fn trim_metrics(&self, step: u64) -> Result<(), WorkError> {
        let lines = self.metrics()?;
        let kept: Vec<&Measured> = lines.iter().filter(|m| m.update < step).collect();
        let path = self.0.join(METRICS);
        let mut text = Vec::new();
        for line in kept {
            serde_json::to_writer(&mut text, line)
                .map_err(|source| WorkError::Json { path: path.clone(), source })?;
            text.push(b'\n');
        }
        self.put(METRICS, |file| file.write_all(&text))
    }

    /// Keeps the plot of the round, best effort.
    pub fn plot(&self, svg: &str) {
        if let Err(error) = self.put(PLOT, |file| file.write_all(svg.as_bytes())) {
            tracing::warn!(%error, "the round has no plot");
        }
    }

    /// Removes what only an unfinished round needs; metrics, plot and log stay.
    pub fn close(&self) {
        crate::external::end_leftover_of(&self.0);
        let external = self.0.join(EXTERNAL);
        if let Err(error) = fs::remove_dir_all(&external)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %external.display(), %error, "cannot remove a round's files");
        }
        for name in [CHECKPOINT, SAMPLES, STARTS] {
            let path = self.0.join(name);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a round's file");
            }
        }
    }

    fn temporary(&self, name: &str) -> PathBuf {
        self.0.join(format!(".{name}.new"))
    }

    fn put(
        &self,
        name: &str,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), WorkError> {
        let (temporary, path) = (self.temporary(name), self.0.join(name));
        let written = File::create(&temporary).and_then(|mut file| {
            write(&mut file)?;
            file.sync_all()
        });
        written.map_err(at(&temporary))?;
        fs::rename(&temporary, &path).map_err(at(&path))?;
        sync_dir(&self.0)
    }
}

/// Removes the oldest directories beyond [`ROUNDS_KEPT_MAX`] (ids are time-ordered), but none of
/// `unfinished`. Returns how many went.
pub fn prune(rounds: &Path, unfinished: &[String]) -> Result<usize, WorkError> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(rounds) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(at(rounds)(e)),
    };
    for entry in entries {
        let name = entry.map_err(at(rounds))?.file_name().to_string_lossy().into_owned();
        if uuid::Uuid::try_parse(&name).is_ok() && !unfinished.contains(&name) {
            names.push(name);
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    let old = names.split_off(names.len().min(ROUNDS_KEPT_MAX));
    for name in &old {
        let path = rounds.join(name);
        fs::remove_dir_all(&path).map_err(at(&path))?;
    }
    Ok(old.len())
}

fn sync_dir(path: &Path) -> Result<(), WorkError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> WorkError {
    let path = path.to_path_buf();
    move |source| WorkError::Io { path, source }
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;
