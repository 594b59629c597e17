//! An agent that fills a form in, in headless Chromium.
//!
//! `cargo run --release -p hone-agents --example gui -- --base-url http://127.0.0.1:8080/v1`
//!
//! Invariant: nothing but flags is decided here.

use std::process::ExitCode;

use hone_agents::gui::Gui;

#[tokio::main]
async fn main() -> ExitCode {
    let start = |options: hone_agents::cli::Options| Gui::start(options.free, options.screenshots);
    hone_agents::cli::main(start).await
}
