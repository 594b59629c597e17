//! TLS with clients: the certificate that they see, and the handshake.
//!
//! The files are read again when they change or when a refresh is asked for ([`crate::pem::kept`]);
//! new connections then see the new certificate, and open ones keep theirs.
//!
//! What comes out of the handshake goes through the same socket and framing gate as plain
//! connections. TLS 1.2 is the oldest version; there is no early data, which could be replayed.
//!
//! Invariant: there is a certificate from the start on, and every handshake has a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::pem::kept::{Kept, Reread};
use crate::pem::{self, KeyFiles, PemError};

/// Application protocols, preferred first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The TLS side of a listener.
#[derive(Debug)]
pub struct Tls {
    acceptor: Acceptor,
    shown: Arc<Kept<Shown>>,
    handshake: Duration,
    handshakes: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
}

/// The figures of a TLS listener.
#[derive(Debug, Serialize)]
pub struct TlsState {
    /// When the certificate in use ends, seconds since 1970.
    pub expires_s: i64,
    /// Certificates taken since the start; the first one counts.
    pub loads: u64,
    /// Why the files on disk are not those in use, if so.
    pub problem: Option<String>,
    /// Finished handshakes.
    pub handshakes: u64,
    /// Handshakes that failed.
    pub failed: u64,
    /// Handshakes that took too long.
    pub timed_out: u64,
}

/// What clients see.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl PartialEq for Shown {
    fn eq(&self, other: &Self) -> bool {
        self.0.cert == other.0.cert
    }
}

#[derive(Debug)]
struct Current(Arc<Kept<Shown>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().0))
    }
}

#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Tls {
    /// Reads the files. Errors: they cannot be used.
    pub fn load(files: &KeyFiles, handshake: Duration) -> Result<Self, PemError> {
        let (paths, from) = (files.paths().to_vec(), files.clone());
        let make = move || from.load().map(|key| Shown(Arc::new(key)));
        let shown = Arc::new(Kept::load("certificate for clients", paths, make)?);
        let resolver: Arc<dyn ResolvesServerCert> = Arc::new(Current(Arc::clone(&shown)));
        let builder = ServerConfig::builder_with_provider(pem::provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|problem| PemError::new(&files.certificate, problem))?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        Ok(Self {
            acceptor: Acceptor(TlsAcceptor::from(Arc::new(config))),
            shown,
            handshake,
            handshakes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
        })
    }

    /// Shakes hands with a client. `None`: it failed or took too long, and was counted.
    pub async fn accept<S>(&self, stream: S) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let shaken = tokio::time::timeout(self.handshake, self.acceptor.0.accept(stream)).await;
        let counter = match &shaken {
            Ok(Ok(_)) => &self.handshakes,
            Ok(Err(_)) => &self.failed,
            Err(_) => &self.timed_out,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        shaken.ok()?.inspect_err(|error| debug!(%error, "a client's TLS handshake failed")).ok()
    }

    /// The files, to be read again.
    pub fn files(&self) -> Arc<dyn Reread> {
        Arc::clone(&self.shown) as _
    }

    /// The figures now.
    pub fn snapshot(&self) -> TlsState {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let leaf = self.shown.current().0.cert.first().map(|leaf| pem::expires_s(leaf));
        TlsState {
            expires_s: leaf.flatten().unwrap_or_default(),
            loads: self.shown.loads(),
            problem: self.shown.problem(),
            handshakes: read(&self.handshakes),
            failed: read(&self.failed),
            timed_out: read(&self.timed_out),
        }
    }
}
