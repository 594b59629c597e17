//! The door against hostile, broken, slow and odd clients: real sockets, real time, an engine that
//! records every byte.
//!
//! [`reject`] and [`accept`] are the corpus: requests that must reach nobody, and odd ones that must
//! arrive unchanged. `HONE_CORPUS_PROXY` and `HONE_CORPUS_ORIGIN` (addresses) run it against another
//! proxy: `cargo test --release -p hone-proxy --test door -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod accept;
#[path = "../proxy/client.rs"]
#[allow(dead_code)]
mod client;
mod corpus;
mod flood;
mod frames;
mod fuzz;
#[path = "../proxy/harness.rs"]
#[allow(dead_code, unused_imports)]
mod harness;
#[path = "../../fuzz/fuzz_targets/oracle.rs"]
#[allow(clippy::expect_used)]
mod oracle;
mod plain;
mod process;
mod recorder;
mod reject;
#[path = "../proxy/rows.rs"]
#[allow(dead_code)]
mod rows;
mod slow;

use hone_proxy::listen::gate;
