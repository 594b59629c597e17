//! The transparent logging proxy: clients talk to their engine through it, and every turn is on
//! record.
//!
//! # Layout: the flow is the folder
//! A request passes [`admit`] (may it pass, who sent it) → [`route`] (which policy, which
//! generation: pinned) → [`tap`] (its bytes are copied as they pass) → [`upstream`] (the engine).
//! [`service`] is that order as code.
//! * [`feedback`]: what people say about answers, taken here. [`limit`]: how much each tenant may send. [`pem`]: certificates from files.
//! * [`listen`]: the accept loop and its graceful end. [`run`](mod@run): start and end of the
//!   process.
//! * [`upgrade`]: a new program takes the listeners of the running one over.
//! * [`ingest`]: spool → SQLite, in the background. [`swap`]: policies and aliases, watched.
//! * [`admin`]: health, metrics, status and refresh, on a listener of its own.
//!
//! Invariants: bodies cross unchanged; nothing on the path of a request waits for disk or for a
//! name server; a turn answered to a client is stored, or counted as dropped with a reason.

mod access;
pub mod admin;
pub mod admit;
pub mod config;
pub mod error;
pub mod feedback;
pub mod ingest;
pub mod limit;
pub mod listen;
pub mod pem;
pub mod route;
pub mod run;
pub mod service;
mod signals;
pub mod swap;
pub mod tap;
pub mod upgrade;
pub mod upstream;

pub use config::{Limits, ListenTls, ProxyConfig, ProxyFile, Upstream, check};
pub use error::ProxyError;
pub use pem::KeyFiles;
pub use run::{Bound, run, serve};
pub use upstream::EngineTls;
