//! The engines' side of the proxy: where they are, which one a request goes to, over which
//! connection, and when it may be sent again.
//!
//! * [`engine`]: one engine, its addresses and their health. [`resolve`], [`probe`]: how both are
//!   learned in the background.
//! * [`affinity`]: which engine a conversation belongs to.
//! * [`failure`]: why connecting failed. [`retry`]: when a request may be sent again.
//! * [`tls`]: certificates. [`tunnel`]: WebSocket. [`hold`]: fewer packets.
//!
//! Invariant: name resolution and health checks never happen on the path of a request, every wait
//! for an engine is bounded, and a request is sent to a second engine only when nothing of it has
//! reached the first.

pub mod affinity;
pub mod engine;
pub mod failure;
pub mod hold;
pub mod probe;
pub mod resolve;
pub mod retry;
pub mod snapshot;
pub mod tls;
pub mod tunnel;

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::HttpPeer;
use tracing::warn;

use self::engine::{Engine, Target};
use self::failure::ConnectFailure;
use self::hold::Holds;
use self::tls::ClientTls;
pub use self::tls::{EngineTls, EngineTlsState};
use self::tunnel::Patient;
use crate::config::{Limits, ProxyConfig, Upstream};
use crate::error::ProxyError;
use crate::pem::PemError;
use crate::pem::kept::{Kept, Reread};

/// Between two pings on a connection of HTTP/2, so that a dead one is noticed.
const H2_PING: Duration = Duration::from_secs(10);

/// All engines.
#[derive(Debug)]
pub struct Engines {
    engines: Vec<Engine>,
    limits: Limits,
    tls: Arc<Kept<ClientTls>>,
    started: Instant,
    fresh: AtomicU64,
    spilled: AtomicU64,
    holds: Arc<Holds>,
}

/// Where one attempt goes.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Index of the engine.
    pub engine: usize,
    /// Its address.
    pub target: Arc<Target>,
}

/// What an attempt needs of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wants {
    /// A connection of its own: the request could not be sent again.
    pub fresh: bool,
    /// The request asks to stop being HTTP.
    pub upgrade: bool,
}

impl Engines {
    /// The engines of a configuration. Errors: none, too many, the same one twice, unusable TLS
    /// files, or a health path that is no path.
    pub fn start(cfg: &ProxyConfig) -> Result<Self, ProxyError> {
        let refuse = |problem: String| Err(ProxyError::Engines(problem));
        let (given, max) = (cfg.upstreams.len(), cfg.limits.engines_max);
        if given == 0 || given > max {
            return refuse(format!("{given} are configured; allowed: 1 to {max}"));
        }
        let mut names: Vec<String> = cfg.upstreams.iter().map(Upstream::authority).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(format!("`{}` is configured twice", twice[0]));
        }
        let path = &cfg.engine_health_path;
        if !path.starts_with('/') || path.contains(char::is_whitespace) {
            return refuse(format!(
                "the health path `{path}` must begin with / and have no spaces"
            ));
        }
        Ok(Self::new(&cfg.upstreams, &cfg.engine_tls, &cfg.limits)?)
    }

    /// The engines at `upstreams`, without addresses yet. Errors: TLS files that cannot be used.
    pub fn new(upstreams: &[Upstream], tls: &EngineTls, limits: &Limits) -> Result<Self, PemError> {
        Ok(Self {
            engines: upstreams.iter().cloned().map(Engine::new).collect(),
            limits: limits.clone(),
            tls: Arc::new(ClientTls::keep(tls)?),
            started: Instant::now(),
            fresh: AtomicU64::new(1),
            spilled: AtomicU64::new(0),
            holds: Arc::default(),
        })
    }

    /// All of them, in the order of the configuration.
    pub fn all(&self) -> &[Engine] {
        &self.engines
    }

    /// Whether there is one engine with at most one address, so that there is nothing to choose.
    pub fn lone(&self) -> bool {
        matches!(&self.engines[..], [engine] if engine.targets().len() <= 1)
    }

    /// Where the request with this [`affinity::key`] goes, leaving out addresses that it has tried.
    /// The engine that the key belongs to comes first; if none is thought to work, it is tried all
    /// the same. `None`: there is no address left.
    pub fn choose(&self, key: u64, tried: &[SocketAddr]) -> Option<Choice> {
        let now_ms = self.now_ms();
        let untried = |target: &Target| !tried.contains(&target.address);
        let usable = |target: &Target| untried(target) && target.usable(now_ms);
        let choice = self.best(key, usable).or_else(|| self.best(key, untried))?;
        self.engines[choice.engine].requests.fetch_add(1, Ordering::Relaxed);
        if self.home(key) != Some(choice.engine) {
            self.spilled.fetch_add(1, Ordering::Relaxed);
        }
        Some(choice)
    }

    /// Whether there is an address besides those that a request has tried.
    pub fn has_more(&self, tried: &[SocketAddr]) -> bool {
        self.engines.iter().any(|engine| engine.any(|target| !tried.contains(&target.address)))
    }

    /// The engine that a key belongs to while all work.
    fn home(&self, key: u64) -> Option<usize> {
        self.ranked(key, |_| true)
    }

    fn ranked(&self, key: u64, which: impl Fn(&Engine) -> bool) -> Option<usize> {
        let allowed = self.engines.iter().enumerate().filter(|(_, engine)| which(engine));
        let best = allowed.max_by_key(|(_, engine)| affinity::score(key, engine.seed));
        best.map(|(at, _)| at)
    }

    fn best(&self, key: u64, which: impl Fn(&Target) -> bool) -> Option<Choice> {
        let engine = self.ranked(key, |engine| engine.any(&which))?;
        // An address may have gone since; then there is none, as if it had gone before.
        let target = self.engines[engine].best(key, which)?;
        Some(Choice { engine, target })
    }

    /// A connection could not be made; nothing was sent.
    pub fn failed(&self, choice: &Choice, error: &pingora::Error) -> ConnectFailure {
        let (engine, kind) = (&self.engines[choice.engine], ConnectFailure::of(error));
        engine.count_failure(kind);
        let (max, cooldown_ms) = (self.limits.engine_failures_max, self.limits.engine_cooldown_ms);
        if choice.target.failed(self.now_ms(), max, cooldown_ms) {
            engine.ejections.fetch_add(1, Ordering::Relaxed);
            let (name, address) = (&engine.name, choice.target.address);
            warn!(engine = name, %address, kind = kind.as_str(), cooldown_ms, "engine out of use");
        }
        kind
    }

    /// An engine's name has no address.
    pub fn nowhere(&self, key: u64) {
        if let Some(home) = self.home(key) {
            self.engines[home].count_failure(ConnectFailure::NoAddress);
        }
    }

    /// The `Host` to send; `None` keeps the client's.
    pub fn host_header(&self, choice: &Choice) -> Option<&str> {
        self.engines[choice.engine].host_header.as_deref()
    }

    /// The peer for one attempt. A request that could not be replayed gets a fresh connection: on a
    /// pooled one it would be lost when the engine closes that connection at the same moment
    /// (measured: 125 of 1,500).
    pub fn peer(&self, choice: &Choice, wants: Wants) -> HttpPeer {
        let (limits, ms) = (&self.limits, Duration::from_millis);
        let upstream = &self.engines[choice.engine].upstream;
        // Pingora verifies nothing when the name is empty; with TLS it is the URL's host.
        let sni = if upstream.tls { upstream.host.clone() } else { String::new() };
        let mut peer = HttpPeer::new(choice.target.address, upstream.tls, sni);
        if upstream.tls {
            self.tls.current().apply(&mut peer, wants.upgrade);
        }
        let options = &mut peer.options;
        options.connection_timeout = Some(ms(limits.upstream_connect_ms));
        options.total_connection_timeout = Some(ms(limits.upstream_connect_ms * 2));
        options.read_timeout = Some(ms(limits.upstream_read_ms));
        options.write_timeout = Some(ms(limits.upstream_write_ms));
        options.idle_timeout = Some(ms(limits.upstream_idle_ms));
        options.max_h2_streams = limits.upstream_h2_streams_max;
        options.h2_ping_interval = Some(H2_PING);
        options.tcp_keepalive = Some(TcpKeepalive {
            idle: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            count: 3,
            #[cfg(target_os = "linux")]
            user_timeout: Duration::ZERO,
        });
        if wants.upgrade {
            options.custom_l4 = Some(Arc::new(Patient));
            // Pingora's timer starts again with every byte in either direction.
            options.read_timeout = Some(ms(limits.tunnel_idle_ms));
        }
        self.holds.follow(&mut peer);
        if wants.fresh || wants.upgrade {
            // A key of its own finds no pooled connection, and nobody finds this one.
            peer.group_key = self.fresh.fetch_add(1, Ordering::Relaxed);
            peer.options.idle_timeout = Some(Duration::ZERO);
        }
        peer
    }

    /// The files of TLS to engines, to be read again.
    pub fn files(&self) -> Arc<dyn Reread> {
        Arc::clone(&self.tls) as _
    }

    /// How they are doing.
    pub fn tls_state(&self) -> EngineTlsState {
        EngineTlsState { loads: self.tls.loads(), problem: self.tls.problem() }
    }

    /// What is written to the connection `fd` in the present look goes in one piece.
    pub fn hold(&self, fd: RawFd) {
        self.holds.hold(fd);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
