//! What the proxy itself answers when it cannot pass a request on: OpenAI-shaped, and nothing about
//! its inside.
//!
//! Invariant: every status and message that the proxy invents stands in this file or, for requests
//! that break a rule of HTTP, in [`Refusal`]; a message says what to do, and never holds text from
//! an internal error.

use bytes::Bytes;
use http::header;
use pingora::http::ResponseHeader;
use pingora::prelude::*;
use pingora::proxy::Session;
use serde_json::json;

use crate::limit;
use crate::listen::gate::Refusal;

/// An answer of the proxy's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// HTTP status.
    pub status: u16,
    /// `error.type`.
    pub kind: &'static str,
    /// `error.code`.
    pub code: &'static str,
    /// `error.message`: for people; says what to do.
    pub message: &'static str,
    /// `Retry-After`, seconds.
    pub retry_after_s: Option<u8>,
}

const fn fault(
    status: u16,
    kind: &'static str,
    code: &'static str,
    message: &'static str,
) -> Fault {
    Fault { status, kind, code, message, retry_after_s: None }
}

/// The answer to a request that broke a rule of HTTP.
const fn refused(refusal: Refusal) -> Fault {
    let (status, code) = refusal.status();
    fault(status, "invalid_request_error", code, refusal.message())
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        refused(refusal)
    }
}

/// The whole response to a request that pingora has not seen.
pub fn raw(refusal: Refusal) -> Bytes {
    let fault = Fault::from(refusal);
    let status = http::StatusCode::from_u16(fault.status).unwrap_or(http::StatusCode::BAD_REQUEST);
    let body = fault.body();
    let mut response = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        fault.status,
        status.canonical_reason().unwrap_or_default(),
        body.len()
    )
    .into_bytes();
    response.extend_from_slice(&body);
    Bytes::from(response)
}

/// The rule that a request body broke, if that is why reading it failed.
pub fn refusal(error: &std::io::Error) -> Option<Refusal> {
    error.get_ref()?.downcast_ref().copied()
}

fn cause(error: &Error) -> Option<Refusal> {
    refusal(error.root_cause().downcast_ref()?)
}

impl Fault {
    /// A client asked for an engine's admin endpoint.
    pub const ADMIN_ROUTE: Self = fault(
        403,
        "permission_error",
        "admin_route_blocked",
        "This path manages the engine and is not available to clients. Operators: use hone's admin \
         address instead.",
    );
    /// The operator named the paths that pass, and this is none of them.
    pub const PATH_NOT_ALLOWED: Self = fault(
        403,
        "permission_error",
        "path_not_allowed",
        "This proxy passes only some paths on, and this is none of them. Operators: `paths_allowed` \
         in proxy.toml names them.",
    );
    /// The request body is larger than the proxy passes on.
    pub const BODY_TOO_LARGE: Self = fault(
        413,
        "invalid_request_error",
        "request_too_large",
        "The request body is larger than this proxy accepts. Send less, or ask the operator to raise \
         the limit.",
    );
    /// The engine does not answer.
    pub const ENGINE_UNAVAILABLE: Self = Self {
        retry_after_s: Some(1),
        ..fault(
            502,
            "server_error",
            "engine_unavailable",
            "The inference engine behind this proxy could not be reached or broke off. Retry shortly; \
             operators: see whether it runs with `hone status`.",
        )
    };
    /// TLS to the engine failed: its certificate is wrong, or it speaks no TLS.
    pub const ENGINE_TLS: Self = fault(
        502,
        "server_error",
        "engine_tls_failed",
        "The proxy could not open a trusted TLS connection to the inference engine behind it. \
         Operators: `hone status` says for which engine, and why.",
    );
    /// The tenant sends more requests than the route allows.
    pub const RATE_LIMITED: Self = fault(
        429,
        "requests",
        "rate_limit_exceeded",
        "Too many requests in this minute. Wait for the seconds that `retry-after` says, then send \
         it again.",
    );
    /// The tenant has as many requests in flight as the route allows.
    pub const CONCURRENCY_LIMITED: Self = Self {
        retry_after_s: Some(1),
        ..fault(
            429,
            "requests",
            "concurrency_limit_exceeded",
            "Too many requests at the same time. Wait until one of yours has ended, then send it \
             again.",
        )
    };
    /// The engine took too long.
    pub const ENGINE_TIMEOUT: Self = Self {
        retry_after_s: Some(1),
        ..fault(
            504,
            "server_error",
            "engine_timeout",
            "The inference engine behind this proxy did not answer in time. Retry shortly, or ask for \
             fewer tokens.",
        )
    };
    /// The request cannot be passed on as it is.
    pub const BAD_REQUEST: Self = fault(
        400,
        "invalid_request_error",
        "malformed_request",
        "The HTTP request could not be understood. Check its headers and how its body is framed.",
    );
    /// The request line is too long.
    pub const TARGET_TOO_LONG: Self = refused(Refusal::TargetLong);
    /// The head is too long or has too many fields.
    pub const HEADERS_TOO_LARGE: Self = refused(Refusal::HeadLarge);
    /// `Expect` asks for something that cannot be done.
    pub const EXPECTATION: Self = refused(Refusal::Expectation);
    /// A method or transfer coding that is not passed on.
    pub const NOT_IMPLEMENTED: Self = refused(Refusal::Method);
    /// Another version of HTTP.
    pub const VERSION: Self = refused(Refusal::Version);
    /// The client was too slow in sending its request.
    pub const CLIENT_TIMEOUT: Self = fault(
        408,
        "invalid_request_error",
        "request_timeout",
        "The request body did not arrive in time. Send it again.",
    );
    /// The route sheds requests that cannot be recorded, and none can be now.
    pub const CAPTURE_FULL: Self = Self {
        retry_after_s: Some(5),
        ..fault(
            503,
            "server_error",
            "capture_full",
            "This proxy may answer only what it can record, and has no room to record now. Retry \
             shortly; operators: see disk space and the store with `hone status`.",
        )
    };
    /// The body of feedback is wrong; the answer's own words say where.
    pub const FEEDBACK_INVALID: Self = fault(
        400,
        "invalid_request_error",
        "invalid_feedback",
        "This is no feedback. Send a JSON object that says what it is about and what is said.",
    );
    /// The body of feedback is too large.
    pub const FEEDBACK_TOO_LARGE: Self = fault(
        413,
        "invalid_request_error",
        "feedback_too_large",
        "This feedback is larger than this proxy accepts. Say it in fewer words.",
    );
    /// Feedback cannot be recorded now.
    pub const FEEDBACK_UNAVAILABLE: Self = Self {
        retry_after_s: Some(5),
        ..fault(
            503,
            "server_error",
            "feedback_unavailable",
            "Feedback cannot be recorded now. Retry shortly; operators: see disk space with `hone \
             status`.",
        )
    };
    /// Something in the proxy failed.
    pub const INTERNAL: Self = fault(
        500,
        "server_error",
        "proxy_error",
        "The proxy could not handle this request. Retry; operators: the reason is in its log.",
    );

    /// The answer to a request over its tenant's limits.
    pub fn for_refusal(refusal: limit::Refusal) -> Self {
        match refusal {
            limit::Refusal::Rate { retry_after_s } => {
                Self { retry_after_s: Some(retry_after_s), ..Self::RATE_LIMITED }
            }
            limit::Refusal::Concurrency => Self::CONCURRENCY_LIMITED,
        }
    }

    /// The body, as JSON.
    pub fn body(&self) -> Bytes {
        let error = json!({
            "message": self.message, "type": self.kind, "param": null, "code": self.code,
        });
        Bytes::from(json!({ "error": error }).to_string())
    }

    /// Sends it, unless a response has begun already. The connection is closed afterwards: the rest
    /// of a request body that nobody read may still be on it.
    pub async fn send(&self, session: &mut Session) -> Result<()> {
        self.send_with(session, self.body()).await
    }

    /// As [`Fault::send`], with a body that says more.
    pub async fn send_with(&self, session: &mut Session, body: Bytes) -> Result<()> {
        let mut head = ResponseHeader::build(self.status, Some(4))?;
        head.insert_header(header::CONTENT_TYPE, "application/json")?;
        head.insert_header(header::CONTENT_LENGTH, body.len())?;
        if let Some(seconds) = self.retry_after_s {
            head.insert_header(header::RETRY_AFTER, seconds.to_string())?;
        }
        session.downstream_session.write_error_response(head, body).await
    }
}

/// Which answer an error of pingora's becomes; `None` when nobody is there to answer.
pub fn for_error(error: &Error) -> Option<Fault> {
    use pingora::{ErrorSource, ErrorType as E};
    if let Some(refusal) = cause(error) {
        return Some(refusal.into());
    }
    match (error.esource(), error.etype()) {
        (_, E::HTTPStatus(413)) => Some(Fault::BODY_TOO_LARGE),
        (_, E::HTTPStatus(400)) => Some(Fault::BAD_REQUEST),
        (ErrorSource::Upstream, E::ReadTimedout | E::WriteTimedout | E::ConnectTimedout) => {
            Some(Fault::ENGINE_TIMEOUT)
        }
        (ErrorSource::Upstream, E::TLSHandshakeFailure | E::InvalidCert | E::HandshakeError) => {
            Some(Fault::ENGINE_TLS)
        }
        (ErrorSource::Upstream, _) => Some(Fault::ENGINE_UNAVAILABLE),
        (
            ErrorSource::Downstream,
            E::WriteError | E::ReadError | E::ConnectionClosed | E::H2Error,
        ) => None,
        (ErrorSource::Downstream, E::ReadTimedout) => Some(Fault::CLIENT_TIMEOUT),
        (ErrorSource::Downstream, E::WriteTimedout) => None,
        (ErrorSource::Downstream, _) => Some(Fault::BAD_REQUEST),
        _ => Some(Fault::INTERNAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_shape_that_openai_clients_read() {
        let body: serde_json::Value =
            serde_json::from_slice(&Fault::ENGINE_UNAVAILABLE.body()).unwrap();
        let error = body["error"].as_object().unwrap();
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert_eq!(error["code"], "engine_unavailable");
        assert!(error["param"].is_null());
        assert!(!error["message"].as_str().unwrap().contains("  "));
    }
}
