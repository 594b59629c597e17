//! Why a connection to an engine could not be made, in words that an operator can act on.
//!
//! Invariant: the kinds are a fixed list, so that they can be labels; clients only ever see which
//! of two answers of [`crate::admit::reply`] it became.

use pingora::{Error, ErrorType as E};

/// Why connecting failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailure {
    /// Nobody listens there.
    Refused,
    /// No answer in time.
    Timeout,
    /// The name has no address.
    NoAddress,
    /// Another error of the network.
    Network,
    /// The certificate is for another name.
    TlsName,
    /// The certificate is not valid now.
    TlsExpired,
    /// The certificate comes from nobody who is trusted.
    TlsUntrusted,
    /// TLS failed otherwise: an alert, no TLS at all, no common version.
    TlsOther,
}

impl ConnectFailure {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Self; 8] = [
        Self::Refused,
        Self::Timeout,
        Self::NoAddress,
        Self::Network,
        Self::TlsName,
        Self::TlsExpired,
        Self::TlsUntrusted,
        Self::TlsOther,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::NoAddress => "no_address",
            Self::Network => "network",
            Self::TlsName => "tls_name",
            Self::TlsExpired => "tls_expired",
            Self::TlsUntrusted => "tls_untrusted",
            Self::TlsOther => "tls_other",
        }
    }

    /// The kind of an error of connecting.
    pub fn of(error: &Error) -> Self {
        match error.etype() {
            E::ConnectRefused => Self::Refused,
            E::ConnectTimedout | E::TLSHandshakeTimedout => Self::Timeout,
            E::TLSHandshakeFailure | E::InvalidCert | E::HandshakeError => {
                Self::of_handshake(&error.to_string())
            }
            _ => Self::Network,
        }
    }

    /// Pingora keeps only the text of rustls's error.
    fn of_handshake(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if says(&["not valid for name", "notvalidforname"]) {
            Self::TlsName
        } else if says(&["expired", "not valid yet", "notvalidyet"]) {
            Self::TlsExpired
        } else if says(&["unknownissuer", "causedasendentity", "badsignature", "selfsigned"]) {
            Self::TlsUntrusted
        } else {
            Self::TlsOther
        }
    }
}
