//! The addresses of engines, resolved in the background.
//!
//! Why: pingora's own `HttpPeer::new("host:port")` resolves on the request path, blocking, and
//! panics when it fails.
//! Invariant: a failed resolution keeps the last good addresses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Engines;
use super::engine::Engine;

/// Most addresses of one name that are used.
const ADDRESSES_MAX: usize = 64;

/// Resolves one engine once; an address needs no resolution and is never wrong.
pub async fn resolve_once(engine: &Engine) {
    let upstream = &engine.upstream;
    if let Ok(ip) = upstream.host.parse::<IpAddr>() {
        return engine.resolved(&[SocketAddr::new(ip, upstream.port)]);
    }
    match tokio::net::lookup_host((upstream.host.as_str(), upstream.port)).await {
        Ok(found) => match choose(found) {
            addresses if addresses.is_empty() => {
                warn!(host = upstream.host, "the engine's name has no address");
            }
            addresses => engine.resolved(&addresses),
        },
        Err(error) => warn!(host = upstream.host, %error, "the engine's name does not resolve"),
    }
}

/// Resolves all engines that are given by name again every `every` until `stop`.
pub async fn keep_resolving(engines: Arc<Engines>, every: Duration, stop: CancellationToken) {
    let by_name = |engine: &&Engine| engine.upstream.host.parse::<IpAddr>().is_err();
    if !engines.all().iter().any(|engine| by_name(&engine)) {
        return;
    }
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        for engine in engines.all().iter().filter(by_name) {
            resolve_once(engine).await;
        }
    }
}

/// All IPv4 addresses in a stable order, or else all IPv6 ones: the two families of one name are
/// mostly the same machines, and engines on `localhost` listen on IPv4.
fn choose(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = found.collect();
    let four = all.iter().any(SocketAddr::is_ipv4);
    all.retain(|address| address.is_ipv4() == four);
    all.sort_unstable();
    all.dedup();
    all.truncate(ADDRESSES_MAX);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Upstream;

    #[test]
    fn all_addresses_of_one_family_are_used_in_a_stable_order() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (one, two, six) = (at("127.0.0.1:1"), at("127.0.0.2:1"), at("[::1]:1"));
        assert_eq!(choose([two, six, one, two].into_iter()), [one, two]);
        assert_eq!(choose([six].into_iter()), [six]);
        assert_eq!(choose([].into_iter()), []);
    }

    #[tokio::test]
    async fn a_name_that_stops_resolving_keeps_its_last_addresses() {
        let mut engine = Engine::new(Upstream::parse("http://localhost:7").unwrap());
        resolve_once(&engine).await;
        let before = engine.targets();
        assert_eq!(before[0].address.port(), 7);
        engine.upstream = Upstream::parse("http://no-such-name.invalid:7").unwrap();
        resolve_once(&engine).await;
        assert_eq!(engine.targets()[0].address, before[0].address);
    }
}
