//! The parts of a round that `round.rs` names: what it stands on, sampling, plan, state, promotion.
//!
//! Invariant: the row in the store is written before the work that its state names begins.

use super::{End, RoundError};
use crate::compute::Compute;
use crate::due::{ABANDONED_BEFORE, abandoned_in_a_row};
use crate::publish::{self, Move, PublishError, Publisher};
use crate::sample::preview::Source;
use crate::sample::split::SPLIT_MIN;
use crate::sample::{self, Batch, Sample};
use crate::train::Plan;
use crate::work::WorkDir;
use crate::workshop::Workshop;
use hone_model::lora::Lora;
use hone_shared::clock::now_ms;
use hone_shared::policy::{
    GatePolicy, JudgePolicy, Policies, PolicySet, Precision, RoutePolicy, Teacher, TrainPolicy,
};
use hone_shared::registry::{AliasState, ManifestDraft};
use hone_shared::store::{RoundRow, RoundState, Store, StoredTurn, VerdictRow};
use hone_shared::turn::{Generation, TurnId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

pub use crate::sample::preview::POOL_MAX;

/// What a round stands on: policies and the incumbent.
pub struct Ground {
    /// The route it learns for.
    pub route: Arc<RoutePolicy>,
    /// Its gate.
    pub gate: Arc<GatePolicy>,
    /// Its judge, for the hint's label.
    pub judge: Arc<JudgePolicy>,
    /// The adapter that was served when the round began; `None`: the base.
    pub incumbent: Option<Lora>,
}

impl Ground {
    /// `Ok(Err(reason))`: the round cannot be run any more.
    pub fn of(
        shop: &Workshop,
        row: &RoundRow,
        policies: &PolicySet,
    ) -> Result<Result<Self, String>, RoundError> {
        let Some(route) = policies.route(&row.route).filter(|r| r.mode.trains()) else {
            return Ok(Err(no_longer(&row.route)));
        };
        let gate = policies.gates.get(&route.gate).cloned();
        let judge = policies.judge_of(route).cloned();
        let (Some(gate), Some(judge)) = (gate, judge) else {
            return Ok(Err(format!("route `{}` names no known judge and gate", row.route)));
        };
        if text(&row.metrics, "base_model") != shop.base_hash {
            return Ok(Err("the base model is not the one the round began with".into()));
        }
        let incumbent = shop.adapter(&row.incumbent)?;
        Ok(Ok(Self { route: route.clone(), gate, judge, incumbent }))
    }
}

fn no_longer(route: &str) -> String {
    format!("route `{route}` does not learn any more")
}

/// Whether a round goes on as of the moment of asking: its route learns, and nobody has ended it
/// (`hone forget` does).
pub fn goes_on<'a, P: Policies>(
    shop: &Workshop,
    row: &RoundRow,
    policies: &'a P,
) -> Result<impl Fn() -> bool + use<'a, P>, RoundError> {
    let store = Store::open(&shop.data.store_path())?;
    let (route, id) = (row.route.clone(), row.round_id.clone());
    Ok(move || {
        let learns = policies.current().route(&route).is_some_and(|route| route.mode.trains());
        // A store that cannot be asked now is asked again after the next update.
        learns && store.round_is_open(&id).unwrap_or(true)
    })
}

/// Ends the work of a round whose row somebody else has ended; the row stays as it is.
pub fn ended_elsewhere(shop: &Workshop, row: &mut RoundRow) -> Result<End, RoundError> {
    if let Some(ended) = shop.store.round(&row.round_id)? {
        *row = ended;
    }
    WorkDir::open(&shop.data.rounds_dir(), &row.round_id)?.close();
    tracing::warn!(round = row.round_id, state = %row.state, reason = row.reason, "round was ended");
    Ok(End::Finished(row.state))
}

/// Kernels for a step of the round. They give up when the trainer stops.
pub fn compute(
    shop: &Workshop,
    train: &TrainPolicy,
    precision: Precision,
) -> Result<Box<dyn Compute>, RoundError> {
    let mut compute = (shop.kernels)(&shop.model_dir, train.threads, precision, &train.memory)?;
    compute.interrupt_by(shop.shutdown.clone());
    Ok(compute)
}

/// Leaves the round as it is on disk, for the next start. Being stopped is not a failed start.
pub fn interrupted(work: &WorkDir) -> Result<End, RoundError> {
    work.forgive_start()?;
    Ok(End::Interrupted)
}

/// Ends the round of a route whose learning was turned off; its samples are free again.
pub fn turned_off(shop: &mut Workshop, row: &mut RoundRow) -> Result<End, RoundError> {
    let reason = no_longer(&row.route);
    finish(shop, row, RoundState::Abandoned, reason)
}

/// A new round of a route over `pool`, recorded as begun.
pub fn begin(
    shop: &mut Workshop,
    route: &RoutePolicy,
    pool: &[(StoredTurn, VerdictRow)],
    last: Option<&RoundRow>,
) -> Result<RoundRow, RoundError> {
    let alias = shop.registry.alias(&route.alias)?;
    let seen: Vec<TurnId> = pool.iter().map(|(turn, _)| turn.turn_id).collect();
    let row = RoundRow {
        round_id: uuid::Uuid::now_v7().to_string(),
        route: route.name.clone(),
        state: RoundState::Sampling,
        started_ms: now_ms(),
        finished_ms: None,
        incumbent: alias.generation,
        candidate: None,
        reason: String::new(),
        metrics: json!({
            "alias": route.alias,
            "alias_sequence": alias.sequence,
            "base_model": shop.base_hash,
            "seen": seen,
            ABANDONED_BEFORE: last.map_or(0, abandoned_in_a_row),
            "forgets_done": shop.store.forgets_done()?,
        }),
    };
    shop.store.begin_round(&row)?;
    tracing::info!(round = row.round_id, route = row.route, turns = pool.len(), "round begins");
    Ok(row)
}

fn source(shop: &Workshop) -> Source<'_> {
    let (store, registry) = (&shop.store, &shop.registry);
    Source { store, registry, renderer: &shop.renderer, secret: &shop.secret }
}

/// Which turns of the pool ask for another answer.
pub fn corrections(
    shop: &Workshop,
    route: &RoutePolicy,
    pool: &[(StoredTurn, VerdictRow)],
) -> Result<Vec<bool>, RoundError> {
    let baseline = source(shop).baseline(&route.name)?;
    Ok(sample::corrections(&shop.store, pool, route, baseline)?)
}

/// Why there is too little to learn in a batch.
pub fn too_little(route: &RoutePolicy, batch: &Batch) -> Option<String> {
    if batch.train.is_empty() || batch.train.len() + batch.holdout.len() < SPLIT_MIN {
        return Some(format!("too few usable samples; dropped: {}", json!(batch.dropped)));
    }
    let (needed, found) = (route.round.corrections_min, batch.corrections());
    let teaches = batch.train.iter().any(Sample::corrects);
    (needed > 0 && (found < needed || !teaches)).then(|| {
        format!(
            "too few usable corrections: {found} of {needed}; dropped: {}",
            json!(batch.dropped)
        )
    })
}

/// Draws, freezes and records the round's samples.
pub fn draw(
    shop: &mut Workshop,
    row: &mut RoundRow,
    ground: &Ground,
    work: &WorkDir,
) -> Result<Batch, RoundError> {
    let source = source(shop);
    let pool = source.pool(&ground.route)?;
    let batch = source.draw(&ground.route, &ground.judge.hint.label, &pool)?.batch;
    let baseline = source.baseline(&row.route)?;
    let rate = ground.route.round.baseline_rate;
    let follows = |mean: f64| (1.0 - rate) * baseline + rate * mean;
    row.metrics["reward_baseline"] = json!(batch.reward_mean.map_or(baseline, follows));
    row.metrics["seen"] = json!(batch.seen);
    row.metrics["samples"] = json!({
        "train": batch.train.len(),
        "holdout": batch.holdout.len(),
        "dropped": batch.dropped,
        "muted": batch.muted,
    });
    tracing::info!(
        round = row.round_id,
        train = batch.train.len(),
        holdout = batch.holdout.len(),
        dropped = %json!(batch.dropped),
        "samples"
    );
    shop.store.set_round_turns(&row.round_id, &batch.provenance())?;
    shop.store.update_round(row)?;
    work.freeze(&batch)?;
    Ok(batch)
}

/// Everything that determines the training.
pub fn plan(shop: &Workshop, ground: &Ground, batch: &Batch) -> Result<Plan, RoundError> {
    let policy = ground.route.train.clone();
    let mut servers = BTreeMap::new();
    let generations: BTreeSet<&Generation> = batch.train.iter().map(|s| &s.generation).collect();
    for generation in generations {
        if let Some(adapter) = shop.adapter(generation)? {
            servers.insert(generation.clone(), adapter);
        }
    }
    let start = ground.incumbent.clone().filter(|_| policy.warm_start);
    if let Some(own) = start.as_ref().filter(|own| differs(own, &policy)) {
        let (rank, alpha, asked) = (own.rank, own.alpha, policy.rank);
        tracing::warn!(rank, alpha, asked, "a warm start keeps the incumbent's rank and alpha");
    }
    Ok(Plan {
        samples: batch.train.clone(),
        start,
        teacher: ground.incumbent.clone().filter(|_| policy.teacher == Teacher::Incumbent),
        servers,
        model: shop.renderer.model.clone(),
        eos: shop.renderer.eos().to_vec(),
        policy,
    })
}

/// Whether an adapter has another shape than the policy asks for.
fn differs(adapter: &Lora, policy: &TrainPolicy) -> bool {
    (adapter.rank, adapter.alpha) != (policy.rank, policy.alpha)
}

/// Provenance of the candidate.
pub fn manifest(shop: &Workshop, row: &RoundRow, ground: &Ground, batch: &Batch) -> ManifestDraft {
    // A teacher passes on what it learned just as well as a start does.
    let train = &ground.route.train;
    let heir = train.warm_start || train.teacher == Teacher::Incumbent;
    ManifestDraft {
        base_model_hash: shop.base_hash.clone(),
        parent: if heir { row.incumbent.clone() } else { Generation::base() },
        route: row.route.clone(),
        round_id: Some(row.round_id.clone()),
        turns: batch.train.iter().map(|s| s.turn_id).collect(),
        metrics: json!({
            "updates": row.metrics["updates"],
            "samples": row.metrics["samples"],
            "policy": ground.route.name,
        }),
        gate: row.metrics["gate"].clone(),
    }
}

/// Why what was learned from this batch must not be used: a turn of it was forgotten meanwhile. A
/// candidate that is in the registry already is tainted.
pub fn forgotten(
    shop: &Workshop,
    row: &RoundRow,
    batch: &Batch,
) -> Result<Option<String>, RoundError> {
    let turns: Vec<TurnId> = batch.train.iter().chain(&batch.holdout).map(|s| s.turn_id).collect();
    let drawn_after = row.metrics["forgets_done"].as_i64().unwrap_or(0);
    let Some(turn) = shop.store.first_forgotten(&turns, drawn_after)? else { return Ok(None) };
    let reason = format!("turn {turn} was forgotten");
    if let Some(candidate) = &row.candidate {
        shop.registry.taint(&BTreeSet::from([candidate.clone()]), &reason)?;
        shop.registry.remove_tainted()?;
    }
    Ok(Some(reason))
}

/// Why a route must not learn from this batch: it has stopped taking the tenant of one of its turns
/// since they were drawn.
pub fn not_taken(
    shop: &Workshop,
    route: &RoutePolicy,
    batch: &Batch,
) -> Result<Option<String>, RoundError> {
    for sample in batch.train.iter().chain(&batch.holdout) {
        // A turn that is gone was forgotten, which is asked for itself, or has outlived its keeping.
        let Some(turn) = shop.store.turn(sample.turn_id)? else { continue };
        if !route.matches.takes_tenant(&turn.tenant) {
            let turn = turn.turn_id;
            return Ok(Some(format!("the route does not take the tenant of turn {turn} any more")));
        }
    }
    Ok(None)
}

/// Loads the candidate into the engine and moves the alias.
pub fn promote(
    shop: &Workshop,
    row: &RoundRow,
    ground: &Ground,
) -> Result<AliasState, PublishError> {
    let candidate = row.candidate.clone().unwrap_or_else(Generation::base);
    let step = Move {
        alias: ground.route.alias.clone(),
        incumbent: row.incumbent.clone(),
        sequence: row.metrics["alias_sequence"].as_u64().unwrap_or(u64::MAX),
        reason: format!("round {} passed the gate", row.round_id),
    };
    let to =
        Publisher { registry: &shop.registry, driver: shop.driver.as_ref(), proxy: &shop.proxy };
    shop.handle.block_on(publish::promote(&to, &candidate, &step))
}

/// Records that the next stage begins.
pub fn advance(
    shop: &mut Workshop,
    row: &mut RoundRow,
    state: RoundState,
) -> Result<(), RoundError> {
    row.state = state;
    shop.store.update_round(row)?;
    tracing::info!(round = row.round_id, state = %state, "round");
    Ok(())
}

/// Records how the round ended and removes what only an unfinished one needs.
pub fn finish(
    shop: &mut Workshop,
    row: &mut RoundRow,
    state: RoundState,
    reason: String,
) -> Result<End, RoundError> {
    let (state, reason) = match serves(shop, row) {
        true => (RoundState::Promoted, "passed the gate".to_owned()),
        false => (state, reason),
    };
    row.state = state;
    row.reason = reason;
    row.finished_ms = Some(now_ms());
    shop.store.update_round(row)?;
    match WorkDir::open(&shop.data.rounds_dir(), &row.round_id) {
        Ok(work) => work.close(),
        Err(error) => tracing::warn!(round = row.round_id, %error, "cannot remove its files"),
    }
    let candidate = row.candidate.as_ref().map(Generation::short);
    tracing::info!(round = row.round_id, state = %state, candidate, reason = row.reason, "round ended");
    Ok(End::Finished(state))
}

/// Whether the round's candidate is what its alias names: whatever went wrong after the alias moved,
/// the round has promoted it.
fn serves(shop: &Workshop, row: &RoundRow) -> bool {
    let alias = shop.registry.alias(text(&row.metrics, "alias")).ok();
    let named = alias.map(|alias| alias.generation);
    row.candidate.is_some()
        && row.candidate == named
        && row.candidate.as_ref() != Some(&row.incumbent)
}

/// Records a round that cannot be carried on through no fault of its samples: they are free again.
pub fn abandon(shop: &mut Workshop, row: &mut RoundRow, reason: String) -> Result<End, RoundError> {
    finish(shop, row, RoundState::Abandoned, reason)
}

/// The model directory's name, for people.
pub fn base_name(dir: &Path) -> String {
    dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn text<'a>(metrics: &'a Value, key: &str) -> &'a str {
    metrics[key].as_str().unwrap_or_default()
}
