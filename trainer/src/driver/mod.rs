//! Driver: our client for one kind of engine's adapter API.
//!
//! Generations are loaded under their own name (64 hex characters), which is never reused; so a
//! driver can repeat any call without knowing whether the last one arrived.
//!
//! Invariant: a driver never names anything but generations, and never touches adapters that it
//! did not name.

mod hone;

pub use hone::HoneDriver;

use async_trait::async_trait;
use hone_shared::turn::Generation;
use std::path::Path;

/// Why an engine did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// No answer, or one that says "not now": worth another try later.
    #[error("the engine cannot be reached or is busy: {0}")]
    Unavailable(String),
    /// The engine has no room for another adapter.
    #[error("the engine has no room for another adapter: {0}")]
    Full(String),
    /// The engine refuses: the same call would fail again.
    #[error("the engine refused (HTTP {status}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The engine's message.
        message: String,
    },
    /// The engine said yes, and its list says no.
    #[error("the engine accepted generation {0} but does not list it")]
    Unconfirmed(Generation),
}

/// The adapter API of an engine.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Makes a generation resident from its registry directory; fine if it already is.
    async fn load(&self, generation: &Generation, dir: &Path) -> Result<(), DriverError>;

    /// Lets a generation go; fine if it is not there. Requests in flight finish on it.
    async fn unload(&self, generation: &Generation) -> Result<(), DriverError>;

    /// The generations that are resident now.
    async fn list(&self) -> Result<Vec<Generation>, DriverError>;
}
