//! An agent in a real shell: files and directories in a scratch directory.
//!
//! `cargo run --release -p hone-agents --example terminal -- --base-url http://127.0.0.1:8080/v1`
//!
//! Invariant: nothing but flags is decided here.

use std::process::ExitCode;

use hone_agents::terminal::Terminal;

#[tokio::main]
async fn main() -> ExitCode {
    hone_agents::cli::main(|options| async move { Ok(Terminal::new(options.free)) }).await
}
