//! Models of a model hub, through `hf-hub` (which respects `HF_ENDPOINT`, `HF_HOME`'s token).
//!
//! Only the files that a model directory needs are fetched, all of one commit.

use std::collections::BTreeSet;
use std::path::Path;

use hf_hub::api::Progress as HubProgress;
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Repo, RepoType};

use super::FetchError;
use crate::progress::Progress;

/// Files that are taken when the repository has them.
const OPTIONAL: [&str; 2] = ["generation_config.json", "chat_template.jinja"];
/// Files without which a repository is no model.
const REQUIRED: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];
const INDEX: &str = "model.safetensors.index.json";
/// Most shards of one model.
const SHARDS_MAX: usize = 1_000;

/// Downloads a repository's model files into `out`.
pub(super) fn download(
    api: ApiBuilder,
    id: &str,
    revision: &str,
    work: &Path,
    out: &Path,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let failed = |reason: String| FetchError::Hub { id: id.to_owned(), reason };
    let api = api
        .with_progress(false)
        .with_cache_dir(work.join("hub"))
        .build()
        .map_err(|e| failed(e.to_string()))?;
    let at = |revision: &str| {
        api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned()))
    };
    let info = at(revision).info().map_err(|e| failed(e.to_string()))?;
    let repo = at(&info.sha);
    let there: BTreeSet<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
    let take = |name: &str| fetch(&repo, name, out, progress).map_err(failed);
    for name in REQUIRED {
        if !there.contains(name) {
            return Err(failed(format!("the repository has no {name}")));
        }
        take(name)?;
    }
    for name in OPTIONAL.into_iter().filter(|name| there.contains(name)) {
        take(name)?;
    }
    if !there.contains(INDEX) {
        if !there.contains("model.safetensors") {
            return Err(failed("the repository has no model.safetensors".to_owned()));
        }
        return take("model.safetensors");
    }
    take(INDEX)?;
    let shards = crate::weights::weight_files(out).map_err(|e| failed(e.to_string()))?;
    if shards.len() > SHARDS_MAX {
        return Err(failed(format!("{} shards are more than {SHARDS_MAX}", shards.len())));
    }
    for shard in shards {
        take(&shard.file_name().unwrap_or_default().to_string_lossy())?;
    }
    Ok(())
}

/// Downloads one file and moves it out of hf-hub's cache, whose entries are links to blobs.
fn fetch(repo: &ApiRepo, name: &str, out: &Path, progress: &dyn Progress) -> Result<(), String> {
    let stage = Stage { progress, name: name.to_owned(), done: 0, total: 0 };
    let link = repo.download_with_progress(name, stage).map_err(|e| format!("{name}: {e}"))?;
    let move_out = || std::fs::rename(std::fs::canonicalize(&link)?, out.join(name));
    move_out().map_err(|e| format!("{name}: {e}"))
}

struct Stage<'a> {
    progress: &'a dyn Progress,
    name: String,
    done: u64,
    total: u64,
}

impl HubProgress for Stage<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        self.total = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.done = (self.done + size as u64).min(self.total);
        self.progress.update(&self.name, self.done, Some(self.total));
    }

    fn finish(&mut self) {
        self.progress.update(&self.name, self.total, Some(self.total));
    }
}
