//! The training of a round: hone's own, or a command's.
//!
//! Invariant: a candidate comes from exactly one of them, and both end when the trainer is stopped
//! or the route learns no more.

use super::parts::{self, Ground, finish};
use super::{End, RoundError};
use crate::compute::ComputeError;
use crate::export::Exporter;
use crate::external::{External, ExternalEnd};
use crate::train::{self, Plan, TrainEnd, TrainError};
use crate::work::WorkDir;
use crate::workshop::Workshop;
use hone_model::lora::Lora;
use hone_shared::policy::ExternalPolicy;
use hone_shared::store::{RoundRow, RoundState};
use serde_json::json;

/// The candidate, or how the round ended without one.
pub fn train(
    shop: &mut Workshop,
    row: &mut RoundRow,
    ground: &Ground,
    plan: &Plan,
    work: &WorkDir,
    goes_on: &dyn Fn() -> bool,
) -> Result<Result<Lora, End>, RoundError> {
    match &ground.route.train.external {
        None => native(shop, row, ground, plan, work, goes_on),
        Some(policy) => external(shop, row, (ground, policy), plan, work, goes_on),
    }
}

/// Own rollouts and live replies, one LoRA, a checkpoint after every update.
fn native(
    shop: &mut Workshop,
    row: &mut RoundRow,
    ground: &Ground,
    plan: &Plan,
    work: &WorkDir,
    goes_on: &dyn Fn() -> bool,
) -> Result<Result<Lora, End>, RoundError> {
    let recipe = &ground.route.train;
    let mut compute = parts::compute(shop, recipe, recipe.precision)?;
    let stop = shop.shutdown.clone();
    let ends = || stop.is_cancelled() || !goes_on();
    let trained = match train::train(compute.as_mut(), plan, work, &ends) {
        Ok(TrainEnd::Interrupted) | Err(TrainError::Compute(ComputeError::Interrupted))
            if stop.is_cancelled() =>
        {
            return parts::interrupted(work).map(Err);
        }
        trained => trained?,
    };
    drop(compute); // One copy of the weights at a time.
    let candidate = match trained {
        TrainEnd::Done(candidate) => candidate,
        TrainEnd::Spent(candidate, why) => {
            tracing::info!(round = row.round_id, why, "a budget is spent; on to the gate");
            row.metrics["budget"] = json!(why);
            candidate
        }
        TrainEnd::Interrupted => return parts::turned_off(shop, row).map(Err),
        TrainEnd::Stopped(reason) => {
            return finish(shop, row, RoundState::Failed, reason).map(Err);
        }
    };
    row.metrics["updates"] = json!(work.metrics()?);
    Ok(Ok(candidate))
}

/// A command that gets the round's train split and leaves an adapter.
fn external(
    shop: &mut Workshop,
    row: &mut RoundRow,
    (ground, policy): (&Ground, &ExternalPolicy),
    plan: &Plan,
    work: &WorkDir,
    goes_on: &dyn Fn() -> bool,
) -> Result<Result<Lora, End>, RoundError> {
    let from = |generation| shop.registry.get(generation).ok().map(|found| found.path);
    let continues = ground.route.train.warm_start && !row.incumbent.is_base();
    let it = External {
        round: work.path(),
        policy,
        train: &ground.route.train,
        model_dir: &shop.model_dir,
        model: &shop.renderer.model,
        incumbent: continues.then(|| from(&row.incumbent)).flatten(),
    };
    let hint_label = &ground.judge.hint.label;
    let exporter = Exporter { store: &shop.store, renderer: &shop.renderer, hint_label };
    let rows = || exporter.rows(&plan.samples, "train");
    let stop = shop.shutdown.clone();
    match it.run(&rows, &|| stop.is_cancelled() || !goes_on())? {
        ExternalEnd::Adapter(candidate) => {
            row.metrics["external"] = json!(policy.command.first());
            Ok(Ok(candidate))
        }
        ExternalEnd::Interrupted if stop.is_cancelled() => parts::interrupted(work).map(Err),
        ExternalEnd::Interrupted => parts::turned_off(shop, row).map(Err),
        ExternalEnd::Refused(reason) => finish(shop, row, RoundState::Abandoned, reason).map(Err),
    }
}
