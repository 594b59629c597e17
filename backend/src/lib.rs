//! An OpenAI-compatible server around the unmodified mistral.rs engine, whose resident adapter
//! generations hang on one `ArcSwap`.
//!
//! # The life of a request
//! [`http`] parses the body ([`request`]) and decides who answers ([`select`]); the [`fleet`] hands
//! out a lease on one resident generation, loading it first if need be; [`generate`] drives that
//! generation's engine token by token ([`sample`] picks the tokens, [`text`] and [`tools`] turn
//! them into words and calls); `http` writes the words as JSON or as server-sent events.
//!
//! # Why a generation is a whole engine
//! mistral.rs 0.8.1 merges a LoRA while it loads the weights and has no run-time load. So one
//! resident generation is one loaded pipeline, immutable from then on. A swap builds the new one in
//! the background and flips a pointer; requests in flight keep their lease on the old one, which is
//! dropped when the last of them ends. No cache can be stale, because no cache is shared.
//!
//! Invariant: a response is produced by exactly one generation, and says which.

pub mod adapter;
pub mod config;
pub mod error;
pub mod fleet;
pub mod generate;
pub mod http;
pub mod load;
pub mod model;
pub mod request;
pub mod resident;
pub mod sample;
pub mod select;
pub mod snapshot;
pub mod text;
pub mod tools;

pub use config::BackendConfig;
pub use error::BackendError;
pub use http::{run, serve};
