//! `hone up`: engine, proxy and trainer as supervised children in one data directory.
//!
//! Start order is engine, proxy, trainer; stop order is the reverse of who depends on whom: the
//! trainer saves its checkpoint, the proxy lets streams finish and drains its spool, and only then
//! the engine goes.

mod child;
mod system;

pub use system::System;

use std::time::Duration;

use anyhow::Context;

use crate::cli::UpArgs;
use crate::serve::{runtime, shutdown_signal};

/// Runs `hone up` until SIGINT or SIGTERM.
pub fn run(args: UpArgs) -> anyhow::Result<()> {
    let model_dir = crate::model::ensure(&args.data, &args.model)?;
    runtime()?.block_on(async {
        let shutdown = shutdown_signal();
        eprintln!("starting engine, proxy and trainer …");
        let system = tokio::select! {
            started = System::start(&args, model_dir) => started?,
            () = shutdown.cancelled() => return Ok(()),
        };
        println!("base_url   {}/v1", system.base_url);
        println!("model      {}", system.model_id);
        println!("data       {}", system.data_path.display());
        println!("logs       {}", system.log_dir.display());
        println!("see        hone status     stop    Ctrl-C");
        shutdown.cancelled().await;
        eprintln!("stopping: streams finish, the spool drains (at most {} ms) …", args.grace_ms);
        system.stop(Duration::from_millis(args.grace_ms)).await.context("unclean stop")
    })
}
