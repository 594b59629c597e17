//! The proxy as its clients, its engine and its operator see it: real sockets, a real spool, a real
//! database.
//!
//! One binary, so that pingora is linked once. `origin` is an engine and `client` a client of raw
//! bytes; `harness` runs the proxy in a thread of this process, or in a process of its own where
//! signals matter.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod admin;
mod admin_door;
mod bugs;
mod certificates;
mod chaos;
mod client;
mod client_tls;
mod door;
mod engine_tls;
mod engines;
mod faults;
mod feedback;
mod harness;
mod lifecycle;
mod limits;
mod metrics_page;
mod origin;
mod process;
mod rows;
mod trace;
mod transparency;
mod transparency_departures;
mod turns;
mod upgrade;
mod websocket;
