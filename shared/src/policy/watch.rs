//! The policies in memory: one atomic load per request, changed files picked up by polling.
//!
//! Polling looks at names, sizes and modification times (symbolic links followed, as Kubernetes
//! swaps them), and reads files only when one of those changed. A set that does not pass keeps the
//! last good one, and the error is logged.
//!
//! Modes that were set at run time ([`super::Overrides`]) are laid over the files here, and fall away
//! by the clock.
//!
//! Invariant: readers never wait, and always see a set that passed every check.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::{OverrideError, Overrides, PolicyError, PolicySet};
use crate::clock::now_ms;
use crate::data_dir::DataDir;

type Fingerprint = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

/// Who can say what the policies are now.
pub trait Policies {
    /// The set as of now.
    fn current(&self) -> Arc<PolicySet>;
}

/// A set that does not change.
impl Policies for PolicySet {
    fn current(&self) -> Arc<PolicySet> {
        Arc::new(self.clone())
    }
}

impl Policies for PolicyWatch {
    fn current(&self) -> Arc<PolicySet> {
        Self::current(self)
    }
}

struct Shared {
    dir: PathBuf,
    overrides: Option<PathBuf>,
    current: ArcSwap<PolicySet>,
    last_error: ArcSwapOption<PolicyError>,
    overrides_error: ArcSwapOption<OverrideError>,
    /// What was read last; also serialises readers of the disk.
    read: Mutex<Read>,
}

/// The last good state of the disk.
struct Read {
    seen: Fingerprint,
    files: PolicySet,
    overrides: Overrides,
}

/// Follows a policy directory until dropped.
pub struct PolicyWatch {
    shared: Arc<Shared>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl PolicyWatch {
    /// Loads the policies in `dir` and follows them, looking every `poll`. Error: they do not pass.
    pub fn start(dir: impl Into<PathBuf>, poll: Duration) -> Result<Self, PolicyError> {
        Self::begin(dir.into(), None, poll)
    }

    /// As [`PolicyWatch::start`] for a data directory, with the modes that were set at run time. An
    /// `overrides.json` that cannot be read is an error here: without it, learning could be on that
    /// somebody turned off. Once running, the last good one stays.
    pub fn follow(data: &DataDir, poll: Duration) -> Result<Self, PolicyError> {
        Self::begin(data.policies_dir(), Some(data.overrides_path()), poll)
    }

    fn begin(
        dir: PathBuf,
        overrides: Option<PathBuf>,
        poll: Duration,
    ) -> Result<Self, PolicyError> {
        // Taken before the files are read: a change in between is then seen by the next look.
        let seen = fingerprint(&dir, overrides.as_deref());
        let files = PolicySet::load(&dir)?;
        let read = overrides.as_deref().map(Overrides::read).transpose();
        let held = read.map_err(PolicyError::Overrides)?.unwrap_or_default();
        let current = ArcSwap::from_pointee(files.with_overrides(&held, now_ms()));
        let shared = Arc::new(Shared {
            dir,
            overrides,
            current,
            last_error: ArcSwapOption::empty(),
            overrides_error: ArcSwapOption::empty(),
            read: Mutex::new(Read { seen, files, overrides: held }),
        });
        let (stop, stopped) = mpsc::channel::<()>();
        let polled = Arc::clone(&shared);
        let run = move || {
            while stopped.recv_timeout(poll) == Err(RecvTimeoutError::Timeout) {
                // `look` logs; there is nobody here to tell.
                let _ = polled.look(false);
            }
        };
        let thread = std::thread::Builder::new().name("hone-policies".to_owned()).spawn(run);
        let thread = thread.map_err(|error| PolicyError::Io {
            file: shared.dir.display().to_string(),
            problem: error.to_string(),
        })?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// The set as of now.
    pub fn current(&self) -> Arc<PolicySet> {
        self.shared.current.load_full()
    }

    /// Why the files on disk are not the ones in use; `None` when they are.
    pub fn last_error(&self) -> Option<Arc<PolicyError>> {
        self.shared.last_error.load_full()
    }

    /// Everything that an operator should put right: policies or overrides that are not taken, and
    /// overrides of routes that do not exist.
    pub fn problems(&self) -> Vec<String> {
        let policies = self.last_error().map(|error| error.to_string());
        let overrides = self.shared.overrides_error.load_full().map(|error| error.to_string());
        let current = self.current();
        let unknown = current.unknown_overrides.iter();
        let unknown = unknown.map(|route| format!("overrides.json: there is no route `{route}`"));
        policies.into_iter().chain(overrides).chain(unknown).collect()
    }

    /// Reads the files now; when this returns, readers see them. Error: they do not pass, and
    /// nothing changed.
    pub fn refresh(&self) -> Result<Arc<PolicySet>, PolicyError> {
        self.shared.look(true)?;
        Ok(self.current())
    }
}

impl Shared {
    fn look(&self, always: bool) -> Result<(), PolicyError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = fingerprint(&self.dir, self.overrides.as_deref());
        let (changed, now) = (read.seen != seen || always, now_ms());
        let ran_out = |set: &PolicySet| set.overridden.values().any(|o| !o.by.is_active(now));
        if !changed && !ran_out(&self.current.load()) {
            return Ok(());
        }
        let mut result = Ok(());
        if changed {
            read.seen = seen;
            result = self.read_files(&mut read);
            self.read_overrides(&mut read);
        }
        let set = read.files.with_overrides(&read.overrides, now);
        let before = self.current.load();
        if set.version != before.version {
            tracing::info!(version = set.version, "policies changed");
            set.log_modes(&before);
        }
        self.current.store(Arc::new(set));
        result
    }

    fn read_files(&self, read: &mut Read) -> Result<(), PolicyError> {
        match PolicySet::load(&self.dir) {
            Ok(set) => {
                read.files = set;
                self.last_error.store(None);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "policies do not pass; the last good ones stay");
                self.last_error.store(Some(Arc::new(error.clone())));
                Err(error)
            }
        }
    }

    fn read_overrides(&self, read: &mut Read) {
        match self.overrides.as_deref().map(Overrides::read).transpose() {
            Ok(overrides) => {
                read.overrides = overrides.unwrap_or_default();
                self.overrides_error.store(None);
            }
            Err(error) => {
                tracing::error!(%error, "the last good overrides stay");
                self.overrides_error.store(Some(Arc::new(error)));
            }
        }
    }
}

/// Names, sizes and times of the policy files; what cannot be read is left out and fails when it is
/// loaded.
fn fingerprint(dir: &Path, overrides: Option<&Path>) -> Fingerprint {
    let sections = super::SECTIONS.into_iter();
    let entries = sections.filter_map(|s| fs::read_dir(dir.join(s)).ok()).flatten().flatten();
    let paths = entries.map(|entry| entry.path()).take(super::FILES_MAX);
    let stat = |path: PathBuf| {
        let meta = fs::metadata(&path).ok()?;
        Some((path, (meta.modified().ok(), meta.len())))
    };
    paths.chain(overrides.map(Path::to_owned)).filter_map(stat).collect()
}

impl Drop for PolicyWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread holds no lock while it waits and cannot panic; nothing is left to do if it
            // did.
            let _ = thread.join();
        }
    }
}
