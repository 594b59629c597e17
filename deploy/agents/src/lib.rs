//! Agents that work through the proxy: an ordinary OpenAI client, a real environment, a model that
//! acts.
//!
//! ```text
//! environment ─ messages, form ─► client ─► proxy ─► engine
//!      ▲                                       │
//!      └── actions ◄─ form.read ◄── answer ◄───┘        outcome ─► POST /v1/feedback
//! ```
//! Each observation is the next state of the step before it, so the trainer judges every step; the
//! episode's result is posted as its outcome. Four examples use it: `terminal`, `tools`, `swe`,
//! `gui`.
//!
//! Invariant: an environment trusts nothing that an answer says, and an episode ends within its
//! [`episode::Budget`].

pub mod cli;
pub mod client;
pub mod environment;
pub mod episode;
pub mod form;
pub mod gui;
pub mod policy;
pub mod report;
pub mod sandbox;
pub mod summary;
pub mod swe;
pub mod terminal;
pub mod tools;
