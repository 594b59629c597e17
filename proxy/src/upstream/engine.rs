//! One engine: its addresses, which of them can be used now, and what is counted about it.
//!
//! An address is out of use while its probes fail, or for a cool-down after several connects failed
//! in a row. After the cool-down one failure is enough to put it out again.
//!
//! Invariant: reading the state is a few atomic loads; what one request learns about an address
//! holds for all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tracing::{info, warn};

use super::affinity;
use super::failure::ConnectFailure;
use crate::config::Upstream;

/// One address of an engine.
#[derive(Debug)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    pub(super) seed: u64,
    connect_failures: AtomicU32,
    out_until_ms: AtomicU64,
    probe_failures: AtomicU32,
    probed_out: AtomicBool,
}

impl Target {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            seed: affinity::seed(&address.to_string()),
            connect_failures: AtomicU32::new(0),
            out_until_ms: AtomicU64::new(0),
            probe_failures: AtomicU32::new(0),
            probed_out: AtomicBool::new(false),
        }
    }

    /// Whether requests should go here.
    pub fn usable(&self, now_ms: u64) -> bool {
        !self.probed_out.load(Ordering::Relaxed)
            && now_ms >= self.out_until_ms.load(Ordering::Relaxed)
    }

    /// A connection was made.
    pub fn connected(&self) {
        // Mostly zero already: a plain load leaves the cache line shared.
        if self.connect_failures.load(Ordering::Relaxed) > 0 {
            self.connect_failures.store(0, Ordering::Relaxed);
            self.out_until_ms.store(0, Ordering::Relaxed);
        }
    }

    /// A connection could not be made. Returns whether that put the address out of use.
    pub(super) fn failed(&self, now_ms: u64, failures_max: u32, cooldown_ms: u64) -> bool {
        let failures = self.connect_failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < failures_max {
            return false;
        }
        let was_out = !self.usable(now_ms);
        self.out_until_ms.store(now_ms + cooldown_ms, Ordering::Relaxed);
        !was_out
    }

    /// What a probe found. Several failures in a row put the address out, one success back in.
    pub(super) fn probed(&self, alive: bool, failures_max: u32) {
        if alive {
            self.probe_failures.store(0, Ordering::Relaxed);
            self.connected();
            if self.probed_out.swap(false, Ordering::Relaxed) {
                info!(address = %self.address, "an engine answers its health checks again");
            }
            return;
        }
        let failures = self.probe_failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= failures_max && !self.probed_out.swap(true, Ordering::Relaxed) {
            warn!(address = %self.address, failures, "an engine fails its health checks");
        }
    }
}

/// One engine.
#[derive(Debug)]
pub struct Engine {
    /// Where it is said to be.
    pub upstream: Upstream,
    /// `host:port`: its name in scores, metrics and logs.
    pub name: String,
    pub(super) host_header: Option<String>,
    pub(super) seed: u64,
    targets: ArcSwap<Vec<Arc<Target>>>,
    pub(super) requests: AtomicU64,
    pub(super) ejections: AtomicU64,
    failures: [AtomicU64; ConnectFailure::ALL.len()],
}

impl Engine {
    /// An engine without addresses: [`super::resolve`] finds them.
    pub fn new(upstream: Upstream) -> Self {
        let name = upstream.authority();
        Self {
            host_header: upstream.host_header(),
            seed: affinity::seed(&name),
            name,
            upstream,
            targets: ArcSwap::default(),
            requests: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            failures: Default::default(),
        }
    }

    /// Its addresses now.
    pub fn targets(&self) -> Arc<Vec<Arc<Target>>> {
        self.targets.load_full()
    }

    /// Whether `which` holds for any address.
    pub(super) fn any(&self, which: impl Fn(&Target) -> bool) -> bool {
        self.targets.load().iter().any(|target| which(target))
    }

    /// The best address for `key` among those that `which` allows.
    pub(super) fn best(&self, key: u64, which: impl Fn(&Target) -> bool) -> Option<Arc<Target>> {
        let targets = self.targets.load();
        let allowed = targets.iter().filter(|target| which(target));
        allowed.max_by_key(|target| affinity::score(key, target.seed)).map(Arc::clone)
    }

    /// Takes new addresses; what is known about those that stay is kept.
    pub(super) fn resolved(&self, addresses: &[SocketAddr]) {
        let known = self.targets.load();
        if known.iter().map(|target| target.address).eq(addresses.iter().copied()) {
            return;
        }
        info!(engine = self.name, ?addresses, "engine addresses");
        let targets = addresses.iter().map(|address| {
            let kept = known.iter().find(|target| target.address == *address);
            kept.map_or_else(|| Arc::new(Target::new(*address)), Arc::clone)
        });
        self.targets.store(Arc::new(targets.collect()));
    }

    pub(super) fn count_failure(&self, kind: ConnectFailure) {
        if let Some(at) = ConnectFailure::ALL.iter().position(|k| *k == kind) {
            self.failures[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Failed connects by kind.
    pub(super) fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self.failures.iter().map(|n| n.load(Ordering::Relaxed));
        ConnectFailure::ALL.iter().map(|kind| kind.as_str()).zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target::new("127.0.0.1:1".parse().unwrap())
    }

    #[test]
    fn failures_in_a_row_put_an_address_out_and_a_connect_brings_it_back() {
        let target = target();
        assert!(!target.failed(0, 3, 1_000));
        target.connected();
        assert!(!target.failed(0, 3, 1_000));
        assert!(!target.failed(0, 3, 1_000));
        assert!(target.usable(0));
        assert!(target.failed(0, 3, 1_000), "the third in a row");
        assert!(!target.usable(999));
        assert!(target.usable(1_000), "worth another try");
        assert!(target.failed(1_000, 3, 1_000), "one more failure is enough now");
        assert!(!target.usable(1_500));
        target.connected();
        assert!(target.usable(1_500));
    }

    #[test]
    fn probes_decide_by_themselves() {
        let target = target();
        target.probed(false, 2);
        assert!(target.usable(0), "one lost probe means nothing");
        target.probed(false, 2);
        assert!(!target.usable(u64::MAX));
        target.connected();
        assert!(!target.usable(0), "that it accepts connections says less than its probes");
        target.probed(true, 2);
        assert!(target.usable(0));
    }

    #[test]
    fn addresses_that_stay_keep_their_state() {
        let engine = Engine::new(Upstream::parse("http://engine:1").unwrap());
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        engine.resolved(&[at("10.0.0.1:1"), at("10.0.0.2:1")]);
        engine.targets()[1].probed(false, 1);
        engine.resolved(&[at("10.0.0.2:1"), at("10.0.0.3:1")]);
        let usable: Vec<bool> = engine.targets().iter().map(|t| t.usable(0)).collect();
        assert_eq!(usable, [false, true]);
    }
}
