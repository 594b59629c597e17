//! The door: which requests may pass, who sent them, and what an error looks like.
//!
//! * [`path`]: the engine's admin endpoints are out of reach, and what the operator does not allow.
//! * [`headers`]: what is stripped, hidden and recorded.
//! * [`h2`]: requests that came by HTTP/2 obey the rules of HTTP/1's framing gate.
//! * [`reply`]: OpenAI-shaped answers of the proxy itself.
//!
//! Invariant: nothing that a client sends reaches an engine's adapter, pause or admin endpoints, or
//! carries hone's own headers past this point.

pub mod h2;
pub mod headers;
pub mod path;
pub mod reply;

use http::header;
use pingora::http::RequestHeader;

use self::reply::Fault;
use crate::admin::counters::Counters;
use crate::config::Limits;

/// What the door decided about a request that may pass.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The client asked not to be learned from (`x-hone-learn: off`).
    pub opted_out: bool,
    /// Length of the body, where the client says it.
    pub content_length: Option<u64>,
    /// The connection is to stop being HTTP (WebSocket); its bytes are nobody's turn.
    pub upgrade: bool,
}

/// Decides about a request by its head, and takes hone's own headers off it. Errors: what to answer
/// instead.
pub fn admit(
    request: &mut RequestHeader,
    limits: &Limits,
    counters: &Counters,
) -> Result<Admission, Fault> {
    if let Err(refusal) = h2::check(request, limits.client_fields_max) {
        counters.refused(refusal);
        return Err(refusal.into());
    }
    if path::is_admin(&request.method, request.raw_path()) {
        return Err(Fault::ADMIN_ROUTE);
    }
    let length = request.headers.get(header::CONTENT_LENGTH);
    let content_length = length.and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse().ok());
    if content_length.is_some_and(|bytes: u64| bytes > limits.request_bytes_max) {
        return Err(Fault::BODY_TOO_LARGE);
    }
    let opted_out = headers::strip_own(request);
    let upgrade = asks_for_websocket(request);
    Ok(Admission { opted_out, content_length, upgrade })
}

/// Whether the request asks for a WebSocket. Any other `Upgrade`, such as the `h2c` that some HTTP
/// libraries offer with every request, is not passed on, and its request is an ordinary one.
fn asks_for_websocket(request: &RequestHeader) -> bool {
    let lists = |name, word: &str| {
        let values = request.headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).any(|item| item.trim().eq_ignore_ascii_case(word))
    };
    request.version == http::Version::HTTP_11
        && lists(header::UPGRADE, "websocket")
        && lists(header::CONNECTION, "upgrade")
}
