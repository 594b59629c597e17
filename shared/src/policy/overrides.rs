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
}

/// What a change did to one route's override.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// The override that counted before.
    pub before: Option<ModeOverride>,
    /// The one that counts now.
    pub after: Option<ModeOverride>,
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

    /// Sets the override of a route, or takes it back with `None`. Safe against other processes.
    /// Errors: as of [`Overrides::read`], a lock or disk that refuses, too many overrides.
    pub fn change(
        data: &DataDir,
        route: &str,
        to: Option<ModeOverride>,
        now_ms: i64,
    ) -> Result<Changed, OverrideError> {
        let path = data.overrides_path();
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.with_extension("lock"))
            .map_err(io_error)?;
        lock.lock().map_err(io_error)?;
        let mut all = Self::read(&path)?;
        all.routes.retain(|_, held| held.is_active(now_ms));
        let before = match &to {
            Some(wanted) => all.routes.insert(route.to_owned(), wanted.clone()),
            None => all.routes.remove(route),
        };
        if all.routes.len() > OVERRIDES_MAX {
            let said = format!("there are {OVERRIDES_MAX} overrides already: take some back");
            return Err(OverrideError::Refused(said));
        }
        all.write(&path).map_err(io_error)?;
        Ok(Changed { before, after: to })
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
mod tests {
    use super::*;

    fn off(ttl_s: Option<u64>) -> ModeOverride {
        ModeOverride::new(Mode::Off, ttl_s, "test", "cli:me", 1_000).unwrap()
    }

    #[test]
    fn a_change_is_on_disk_whole_and_says_what_it_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        let path = data.overrides_path();
        assert_eq!(Overrides::read(&path).unwrap(), Overrides::default());
        let first = Overrides::change(&data, "chat", Some(off(None)), 1_000).unwrap();
        assert_eq!(first, Changed { before: None, after: Some(off(None)) });
        assert_eq!(Overrides::read(&path).unwrap().routes["chat"], off(None));
        let second = Overrides::change(&data, "chat", None, 2_000).unwrap();
        assert_eq!(second, Changed { before: Some(off(None)), after: None });
        assert_eq!(Overrides::read(&path).unwrap(), Overrides::default());
    }

    #[test]
    fn what_ran_out_does_not_count_and_is_swept_by_the_next_change() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        Overrides::change(&data, "chat", Some(off(Some(2))), 1_000).unwrap();
        assert!(off(Some(2)).is_active(2_999) && !off(Some(2)).is_active(3_000));
        let later = Overrides::change(&data, "other", Some(off(None)), 3_000).unwrap();
        assert_eq!(later.before, None);
        let left = Overrides::read(&data.overrides_path()).unwrap();
        assert_eq!(left.routes.keys().collect::<Vec<_>>(), ["other"]);
    }

    #[test]
    fn a_damaged_file_is_an_error_with_its_line_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        fs::write(data.overrides_path(), "{\"routes\":\n{\"a\": {\"mode\": \"on\"}}}").unwrap();
        let error = Overrides::change(&data, "chat", None, 1).unwrap_err();
        assert!(matches!(error, OverrideError::Malformed { line: 2, .. }), "{error}");
        assert!(error.to_string().contains("observe"), "{error}");
    }

    #[test]
    fn writers_that_race_all_leave_their_change() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        std::thread::scope(|scope| {
            for at in 0..8 {
                let data = &data;
                scope.spawn(move || {
                    let route = format!("r{at}");
                    Overrides::change(data, &route, Some(off(None)), 1_000).unwrap();
                });
            }
        });
        assert_eq!(Overrides::read(&data.overrides_path()).unwrap().routes.len(), 8);
    }

    #[test]
    fn too_long_a_reason_or_life_is_refused() {
        let with = |ttl_s, reason: &str| ModeOverride::new(Mode::Off, ttl_s, reason, "me", 0);
        assert!(with(None, &"x".repeat(REASON_CHARS_MAX + 1)).is_err());
        assert!(with(Some(0), "").is_err() && with(Some(TTL_S_MAX + 1), "").is_err());
        assert!(with(Some(TTL_S_MAX), &"x".repeat(REASON_CHARS_MAX)).is_ok());
    }
}
