//! Samples as other trainers read them: JSON Lines and Parquet, in the shapes of TRL and verl.
//!
//! | column | for |
//! |---|---|
//! | `prompt`, `completion` (chat messages) | TRL: SFT, GRPO; verl reads `prompt` |
//! | `reward`, `label` (reward > 0) | TRL: KTO |
//! | `prompt_text`, `completion_text`, `prompt_ids`, `completion_ids` | whoever templates nothing |
//! | `teacher_prompt`, `teacher_prompt_text`, `hint`, `hints` | distillation |
//! | `demonstration` | TRL: SFT on what a person wrote |
//! | `data_source`, `ability`, `reward_model`, `extra_info` | verl |
//!
//! Messages are flat (`role`, `content`): parts that are not text are left out there; the texts and ids
//! are what the model saw, with tools and calls as the template renders them.
//!
//! Invariant: both files hold the same rows in the same order; nothing is written into a directory
//! that holds anything.

mod columns;

use crate::judge::exchange::text_of;
use crate::sample::Sample;
use crate::sample::hint;
use crate::sample::render::Renderer;
use hone_shared::store::{Store, StoreError, StoredTurn};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Why samples could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Writing failed.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A row is not JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The columns could not be written.
    #[error(transparent)]
    Parquet(#[from] parquet::errors::ParquetError),
    /// The directory is in use.
    #[error("{0} is not empty")]
    NotEmpty(PathBuf),
}

/// A chat message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// verl's `reward_model`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardModel {
    /// `rule`: nobody needs to be asked, `reward` stands.
    pub style: String,
    /// The demonstration, or nothing.
    pub ground_truth: String,
}

/// verl's `extra_info`: where the sample comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraInfo {
    /// Position in the file.
    pub index: i64,
    /// `train` or `holdout`.
    pub split: String,
    /// The turn.
    pub turn_id: String,
    /// Its session.
    pub session_id: String,
    /// What produced the reply.
    pub generation: String,
    /// The route.
    pub route: String,
}

/// One sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the columns stand in the table above")]
pub struct Row {
    pub prompt: Vec<Message>,
    pub completion: Vec<Message>,
    pub prompt_text: String,
    pub completion_text: String,
    pub prompt_ids: Vec<u32>,
    pub completion_ids: Vec<u32>,
    pub teacher_prompt: Vec<Message>,
    pub teacher_prompt_text: Option<String>,
    pub hint: Option<String>,
    pub hints: Vec<String>,
    pub demonstration: Option<String>,
    pub reward: f64,
    pub label: bool,
    pub data_source: String,
    pub ability: String,
    pub reward_model: RewardModel,
    pub extra_info: ExtraInfo,
}

/// What rows are made with.
pub struct Exporter<'a> {
    /// Texts and hints.
    pub store: &'a Store,
    /// The template.
    pub renderer: &'a Renderer,
    /// The line above hints.
    pub hint_label: &'a str,
}

impl Exporter<'_> {
    /// One row per sample whose turn is still in the store.
    pub fn rows(&self, samples: &[Sample], split: &str) -> Result<Vec<Row>, ExportError> {
        let mut rows = Vec::with_capacity(samples.len());
        for sample in samples {
            let Some(turn) = self.store.turn(sample.turn_id)? else { continue };
            let hints = self.store.verdict(sample.turn_id)?.map(|v| v.hints).unwrap_or_default();
            let hints = hints.into_iter().take(sample.teachers.len()).collect();
            rows.push(self.row(sample, &turn, hints, (rows.len() as i64, split)));
        }
        Ok(rows)
    }

    fn row(
        &self,
        sample: &Sample,
        turn: &StoredTurn,
        hints: Vec<String>,
        (index, split): (i64, &str),
    ) -> Row {
        let teacher =
            hints.first().map(|first| hint::enhance(&turn.messages, self.hint_label, first));
        let said = self.renderer.text(&sample.response);
        let demonstration = sample.demonstration.as_ref().map(|ids| self.renderer.text(ids));
        Row {
            prompt: flat(&turn.messages),
            completion: vec![Message { role: "assistant".into(), content: said.clone() }],
            prompt_text: self.renderer.whole_text(&sample.prompt),
            completion_text: said,
            prompt_ids: sample.prompt.clone(),
            completion_ids: sample.response.clone(),
            teacher_prompt: teacher.as_deref().map(flat).unwrap_or_default(),
            teacher_prompt_text: sample.teachers.first().map(|ids| self.renderer.whole_text(ids)),
            hint: hints.first().cloned(),
            hints,
            reward: sample.reward,
            label: sample.reward > 0.0,
            data_source: "hone".into(),
            ability: turn.route.clone(),
            reward_model: RewardModel {
                style: "rule".into(),
                ground_truth: demonstration.clone().unwrap_or_default(),
            },
            demonstration,
            extra_info: ExtraInfo {
                index,
                split: split.to_owned(),
                turn_id: sample.turn_id.to_string(),
                session_id: sample.session_id.clone(),
                generation: sample.generation.to_string(),
                route: turn.route.clone(),
            },
        }
    }
}

fn flat(messages: &[Value]) -> Vec<Message> {
    let role = |m: &Value| m["role"].as_str().unwrap_or("user").to_owned();
    messages.iter().map(|m| Message { role: role(m), content: text_of(m) }).collect()
}

/// Makes `dir`, for its owner alone; an empty one will do.
pub fn make_dir(dir: &Path) -> Result<(), ExportError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(at(dir))?;
    match fs::read_dir(dir).map_err(at(dir))?.next() {
        None => Ok(()),
        Some(_) => Err(ExportError::NotEmpty(dir.to_owned())),
    }
}

/// Writes `<dir>/<name>.jsonl` and `<dir>/<name>.parquet`.
pub fn write(dir: &Path, name: &str, rows: &[Row]) -> Result<(), ExportError> {
    let path = dir.join(format!("{name}.jsonl"));
    let mut file = BufWriter::new(create(&path)?);
    for row in rows {
        serde_json::to_writer(&mut file, row)?;
        file.write_all(b"\n").map_err(at(&path))?;
    }
    file.into_inner().map_err(|e| e.into_error()).and_then(|f| f.sync_all()).map_err(at(&path))?;
    columns::write(create(&dir.join(format!("{name}.parquet")))?, rows)?;
    Ok(())
}

fn create(path: &Path) -> Result<File, ExportError> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ExportError {
    let path = path.to_path_buf();
    move |source| ExportError::Io { path, source }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
