//! An agent that repairs a small repository until its tests pass.
//!
//! `cargo run --release -p hone-agents --example swe -- --base-url http://127.0.0.1:8080/v1`
//!
//! Invariant: nothing but flags is decided here.

use std::process::ExitCode;

use hone_agents::swe::Swe;

#[tokio::main]
async fn main() -> ExitCode {
    hone_agents::cli::main(|options| async move { Ok(Swe::new(options.free)) }).await
}
