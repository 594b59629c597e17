//! A round: judge → sample → train → gate → publish, on one screen.
//!
//! Judging runs all the time beside the rounds (`judge::Judge::pass`); a round takes the verdicts
//! that stand. Everything else happens here, in this order. Each step leaves its result on disk and
//! skips itself when the result is already there, so resuming a round is running it again:
//!
//! | killed while | on disk                    | what the next start does                      |
//! |--------------|----------------------------|-----------------------------------------------|
//! | sampling     | nothing, or samples.json   | samples again, or takes the frozen samples    |
//! | training     | checkpoint of update n     | goes on with update n + 1, same seed          |
//! | gating       | checkpoint of the last     | gates again: same seeds, same numbers         |
//! | publishing   | generation in the registry | publishes again: every step is idempotent     |
//!
//! A route whose learning is turned off meanwhile gets no further: its round ends, abandoned, at the
//! next step, and within training at the next update; so does a round that `hone forget` has ended.
//!
//! Invariant: a round ends in exactly one of promoted, refused (by the gate), failed (an anomaly),
//! abandoned (a fault that is not its samples': they are free again), with a reason.

mod parts;
mod training;

pub use parts::{POOL_MAX, abandon, begin, corrections};

use crate::compute::ComputeError;
use crate::due::TURNS_SPENT;
use crate::external::ExternalError;
use crate::gate::{self, Case};
use crate::publish::{self, PublishError};
use crate::sample::preview::PreviewError;
use crate::train::TrainError;
use crate::work::{WorkDir, WorkError};
use crate::workshop::{Workshop, WorkshopError};
use hone_shared::policy::{Policies, Precision};
use hone_shared::registry::RegistryError;
use hone_shared::store::{RoundRow, RoundState, StoreError};
use parts::{Ground, advance, finish};
use serde_json::json;

/// Starts of one round before it is given up: something in it kills the trainer.
pub const STARTS_MAX: u32 = 5;

/// How running a round ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It has its final state and reason in the store.
    Finished(RoundState),
    /// Asked to stop; it resumes at the next start.
    Interrupted,
    /// The engine is away; publishing is tried again later.
    Later(String),
}

/// Why a round could not be carried on. The caller records it as abandoned.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[allow(missing_docs)] // Each variant is the error of one stage, as it says itself.
pub enum RoundError {
    Store(#[from] StoreError),
    Registry(#[from] RegistryError),
    Workshop(#[from] WorkshopError),
    Work(#[from] WorkError),
    Compute(#[from] ComputeError),
    Train(#[from] TrainError),
    Publish(#[from] PublishError),
    Draw(#[from] PreviewError),
    External(#[from] ExternalError),
}

/// Runs a round, new or unfinished, as far as it goes.
pub fn run(
    shop: &mut Workshop,
    row: &mut RoundRow,
    policies: &impl Policies,
) -> Result<End, RoundError> {
    match stages(shop, row, policies) {
        Err(RoundError::Store(StoreError::RoundEnded(_))) => parts::ended_elsewhere(shop, row),
        ended => ended,
    }
}

fn stages(
    shop: &mut Workshop,
    row: &mut RoundRow,
    policies: &impl Policies,
) -> Result<End, RoundError> {
    let ground = match Ground::of(shop, row, &policies.current())? {
        Ok(ground) => ground,
        Err(reason) => return finish(shop, row, RoundState::Abandoned, reason),
    };
    if let (RoundState::Publishing, Some(_)) = (row.state, &row.candidate) {
        return publish(shop, row, &ground, policies);
    }
    let work = WorkDir::open(&shop.data.rounds_dir(), &row.round_id)?;
    if work.count_start()? > STARTS_MAX {
        let reason = format!("started {STARTS_MAX} times without an end");
        row.metrics[TURNS_SPENT] = json!(true);
        return finish(shop, row, RoundState::Abandoned, reason);
    }

    // Sample: judged turns become token ids, rewards and hints; frozen, split, with provenance.
    let batch = match work.samples()? {
        Some(frozen) => frozen,
        None => parts::draw(shop, row, &ground, &work)?,
    };
    let too_little = parts::too_little(&ground.route, &batch);
    row.metrics[TURNS_SPENT] = json!(too_little.is_some());
    if let Some(reason) = too_little.or(parts::not_taken(shop, &ground.route, &batch)?) {
        return finish(shop, row, RoundState::Abandoned, reason);
    }

    // Train: here, or by somebody else's command.
    advance(shop, row, RoundState::Training)?;
    let plan = parts::plan(shop, &ground, &batch)?;
    let stop = shop.shutdown.clone();
    let goes_on = parts::goes_on(shop, row, policies)?;
    let candidate = match training::train(shop, row, &ground, &plan, &work, &goes_on)? {
        Ok(candidate) => candidate,
        Err(end) => return Ok(end),
    };
    if !goes_on() {
        return parts::turned_off(shop, row);
    }

    // Gate: better on held-out turns, itself on neutral prompts, or it goes no further.
    advance(shop, row, RoundState::Gating)?;
    let mut compute = parts::compute(shop, &ground.route.train, Precision::F32)?;
    let case = Case {
        candidate: &candidate,
        incumbent: ground.incumbent.as_ref(),
        teacher: plan.teacher.as_ref(),
        holdout: &batch.holdout,
        train: &ground.route.train,
        gate: &ground.gate,
    };
    let report = match gate::examine(compute.as_mut(), &shop.renderer, &case) {
        // It may also have been refused for want of an answer.
        _ if stop.is_cancelled() => return parts::interrupted(&work),
        examined => examined?,
    };
    // For people, and never in the way.
    work.plot(&gate::plot::svg(&work.metrics()?, &report, &row.round_id));
    row.metrics["gate"] = json!(report);
    drop(compute); // Its memory is needed by the engine that loads the candidate.
    if !report.passed {
        return finish(shop, row, RoundState::Refused, report.reason());
    }

    // Publish: registry, engine, alias, proxy; by the rules of now.
    if let Some(route) = policies.current().route(&row.route)
        && let Some(reason) = parts::not_taken(shop, route, &batch)?
    {
        return finish(shop, row, RoundState::Abandoned, reason);
    }
    let draft = parts::manifest(shop, row, &ground, &batch);
    let base_model = parts::base_name(&shop.model_dir);
    if let Some(reason) = parts::forgotten(shop, row, &batch)? {
        return finish(shop, row, RoundState::Abandoned, reason);
    }
    row.candidate = Some(publish::register(&shop.registry, &candidate, &base_model, draft)?);
    // Again, for what was forgotten while it was being written.
    if let Some(reason) = parts::forgotten(shop, row, &batch)? {
        return finish(shop, row, RoundState::Abandoned, reason);
    }
    advance(shop, row, RoundState::Publishing)?;
    publish(shop, row, &ground, policies)
}

/// The last step, also of a round that was killed in it.
fn publish(
    shop: &mut Workshop,
    row: &mut RoundRow,
    ground: &Ground,
    policies: &impl Policies,
) -> Result<End, RoundError> {
    // As of now, in one look: what was learned while the route served may not be served any more.
    let now = policies.current();
    let Some(route) = now.route(&row.route).filter(|route| route.mode.trains()) else {
        return parts::turned_off(shop, row);
    };
    let batch = WorkDir::open(&shop.data.rounds_dir(), &row.round_id)?.samples()?;
    if let Some(reason) = parts::not_taken(shop, route, &batch.unwrap_or_default())? {
        return finish(shop, row, RoundState::Abandoned, reason);
    }
    let mode = route.mode;
    if !mode.serves() {
        let reason = "shadow: passed the gate and is in the registry; the alias was not moved";
        return finish(shop, row, RoundState::Refused, reason.into());
    }
    match parts::promote(shop, row, ground) {
        Ok(_) => finish(shop, row, RoundState::Promoted, "passed the gate".into()),
        Err(error) if error.is_temporary() => Ok(End::Later(error.to_string())),
        Err(error) => finish(shop, row, RoundState::Abandoned, error.to_string()),
    }
}

#[cfg(test)]
#[path = "round_tests.rs"]
mod tests;
