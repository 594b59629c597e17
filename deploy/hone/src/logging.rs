//! Logs go to standard error through `tracing-subscriber`; standard output is for results only.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::Cli;

/// Starts logging: `HONE_LOG` wins, else the verbosity flags decide.
pub fn start(cli: &Cli) {
    let fallback = match cli.verbose {
        0 => default_filter(cli),
        1 => "info,hone=info,pingora=warn,mistralrs_core=warn",
        _ => {
            "info,hone=debug,hone_proxy=debug,hone_trainer=debug,hone_backend=debug,hone_shared=debug"
        }
    };
    let filter = EnvFilter::try_from_env("HONE_LOG").unwrap_or_else(|_| EnvFilter::new(fallback));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second subscriber cannot be installed; ours is the first, so a failure here means that a
    // test did it.
    let _ = if cli.log_json { builder.json().try_init() } else { builder.try_init() };
}

/// Interactive commands print their own progress; servers log what they do.
fn default_filter(cli: &Cli) -> &'static str {
    use crate::cli::Command::{Backend, Proxy, Trainer};
    match cli.command {
        Proxy(_) | Trainer(_) | Backend(_) => "info,pingora=warn,mistralrs_core=warn",
        _ => "warn",
    }
}
