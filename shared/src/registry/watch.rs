//! The aliases in memory, for the hot path: one atomic load per request.
//!
//! A thread polls the alias files; [`AliasWatch::refresh`] reads them at once. A file that cannot
//! be read leaves the last good state in place, because serving the generation of a moment ago is
//! better than serving none.
//!
//! Invariant: readers never wait and never see half of a move.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::{AliasState, Registry, RegistryError, Result, at};
use crate::turn::Generation;

/// All aliases that were ever moved, by name.
pub type AliasMap = BTreeMap<String, AliasState>;

struct Shared {
    registry: Registry,
    current: ArcSwap<AliasMap>,
    /// Serialises readers of the disk, so that an older read never replaces a newer one.
    reading: Mutex<()>,
}

/// Follows the aliases of a registry until dropped.
pub struct AliasWatch {
    shared: Arc<Shared>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AliasWatch {
    /// Reads the aliases and follows them, looking every `poll`. Error: the first reading failed.
    pub fn start(registry: Registry, poll: Duration) -> Result<Self> {
        let first = Arc::new(registry.aliases()?);
        let dir = registry.path().to_owned();
        let (current, reading) = (ArcSwap::new(first), Mutex::new(()));
        let shared = Arc::new(Shared { registry, current, reading });
        let (stop, stopped) = mpsc::channel::<()>();
        let polled = Arc::clone(&shared);
        let run = move || {
            while stopped.recv_timeout(poll) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = polled.refresh() {
                    tracing::warn!(%error, "aliases cannot be read; the last good ones stay");
                }
            }
        };
        let thread = std::thread::Builder::new().name("hone-aliases".to_owned()).spawn(run);
        let thread = thread.map_err(at(&dir))?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// All aliases as of now.
    pub fn current(&self) -> Arc<AliasMap> {
        self.shared.current.load_full()
    }

    /// The generation that an alias serves; the base model when it was never moved.
    pub fn generation(&self, alias: &str) -> Generation {
        let current = self.shared.current.load();
        current.get(alias).map_or_else(Generation::base, |state| state.generation.clone())
    }

    /// Reads the aliases now; when this returns, readers see them. Error: they cannot be read, and
    /// nothing changed.
    pub fn refresh(&self) -> std::result::Result<Arc<AliasMap>, RegistryError> {
        self.shared.refresh()
    }
}

impl Shared {
    fn refresh(&self) -> Result<Arc<AliasMap>> {
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.registry.aliases()?;
        let current = self.current.load_full();
        if *current == read {
            return Ok(current);
        }
        let read = Arc::new(read);
        self.current.store(Arc::clone(&read));
        Ok(read)
    }
}

impl Drop for AliasWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread holds no lock and cannot panic; nothing is left to do if it did.
            let _ = thread.join();
        }
    }
}
