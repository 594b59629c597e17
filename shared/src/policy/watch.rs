//! The policies in memory: one atomic load per request, changed files picked up by polling.
//!
//! Polling looks at names, sizes and modification times (symbolic links followed, as Kubernetes
//! swaps them), and reads files only when one of those changed. A set that does not pass keeps the
//! last good one, and the error is logged.
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

use super::{PolicyError, PolicySet};

type Fingerprint = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

struct Shared {
    dir: PathBuf,
    current: ArcSwap<PolicySet>,
    last_error: ArcSwapOption<PolicyError>,
    /// What was read last; also serialises readers of the disk.
    read: Mutex<Fingerprint>,
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
        let dir = dir.into();
        // Taken before the files are read: a change in between is then seen by the next look.
        let read = Mutex::new(fingerprint(&dir));
        let current = ArcSwap::from_pointee(PolicySet::load(&dir)?);
        let shared = Arc::new(Shared { dir, current, last_error: ArcSwapOption::empty(), read });
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
        let now = fingerprint(&self.dir);
        if *read == now && !always {
            return Ok(());
        }
        *read = now;
        match PolicySet::load(&self.dir) {
            Ok(set) => {
                if set.version != self.current.load().version {
                    tracing::info!(version = set.version, "policies changed");
                    self.current.store(Arc::new(set));
                }
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
}

/// Names, sizes and times of the policy files; what cannot be read is left out and fails when it is
/// loaded.
fn fingerprint(dir: &Path) -> Fingerprint {
    let sections = ["routes", "judges", "gates"].into_iter();
    let entries = sections.filter_map(|s| fs::read_dir(dir.join(s)).ok()).flatten().flatten();
    let paths = entries.map(|entry| entry.path()).take(super::FILES_MAX);
    let stat = |path: PathBuf| {
        let meta = fs::metadata(&path).ok()?;
        Some((path, (meta.modified().ok(), meta.len())))
    };
    paths.filter_map(stat).collect()
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
