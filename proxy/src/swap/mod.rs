//! The moving parts that requests read: policies and aliases, each on an `ArcSwap`.
//!
//! A promotion moves an alias in the registry; within one poll, or at once through `POST
//! /v1/refresh`, new requests of the routes that serve it are pinned to the new generation. Nothing
//! is locked, nothing restarts, and requests in flight keep what they were pinned to.
//!
//! Invariant: a bad policy file or an unreadable alias changes nothing: the last good state stays.

use std::sync::Arc;
use std::time::Duration;

use hone_shared::data_dir::DataDir;
use hone_shared::policy::{PolicyError, PolicySet, PolicyWatch, install_builtin};
use hone_shared::registry::{AliasMap, AliasWatch, Registry, RegistryError};
use hone_shared::turn::Generation;
use serde::Serialize;

use crate::error::ProxyError;
use crate::pem::kept::Reread;

/// Both watches.
pub struct Watches {
    policies: PolicyWatch,
    aliases: AliasWatch,
    files: Vec<Arc<dyn Reread>>,
}

/// What one request decides by.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The policies.
    pub policies: Arc<PolicySet>,
    /// Where every alias points.
    pub aliases: Arc<AliasMap>,
}

impl Snapshot {
    /// The generation behind an alias; one that was never moved is the base.
    pub fn serving(&self, alias: &str) -> Generation {
        self.aliases.get(alias).map_or_else(Generation::base, |state| state.generation.clone())
    }
}

/// What a refresh found.
#[derive(Debug, Serialize)]
pub struct Refreshed {
    /// Version of the policies now in force.
    pub policy_version: u64,
    /// Why a changed policy or alias file was not taken, if so.
    pub problems: Vec<String>,
}

impl Watches {
    /// Loads policies and aliases, and watches both; the built-in policies are installed where
    /// there are none. Errors: a policy that is wrong at the start, an unusable registry.
    pub fn start(data: &DataDir, every: Duration) -> Result<Self, ProxyError> {
        let policy = |error: PolicyError| ProxyError::Policy(error.to_string());
        let registry = |error: RegistryError| ProxyError::Registry(error.to_string());
        let dir = data.policies_dir();
        install_builtin(&dir).map_err(policy)?;
        let policies = PolicyWatch::follow(data, every).map_err(policy)?;
        let open = Registry::open(data.registry_dir()).map_err(registry)?;
        let aliases = AliasWatch::start(open, every).map_err(registry)?;
        Ok(Self { policies, aliases, files: Vec::new() })
    }

    /// Makes a refresh read certificates again, too.
    pub fn and_files(mut self, files: Vec<Arc<dyn Reread>>) -> Self {
        self.files = files;
        self
    }

    /// The present state, consistent for one request.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { policies: self.policies.current(), aliases: self.aliases.current() }
    }

    /// Everything about policies and overrides that an operator should put right.
    pub fn problems(&self) -> Vec<String> {
        self.policies.problems()
    }

    /// Why the policies on disk are not those in force, if so.
    pub fn policy_problem(&self) -> Option<String> {
        self.policies.last_error().map(|error| error.to_string())
    }

    /// Reads everything again now; returns after the new state is in force.
    pub fn refresh(&self) -> Refreshed {
        // What could not be read is in `problems`, with overrides that name no route.
        let _ = self.policies.refresh();
        let mut problems = self.policies.problems();
        if let Err(error) = self.aliases.refresh() {
            problems.push(error.to_string());
        }
        let reread = self.files.iter().filter_map(|files| files.reread(true).err());
        problems.extend(reread.map(|error| error.to_string()));
        Refreshed { policy_version: self.policies.current().version, problems }
    }
}
