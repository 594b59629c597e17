//! `hone proxy`, `hone trainer`, `hone backend`: from flags to a library's configuration, and a
//! clean end.
//!
//! A supervised child ends when its standard input ends: if `hone up` dies by `kill -9`, its
//! children follow with an orderly shutdown instead of being left behind.

use std::io::Read;

use anyhow::Context;
use hone_shared::data_dir::{DataDir, RunFile};
use tokio_util::sync::CancellationToken;

use crate::cli::{BackendArgs, DataArgs, ProxyArgs, TrainerArgs};
use crate::{model, os};

/// The data directory that was asked for, created.
pub fn data_dir(args: &DataArgs) -> anyhow::Result<DataDir> {
    let path = match (&args.data, std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME")) {
        (Some(path), _, _) => path.clone(),
        (None, Some(xdg), _) => std::path::PathBuf::from(xdg).join("hone"),
        (None, None, Some(home)) => std::path::PathBuf::from(home).join(".local/share/hone"),
        (None, None, None) => anyhow::bail!("no home directory: say where with --data DIR"),
    };
    let path = std::path::absolute(&path)?;
    let data = DataDir::new(&path);
    data.create()
        .with_context(|| format!("cannot create the data directory {}", path.display()))?;
    Ok(data)
}

/// Runs `hone proxy` until SIGTERM or SIGINT, then drains.
pub fn proxy(args: ProxyArgs) -> anyhow::Result<()> {
    end_with_stdin(args.supervised);
    let data = data_dir(&args.data)?;
    let upstream = hone_proxy::Upstream::parse(&args.engine)
        .with_context(|| format!("--engine {}", args.engine))?;
    let mut config = hone_proxy::ProxyConfig::new(data, args.listen, args.admin, vec![upstream]);
    config.grace_ms = args.grace_ms;
    config.threads = args.threads;
    config.limits.request_bytes_max = args.request_mib_max.saturating_mul(1 << 20);
    hone_proxy::run(config).context("the proxy stopped")
}

/// Runs `hone trainer` until SIGTERM or SIGINT; an unfinished round resumes at the next start.
pub fn trainer(args: TrainerArgs) -> anyhow::Result<()> {
    end_with_stdin(args.supervised);
    if let Err(error) = os::lower_priority(args.nice) {
        tracing::warn!(%error, "cannot lower the priority; training competes with serving");
    }
    let data = data_dir(&args.data)?;
    write_run_file(&data, "trainer", String::new())?;
    let config = hone_trainer::TrainerConfig {
        data,
        model_dir: args.model_dir,
        engine_url: args.engine,
        proxy_admin: args.proxy_admin,
        poll_ms: args.poll_ms,
    };
    runtime()?.block_on(async {
        hone_trainer::run(config, shutdown_signal()).await.context("the trainer stopped")
    })
}

/// Runs `hone backend` until SIGTERM or SIGINT.
pub fn backend(args: BackendArgs) -> anyhow::Result<()> {
    end_with_stdin(args.supervised);
    let data = data_dir(&args.data)?;
    let model_id = args.model_id.unwrap_or_else(|| model::name_of(&args.model_dir));
    let mut config = hone_backend::BackendConfig::new(args.model_dir, model_id, args.listen);
    config.registry = Some(data.registry_dir());
    write_run_file(&data, "backend", args.listen.to_string())?;
    config.residents_max = args.residents_max;
    config.sequences_max = args.sequences_max;
    runtime()?.block_on(async {
        hone_backend::run(config, shutdown_signal()).await.context("the engine stopped")
    })
}

/// Says which process this is and where it listens, for `hone status` and for whoever must find it.
fn write_run_file(data: &DataDir, name: &str, address: String) -> anyhow::Result<()> {
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let started_ms = i64::try_from(started.as_millis())?;
    let run = RunFile { pid: std::process::id(), address, admin_address: None, started_ms };
    run.write(data, name).with_context(|| format!("cannot write the run file of {name}"))
}

/// A runtime for one of the servers.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")
}

/// Cancelled by SIGTERM or SIGINT. Must be called inside a runtime.
pub fn shutdown_signal() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut term), Ok(mut int)) => {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "cannot listen for signals; only kill -9 will end this process");
                std::future::pending::<()>().await;
            }
        }
        cancelled.cancel();
    });
    token
}

fn end_with_stdin(supervised: bool) {
    if !supervised {
        return;
    }
    std::thread::spawn(|| {
        let mut sink = [0u8; 256];
        let mut stdin = std::io::stdin().lock();
        while matches!(stdin.read(&mut sink), Ok(n) if n > 0) {}
        tracing::info!("the supervisor is gone; ending");
        if let Err(error) = os::terminate(std::process::id()) {
            tracing::error!(%error, "cannot end this process");
        }
    });
}
