//! Something made from files, and made again when they change.
//!
//! Who uses it takes what is current; whatever began with the last one keeps that. Files that do not
//! pass (a key that is not the certificate's, as halfway through a replacement) change nothing but the
//! log and the status.
//!
//! Invariant: there is something from the start on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::PemError;

/// Changes whenever a file is replaced.
type Fingerprint = Option<(SystemTime, u64, u64)>;

/// What is made from `files`.
pub struct Kept<T> {
    what: &'static str,
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, PemError> + Send + Sync>,
    current: ArcSwap<T>,
    problem: ArcSwapOption<PemError>,
    /// What was read last; also serialises readers of the disk.
    read: Mutex<Vec<Fingerprint>>,
    loads: AtomicU64,
}

/// Files that are read again.
pub trait Reread: Send + Sync {
    /// Reads the files if they have changed, or in any case. Errors: they cannot be used, and what was
    /// made last stays.
    fn reread(&self, always: bool) -> Result<(), PemError>;
}

impl<T> Kept<T> {
    /// Reads the files for the first time; `what` is their name in the log. Errors: they cannot be
    /// used.
    pub fn load(
        what: &'static str,
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, PemError> + Send + Sync + 'static,
    ) -> Result<Self, PemError> {
        // Taken before the files are read: a change in between is then seen by the next look.
        let read = Mutex::new(fingerprints(&files));
        let current = ArcSwap::from_pointee(make()?);
        let (problem, loads) = (ArcSwapOption::empty(), AtomicU64::new(1));
        Ok(Self { what, files, make: Box::new(make), current, problem, read, loads })
    }

    /// What the last files that passed make.
    pub fn current(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// How often something new was made since the start; the first time counts.
    pub fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    /// Why the files on disk are not those in use, if so.
    pub fn problem(&self) -> Option<String> {
        self.problem.load().as_ref().map(|problem| problem.to_string())
    }
}

impl<T: PartialEq + Send + Sync> Reread for Kept<T> {
    fn reread(&self, always: bool) -> Result<(), PemError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = fingerprints(&self.files);
        if *read == now && !always {
            return Ok(());
        }
        *read = now;
        let made = (self.make)().inspect_err(|problem| {
            error!(%problem, what = self.what, "changed files do not pass; the last good ones stay");
            self.problem.store(Some(Arc::new(problem.clone())));
        })?;
        if made != **self.current.load() {
            info!(what = self.what, files = ?self.files, "changed files are in use");
            self.current.store(Arc::new(made));
            self.loads.fetch_add(1, Ordering::Relaxed);
        }
        self.problem.store(None);
        Ok(())
    }
}

impl<T> std::fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("what", &self.what).field("files", &self.files).finish()
    }
}

/// Looks at the files every `every` until `stop`.
pub async fn keep_current(kept: Arc<dyn Reread>, every: Duration, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        let kept = Arc::clone(&kept);
        // A problem is logged and on the status; a panic in there would be a bug of the library.
        let _ = tokio::task::spawn_blocking(move || kept.reread(false)).await;
    }
}

fn fingerprints(files: &[PathBuf]) -> Vec<Fingerprint> {
    let stat = |file: &Path| {
        let meta = fs::metadata(file).ok()?;
        Some((meta.modified().ok()?, meta.len(), meta.ino()))
    };
    files.iter().map(|file| stat(file)).collect()
}
