//! An agent with tools: a calculator and a database.
//!
//! `cargo run --release -p hone-agents --example tools -- --base-url http://127.0.0.1:8080/v1`
//!
//! Invariant: nothing but flags is decided here.

use std::process::ExitCode;

use hone_agents::tools::Tools;

#[tokio::main]
async fn main() -> ExitCode {
    hone_agents::cli::main(|options| async move { Ok(Tools::new(options.free)) }).await
}
