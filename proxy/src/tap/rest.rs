//! The rest of a request body that nobody will be sent: read for the record.
//!
//! Why: when the engine cannot be reached, pingora never reads the body, and the turn would be
//! stored without its prompt. The client has sent it, so it is here or on its way.
//!
//! Invariant: reading ends after a fixed time and at the limit of a body, and is skipped where the
//! client waits to be asked for the body.

use std::time::Duration;

use http::header;
use pingora::proxy::Session;
use tokio::time::timeout;

use super::Tap;

/// Reads what is left of the request body, for at most `within`. A body over `bytes_max`, or one
/// that does not come in time, is marked as truncated when the tap is finished.
pub async fn read_rest(tap: &mut Tap, session: &mut Session, bytes_max: u64, within: Duration) {
    let waits = session.req_header().headers.contains_key(header::EXPECT);
    if !tap.wants_body() || waits {
        return;
    }
    if let Some(seen) = session.as_ref().get_retry_buffer() {
        // What came past in earlier attempts is all here.
        tap.attempt();
        tap.request_chunk(&seen, false);
    }
    // The time is up, or the client is gone: the tap says so by itself.
    let _ = timeout(within, async {
        while tap.request_len() <= bytes_max {
            match session.as_mut().read_request_body().await {
                Ok(Some(chunk)) => tap.request_chunk(&chunk, false),
                Ok(None) => return tap.request_chunk(&[], true),
                Err(_) => return,
            }
        }
    })
    .await;
}
