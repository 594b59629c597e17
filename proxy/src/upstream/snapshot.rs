//! The state of all engines, for status and metrics.
//!
//! Invariant: labels are names of the configuration, or addresses that it led to; nothing of a
//! client's.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::Engines;

/// One engine.
#[derive(Debug, Serialize)]
pub struct EngineState {
    /// `host:port` of the configuration.
    pub engine: String,
    /// Whether any address of it can be used.
    pub usable: bool,
    /// Its addresses.
    pub addresses: Vec<AddressState>,
    /// Attempts that were sent its way.
    pub requests: u64,
    /// Failed connects by kind; only kinds that occurred.
    pub connect_failures: BTreeMap<&'static str, u64>,
    /// How often an address was put out of use because connecting failed.
    pub ejections: u64,
}

/// One address of an engine.
#[derive(Debug, Serialize)]
pub struct AddressState {
    /// IP and port.
    pub address: String,
    /// Whether requests go there.
    pub usable: bool,
}

impl Engines {
    /// The state now.
    pub fn snapshot(&self) -> Vec<EngineState> {
        let now_ms = self.now_ms();
        let state = |engine: &super::Engine| {
            let targets = engine.targets();
            let address = |target: &std::sync::Arc<super::Target>| AddressState {
                address: target.address.to_string(),
                usable: target.usable(now_ms),
            };
            EngineState {
                engine: engine.name.clone(),
                usable: targets.iter().any(|target| target.usable(now_ms)),
                addresses: targets.iter().map(address).collect(),
                requests: engine.requests.load(Ordering::Relaxed),
                connect_failures: engine.failures().filter(|(_, n)| *n > 0).collect(),
                ejections: engine.ejections.load(Ordering::Relaxed),
            }
        };
        self.all().iter().map(state).collect()
    }

    /// Attempts that went to another engine than the one that their key belongs to.
    pub fn spilled(&self) -> u64 {
        self.spilled.load(Ordering::Relaxed)
    }
}
