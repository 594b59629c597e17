//! The engine's address, resolved in the background.
//!
//! Why: pingora's own `HttpPeer::new("host:port")` resolves on the request path, blocking, and
//! panics when it fails.
//! Invariant: reading the address is one atomic load; a failed resolution keeps the last good
//! address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Upstream;

/// The current address; empty until a name has resolved once.
#[derive(Debug, Default)]
pub struct Address(ArcSwapOption<SocketAddr>);

impl Address {
    /// The address now.
    pub fn get(&self) -> Option<SocketAddr> {
        self.0.load().as_deref().copied()
    }

    fn set(&self, address: SocketAddr) {
        if self.get() != Some(address) {
            info!(%address, "engine address");
            self.0.store(Some(Arc::new(address)));
        }
    }
}

/// Resolves `upstream` once; an address needs no resolution and is never wrong.
pub async fn resolve_once(upstream: &Upstream, address: &Address) {
    if let Ok(ip) = upstream.host.parse::<IpAddr>() {
        return address.set(SocketAddr::new(ip, upstream.port));
    }
    match tokio::net::lookup_host((upstream.host.as_str(), upstream.port)).await {
        Ok(mut found) => match choose(&mut found, address.get()) {
            Some(chosen) => address.set(chosen),
            None => warn!(host = upstream.host, "the engine's name has no address"),
        },
        Err(error) => warn!(host = upstream.host, %error, "the engine's name does not resolve"),
    }
}

/// Resolves again every `every` until `stop`. Returns at once for an upstream given by address.
pub async fn keep_resolving(
    upstream: Upstream,
    address: Arc<Address>,
    every: Duration,
    stop: CancellationToken,
) {
    if upstream.host.parse::<IpAddr>().is_ok() {
        return;
    }
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        resolve_once(&upstream, &address).await;
    }
}

/// Keeps the address in use while it is among those found, so that pooled connections stay useful;
/// else prefers IPv4, which is where engines on `localhost` listen.
fn choose(
    found: &mut dyn Iterator<Item = SocketAddr>,
    current: Option<SocketAddr>,
) -> Option<SocketAddr> {
    let mut all: Vec<SocketAddr> = found.take(64).collect();
    if let Some(current) = current.filter(|c| all.contains(c)) {
        return Some(current);
    }
    all.sort_by_key(SocketAddr::is_ipv6);
    all.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_in_use_is_kept_and_ipv4_is_preferred() {
        let four: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let other: SocketAddr = "127.0.0.2:1".parse().unwrap();
        let six: SocketAddr = "[::1]:1".parse().unwrap();
        assert_eq!(choose(&mut [six, four].into_iter(), None), Some(four));
        assert_eq!(choose(&mut [four, other, six].into_iter(), Some(other)), Some(other));
        assert_eq!(choose(&mut [six].into_iter(), Some(four)), Some(six));
        assert_eq!(choose(&mut [].into_iter(), Some(four)), None);
    }

    #[tokio::test]
    async fn a_name_that_stops_resolving_keeps_its_last_address() {
        let address = Address::default();
        resolve_once(&Upstream::parse("http://localhost:7").unwrap(), &address).await;
        let before = address.get();
        assert_eq!(before.map(|a| a.port()), Some(7));
        resolve_once(&Upstream::parse("http://no-such-name.invalid:7").unwrap(), &address).await;
        assert_eq!(address.get(), before);
    }
}
