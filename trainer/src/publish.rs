//! Publish: registry → engine → alias → proxy, in this order, and the way back.
//!
//! ```text
//! registry.publish   immutable directory, content-addressed      idempotent
//! driver.load        resident in the engine, confirmed by list    idempotent
//! registry.move      compare-and-swap: incumbent → candidate       once
//! proxy refresh      the proxy re-reads its aliases now           best effort (it polls anyway)
//! driver.unload      what is older than the previous generation   best effort
//! ```
//! Every step can be repeated, so a promotion that was killed anywhere is finished by doing it
//! again.
//!
//! Invariant: an alias moves only after the engine has confirmed the generation, and only from the
//! generation that the candidate was compared with.

use crate::driver::{Driver, DriverError};
use hone_model::lora::{Lora, LoraError};
use hone_shared::data_dir::{DataDir, RunFile};
use hone_shared::registry::{AdapterConfig, AliasState, ManifestDraft, Registry, RegistryError};
use hone_shared::turn::Generation;
use std::collections::BTreeSet;
use std::time::Duration;

/// Limit of the call to the proxy.
const REFRESH_LIMIT: Duration = Duration::from_secs(5);

/// Why a promotion or a rollback did not happen.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The registry refused; [`RegistryError::Moved`] when somebody else moved the alias.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The adapter cannot be written as PEFT.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The engine did not take it.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// There is nothing to go back to.
    #[error("alias `{0}` has no previous generation")]
    NoPrevious(String),
    /// Somebody moved the alias since the round began, even if it now points to the same place.
    #[error("alias `{alias}` was moved meanwhile (sequence {found}, the round began at {began})")]
    MovedMeanwhile {
        /// The alias.
        alias: String,
        /// Sequence when the round began.
        began: u64,
        /// Sequence now.
        found: u64,
    },
}

impl PublishError {
    /// Whether the same call may work later without anybody doing anything.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Driver(DriverError::Unavailable(_) | DriverError::Full(_)))
    }
}

/// The proxy's admin listener, if there is one to tell.
#[derive(Debug, Clone)]
pub struct ProxyAdmin {
    data: DataDir,
    url: Option<String>,
    http: reqwest::Client,
}

impl ProxyAdmin {
    /// `url` overrides what the proxy's run file says.
    pub fn new(data: DataDir, url: Option<String>) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder().no_proxy().timeout(REFRESH_LIMIT).build()?;
        Ok(Self { data, url, http })
    }

    /// Asks the proxy to re-read aliases now; says in the log if that did not work.
    pub async fn refresh(&self) -> bool {
        let Some(url) = self.url.clone().or_else(|| self.run_file_url()) else { return false };
        let Ok(token) = self.data.admin_token() else { return false };
        let url = format!("{}/v1/refresh", url.trim_end_matches('/'));
        let sent = self.http.post(url).bearer_auth(token).send().await;
        let problem = match sent.and_then(reqwest::Response::error_for_status) {
            Ok(_) => return true,
            Err(error) => error.without_url(),
        };
        tracing::warn!(%problem, "the proxy was not told; it will see the new alias when it polls");
        false
    }

    fn run_file_url(&self) -> Option<String> {
        let address = RunFile::read(&self.data, "proxy").ok().flatten()?.admin_address?;
        Some(if address.contains("://") { address } else { format!("http://{address}") })
    }
}

/// Where promotions go.
pub struct Publisher<'a> {
    /// Generations and aliases.
    pub registry: &'a Registry,
    /// The engine.
    pub driver: &'a dyn Driver,
    /// The proxy.
    pub proxy: &'a ProxyAdmin,
}

/// What an alias is moved from and why.
#[derive(Debug, Clone)]
pub struct Move {
    /// The alias.
    pub alias: String,
    /// Where it was when the round began.
    pub incumbent: Generation,
    /// How often it had been moved when the round began.
    pub sequence: u64,
    /// For the alias file.
    pub reason: String,
}

/// Writes the adapter into the registry as a generation; the same adapter is the same generation.
pub fn register(
    registry: &Registry,
    adapter: &Lora,
    base_model: &str,
    draft: ManifestDraft,
) -> Result<Generation, PublishError> {
    let config = AdapterConfig::from_bytes(adapter.peft_config(base_model))?;
    let weights = adapter.peft_bytes()?;
    Ok(registry.publish(&config, weights.as_slice(), draft)?)
}

/// Makes `candidate` resident and serves it under the alias.
pub async fn promote(
    to: &Publisher<'_>,
    candidate: &Generation,
    step: &Move,
) -> Result<AliasState, PublishError> {
    let now = to.registry.alias(&step.alias)?;
    if now.generation == *candidate {
        // A promotion that was killed after the swap, or a candidate equal to the incumbent.
        to.proxy.refresh().await;
        return Ok(now);
    }
    if now.sequence != step.sequence {
        let (began, found) = (step.sequence, now.sequence);
        return Err(PublishError::MovedMeanwhile { alias: step.alias.clone(), began, found });
    }
    load(to, candidate).await?;
    let state = to.registry.move_alias(&step.alias, &step.incumbent, candidate, &step.reason)?;
    to.proxy.refresh().await;
    unload_old(to).await;
    Ok(state)
}

/// Where a rollback goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RollbackTo {
    /// The generation before the current one.
    Previous,
    /// The base model.
    Base,
    /// A generation of the registry.
    Generation(Generation),
}

/// Moves an alias back. The generation left behind stays in the registry.
pub async fn rollback(
    of: &Publisher<'_>,
    alias: &str,
    to: RollbackTo,
    reason: &str,
) -> Result<AliasState, PublishError> {
    let now = of.registry.alias(alias)?;
    let target = match to {
        RollbackTo::Base => Generation::base(),
        RollbackTo::Generation(generation) => generation,
        RollbackTo::Previous => {
            let previous = now.previous.first().cloned();
            previous.ok_or_else(|| PublishError::NoPrevious(alias.to_owned()))?
        }
    };
    if target == now.generation {
        return Ok(now);
    }
    if !target.is_base() {
        load(of, &target).await?;
    }
    let state = of.registry.move_alias(alias, &now.generation, &target, reason)?;
    of.proxy.refresh().await;
    Ok(state)
}

/// Loads a generation; when the engine is full, what no alias needs goes first.
pub async fn load(to: &Publisher<'_>, generation: &Generation) -> Result<(), PublishError> {
    let found = to.registry.verify(generation)?;
    match to.driver.load(generation, &found.path).await {
        Err(DriverError::Full(why)) => {
            tracing::info!(why, "the engine is full; unloading old generations");
            unload_old(to).await;
            Ok(to.driver.load(generation, &found.path).await?)
        }
        other => Ok(other?),
    }
}

/// Unloads what is neither an alias's generation nor the one before it, and what is tainted.
pub async fn unload_old(of: &Publisher<'_>) {
    let Ok(aliases) = of.registry.aliases() else { return };
    let Ok(tainted) = of.registry.taints() else { return };
    let mut needed = BTreeSet::new();
    for state in aliases.into_values() {
        needed.extend(state.previous.into_iter().take(1));
        needed.insert(state.generation);
    }
    needed.retain(|generation| !tainted.contains_key(generation));
    let resident = match of.driver.list().await {
        Ok(resident) => resident,
        Err(error) => return tracing::warn!(%error, "cannot list what the engine holds"),
    };
    for generation in resident.iter().filter(|g| !g.is_base() && !needed.contains(*g)) {
        match of.driver.unload(generation).await {
            Ok(()) => tracing::info!(%generation, "unloaded"),
            Err(error) => tracing::warn!(%generation, %error, "an old generation stays loaded"),
        }
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
