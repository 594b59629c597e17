//! The trainer process: judge all the time, one round at a time, until told to stop.
//!
//! Two threads of their own, because the store is not shared and training computes for minutes; the
//! runtime only waits for them. On start every alias is checked against the registry, unfinished
//! rounds come first, and then each route gets its round when it is due.
//!
//! Invariant: never two rounds at once; shutdown ends between two steps of an update, with the last
//! checkpoint on disk.

use crate::driver::HoneDriver;
use crate::due::{corrects_enough, is_due};
use crate::judge::Judge;
use crate::publish::{self, ProxyAdmin, Publisher, RollbackTo};
use crate::round::{self, End};
use crate::sample::render::Renderer;
use crate::work;
use crate::workshop::{Kernels, Workshop, kernels};
use crate::{TrainerConfig, TrainerError};
use hone_shared::clock::{Clock, now_ms};
use hone_shared::data_dir::RunFile;
use hone_shared::policy::{PolicySet, PolicyWatch, install_builtin};
use hone_shared::registry::{AliasState, Registry};
use hone_shared::store::{RoundRow, Store};
use hone_shared::turn::Generation;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::{JoinError, spawn_blocking};
use tokio_util::sync::CancellationToken;

/// First wait after the engine was away while publishing; doubles up to [`LATER_LAST_MS`].
const LATER_FIRST_MS: u64 = 1_000;
/// Longest such wait.
const LATER_LAST_MS: u64 = 60_000;
/// Tries to publish before a round is given up.
const LATER_MAX: u32 = 60;
/// Rest between two looks for rounds that are due, as a multiple of the time that the last look
/// took: a large pool in which nothing is due costs a twentieth of a core and no more.
const LOOK_REST: u32 = 20;
/// Longest such rest.
const LOOK_REST_MAX: Duration = Duration::from_secs(20);

/// Runs the trainer until `shutdown`, with the kernels of its device.
pub async fn run(cfg: TrainerConfig, shutdown: CancellationToken) -> Result<(), TrainerError> {
    let kernels = kernels(&cfg.device)?;
    run_with(cfg, shutdown, kernels).await
}

/// As [`run`], with kernels of the caller's choice.
pub async fn run_with(
    cfg: TrainerConfig,
    shutdown: CancellationToken,
    kernels: Kernels,
) -> Result<(), TrainerError> {
    cfg.data.create()?;
    install_builtin(&cfg.data.policies_dir())?;
    let poll = Duration::from_millis(cfg.poll_ms.max(10));
    let policies = Arc::new(PolicyWatch::follow(&cfg.data, poll)?);
    let stop = shutdown.child_token();
    let (for_judge, for_rounds) = (cfg.clone(), cfg.clone());
    let (judge_policies, judge_stop) = (policies.clone(), stop.clone());
    let handle = Handle::current();
    let judge_handle = handle.clone();
    let mut judge = spawn_blocking(move || {
        judge_thread(&for_judge, &judge_policies, &judge_stop, &judge_handle)
    });
    let round_stop = stop.clone();
    let mut rounds = spawn_blocking(move || {
        let mut shop = workshop(&for_rounds, kernels, handle, round_stop)?;
        round_thread(&mut shop, &policies, poll)
    });
    let started_ms = now_ms();
    let me = RunFile {
        pid: std::process::id(),
        address: String::new(),
        admin_address: None,
        started_ms,
    };
    me.write(&cfg.data, "trainer")?;
    // Whichever ends first ends the other.
    let (first, rest) = tokio::select! {
        first = &mut judge => (first, &mut rounds),
        first = &mut rounds => (first, &mut judge),
    };
    stop.cancel();
    let second = rest.await;
    RunFile::remove(&cfg.data, "trainer")?;
    ended(first).and(ended(second))
}

fn ended(result: Result<Result<(), TrainerError>, JoinError>) -> Result<(), TrainerError> {
    result.map_err(|e| TrainerError::Thread(e.to_string()))?
}

/// Judges whatever waits, then waits for more.
fn judge_thread(
    cfg: &TrainerConfig,
    policies: &PolicyWatch,
    stop: &CancellationToken,
    handle: &Handle,
) -> Result<(), TrainerError> {
    let mut store = Store::open(&cfg.data.store_path())?;
    let mut judge = Judge::new(&cfg.engine_url, Clock::System)?;
    let poll = Duration::from_millis(cfg.poll_ms.max(10));
    handle.block_on(async {
        while !stop.is_cancelled() {
            let current = policies.current();
            // Dropping a pass is safe: each verdict is one statement, and there is none half-way.
            let pass = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                // A route whose learning is turned off is not judged for another question.
                () = changed(policies, current.version, poll) => continue,
                pass = judge.pass(&mut store, &current) => pass,
            };
            match pass {
                Ok(report) if report.judged > 0 => {
                    tracing::info!(judged = report.judged, waiting = report.waiting, "judged");
                    continue;
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "judging failed; trying again"),
            }
            pause(stop, poll).await;
        }
        Ok(())
    })
}

/// Waits until the policies are no longer those of `version`.
async fn changed(policies: &PolicyWatch, version: u64, poll: Duration) {
    while policies.current().version == version {
        tokio::time::sleep(poll).await;
    }
}

/// Waits, but not through a shutdown.
async fn pause(stop: &CancellationToken, time: Duration) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}

/// Opens everything a round needs.
pub fn workshop(
    cfg: &TrainerConfig,
    kernels: Kernels,
    handle: Handle,
    shutdown: CancellationToken,
) -> Result<Workshop, TrainerError> {
    let model = cfg.model_dir.clone();
    Ok(Workshop {
        store: Store::open(&cfg.data.store_path())?,
        registry: Registry::open(cfg.data.registry_dir())?,
        renderer: Renderer::from_dir(&model)?,
        base_hash: hone_model::weights::model_hash(&model)?,
        kernels,
        driver: Arc::new(HoneDriver::new(&cfg.engine_url)?),
        proxy: ProxyAdmin::new(cfg.data.clone(), cfg.proxy_admin.clone())?,
        secret: cfg.data.secret()?,
        model_dir: model,
        data: cfg.data.clone(),
        handle,
        shutdown,
    })
}

fn round_thread(
    shop: &mut Workshop,
    policies: &PolicyWatch,
    poll: Duration,
) -> Result<(), TrainerError> {
    check_aliases(shop)?;
    let mut tainted = 0;
    while !shop.shutdown.is_cancelled() {
        tainted = retire_tainted(shop, tainted);
        let begun = Instant::now();
        // Unfinished ones first: those of an earlier run, and one whose end could not be recorded.
        if let Err(error) = resume(shop, policies).and_then(|()| look_around(shop, policies)) {
            tracing::error!(%error, "no round could be begun or ended; trying again");
        }
        let stop = shop.shutdown.clone();
        let rest = (begun.elapsed() * LOOK_REST).min(LOOK_REST_MAX).max(poll);
        shop.handle.block_on(pause(&stop, rest));
    }
    Ok(())
}

/// Carries every unfinished round on, and removes the files of rounds long past.
fn resume(shop: &mut Workshop, policies: &PolicyWatch) -> Result<(), TrainerError> {
    let unfinished = shop.store.unfinished_rounds()?;
    let ids: Vec<String> = unfinished.iter().map(|row| row.round_id.clone()).collect();
    if let Err(error) = work::prune(&shop.data.rounds_dir(), &ids) {
        tracing::warn!(%error, "old round files stay");
    }
    for mut row in unfinished {
        if shop.shutdown.is_cancelled() {
            return Ok(());
        }
        tracing::info!(round = row.round_id, state = %row.state, "resuming");
        drive(shop, &mut row, policies)?;
    }
    Ok(())
}

/// Tells the proxy and unloads from the engine when more generations are tainted than `known`.
/// Returns how many there are.
fn retire_tainted(shop: &Workshop, known: usize) -> usize {
    let found = shop.registry.taints().map_or(known, |taints| taints.len());
    if found > known {
        let driver = shop.driver.as_ref();
        let of = Publisher { registry: &shop.registry, driver, proxy: &shop.proxy };
        shop.handle.block_on(async {
            shop.proxy.refresh().await;
            publish::unload_old(&of).await;
        });
    }
    found
}

/// Begins and runs a round for every route that is due, one after the other.
fn look_around(shop: &mut Workshop, policies: &PolicyWatch) -> Result<(), TrainerError> {
    let current = policies.current();
    for route in current.routes.iter().filter(|route| route.mode.trains()) {
        if shop.shutdown.is_cancelled() {
            return Ok(());
        }
        if let Some(mut row) = begin_if_due(shop, &current, &route.name)? {
            drive(shop, &mut row, policies)?;
        }
    }
    Ok(())
}

fn begin_if_due(
    shop: &mut Workshop,
    policies: &PolicySet,
    route: &str,
) -> Result<Option<RoundRow>, TrainerError> {
    let Some(route) = policies.route(route) else { return Ok(None) };
    let mut pool = shop.store.trainable(&route.name, round::POOL_MAX)?;
    pool.retain(|(turn, _)| route.matches.takes_tenant(&turn.tenant));
    let last = shop.store.last_round(&route.name)?;
    let now_ms = now_ms();
    let ended_ms = shop.store.last_turn_ended_ms()?.unwrap_or(now_ms);
    let quiet_ms = u64::try_from(now_ms - ended_ms).unwrap_or(0);
    if !is_due(route, &pool, last.as_ref(), now_ms, quiet_ms)
        || !corrects_enough(route, &pool, &round::corrections(shop, route, &pool)?, last.as_ref())
    {
        return Ok(None);
    }
    Ok(Some(round::begin(shop, route, &pool, last.as_ref())?))
}

/// Runs a round to its end, through an engine that is away for a while.
fn drive(
    shop: &mut Workshop,
    row: &mut RoundRow,
    policies: &PolicyWatch,
) -> Result<(), TrainerError> {
    let mut wait_ms = LATER_FIRST_MS;
    for attempt in 1..=LATER_MAX {
        let result = round::run(shop, row, policies);
        let why = match result {
            Ok(End::Finished(_) | End::Interrupted) => return Ok(()),
            Ok(End::Later(why)) => why,
            Err(error) => {
                tracing::error!(round = row.round_id, %error, "the round cannot go on");
                round::abandon(shop, row, error.to_string())?;
                return Ok(());
            }
        };
        tracing::warn!(round = row.round_id, attempt, why, wait_ms, "publishing later");
        let stop = shop.shutdown.clone();
        shop.handle.block_on(pause(&stop, Duration::from_millis(wait_ms)));
        if stop.is_cancelled() {
            return Ok(());
        }
        wait_ms = (wait_ms * 2).min(LATER_LAST_MS);
    }
    round::abandon(shop, row, format!("the engine was away {LATER_MAX} times"))?;
    Ok(())
}

/// Every alias must name a complete generation: one that does not is moved back to the newest one
/// that is, or to the base. What the aliases name is loaded into the engine, best effort.
pub fn check_aliases(shop: &Workshop) -> Result<(), TrainerError> {
    for state in shop.registry.aliases()?.into_values() {
        let whole = |g: &Generation| g.is_base() || shop.registry.verify(g).is_ok();
        let generation = match whole(&state.generation) {
            true => state.generation.clone(),
            false => heal(shop, &state, &whole)?,
        };
        if generation.is_base() || shop.shutdown.is_cancelled() {
            continue;
        }
        let driver = shop.driver.as_ref();
        let to = Publisher { registry: &shop.registry, driver, proxy: &shop.proxy };
        if let Err(error) = shop.handle.block_on(publish::load(&to, &generation)) {
            tracing::warn!(alias = state.alias, %error, "not loaded; the engine loads on demand");
        }
    }
    Ok(())
}

fn heal(
    shop: &Workshop,
    state: &AliasState,
    whole: &dyn Fn(&Generation) -> bool,
) -> Result<Generation, TrainerError> {
    let good = state.previous.iter().find(|g| whole(g)).cloned();
    let good = good.unwrap_or_else(Generation::base);
    tracing::error!(alias = state.alias, bad = %state.generation, to = %good, "alias is damaged");
    let reason = format!("generation {} is missing or damaged", state.generation);
    shop.registry.move_alias(&state.alias, &state.generation, &good, &reason)?;
    shop.handle.block_on(shop.proxy.refresh());
    Ok(good)
}

/// Moves an alias back from the command line; see [`publish::rollback`].
pub async fn rollback(
    cfg: &TrainerConfig,
    alias: &str,
    to: RollbackTo,
    reason: &str,
) -> Result<AliasState, TrainerError> {
    let registry = Registry::open(cfg.data.registry_dir())?;
    let driver = HoneDriver::new(&cfg.engine_url)?;
    let proxy = ProxyAdmin::new(cfg.data.clone(), cfg.proxy_admin.clone())?;
    let of = Publisher { registry: &registry, driver: &driver, proxy: &proxy };
    Ok(publish::rollback(&of, alias, to, reason).await?)
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
