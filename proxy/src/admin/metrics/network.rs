//! Metrics of engines, of limits per tenant, and of WebSockets.
//!
//! Invariant: tenants are never labels: there is no bound on how many there are.

use super::Page;
use crate::admin::status::Status;
use crate::listen::tls::TlsState;
use crate::upstream::tunnel::TunnelState;

/// Where requests went, and what kept them from it.
pub(super) fn engines(page: &mut Page, status: &Status) {
    let (counter, gauge) = ("counter", "gauge");
    let name = "hone_engine_usable";
    page.head(name, gauge, "1 while requests go to this address of an engine.");
    for engine in &status.engines {
        for at in &engine.addresses {
            let labels = [("engine", engine.engine.as_str()), ("address", at.address.as_str())];
            page.labelled(name, &labels, u64::from(at.usable));
        }
    }
    let name = "hone_engine_requests_total";
    page.head(name, counter, "Attempts that were sent an engine's way.");
    for engine in &status.engines {
        page.labelled(name, &[("engine", &engine.engine)], engine.requests);
    }
    let name = "hone_engine_connect_failures_total";
    page.head(name, counter, "Connects to an engine that failed, by kind.");
    for engine in &status.engines {
        for (kind, count) in &engine.connect_failures {
            page.labelled(name, &[("engine", &engine.engine), ("kind", kind)], *count);
        }
    }
    let name = "hone_engine_ejections_total";
    page.head(name, counter, "Addresses put out of use because connecting failed.");
    for engine in &status.engines {
        page.labelled(name, &[("engine", &engine.engine)], engine.ejections);
    }
    let help = "Attempts that went to another engine than their conversation's own.";
    page.one("hone_engine_spilled_total", counter, help, status.engines_spilled);
    let help = "1 while the files of TLS to engines on disk cannot be used.";
    let problem = u64::from(status.engine_tls.problem.is_some());
    page.one("hone_engine_tls_problem", "gauge", help, problem);
}

/// TLS with clients, if a listener speaks it.
pub(super) fn tls(page: &mut Page, tls: Option<&TlsState>) {
    let help = "1 while the certificate files on disk cannot be used.";
    let problem = u64::from(tls.is_some_and(|tls| tls.problem.is_some()));
    page.one("hone_tls_certificate_problem", "gauge", help, problem);
    let Some(tls) = tls else { return };
    let name = "hone_tls_handshakes_total";
    page.head(name, "counter", "TLS handshakes with clients, by result.");
    for (result, count) in
        [("done", tls.handshakes), ("failed", tls.failed), ("timed_out", tls.timed_out)]
    {
        page.labelled(name, &[("result", result)], count);
    }
    let help = "When the certificate shown to clients ends, seconds since 1970.";
    let expires_s = u64::try_from(tls.expires_s).unwrap_or_default();
    page.one("hone_tls_certificate_expires_seconds", "gauge", help, expires_s);
}

/// What was refused.
pub(super) fn traffic(page: &mut Page, status: &Status) {
    let name = "hone_traffic_refused_total";
    page.head(name, "counter", "Requests refused for their tenant's limits, by route.");
    for (route, refused) in &status.traffic.refused {
        for (limit, count) in [("rate", refused.rate), ("concurrency", refused.concurrency)] {
            page.labelled(name, &[("route", route), ("limit", limit)], count);
        }
    }
    let tenants = status.traffic.tenants as u64;
    let help = "Pairs of route and tenant whose traffic is counted.";
    page.one("hone_traffic_tenants", "gauge", help, tenants);
    let help = "Requests that shared an allowance because the table of tenants was full.";
    page.one("hone_traffic_crowded_total", "counter", help, status.traffic.crowded);
}

/// WebSockets.
pub(super) fn tunnels(page: &mut Page, tunnels: &TunnelState) {
    let (counter, gauge) = ("counter", "gauge");
    page.one("hone_tunnels_open", gauge, "WebSockets that are open.", tunnels.open);
    page.one("hone_tunnels_total", counter, "WebSockets that were opened.", tunnels.opened);
    let name = "hone_tunnel_bytes_total";
    page.head(name, counter, "Bytes that passed through WebSockets, by receiver.");
    page.labelled(name, &[("to", "engine")], tunnels.sent_bytes);
    page.labelled(name, &[("to", "client")], tunnels.received_bytes);
}
