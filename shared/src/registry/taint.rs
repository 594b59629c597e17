//! Tainted generations: trained on text that had to be forgotten, or on top of such a one.
//!
//! ```text
//! <registry>/tainted/<generation>.json   why, since when, and its parent; stays for ever
//! ```
//! The mark comes first; then aliases leave the generation, then its directory is removed. Each
//! step can be repeated, so an erasure that was killed is finished by doing it again.
//!
//! Invariant: no alias moves to a tainted generation, and nothing is published under a tainted name
//! or on top of a tainted parent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    GENERATIONS_MAX, PUBLISH_LOCK, Registry, RegistryError, Result, TEMPORARY_PREFIX, at, sync_dir,
};
use crate::clock::now_ms;
use crate::turn::{Generation, TurnId};

const TAINTED_DIR: &str = "tainted";

/// Why a generation must not be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// The generation.
    pub generation: Generation,
    /// What its training began with: the way to what may still be used.
    pub parent: Generation,
    /// The round that made it.
    pub round_id: Option<String>,
    /// Since when, milliseconds since 1970.
    pub at_ms: i64,
    /// Why, in words without content.
    pub reason: String,
}

/// An alias that left, or would leave, a tainted generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AliasMove {
    /// The alias.
    pub alias: String,
    /// The tainted generation.
    pub from: Generation,
    /// Its newest ancestor that is not tainted, or the base model.
    pub to: Generation,
}

impl Registry {
    /// All taints, by generation.
    pub fn taints(&self) -> Result<BTreeMap<Generation, Taint>> {
        let dir = self.dir.join(TAINTED_DIR);
        let mut found = BTreeMap::new();
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.map_err(at(&dir))?,
        };
        for entry in entries.take(GENERATIONS_MAX) {
            let path = entry.map_err(at(&dir))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read(&path).map_err(at(&path))?;
            let taint: Taint = serde_json::from_slice(&text)
                .map_err(|e| RegistryError::Malformed { path, problem: e.to_string() })?;
            found.insert(taint.generation.clone(), taint);
        }
        Ok(found)
    }

    /// Whether a generation is tainted.
    pub fn is_tainted(&self, generation: &Generation) -> bool {
        !generation.is_base() && self.taint_path(generation).exists()
    }

    fn taint_path(&self, generation: &Generation) -> PathBuf {
        self.dir.join(TAINTED_DIR).join(format!("{generation}.json"))
    }

    /// The generations, not tainted yet, that were trained on any of `turns` or are among `roots`,
    /// with all that were trained on top of them or of tainted ones.
    pub fn trained_on(
        &self,
        turns: &BTreeSet<TurnId>,
        roots: &BTreeSet<Generation>,
    ) -> Result<BTreeSet<Generation>> {
        let taints = self.taints()?;
        let all = self.list()?;
        let mut found = roots.clone();
        found.extend(taints.keys().cloned());
        let uses = |found: &&super::GenerationDir| {
            found.manifest.draft.turns.iter().any(|turn| turns.contains(turn))
        };
        found.extend(all.iter().filter(uses).map(|dir| dir.generation.clone()));
        // A child is never older than its parent, but lists of equal times may be in any order.
        loop {
            let before = found.len();
            for dir in &all {
                if found.contains(&dir.manifest.draft.parent) {
                    found.insert(dir.generation.clone());
                }
            }
            if found.len() == before {
                break;
            }
        }
        found.remove(&Generation::base());
        found.retain(|generation| !taints.contains_key(generation));
        Ok(found)
    }

    /// Marks generations as tainted. Returns those that are new. From here on no alias moves to
    /// them and nothing is published on top of them.
    pub fn taint(
        &self,
        generations: &BTreeSet<Generation>,
        reason: &str,
    ) -> Result<Vec<Generation>> {
        let lock = self.lock_file(PUBLISH_LOCK)?;
        lock.lock().map_err(at(&self.dir))?;
        let dir = self.dir.join(TAINTED_DIR);
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let mut new = Vec::new();
        for generation in generations.iter().filter(|g| !g.is_base() && !self.is_tainted(g)) {
            let draft = self.get(generation).ok().map(|found| found.manifest.draft);
            let taint = Taint {
                generation: generation.clone(),
                parent: draft.as_ref().map_or_else(Generation::base, |draft| draft.parent.clone()),
                round_id: draft.and_then(|draft| draft.round_id),
                at_ms: now_ms(),
                reason: reason.to_owned(),
            };
            self.write_taint(&taint)?;
            new.push(generation.clone());
        }
        sync_dir(&dir)?;
        sync_dir(&self.dir)?;
        Ok(new)
    }

    fn write_taint(&self, taint: &Taint) -> Result<()> {
        let path = self.taint_path(&taint.generation);
        let text = serde_json::to_vec_pretty(taint)
            .map_err(|e| RegistryError::Malformed { path: path.clone(), problem: e.to_string() })?;
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary).map_err(at(&temporary))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(at(&temporary))?;
        fs::rename(&temporary, &path).map_err(at(&path))
    }

    /// Where the aliases that serve any of `tainted` would go.
    pub fn moves_off(&self, tainted: &BTreeSet<Generation>) -> Result<Vec<AliasMove>> {
        let taints = self.taints()?;
        let bad = |g: &Generation| tainted.contains(g) || taints.contains_key(g);
        let parent_of = |g: &Generation| match (taints.get(g), self.get(g)) {
            (Some(taint), _) => taint.parent.clone(),
            (None, Ok(found)) => found.manifest.draft.parent,
            (None, Err(_)) => Generation::base(),
        };
        let mut moves = Vec::new();
        for (alias, state) in self.aliases()? {
            if !bad(&state.generation) {
                continue;
            }
            let mut to = parent_of(&state.generation);
            for _ in 0..GENERATIONS_MAX {
                if to.is_base() || (!bad(&to) && self.verify(&to).is_ok()) {
                    break;
                }
                to = parent_of(&to);
            }
            moves.push(AliasMove { alias, from: state.generation, to });
        }
        Ok(moves)
    }

    /// Moves every alias off tainted generations, by compare-and-swap. Errors: somebody moved one
    /// meanwhile; call again.
    pub fn leave_tainted(&self, reason: &str) -> Result<Vec<AliasMove>> {
        // Whoever began to move an alias before the marks were there has ended when this is held.
        self.wait_for_movers()?;
        let moves = self.moves_off(&BTreeSet::new())?;
        for step in &moves {
            self.move_alias(&step.alias, &step.from, &step.to, reason)?;
        }
        Ok(moves)
    }

    /// Removes the directories of tainted generations that no alias serves. Returns those removed.
    pub fn remove_tainted(&self) -> Result<Vec<Generation>> {
        let lock = self.lock_file(PUBLISH_LOCK)?;
        lock.lock().map_err(at(&self.dir))?;
        let served: BTreeSet<Generation> =
            self.aliases()?.into_values().map(|state| state.generation).collect();
        let mut removed = Vec::new();
        for generation in self.taints()?.into_keys().filter(|g| !served.contains(g)) {
            let path = self.dir.join(generation.as_str());
            if !path.exists() {
                continue;
            }
            // The name goes at once; what a crash leaves behind is swept like a publication's.
            let hidden = self.dir.join(format!("{TEMPORARY_PREFIX}{generation}"));
            fs::rename(&path, &hidden).map_err(at(&path))?;
            sync_dir(&self.dir)?;
            fs::remove_dir_all(&hidden).map_err(at(&hidden))?;
            removed.push(generation);
        }
        Ok(removed)
    }
}
