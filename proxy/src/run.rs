//! Start and end of the proxy process, in the order in which the parts need each other.
//!
//! Start: data directory → policies and aliases → spool → ingest → listeners → `run/proxy.json`.
//! End: stop accepting → wait for open streams → cut what is left → close the spool → let the
//! ingest catch up.
//!
//! Invariant: when [`run`] returns `Ok`, every turn that was taken is in the store or, if the
//! ingest ran out of time, in the spool on disk; and nothing that it started is still running.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hone_shared::clock::now_ms;
use hone_shared::data_dir::RunFile;
use hone_shared::spool::{Spool, SpoolConfig};
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::counters::Counters;
use crate::admin::{self, Operator};
use crate::config::{ProxyConfig, Upstream};
use crate::error::ProxyError;
use crate::ingest::{Ingest, IngestConfig, Policies};
use crate::limit::Limiter;
use crate::listen::Listening;
use crate::listen::tls::{self, Tls};
use crate::service::Service;
use crate::swap::Watches;
use crate::tap::Recorder;
use crate::upstream::tunnel::Tunnels;
use crate::upstream::{Engines, probe, resolve};

/// How long tasks may take to notice that the runtime ends.
const RUNTIME_END: Duration = Duration::from_secs(2);

/// Where the proxy listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The data listener.
    pub address: SocketAddr,
    /// The admin listener.
    pub admin_address: SocketAddr,
}

/// Runs the proxy until SIGTERM or SIGINT, then drains it. SIGHUP reads policies and aliases again.
/// Errors: see [`ProxyError`]; nothing is left running after one.
pub fn run(cfg: ProxyConfig) -> Result<(), ProxyError> {
    serve(cfg, CancellationToken::new(), true, |_| {})
}

/// Like [`run`], for a host program: ends when `stop` is cancelled, handles signals only if asked,
/// and calls `ready` once both listeners are bound. Blocks; must not be called from inside an async
/// runtime.
pub fn serve(
    cfg: ProxyConfig,
    stop: CancellationToken,
    signals: bool,
    ready: impl FnOnce(Bound),
) -> Result<(), ProxyError> {
    cfg.data.create()?;
    let runtime = runtime(&cfg)?;
    let parts = Parts::start(&cfg)?;
    let served = runtime.block_on(parts.serve(&cfg, stop, signals, ready));
    // Tasks that outlived the grace period are dropped here; their taps hand over what they have.
    runtime.shutdown_timeout(RUNTIME_END);
    let closed = parts.close();
    // A start that failed must not remove the file of the proxy that runs already.
    let ours = |file: &RunFile| file.pid == std::process::id();
    if RunFile::read(&cfg.data, "proxy")?.as_ref().is_some_and(ours) {
        RunFile::remove(&cfg.data, "proxy")?;
    }
    served.and(closed)
}

fn runtime(cfg: &ProxyConfig) -> Result<Runtime, ProxyError> {
    let mut builder = Builder::new_multi_thread();
    if cfg.threads > 0 {
        builder.worker_threads(cfg.threads);
    }
    let built = builder.enable_all().thread_name("hone-proxy").build();
    built.map_err(|source| ProxyError::Start { what: "worker threads", source })
}

/// What outlives the runtime: the way of a turn to disk.
struct Parts {
    watches: Arc<Watches>,
    recorder: Arc<Recorder>,
    ingest: Arc<Ingest>,
    counters: Arc<Counters>,
    engines: Arc<Engines>,
    limiter: Arc<Limiter>,
    tunnels: Arc<Tunnels>,
    tls: Option<Arc<Tls>>,
    secret: [u8; 32],
    token: String,
}

impl Parts {
    fn start(cfg: &ProxyConfig) -> Result<Self, ProxyError> {
        let (secret, token) = (cfg.data.secret()?, cfg.data.admin_token()?);
        let engines = Arc::new(Engines::start(cfg)?);
        let handshake = Duration::from_millis(cfg.limits.tls_handshake_ms);
        let tls = cfg.listen_tls.as_ref().map(|listen| Tls::load(&listen.files, handshake));
        let tls = tls.transpose()?.map(Arc::new);
        let watches = Watches::start(&cfg.data, Duration::from_millis(cfg.limits.watch_ms))?;
        let watches = Arc::new(watches.and_certificate(tls.clone()));
        let spool = Spool::start(SpoolConfig::new(cfg.data.spool_dir()))
            .map_err(|error| ProxyError::Spool(error.to_string()))?;
        let policies = Arc::clone(&watches);
        let ingest = IngestConfig {
            policies: Policies::of(move || policies.snapshot().policies),
            drain_ms_max: cfg.limits.ingest_drain_ms,
            ..IngestConfig::new(&cfg.data, secret)
        };
        let ingest =
            Ingest::start(ingest).map_err(|error| ProxyError::Ingest(error.to_string()))?;
        let recorder = Recorder::new(spool, cfg.limits.capture_bytes_max);
        let (ingest, counters) = (Arc::new(ingest), Arc::new(Counters::default()));
        let limiter = Limiter::new(cfg.limits.traffic_tenants_max);
        let tunnels = Arc::new(Tunnels::default());
        Ok(Self {
            watches,
            recorder,
            ingest,
            counters,
            engines,
            limiter,
            tunnels,
            tls,
            secret,
            token,
        })
    }

    async fn serve(
        &self,
        cfg: &ProxyConfig,
        stop: CancellationToken,
        signals: bool,
        ready: impl FnOnce(Bound),
    ) -> Result<(), ProxyError> {
        let (tcp, address) = bind(cfg.listen).await?;
        let (admin_tcp, admin_address) = bind(cfg.admin).await?;
        let background = TaskTracker::new();
        let end = CancellationToken::new();
        if signals {
            background.spawn(listen_to_signals(stop.clone(), Arc::clone(&self.watches))?);
        }
        let operator = self.operator();
        let admin = axum::serve(admin_tcp, admin::router(Arc::clone(&operator)))
            .with_graceful_shutdown(end.clone().cancelled_owned());
        background.spawn(async move { admin.await });
        self.follow_engines(cfg, &background, &end).await;
        let proxy = self.proxy(cfg);
        let listening = Listening::start(tcp, proxy, &cfg.limits, Arc::clone(&self.counters));
        let file = RunFile {
            pid: std::process::id(),
            address: address.to_string(),
            admin_address: Some(admin_address.to_string()),
            started_ms: now_ms(),
        };
        file.write(&cfg.data, "proxy")?;
        let engines: Vec<String> = cfg.upstreams.iter().map(Upstream::authority).collect();
        info!(%address, %admin_address, ?engines, "proxy ready");
        ready(Bound { address, admin_address });

        stop.cancelled().await;
        info!("stopping: no new connections, waiting for open streams");
        operator.draining.store(true, Ordering::Release);
        if !listening.drain(Duration::from_millis(cfg.grace_ms)).await {
            warn!(
                grace_ms = cfg.grace_ms,
                "streams were still open after the grace period and are cut"
            );
        }
        end.cancel();
        Ok(())
    }

    fn operator(&self) -> Arc<Operator> {
        Arc::new(Operator {
            token: self.token.clone(),
            watches: Arc::clone(&self.watches),
            recorder: Arc::clone(&self.recorder),
            ingest: Arc::clone(&self.ingest),
            counters: Arc::clone(&self.counters),
            tls: self.tls.clone(),
            engines: Arc::clone(&self.engines),
            limiter: Arc::clone(&self.limiter),
            tunnels: Arc::clone(&self.tunnels),
            draining: AtomicBool::new(false),
        })
    }

    /// Learns where the engines are and which of them work, now and in the background.
    async fn follow_engines(
        &self,
        cfg: &ProxyConfig,
        background: &TaskTracker,
        end: &CancellationToken,
    ) {
        for engine in self.engines.all() {
            resolve::resolve_once(engine).await;
        }
        let every = Duration::from_millis(cfg.limits.upstream_resolve_ms);
        let engines = || Arc::clone(&self.engines);
        background.spawn(resolve::keep_resolving(engines(), every, end.clone()));
        let path = cfg.engine_health_path.clone();
        background.spawn(probe::keep_probing(engines(), path, end.clone()));
        if let Some(tls) = &self.tls {
            let every = Duration::from_millis(cfg.limits.watch_ms);
            background.spawn(tls::keep_current(Arc::clone(tls), every, end.clone()));
        }
    }

    /// Pingora's HTTP machinery around our [`Service`].
    fn proxy(&self, cfg: &ProxyConfig) -> Arc<HttpProxy<Service>> {
        let conf = ServerConf {
            threads: tokio::runtime::Handle::current().metrics().num_workers(),
            upstream_keepalive_pool_size: cfg.limits.upstream_idle_max,
            max_retries: cfg.limits.upstream_attempts_max,
            ..ServerConf::default()
        };
        let service = Service {
            limits: cfg.limits.clone(),
            watches: Arc::clone(&self.watches),
            engines: Arc::clone(&self.engines),
            limiter: Arc::clone(&self.limiter),
            tunnels: Arc::clone(&self.tunnels),
            recorder: Arc::clone(&self.recorder),
            counters: Arc::clone(&self.counters),
            secret: self.secret,
        };
        let mut proxy = http_proxy(&Arc::new(conf), service);
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.h2_idle_timeout = Some(Duration::from_millis(cfg.limits.client_idle_ms));
        proxy.server_options = Some(options);
        let mut h2 = default_h2_options();
        h2.max_concurrent_streams(cfg.limits.h2_streams_max);
        proxy.h2_options = Some(h2);
        Arc::new(proxy)
    }

    /// Brings every turn that was taken to disk, and the ingest up to date.
    fn close(self) -> Result<(), ProxyError> {
        let Self { recorder, ingest, .. } = self;
        let closed = recorder.close().map_err(|error| ProxyError::Spool(error.to_string()));
        ingest.drain_and_stop();
        closed
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ProxyError> {
    let fail = |source| ProxyError::Bind { address, source };
    let tcp = TcpListener::bind(address).await.map_err(fail)?;
    let bound = tcp.local_addr().map_err(fail)?;
    Ok((tcp, bound))
}

/// SIGTERM and SIGINT stop; SIGHUP, which kills a plain pingora, reads policies and aliases again.
fn listen_to_signals(
    stop: CancellationToken,
    watches: Arc<Watches>,
) -> Result<impl Future<Output = ()>, ProxyError> {
    let on =
        |kind| signal(kind).map_err(|source| ProxyError::Start { what: "signal handlers", source });
    let mut terminate = on(SignalKind::terminate())?;
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut hangup = on(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => stop.cancel(),
                _ = interrupt.recv() => stop.cancel(),
                _ = hangup.recv() => {
                    let watches = Arc::clone(&watches);
                    let refreshed = tokio::task::spawn_blocking(move || watches.refresh()).await;
                    info!(?refreshed, "SIGHUP: policies and aliases read again");
                }
            }
        }
    })
}
