//! Why the proxy could not start or could not end cleanly. Clients never see these: their errors
//! are in [`crate::admit::reply`].

use std::net::SocketAddr;

use hone_shared::data_dir::DataDirError;

use crate::pem::PemError;

/// Why [`crate::run`] failed.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The data directory, its secret or its token cannot be used.
    #[error(transparent)]
    Data(#[from] DataDirError),
    /// A listener could not be bound.
    #[error("cannot listen on {address}: {source}; is another hone running, or the port taken?")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Threads or signal handlers could not be set up.
    #[error("cannot start the {what}: {source}")]
    Start {
        /// Which part.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The engines cannot be used as configured.
    #[error("the engines cannot be used: {0}")]
    Engines(String),
    /// A certificate or key cannot be used.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] PemError),
    /// Something that was asked for cannot be: said before anything was started.
    #[error("{0}")]
    Config(String),
    /// A running proxy did not hand over its listeners.
    #[error("the running proxy did not hand over its listeners: {0}")]
    Upgrade(std::io::Error),
    /// The policies are wrong.
    #[error("the policies cannot be used: {0}")]
    Policy(String),
    /// The registry cannot be read.
    #[error("the adapter registry cannot be used: {0}")]
    Registry(String),
    /// The spool cannot be opened or closed.
    #[error("the spool cannot be used: {0}")]
    Spool(String),
    /// The ingest or its database cannot be used.
    #[error("the turn store cannot be used: {0}")]
    Ingest(String),
}

impl ProxyError {
    /// Whether the operator asked for something that cannot be, so that trying again is useless.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Policy(_))
    }
}
