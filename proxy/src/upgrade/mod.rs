//! Replacing the running program without refusing a connection: the old process hands its listening
//! sockets to the new one.
//!
//! ```text
//! new: hone proxy --upgrade ── hello ──────────► old   over <data>/run/proxy.sock (0600, same user)
//!                           ◄─ sockets (SCM_RIGHTS)
//!      starts, accepts      ── ready ──────────►
//!                           ◄─ draining ────────       stops accepting, drains, ends
//! ```
//! A listening socket and the connections that wait in it belong to the kernel, not to a process: at
//! every moment at least one of the two accepts. Both write the same data directory meanwhile: each
//! has a spool of its own, and both ingest into one SQLite file.
//!
//! * [`offer`]: the old side. [`take`]: the new side. `wire`: lines and file descriptors.
//!
//! Invariant: until the new process has said `ready`, the old one goes on as if nobody had asked; a
//! new process that dies before changes nothing.

pub mod offer;
pub mod take;
mod wire;

pub use offer::Offer;
pub use take::{Inherited, take};

/// The listener of clients.
pub const DATA: &str = "data";
/// The listener of clients that speaks TLS.
pub const SECURE: &str = "data_tls";
/// The listener of operators.
pub const ADMIN: &str = "admin";
