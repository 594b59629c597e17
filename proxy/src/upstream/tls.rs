//! How engines are spoken to over TLS, from files that are checked at the start and read again when
//! they change ([`crate::pem::kept`]): new connections then use the new ones, pooled ones go on.
//!
//! Invariant: an engine with `https` is verified, against the given CA or the system's, unless the
//! operator switched that off by name; and the name that is verified is the one of its URL.

use std::path::PathBuf;
use std::sync::Arc;

use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::{ALPN, HttpPeer};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use serde::Serialize;
use tracing::warn;

use crate::pem::kept::Kept;
use crate::pem::{self, KeyFiles, PemError};

/// What an operator can set about TLS to engines.
#[derive(Debug, Clone)]
pub struct EngineTls {
    /// PEM file with the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The proxy's own certificate, for engines that ask for one.
    pub client: Option<KeyFiles>,
    /// Whether certificates are verified. `false` lets anybody on the way read and change
    /// everything.
    pub verify: bool,
    /// Whether HTTP/2 is offered by ALPN; engines that do not take it get HTTP/1.1.
    pub h2: bool,
}

impl Default for EngineTls {
    fn default() -> Self {
        Self { ca_file: None, client: None, verify: true, h2: false }
    }
}

/// How the files are doing.
#[derive(Debug, Serialize)]
pub struct EngineTlsState {
    /// How often files were taken since the start; the first time counts.
    pub loads: u64,
    /// Why the files on disk are not those in use, if so.
    pub problem: Option<String>,
}

/// The same, read and checked.
#[derive(Debug)]
pub(super) struct ClientTls {
    /// Of all certificates that were read.
    hash: blake3::Hash,
    authorities: Option<Arc<CaType>>,
    client: Option<Arc<CertKey>>,
    verify: bool,
    h2: bool,
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl ClientTls {
    /// Reads the files, and again when they change. Errors: one that cannot be used.
    pub(super) fn keep(options: &EngineTls) -> Result<Kept<Self>, PemError> {
        if !options.verify {
            warn!(
                "certificates of engines are NOT verified: anybody on the way can read and change \
                 every prompt and answer"
            );
        }
        let pair = options.client.iter().flat_map(KeyFiles::paths);
        let files = options.ca_file.iter().cloned().chain(pair).collect();
        let options = options.clone();
        Kept::load("TLS to engines", files, move || Self::load(&options))
    }

    fn load(options: &EngineTls) -> Result<Self, PemError> {
        let roots = options.ca_file.as_deref().map(pem::roots).transpose()?;
        let pair = options.client.as_ref().map(KeyFiles::load_with_der).transpose()?;
        let mut hasher = blake3::Hasher::new();
        let chain = pair.iter().flat_map(|(pair, _)| &pair.cert);
        for der in roots.iter().flatten().chain(chain) {
            hasher.update(der);
        }
        let authorities = roots.map(|roots| {
            let parsed = roots.into_iter().map(|root| WrappedX509::new(root.to_vec(), parse_x509));
            parsed.collect::<Arc<CaType>>()
        });
        let client = pair.map(|(pair, key)| {
            let chain = pair.cert.iter().map(|one| one.to_vec()).collect();
            Arc::new(CertKey::new(chain, key))
        });
        let (verify, h2) = (options.verify, options.h2);
        Ok(Self { hash: hasher.finalize(), authorities, client, verify, h2 })
    }

    /// Sets up a peer; `h1_only` where the connection will be upgraded.
    pub(super) fn apply(&self, peer: &mut HttpPeer, h1_only: bool) {
        peer.client_cert_key.clone_from(&self.client);
        let options = &mut peer.options;
        options.ca.clone_from(&self.authorities);
        options.verify_cert = self.verify;
        options.verify_hostname = self.verify;
        options.alpn = if self.h2 && !h1_only { ALPN::H2H1 } else { ALPN::H1 };
    }
}
