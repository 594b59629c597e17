//! How engines are spoken to over TLS, from files that are checked at the start.
//!
//! Invariant: an engine with `https` is verified, against the given CA or the system's, unless the
//! operator switched that off by name; and the name that is verified is the one of its URL.

use std::path::PathBuf;
use std::sync::Arc;

use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::{ALPN, HttpPeer};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use tracing::warn;

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

/// The same, read and checked.
#[derive(Debug)]
pub(super) struct ClientTls {
    authorities: Option<Arc<CaType>>,
    client: Option<Arc<CertKey>>,
    verify: bool,
    h2: bool,
}

impl ClientTls {
    /// Reads the files. Errors: one that cannot be used.
    pub(super) fn load(options: &EngineTls) -> Result<Self, PemError> {
        if !options.verify {
            warn!(
                "certificates of engines are NOT verified: anybody on the way can read and change \
                 every prompt and answer"
            );
        }
        let authorities = options.ca_file.as_deref().map(pem::roots).transpose()?.map(|roots| {
            let parsed = roots.into_iter().map(|root| WrappedX509::new(root.to_vec(), parse_x509));
            parsed.collect::<Arc<CaType>>()
        });
        let client = match &options.client {
            None => None,
            Some(files) => {
                let chain = files.load()?.cert.iter().map(|c| c.to_vec()).collect();
                Some(Arc::new(CertKey::new(chain, files.key_der()?)))
            }
        };
        Ok(Self { authorities, client, verify: options.verify, h2: options.h2 })
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
