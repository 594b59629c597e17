//! Learning modes that an operator set at run time, over those of the files: `<data>/overrides.json`.
//!
//! Why a file of its own: proxy, trainer and command line must agree, with or without each other, and
//! a restart must not turn learning on again that somebody turned off. It is replaced whole, under a
//! lock, and read by [`super::PolicyWatch`] together with the policies.
//!
//! Invariant: a reader sees the old or the new file; an override that ran out has no effect from that
//! moment on, whether or not anybody removed it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data_dir::{DataDir, sync_parent};
use crate::turn::Mode;

/// Most overrides at once.
pub const OVERRIDES_MAX: usize = 1_000;
/// Longest reason, characters.
pub const REASON_CHARS_MAX: usize = 500;
/// Longest life of an override, seconds: ten years. One without a limit has no end at all.
pub const TTL_S_MAX: u64 = 10 * 366 * 86_400;
/// Largest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why the overrides could not be read or changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OverrideError {
    /// The file cannot be read, locked or replaced.
    #[error("overrides.json: {0}")]
    Io(String),
    /// The file does not hold what it should.
    #[error("overrides.json, line {line}: {problem}; repair it, or remove it to follow the files")]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// What was asked for is not allowed.
    #[error("{0}")]
    Refused(String),
}

/// One writer at a time, in whatever process; released when dropped.
fn lock(path: &Path) -> Result<File, OverrideError> {
    let mut options = File::options();
    let options = options.create(true).truncate(false).write(true);
    let lock = options.open(path.with_extension("lock")).map_err(io_error)?;
    lock.lock().map_err(io_error)?;
    Ok(lock)
}

fn io_error(error: io::Error) -> OverrideError {
    OverrideError::Io(error.to_string())
}

/// The mode that one route has instead of its file's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeOverride {
    /// The mode.
    pub mode: Mode,
    /// When it runs out, milliseconds since 1970; `None`: it stays until it is taken back.
    #[serde(default)]
    pub until_ms: Option<i64>,
    /// Why, in the operator's words.
    #[serde(default)]
    pub reason: String,
    /// Who set it: the name of an admin token, or `cli:<user>`.
    #[serde(default)]
    pub who: String,
    /// When it was set, milliseconds since 1970.
    #[serde(default)]
    pub set_ms: i64,
}

impl ModeOverride {
    /// An override from now on. Errors: a reason or a life that is too long, a life of nothing.
    pub fn new(
        mode: Mode,
        ttl_s: Option<u64>,
        reason: &str,
        who: &str,
        now_ms: i64,
    ) -> Result<Self, OverrideError> {
        if reason.chars().count() > REASON_CHARS_MAX {
            let said = format!("the reason is longer than {REASON_CHARS_MAX} characters");
            return Err(OverrideError::Refused(said));
        }
        if ttl_s.is_some_and(|ttl| ttl == 0 || ttl > TTL_S_MAX) {
            let said = format!("an override lasts from 1 to {TTL_S_MAX} seconds");
            return Err(OverrideError::Refused(said));
        }
        // At most TTL_S_MAX, so that it fits.
        let until_ms = ttl_s.map(|ttl| now_ms.saturating_add((ttl * 1_000) as i64));
        let (reason, who) = (reason.trim().to_owned(), who.to_owned());
        Ok(Self { mode, until_ms, reason, who, set_ms: now_ms })
    }

    /// Whether it still counts.
    pub fn is_active(&self, now_ms: i64) -> bool {
        self.until_ms.is_none_or(|until| now_ms < until)
    }
}

/// All overrides, also those that ran out and were not yet swept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// By route.
    #[serde(default)]
    pub routes: BTreeMap<String, ModeOverride>,
    /// Changes that the audit trail does not have yet: the store was locked or away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unaudited: Vec<Unaudited>,
}

/// One change, as the audit trail is to have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unaudited {
    /// Who.
    pub actor: String,
    /// `learning.set` or `learning.reset`.
    pub action: String,
    /// The route.
    pub route: String,
    /// Its mode before.
    pub before: String,
    /// Its mode now, and until when.
    pub after: String,
    /// Why.
    pub reason: String,
}

impl Overrides {
    /// Reads the file; none is no override. Errors: unreadable, not what this program writes.
    pub fn read(path: &Path) -> Result<Self, OverrideError> {
        let text = match fs::metadata(path).and_then(|meta| match meta.len() > FILE_BYTES_MAX {
            true => Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes"))),
            false => fs::read(path),
        }) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(io_error)?,
        };
        serde_json::from_slice(&text).map_err(|error| OverrideError::Malformed {
            line: error.line(),
            problem: error.to_string(),
        })
    }

    /// Sets the override of a route, or takes it back with `None`, and notes it for the audit trail.
    /// Safe against other processes. Errors: as of [`Overrides::read`], a lock or disk that refuses,
    /// too many overrides.
    pub fn change(
        data: &DataDir,
        route: &str,
        to: Option<ModeOverride>,
        note: impl FnOnce(Option<&ModeOverride>) -> Unaudited,
        now_ms: i64,
    ) -> Result<Option<ModeOverride>, OverrideError> {
        let path = data.overrides_path();
        let _lock = lock(&path)?;
        let mut all = Self::read(&path)?;
        all.routes.retain(|_, held| held.is_active(now_ms));
        let before = match to {
            Some(wanted) => all.routes.insert(route.to_owned(), wanted),
            None => all.routes.remove(route),
        };
        all.unaudited.push(note(before.as_ref()));
        if all.routes.len() > OVERRIDES_MAX || all.unaudited.len() > OVERRIDES_MAX {
            let said = format!("there are {OVERRIDES_MAX} overrides or unaudited changes already");
            return Err(OverrideError::Refused(said));
        }
        all.write(&path).map_err(io_error)?;
        Ok(before)
    }

    /// Gives every change that was not audited to `append`, oldest first, until it refuses. Returns
    /// how many are left. A crash in between can make `append` see a change twice, never not at all.
    pub fn audit(
        data: &DataDir,
        append: impl FnMut(&Unaudited) -> bool,
    ) -> Result<usize, OverrideError> {
        let path = data.overrides_path();
        if Self::read(&path)?.unaudited.is_empty() {
            return Ok(0);
        }
        let _lock = lock(&path)?;
        let mut all = Self::read(&path)?;
        let done = all.unaudited.iter().map(append).take_while(|taken| *taken).count();
        all.unaudited.drain(..done);
        if done > 0 {
            all.write(&path).map_err(io_error)?;
        }
        Ok(all.unaudited.len())
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    }
}

#[cfg(test)]
#[path = "overrides_tests.rs"]
mod tests;
