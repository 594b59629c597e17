//! Aliases: the names that routes serve, each pointing at one generation.
//!
//! An alias is one small JSON file. It is moved by compare-and-swap under a file lock, with an
//! atomic rename, so that a reader sees the old or the new state and two movers cannot both win.
//! The generations before are kept for rollback.
//!
//! Invariant: an alias names `base` or a generation whose content was verified when the alias was
//! moved to it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ALIASES_DIR, Registry, RegistryError, Result, at, sync_dir};
use crate::clock::now_ms;
use crate::turn::Generation;

/// Most earlier generations that an alias remembers.
pub const PREVIOUS_MAX: usize = 32;
/// Most aliases that are read.
const ALIASES_MAX: usize = 1_000;
const LOCK: &str = ".alias.lock";

/// Where an alias points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AliasState {
    /// Its name.
    pub alias: String,
    /// The generation that it serves.
    pub generation: Generation,
    /// The generations it served before, newest first, at most [`PREVIOUS_MAX`].
    pub previous: Vec<Generation>,
    /// How often it was moved; 0 for an alias that never was.
    pub sequence: u64,
    /// When it was moved last, milliseconds since 1970.
    pub moved_ms: i64,
    /// Why it was moved last.
    pub reason: String,
}

impl AliasState {
    /// The state of an alias that was never moved: it serves the base model.
    pub fn unmoved(alias: &str) -> Self {
        Self {
            alias: alias.to_owned(),
            generation: Generation::base(),
            previous: Vec::new(),
            sequence: 0,
            moved_ms: 0,
            reason: String::new(),
        }
    }
}

impl Registry {
    /// Where an alias points; an alias that was never moved points at the base model.
    pub fn alias(&self, name: &str) -> Result<AliasState> {
        let path = self.alias_path(name)?;
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(AliasState::unmoved(name));
            }
            other => other.map_err(at(&path))?,
        };
        let state: AliasState = serde_json::from_slice(&text)
            .map_err(|e| RegistryError::Malformed { path: path.clone(), problem: e.to_string() })?;
        if state.alias != name {
            let problem = format!("this is the file of alias `{}`", state.alias);
            return Err(RegistryError::Malformed { path, problem });
        }
        Ok(state)
    }

    /// All aliases that were ever moved, by name.
    pub fn aliases(&self) -> Result<BTreeMap<String, AliasState>> {
        let dir = self.dir.join(ALIASES_DIR);
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(at(&dir))? {
            let file = entry.map_err(at(&dir))?.file_name();
            let name = file.to_str().and_then(|f| f.strip_suffix(".json"));
            let Some(name) = name.filter(|name| valid_name(name)) else { continue };
            if found.len() >= ALIASES_MAX {
                tracing::warn!(limit = ALIASES_MAX, "only the first aliases are read");
                break;
            }
            found.insert(name.to_owned(), self.alias(name)?);
        }
        Ok(found)
    }

    /// Moves an alias from `expected` to `to`, durably. Errors: [`RegistryError::Moved`] names
    /// where it really is; [`RegistryError::UnknownGeneration`] and [`RegistryError::Damaged`] when
    /// `to` cannot be served.
    pub fn move_alias(
        &self,
        name: &str,
        expected: &Generation,
        to: &Generation,
        reason: &str,
    ) -> Result<AliasState> {
        let path = self.alias_path(name)?;
        if !to.is_base() {
            // Before the lock: hashing takes a moment, and a generation never changes.
            self.verify(to)?;
        }
        let lock = self.lock_file(LOCK)?;
        lock.lock().map_err(at(&self.dir))?;
        if self.is_tainted(to) {
            return Err(RegistryError::Tainted(to.clone()));
        }
        let current = self.alias(name)?;
        if current.generation != *expected {
            return Err(RegistryError::Moved {
                alias: name.to_owned(),
                expected: expected.clone(),
                current: current.generation,
            });
        }
        let mut previous = current.previous;
        previous.insert(0, current.generation);
        previous.truncate(PREVIOUS_MAX);
        let state = AliasState {
            alias: name.to_owned(),
            generation: to.clone(),
            previous,
            sequence: current.sequence + 1,
            moved_ms: now_ms(),
            reason: reason.to_owned(),
        };
        self.replace(&path, &state)?;
        Ok(state)
    }

    /// Returns once nobody is in the middle of moving an alias.
    pub(super) fn wait_for_movers(&self) -> Result<()> {
        self.lock_file(LOCK)?.lock().map_err(at(&self.dir))
    }

    /// Replaces an alias file whole. Leftovers of a crash do not end in `.json`; the next mover
    /// overwrites them.
    fn replace(&self, path: &PathBuf, state: &AliasState) -> Result<()> {
        let text = serde_json::to_vec_pretty(state)
            .map_err(|e| RegistryError::Malformed { path: path.clone(), problem: e.to_string() })?;
        // One name suffices under the lock; the suffix keeps readers from taking it for an alias.
        let temporary = path.with_extension("json.tmp");
        let mut file = File::create(&temporary).map_err(at(&temporary))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(at(&temporary))?;
        fs::rename(&temporary, path).map_err(at(path))?;
        sync_dir(&self.dir.join(ALIASES_DIR))
    }

    fn alias_path(&self, name: &str) -> Result<PathBuf> {
        if !valid_name(name) {
            return Err(RegistryError::AliasName(name.chars().take(80).collect()));
        }
        Ok(self.dir.join(ALIASES_DIR).join(format!("{name}.json")))
    }
}

/// Whether a name may be an alias or a policy: safe as a file name and in a header.
pub(crate) fn valid_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let all = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    first && all && name.len() <= 64
}
