//! One line per request in the log, at level `debug` (`HONE_LOG=hone_proxy::access=debug`; `--log-json`
//! makes it JSON).
//!
//! Invariant: no query, no header but the trace context, no body: nothing that may be a secret. While
//! the level is off, it costs one comparison.

use hone_shared::turn::Outcome;
use pingora::proxy::Session;
use tracing::{Level, debug, enabled};

use crate::admin::counters::{InFlight, REFUSED};
use crate::admit::reply::Fault;
use crate::tap::Tap;

/// Longest trace context that is logged, characters: the length of a valid one.
const TRACE_CHARS: usize = 55;

/// Logs a request that ended.
pub(crate) fn log(
    session: &Session,
    tap: Option<&Tap>,
    request: &InFlight,
    outcome: Option<Outcome>,
    fault: Option<Fault>,
) {
    if !enabled!(target: "hone_proxy::access", Level::DEBUG) {
        return;
    }
    let head = session.req_header();
    let trace = head.headers.get("traceparent").and_then(|value| value.to_str().ok());
    let (turn, route) = tap.map(Tap::name).map_or((None, ""), |(id, route)| (Some(id), route));
    debug!(
        target: "hone_proxy::access",
        method = %head.method,
        path = head.uri.path(),
        status = fault.map_or(request.status(), |fault| fault.status),
        outcome = outcome.map_or(REFUSED, |outcome| outcome.as_str()),
        fault = fault.map(|fault| fault.code),
        ms = request.elapsed().as_millis() as u64,
        route,
        turn = turn.map(|id| id.to_string()),
        traceparent = trace.map(|text| text.get(..TRACE_CHARS).unwrap_or(text)),
        "request"
    );
}
