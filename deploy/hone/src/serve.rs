//! `hone proxy`, `hone trainer`, `hone backend`: from flags to a library's configuration, and a
//! clean end.
//!
//! A supervised child ends when its standard input ends: if `hone up` dies by `kill -9`, its
//! children follow with an orderly shutdown instead of being left behind.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use hone_proxy::{ProxyConfig, ProxyFile};
use hone_shared::data_dir::{DataDir, RunFile};
use tokio_util::sync::CancellationToken;

use crate::cli::{BackendArgs, DataArgs, ProxyArgs, TrainerArgs, UsageError};
use crate::{memory, model, os};

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

/// Runs `hone proxy` until SIGTERM or SIGINT, then drains; or checks its configuration.
pub fn proxy(args: ProxyArgs) -> anyhow::Result<()> {
    let config = proxy_config(&args)?;
    if args.check {
        return check(&config);
    }
    if let Err(error) = memory::give_back_soon() {
        tracing::warn!(%error, "freed memory is given back late");
    }
    end_with_stdin(args.supervised);
    hone_proxy::run(config).map_err(|error| match error.is_usage() {
        true => UsageError(error.to_string()).into(),
        false => anyhow::Error::new(error).context("the proxy stopped"),
    })
}

fn proxy_config(args: &ProxyArgs) -> anyhow::Result<ProxyConfig> {
    let usage = |error: &dyn std::fmt::Display| UsageError(error.to_string());
    let mut file = match &args.config {
        Some(path) => ProxyFile::read(path).map_err(|error| usage(&error))?,
        None => ProxyFile::default(),
    };
    file.listen = args.listen.or(file.listen);
    file.admin = args.admin.or(file.admin);
    if !args.engines.is_empty() {
        file.engines = args.engines.clone();
    }
    file.engine_tls.ca_file = args.engine_ca.clone().or(file.engine_tls.ca_file);
    file.tls.listen = args.tls_listen.or(file.tls.listen);
    file.tls.certificate = args.tls_cert.clone().or(file.tls.certificate);
    file.tls.key = args.tls_key.clone().or(file.tls.key);
    if let Some(mib) = args.request_mib_max {
        file.limits.request_bytes_max = mib.saturating_mul(1 << 20);
    }
    file.admin_token_file = args.admin_token_file.clone().or(file.admin_token_file);
    file.grace_ms = args.grace_ms.or(file.grace_ms);
    file.threads = args.threads.or(file.threads);
    file.admin_hosts.extend(args.admin_hosts.iter().cloned());
    let mut config = file.build(data_dir(&args.data)?).map_err(|error| usage(&error))?;
    config.upgrade = args.upgrade;
    config.upgrade_command = upgrade_command();
    Ok(config)
}

fn check(config: &ProxyConfig) -> anyhow::Result<()> {
    let dir = config.data.policies_dir();
    hone_shared::policy::install_builtin(&dir)?;
    let problems = hone_proxy::check(config);
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    if !problems.is_empty() {
        return Err(UsageError(format!("{} problems", problems.len())).into());
    }
    println!("valid: listens on {}, operators on {}", config.listen, config.admin);
    Ok(())
}

/// What SIGUSR2 starts: this command line with `--upgrade`, and the program that stands under its
/// name now, which may be another than the one that runs.
fn upgrade_command() -> Option<Vec<OsString>> {
    let mut all: Vec<OsString> = std::env::args_os().collect();
    let named = all.first().map(PathBuf::from).filter(|path| path.components().count() > 1);
    let program = match named {
        Some(path) => std::path::absolute(path).ok()?,
        None => {
            let running = std::env::current_exe().ok()?.into_os_string().into_string().ok()?;
            // What Linux says when the file was replaced.
            PathBuf::from(running.trim_end_matches(" (deleted)"))
        }
    };
    *all.first_mut()? = program.into();
    if !all.iter().any(|argument| argument == "--upgrade") {
        all.push("--upgrade".into());
    }
    Some(all)
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
        device: args.device,
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
