//! The fleet of resident generations: one `ArcSwap` that everything hangs on.
//!
//! * **Readers** take the snapshot with one atomic load and a lease on what they chose from it.
//! * **Loads** run one at a time behind `gate`, in tasks of their own, so that a caller that goes
//!   away does not stop them. The pointer flips after the engine stands.
//! * **Retired** generations (no longer in the snapshot) live until their last lease ends; they
//!   count against the limits until then.
//! * **Dead** engines (a panic in the engine thread) are rebuilt by [`Fleet::supervise`].
//!
//! Invariant: at every moment, residents and retired ones together are within `residents_max` and
//! `resident_bytes_max`; the base is always resident.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hone_shared::turn::Generation;
use tokio_util::sync::CancellationToken;

use crate::adapter::{AdapterFiles, locate};
use crate::config::BackendConfig;
use crate::error::{ApiError, BackendError, Code};
use crate::generate::restarting;
use crate::load;
use crate::model::ModelFiles;
use crate::resident::{Lease, Resident};
use crate::select::Selection;
use crate::snapshot::{AliasError, Snapshot};

/// How a caller behaves while another generation is being loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Waits for its turn: a request that must be answered.
    Wait,
    /// Is told to come back: the adapter API.
    Refuse,
}

/// What a load through the adapter API did.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The generation that the alias names now.
    pub generation: Generation,
    /// Rank of its adapter.
    pub rank: usize,
    /// Size of its files, in bytes.
    pub bytes: u64,
    /// How long building it took; 0 if it was resident.
    pub build_ms: u64,
    /// How long the flip took, in nanoseconds.
    pub flip_ns: u64,
    /// How many changes the fleet has seen.
    pub sequence: u64,
}

/// All residents, and who may change them.
pub struct Fleet {
    config: BackendConfig,
    model: Arc<ModelFiles>,
    current: ArcSwap<Snapshot<Resident>>,
    /// Held for the moment of a flip.
    flip: Mutex<()>,
    /// Held while an engine is built.
    gate: tokio::sync::Mutex<()>,
    loading: Mutex<Option<Generation>>,
    waiting: AtomicUsize,
    retired: Mutex<Vec<Weak<Resident>>>,
}

impl Fleet {
    /// Loads the base model. Takes seconds.
    ///
    /// # Errors
    /// The model directory is unusable, or mistral.rs cannot load it.
    pub async fn start(config: BackendConfig) -> Result<Arc<Self>, BackendError> {
        let model = Arc::new(ModelFiles::read(&config.model_dir)?);
        let base = load::build(Arc::clone(&model), None, config.sequences_max)
            .await
            .map_err(BackendError::Load)?;
        Ok(Arc::new(Self {
            config,
            model,
            current: ArcSwap::from_pointee(Snapshot::new(Arc::new(base))),
            flip: Mutex::default(),
            gate: tokio::sync::Mutex::default(),
            loading: Mutex::default(),
            waiting: AtomicUsize::new(0),
            retired: Mutex::default(),
        }))
    }

    /// The state at this moment.
    pub fn snapshot(&self) -> Arc<Snapshot<Resident>> {
        self.current.load_full()
    }

    /// The chat template renders `tool_calls` itself.
    pub fn tells_calls(&self) -> bool {
        self.model.tells_calls
    }

    /// The settings.
    pub fn config(&self) -> &BackendConfig {
        &self.config
    }

    /// Estimated memory of one resident, in bytes.
    pub fn bytes_each(&self) -> u64 {
        self.model.resident_bytes
    }

    /// Generations that left the snapshot but still serve requests.
    pub fn retired(&self) -> Vec<Arc<Resident>> {
        let mut retired = lock(&self.retired);
        retired.retain(|weak| weak.strong_count() > 0);
        retired.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether the base and everything an alias names can answer.
    pub fn is_healthy(&self) -> bool {
        let snapshot = self.current.load();
        snapshot.residents().all(|resident| !resident.is_dead())
    }

    /// A lease on what was asked for, loading it if it is in the registry only.
    ///
    /// # Errors
    /// [`Code::AdapterNotFound`], [`Code::EngineRestarting`], or what the load says.
    pub async fn lease(self: &Arc<Self>, selection: &Selection) -> Result<Lease, ApiError> {
        // One load of the pointer decides: alias and resident are of the same state.
        let snapshot = self.current.load_full();
        let generation = match selection {
            Selection::Generation(generation) => generation.clone(),
            Selection::Alias(alias) => {
                snapshot.alias(alias).cloned().ok_or_else(|| no_alias(alias))?
            }
        };
        if let Some(resident) = snapshot.resident(&generation) {
            let lease = Lease::new(resident);
            return if lease.is_dead() { Err(restarting()) } else { Ok(lease) };
        }
        let retired = self.retired().into_iter().find(|r| r.generation == generation);
        if let Some(resident) = retired.filter(|resident| !resident.is_dead()) {
            return Ok(Lease::new(&resident));
        }
        let missing = || {
            let message = format!("Generation {generation} is not in the registry.");
            ApiError::of(Code::AdapterNotFound, "x-hone-generation", message)
        };
        let root = self.config.registry.as_ref().ok_or_else(missing)?;
        let dir = root.join(generation.as_str());
        if !dir.is_dir() {
            return Err(missing());
        }
        let adapter = self.read(dir).await?;
        let resident = self.ensure(adapter, Patience::Wait).await?.0;
        Ok(Lease::new(&resident))
    }

    /// `POST /v1/load_lora_adapter`: makes the generation resident and moves the alias to it.
    ///
    /// # Errors
    /// As the contract says: 400, 403, 409, 429.
    pub async fn load(
        self: &Arc<Self>,
        alias: &str,
        lora_path: &str,
        expected: Option<&Generation>,
        inplace: bool,
    ) -> Result<Loaded, ApiError> {
        let root = self.config.registry.clone().ok_or_else(no_registry)?;
        let path = lora_path.to_owned();
        let dir = blocking(move || locate(&root, &path)).await??;
        let adapter = self.read(dir).await?;
        let generation = adapter.generation.clone();
        self.snapshot().may_move(alias, &generation, expected, inplace).map_err(refuse)?;
        let (resident, build_ms) = self.ensure(adapter, Patience::Refuse).await?;
        let flip = lock(&self.flip);
        let before = self.snapshot();
        // It may have been evicted between the build and now: the lease-less Arc keeps it alive.
        let before = match before.resident(&generation) {
            Some(_) => before,
            None => Arc::new(before.with_resident(&generation, Arc::clone(&resident))),
        };
        let next = before.with_alias(alias, &generation, expected, inplace).map_err(refuse)?;
        let sequence = next.sequence();
        let next = Arc::new(next);
        let started = Instant::now();
        self.current.store(next);
        let flip_ns = started.elapsed().as_nanos() as u64;
        drop(flip);
        tracing::info!(alias, generation = generation.short(), build_ms, flip_ns, "alias moved");
        Ok(Loaded {
            generation,
            rank: resident.rank,
            bytes: resident.adapter_bytes,
            build_ms,
            flip_ns,
            sequence,
        })
    }

    /// `POST /v1/unload_lora_adapter`: removes the alias; its generation leaves with its last alias
    /// and ends with its last lease. Returns the generation.
    ///
    /// # Errors
    /// 404 for an unknown alias, 409 for another generation than expected.
    pub fn unload(
        &self,
        alias: &str,
        expected: Option<&Generation>,
    ) -> Result<Generation, ApiError> {
        let _flip = lock(&self.flip);
        let before = self.snapshot();
        let (next, generation) = before.without_alias(alias, expected).map_err(refuse)?;
        if next.resident(&generation).is_none()
            && let Some(resident) = before.resident(&generation)
        {
            self.retire(resident);
        }
        self.current.store(Arc::new(next));
        Ok(generation)
    }

    /// Makes what the registry's aliases name resident, before the first request. An alias that
    /// cannot be loaded is logged and left out: the others, and the base, are still worth serving.
    pub async fn preload(self: &Arc<Self>, aliases: Vec<(String, Generation)>) {
        let Some(root) = self.config.registry.clone() else { return };
        for (alias, generation) in aliases {
            let dir = root.join(generation.as_str());
            let path = dir.to_string_lossy();
            if generation.is_base() {
                continue;
            }
            if let Err(error) = self.load(&alias, &path, None, true).await {
                tracing::error!(alias, generation = generation.short(), %error, "not preloaded");
            }
        }
    }

    /// Rebuilds engines whose thread has died, until `shutdown`.
    pub async fn supervise(self: Arc<Self>, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(Duration::from_millis(self.config.supervise_ms));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
            let snapshot = self.snapshot();
            for dead in snapshot.residents().filter(|resident| resident.is_dead()) {
                self.rebuild(dead).await;
            }
        }
    }

    async fn rebuild(&self, dead: &Arc<Resident>) {
        let generation = &dead.generation;
        tracing::error!(generation = generation.short(), "an engine died; rebuilding it");
        let _gate = self.gate.lock().await;
        let adapter = match (&self.config.registry, generation.is_base()) {
            (Some(root), false) => match self.read(root.join(generation.as_str())).await {
                Ok(adapter) => Some(adapter),
                Err(error) => {
                    tracing::error!(%error, "the dead generation is gone from the registry");
                    return;
                }
            },
            _ => None,
        };
        let model = Arc::clone(&self.model);
        match load::build(model, adapter, self.config.sequences_max).await {
            Ok(resident) => {
                let _flip = lock(&self.flip);
                let before = self.snapshot();
                let wanted = before.resident(generation).is_some_and(|now| Arc::ptr_eq(now, dead));
                if wanted {
                    let next = before.with_resident(generation, Arc::new(resident));
                    self.current.store(Arc::new(next));
                }
            }
            Err(error) => tracing::error!(%error, "the dead engine could not be rebuilt"),
        }
    }

    async fn read(&self, dir: PathBuf) -> Result<AdapterFiles, ApiError> {
        let model = Arc::clone(&self.model);
        blocking(move || AdapterFiles::read(&dir, &model.shapes)).await?
    }

    /// The resident of a generation, built now if there is none; and how long that took.
    async fn ensure(
        self: &Arc<Self>,
        adapter: AdapterFiles,
        patience: Patience,
    ) -> Result<(Arc<Resident>, u64), ApiError> {
        let fleet = Arc::clone(self);
        // A task of its own: the load goes on if the caller goes away.
        let task = tokio::spawn(async move { fleet.ensure_here(adapter, patience).await });
        task.await.unwrap_or_else(|_| Err(load_failed("the load was stopped")))
    }

    async fn ensure_here(
        &self,
        adapter: AdapterFiles,
        patience: Patience,
    ) -> Result<(Arc<Resident>, u64), ApiError> {
        let generation = adapter.generation.clone();
        if let Some(resident) = self.alive(&generation) {
            return Ok((resident, 0));
        }
        let busy = |other: &Generation| *other != generation;
        if patience == Patience::Refuse && lock(&self.loading).as_ref().is_some_and(busy) {
            let message = "Another generation is being loaded; try again.";
            return Err(ApiError::new(Code::LoraLoadBusy, message));
        }
        let _waiting = Waiting::enter(&self.waiting, self.config.loads_waiting_max)?;
        let _gate = self.gate.lock().await;
        if let Some(resident) = self.alive(&generation) {
            return Ok((resident, 0));
        }
        self.make_room()?;
        let _loading = Loading::begin(&self.loading, &generation);
        let started = Instant::now();
        let model = Arc::clone(&self.model);
        let resident = load::build(model, Some(adapter), self.config.sequences_max)
            .await
            .map_err(|error| load_failed(&error))?;
        let resident = Arc::new(resident);
        let build_ms = started.elapsed().as_millis() as u64;
        let _flip = lock(&self.flip);
        let next = self.snapshot().with_resident(&generation, Arc::clone(&resident));
        self.current.store(Arc::new(next));
        Ok((resident, build_ms))
    }

    /// A resident that lives, brought back into the snapshot if it had retired.
    fn alive(&self, generation: &Generation) -> Option<Arc<Resident>> {
        let snapshot = self.snapshot();
        let resident = snapshot.resident(generation).cloned();
        let retired = || self.retired().into_iter().find(|r| r.generation == *generation);
        let resident = resident.or_else(retired).filter(|resident| !resident.is_dead())?;
        if snapshot.resident(generation).is_none() {
            let _flip = lock(&self.flip);
            let next = self.snapshot().with_resident(generation, Arc::clone(&resident));
            self.current.store(Arc::new(next));
            lock(&self.retired).retain(|weak| weak.as_ptr() != Arc::as_ptr(&resident));
        }
        Some(resident)
    }

    /// Evicts idle residents that no alias names, least recently used first, until one more fits.
    fn make_room(&self) -> Result<(), ApiError> {
        let each = self.model.resident_bytes;
        loop {
            let _flip = lock(&self.flip);
            let snapshot = self.snapshot();
            // One without leases is about to go: only its last reader still holds it.
            let leased = self.retired().iter().filter(|r| r.active_leases() > 0).count();
            let count = snapshot.residents().count() + leased + 1;
            let fits = count <= self.config.residents_max
                && each.saturating_mul(count as u64) <= self.config.resident_bytes_max;
            if fits {
                return Ok(());
            }
            let Some(victim) = snapshot.least_used(Resident::idle_since).cloned() else {
                let message = format!(
                    "{} generations are resident (limits: {}, {} bytes at {each} bytes each) and \
                     none is idle without an alias; unload one or raise the limit.",
                    count - 1,
                    self.config.residents_max,
                    self.config.resident_bytes_max,
                );
                return Err(ApiError::new(Code::LoraLimitReached, message));
            };
            tracing::info!(generation = victim.generation.short(), "evicted");
            self.retire(&victim);
            self.current.store(Arc::new(snapshot.without_resident(&victim.generation)));
        }
    }

    fn retire(&self, resident: &Arc<Resident>) {
        let mut retired = lock(&self.retired);
        retired.retain(|weak| weak.strong_count() > 0);
        retired.push(Arc::downgrade(resident));
    }
}

/// A place among those that wait for a load.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, most: usize) -> Result<Self, ApiError> {
        if count.fetch_add(1, Ordering::AcqRel) >= most.max(1) {
            count.fetch_sub(1, Ordering::AcqRel);
            let message = "Too many generations wait to be loaded; try again.";
            return Err(ApiError::new(Code::LoraLoadBusy, message));
        }
        Ok(Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Says which generation is being loaded, for as long as it is.
struct Loading<'a>(&'a Mutex<Option<Generation>>);

impl<'a> Loading<'a> {
    fn begin(slot: &'a Mutex<Option<Generation>>, generation: &Generation) -> Self {
        *lock(slot) = Some(generation.clone());
        Self(slot)
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        *lock(self.0) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| load_failed("a file could not be read"))
}

fn load_failed(error: &str) -> ApiError {
    tracing::error!(error, "a generation could not be loaded");
    let message = "The engine could not load this generation; its log says why.";
    ApiError::new(Code::AdapterUnusable, message)
}

fn no_registry() -> ApiError {
    let message = "This backend was started without a registry, so it loads no adapters.";
    ApiError::new(Code::LoraRuntimeUnavailable, message)
}

fn no_alias(alias: &str) -> ApiError {
    let message = format!("The alias `{alias}` does not exist any more.");
    ApiError::of(Code::ModelNotFound, "model", message)
}

fn refuse(error: AliasError) -> ApiError {
    let code = match &error {
        AliasError::Mismatch { .. } => Code::LoraGenerationMismatch,
        AliasError::Taken { .. } => Code::LoraAdapterAlreadyLoaded,
        AliasError::Unknown(_) => Code::LoraAdapterNotFound,
        AliasError::NotResident(_) => Code::LoraLoadBusy,
    };
    ApiError::of(code, "lora_name", error.to_string())
}
