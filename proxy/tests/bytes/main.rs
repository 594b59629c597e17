//! Bytes in = bytes out, by comparison: the same request to the same engine, once direct and once
//! through the proxy.
//!
//! A binary of its own, because it takes all cores for some seconds and would disturb tests that
//! watch deadlines. `exchange` is one request with the answer that the engine has been told to
//! give; `generate` draws thousands of them from a seed, `transcripts` holds the streams of both
//! providers; `engine` plays the answers, `lanes` asks, `compare` says what differs, `stored` what
//! the store holds instead of what it should.
//!
//! `HONE_SEED=<seed> HONE_EXCHANGES=1` repeats one exchange of a failed run alone: exchange n of
//! seed s is the first one of seed s + n.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../proxy/client.rs"]
mod client;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../proxy/harness.rs"]
mod harness;
#[path = "../proxy/rows.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod rows;

mod compare;
mod cuts;
mod diff;
mod engine;
mod exceptions;
mod exchange;
mod generate;
mod http2;
mod lanes;
mod stored;
mod transcripts;
mod wire;
