//! What a route's next round would learn from, and the same for the round that begins.
//!
//! Invariant: reads only; a preview and the round that follows it, with nothing said in between,
//! draw the same samples.

use super::render::Renderer;
use super::{Drawn, Sampler};
use hone_shared::policy::{PolicySet, RoutePolicy};
use hone_shared::registry::{AliasState, Registry, RegistryError};
use hone_shared::store::{Store, StoreError, StoredTurn, VerdictRow};
use hone_shared::turn::Generation;

/// Judged turns that one round looks at.
pub const POOL_MAX: usize = 1_024;
/// Rounds among which the route's last one is looked for.
const ROUNDS_LOOKED_AT: usize = 200;

/// Why nothing could be drawn.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// No such route, or it names no known judge.
    #[error("there is no route `{0}` with a judge")]
    Route(String),
}

/// Where batches are drawn from.
pub struct Source<'a> {
    /// Turns, verdicts, feedback, rounds.
    pub store: &'a Store,
    /// Which generations are at hand, and how old they are.
    pub registry: &'a Registry,
    /// Tokenizer and template.
    pub renderer: &'a Renderer,
    /// Key of the split.
    pub secret: &'a [u8; 32],
}

impl Source<'_> {
    /// All turns that a round of the route may use, oldest first.
    pub fn pool(&self, route: &RoutePolicy) -> Result<Vec<(StoredTurn, VerdictRow)>, StoreError> {
        let mut pool = self.store.trainable(&route.name, POOL_MAX)?;
        // The route may have taken other tenants when these were stored.
        pool.retain(|(turn, _)| route.matches.takes_tenant(&turn.tenant));
        Ok(pool)
    }

    /// Draws from `pool` with the line above hints.
    pub fn draw(
        &self,
        route: &RoutePolicy,
        hint_label: &str,
        pool: &[(StoredTurn, VerdictRow)],
    ) -> Result<Drawn, PreviewError> {
        let alias = self.registry.alias(&route.alias)?;
        let behind = |generation: &Generation| behind(self.registry, &alias, generation);
        let sampler = Sampler {
            renderer: self.renderer,
            route: &route.name,
            round: &route.round,
            train: &route.train,
            hint_label,
            behind: &behind,
            baseline: self.baseline(&route.name)?,
            secret: self.secret,
        };
        Ok(sampler.draw(self.store, pool)?)
    }

    /// The route's running mean of rewards, as its last finished round left it.
    pub fn baseline(&self, route: &str) -> Result<f64, StoreError> {
        let rounds = self.store.recent_rounds(ROUNDS_LOOKED_AT)?;
        let mut done = rounds.iter().filter(|row| row.route == route && row.state.is_final());
        Ok(done.find_map(|row| row.metrics["reward_baseline"].as_f64()).unwrap_or(0.0))
    }

    /// What the next round of a route would learn from.
    pub fn preview(&self, policies: &PolicySet, route: &str) -> Result<Drawn, PreviewError> {
        let unknown = || PreviewError::Route(route.to_owned());
        let policy = policies.route(route).ok_or_else(unknown)?;
        let judge = policies.judge_of(policy).ok_or_else(unknown)?;
        self.draw(policy, &judge.hint.label, &self.pool(policy)?)
    }
}

/// How many generations behind the served one `generation` is; `None`: it is not in the registry.
/// One that the alias no longer remembers is further behind than any limit.
fn behind(registry: &Registry, alias: &AliasState, generation: &Generation) -> Option<usize> {
    if !generation.is_base() && registry.get(generation).is_err() {
        return None;
    }
    if alias.generation == *generation {
        return Some(0);
    }
    let earlier = alias.previous.iter().position(|previous| previous == generation);
    Some(earlier.map_or(usize::MAX, |at| at + 1))
}

#[cfg(test)]
#[path = "preview_tests.rs"]
mod tests;
