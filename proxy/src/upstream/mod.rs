//! The engine's side of the proxy: where it is, which connection a request may use, and when it may
//! be sent again.
//!
//! Invariant: name resolution never happens on the path of a request, and every wait for the engine
//! is bounded.

pub mod resolve;
pub mod retry;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::HttpPeer;

use self::resolve::Address;
use crate::config::{Limits, Upstream};

/// Builds a peer per attempt.
#[derive(Debug)]
pub struct Engine {
    tls: bool,
    sni: String,
    host_header: Option<String>,
    address: Arc<Address>,
    limits: Limits,
    fresh: AtomicU64,
}

impl Engine {
    /// The engine that `upstream` names; `address` is kept up to date by
    /// [`resolve::keep_resolving`].
    pub fn new(upstream: &Upstream, address: Arc<Address>, limits: &Limits) -> Self {
        Self {
            tls: upstream.tls,
            sni: if upstream.tls { upstream.host.clone() } else { String::new() },
            host_header: upstream.host_header(),
            address,
            limits: limits.clone(),
            fresh: AtomicU64::new(1),
        }
    }

    /// The `Host` to send; `None` keeps the client's.
    pub fn host_header(&self) -> Option<&str> {
        self.host_header.as_deref()
    }

    /// Where the engine is now; `None` while its name does not resolve.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get()
    }

    /// The peer for one attempt. A request that could not be replayed gets a `fresh` connection: on
    /// a pooled one it would be lost when the engine closes that connection at the same moment
    /// (measured: 125 of 1,500).
    pub fn peer(&self, address: SocketAddr, fresh: bool) -> HttpPeer {
        let ms = Duration::from_millis;
        let mut peer = HttpPeer::new(address, self.tls, self.sni.clone());
        let options = &mut peer.options;
        options.connection_timeout = Some(ms(self.limits.upstream_connect_ms));
        options.total_connection_timeout = Some(ms(self.limits.upstream_connect_ms * 2));
        options.read_timeout = Some(ms(self.limits.upstream_read_ms));
        options.write_timeout = Some(ms(self.limits.upstream_write_ms));
        options.idle_timeout = Some(ms(self.limits.upstream_idle_ms));
        options.tcp_keepalive = Some(TcpKeepalive {
            idle: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            count: 3,
            #[cfg(target_os = "linux")]
            user_timeout: Duration::ZERO,
        });
        if fresh {
            // A key of its own finds no pooled connection, and nobody finds this one.
            peer.group_key = self.fresh.fetch_add(1, Ordering::Relaxed);
            peer.options.idle_timeout = Some(Duration::ZERO);
        }
        peer
    }
}
