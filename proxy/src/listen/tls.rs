//! TLS with clients: the certificate that they see, and the handshake.
//!
//! The files are read again when they change or when a refresh is asked for; new connections then
//! see the new certificate, and open ones keep theirs. Files that do not pass (a key that is not
//! the certificate's, as halfway through a replacement) change nothing but the log and the status.
//!
//! What comes out of the handshake goes through the same socket and framing gate as plain
//! connections. TLS 1.2 is the oldest version; there is no early data, which could be replayed.
//!
//! Invariant: there is a certificate from the start on, and every handshake has a deadline.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::pem::{self, KeyFiles, PemError};

/// Application protocols, preferred first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Changes whenever a file is replaced.
type Fingerprint = [Option<(SystemTime, u64, u64)>; 2];

/// The TLS side of a listener.
#[derive(Debug)]
pub struct Tls {
    files: KeyFiles,
    acceptor: Acceptor,
    current: Arc<Current>,
    problem: ArcSwapOption<PemError>,
    /// What was read last; also serialises readers of the disk.
    read: Mutex<Fingerprint>,
    handshake: Duration,
    handshakes: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    loads: AtomicU64,
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

/// The certificate in use.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
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
        // Taken before the files are read: a change in between is then seen by the next look.
        let read = Mutex::new(fingerprint(files));
        let current = Arc::new(Current(ArcSwap::from_pointee(files.load()?)));
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&current) as _;
        let builder = ServerConfig::builder_with_provider(pem::provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|problem| PemError::new(&files.certificate, problem))?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        Ok(Self {
            files: files.clone(),
            acceptor: Acceptor(TlsAcceptor::from(Arc::new(config))),
            current,
            problem: ArcSwapOption::empty(),
            read,
            handshake,
            handshakes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            loads: AtomicU64::new(1),
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

    /// Reads the files now. Errors: they cannot be used, and the last good certificate stays.
    pub fn refresh(&self) -> Result<(), PemError> {
        self.look(true)
    }

    fn look(&self, always: bool) -> Result<(), PemError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = fingerprint(&self.files);
        if *read == now && !always {
            return Ok(());
        }
        *read = now;
        match self.files.load() {
            Ok(new) => {
                if new.cert != self.current.0.load().cert {
                    info!(file = %self.files.certificate.display(), "certificate changed");
                    self.current.0.store(Arc::new(new));
                    self.loads.fetch_add(1, Ordering::Relaxed);
                }
                self.problem.store(None);
                Ok(())
            }
            Err(problem) => {
                error!(%problem, "the certificate files do not pass; the last good ones stay");
                self.problem.store(Some(Arc::new(problem.clone())));
                Err(problem)
            }
        }
    }

    /// The figures now.
    pub fn snapshot(&self) -> TlsState {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let leaf = self.current.0.load().cert.first().map(|leaf| pem::expires_s(leaf));
        TlsState {
            expires_s: leaf.flatten().unwrap_or_default(),
            loads: read(&self.loads),
            problem: self.problem.load().as_ref().map(|problem| problem.to_string()),
            handshakes: read(&self.handshakes),
            failed: read(&self.failed),
            timed_out: read(&self.timed_out),
        }
    }
}

/// Looks at the files every `every` until `stop`.
pub async fn keep_current(tls: Arc<Tls>, every: Duration, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        let tls = Arc::clone(&tls);
        // A problem is logged and on the status; a panic in there would be a bug of the library.
        let _ = tokio::task::spawn_blocking(move || tls.look(false)).await;
    }
}

fn fingerprint(files: &KeyFiles) -> Fingerprint {
    let stat = |file: &Path| {
        let meta = fs::metadata(file).ok()?;
        Some((meta.modified().ok()?, meta.len(), meta.ino()))
    };
    [stat(&files.certificate), stat(&files.key)]
}
