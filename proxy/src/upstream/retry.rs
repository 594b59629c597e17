//! When a request may be sent to the engine again.
//!
//! Pingora never retries a POST, and answers 502 when the engine closed a pooled connection in the
//! moment in which the request was written to it (measured: 29-65 of 1,500). Such a request was not
//! begun by anybody, so it is safe to send again, if its body is still here in full.
//!
//! Invariant: a request is sent again only when not one byte of a response has been seen, on a
//! connection that had been used before, with its whole body at hand.

use pingora::{Error, ErrorSource, ErrorType};

/// What is known at the moment of the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The connection came from the pool.
    pub reused: bool,
    /// The engine has sent a response head, or part of one reached the client.
    pub response_begun: bool,
    /// The request body no longer fits the replay buffer.
    pub body_lost: bool,
}

/// Whether to send the request again after `error`.
pub fn may_retry(error: &Error, attempt: Attempt) -> bool {
    let connection_died = matches!(
        error.etype(),
        ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed
    );
    connection_died
        && error.esource() == &ErrorSource::Upstream
        && attempt.reused
        && !attempt.response_begun
        && !attempt.body_lost
}

#[cfg(test)]
mod tests {
    use super::*;

    const RACE: Attempt = Attempt { reused: true, response_begun: false, body_lost: false };

    fn upstream(kind: ErrorType) -> Box<Error> {
        Error::new(kind).into_up()
    }

    #[test]
    fn a_pooled_connection_that_died_unanswered_is_retried() {
        for kind in [ErrorType::ReadError, ErrorType::WriteError, ErrorType::ConnectionClosed] {
            assert!(may_retry(&upstream(kind), RACE));
        }
    }

    #[test]
    fn nothing_else_is_retried() {
        let closed = || upstream(ErrorType::ConnectionClosed);
        assert!(!may_retry(&closed(), Attempt { reused: false, ..RACE }));
        assert!(!may_retry(&closed(), Attempt { response_begun: true, ..RACE }));
        assert!(!may_retry(&closed(), Attempt { body_lost: true, ..RACE }));
        assert!(!may_retry(&Error::new(ErrorType::ConnectionClosed).into_down(), RACE));
        for kind in [ErrorType::ReadTimedout, ErrorType::InvalidH2, ErrorType::InvalidHTTPHeader] {
            assert!(!may_retry(&upstream(kind), RACE));
        }
    }
}
