//! Active health checks: a GET on every address, the way that traffic goes.
//!
//! An answer below 500 means alive: an engine without the path says 404, and that it could be
//! reached and spoke HTTP is what a plain TCP check would have told. 500 and above, no answer in
//! time, or no connection mean that it is not.
//!
//! Invariant: nothing is probed while there is nothing to choose between; a lone engine never sees
//! a request that no client sent.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::header;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::ALPN;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::engine::{Engine, Target};
use super::{Choice, Engines, Wants};

/// Probes every address of every engine, again and again, until `stop`.
pub async fn keep_probing(engines: Arc<Engines>, path: String, stop: CancellationToken) {
    let every = Duration::from_millis(engines.limits.engine_probe_ms);
    // Only for probes: their connections are never kept.
    let connector = Connector::new(Some(ConnectorOptions::new(1)));
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        if engines.lone() {
            continue;
        }
        let round = probe_all(&engines, &connector, &path);
        if stop.run_until_cancelled(round).await.is_none() {
            return;
        }
    }
}

async fn probe_all(engines: &Engines, connector: &Connector, path: &str) {
    let failures_max = engines.limits.engine_failures_max;
    let probes: FuturesUnordered<_> = engines
        .all()
        .iter()
        .enumerate()
        .flat_map(|(at, engine)| engine.targets().to_vec().into_iter().map(move |t| (at, t)))
        .map(|(engine, target)| async move {
            let choice = Choice { engine, target };
            let alive = probe(engines, connector, &choice, path).await;
            choice.target.probed(alive, failures_max);
        })
        .collect();
    probes.collect::<Vec<()>>().await;
}

async fn probe(engines: &Engines, connector: &Connector, choice: &Choice, path: &str) -> bool {
    let limit = Duration::from_millis(engines.limits.engine_probe_timeout_ms);
    let engine = &engines.all()[choice.engine];
    match tokio::time::timeout(limit, status(engines, connector, choice, path)).await {
        Ok(Ok(status)) => status < 500,
        Ok(Err(error)) => failed(engine, &choice.target, &error),
        Err(_) => failed(engine, &choice.target, &"no answer in time"),
    }
}

fn failed(engine: &Engine, target: &Target, error: &dyn std::fmt::Display) -> bool {
    debug!(engine = engine.name, address = %target.address, %error, "probe failed");
    false
}

async fn status(
    engines: &Engines,
    connector: &Connector,
    choice: &Choice,
    path: &str,
) -> pingora::Result<u16> {
    let engine = &engines.all()[choice.engine];
    let mut peer = engines.peer(choice, Wants { fresh: true, upgrade: false });
    peer.options.alpn = ALPN::H1;
    let (mut session, _) = connector.get_http_session(&peer).await?;
    let mut request = RequestHeader::build("GET", path.as_bytes(), Some(3))?;
    request.insert_header(header::HOST, engine.host_header.as_deref().unwrap_or(&engine.name))?;
    request.insert_header(header::USER_AGENT, concat!("hone/", env!("CARGO_PKG_VERSION")))?;
    request.insert_header(header::CONNECTION, "close")?;
    session.write_request_header(Box::new(request)).await?;
    session.finish_request_body().await?;
    session.read_response_header().await?;
    Ok(session.response_header().map_or(599, |head| head.status.as_u16()))
}
