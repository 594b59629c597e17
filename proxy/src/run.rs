//! Start and end of the proxy process, in the order in which the parts need each other.
//!
//! Start: data directory → policies and aliases → spool → ingest → listeners, bound or taken over →
//! `run/proxy.json` → offer the listeners to a successor.
//! End: stop accepting → wait for open streams → cut what is left → close the spool → let the
//! ingest catch up.
//!
//! Invariant: when [`run`] returns `Ok`, every turn that was taken is in the store or, if the
//! ingest ran out of time, in the spool on disk; and nothing that it started is still running.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hone_shared::clock::now_ms;
use hone_shared::data_dir::RunFile;
use hone_shared::secret::Names;
use hone_shared::spool::{Spool, SpoolConfig};
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::bounded::Bounded;
use crate::admin::counters::Counters;
use crate::admin::genai::GenAi;
use crate::admin::tokens::Tokens;
use crate::admin::{self, Operator, guard};
use crate::config::{ProxyConfig, Upstream, learns_alone};
use crate::error::ProxyError;
use crate::feedback::Desk;
use crate::ingest::{Ingest, IngestConfig, Observer, Policies};
use crate::limit::Limiter;
use crate::listen::Listening;
use crate::listen::tls::Tls;
use crate::pem::kept::{Reread, keep_current};
use crate::service::Service;
use crate::signals::{self, Signals};
use crate::swap::Watches;
use crate::tap::Recorder;
use crate::upgrade::{self, Inherited, Offer};
use crate::upstream::tunnel::Tunnels;
use crate::upstream::{Engines, probe, resolve};

/// How long tasks may take to notice that the runtime ends.
const RUNTIME_END: Duration = Duration::from_secs(2);

/// Where the proxy listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The data listener.
    pub address: SocketAddr,
    /// The listener that speaks TLS, if there is one.
    pub tls_address: Option<SocketAddr>,
    /// The admin listener.
    pub admin_address: SocketAddr,
}

/// Runs the proxy until SIGTERM or SIGINT, then drains it. SIGHUP reads policies, aliases and
/// certificates again.
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
    guard::check_bind(&cfg)?;
    cfg.data.create()?;
    if let Some(reserve) = &cfg.reserve {
        cfg.data.note_reserve(reserve)?;
    }
    let runtime = runtime(&cfg)?;
    let parts = Parts::start(&cfg)?;
    let inherited = match cfg.upgrade {
        true => upgrade::take(&cfg.data).map_err(ProxyError::Upgrade)?,
        false => None,
    };
    if cfg.upgrade && inherited.is_none() {
        warn!("--upgrade: no proxy runs in this data directory; starting as usual");
    }
    let served = runtime.block_on(parts.serve(&cfg, inherited, stop, signals, ready));
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
    genai: Arc<GenAi>,
    feedback: Arc<Desk>,
    engines: Arc<Engines>,
    limiter: Arc<Limiter>,
    tunnels: Arc<Tunnels>,
    tls: Option<Arc<Tls>>,
    secret: [u8; 32],
}

impl Parts {
    fn start(cfg: &ProxyConfig) -> Result<Self, ProxyError> {
        let secret = cfg.data.secret()?;
        let engines = Arc::new(Engines::start(cfg)?);
        let handshake = Duration::from_millis(cfg.limits.tls_handshake_ms);
        let tls = cfg.listen_tls.as_ref().map(|listen| Tls::load(&listen.files, handshake));
        let tls = tls.transpose()?.map(Arc::new);
        let watches = Watches::start(&cfg.data, Duration::from_millis(cfg.limits.watch_ms))?;
        let files = certificates(&engines, tls.as_deref());
        let watches = Arc::new(watches.and_files(files));
        if let Some(problem) = learns_alone(cfg, &watches.snapshot().policies) {
            warn!(problem, "requests may reach engines without their adapter");
        }
        let spool = Spool::start(spool_config(cfg))
            .map_err(|error| ProxyError::Spool(error.to_string()))?;
        let policies = Arc::clone(&watches);
        let genai = Arc::new(GenAi::default());
        let seen = Arc::clone(&genai);
        let ingest = IngestConfig {
            observer: Observer::of(move |turn| seen.see(turn)),
            policies: Policies::of(move || policies.snapshot().policies),
            reserve_dir: spool_config(cfg).reserve_dir,
            give_way_above_per_mille: cfg.limits.ingest_give_way_above_per_mille,
            give_way_ms_max: cfg.limits.ingest_give_way_ms_max,
            give_way_bytes_max: cfg.limits.ingest_give_way_bytes_max,
            drain_ms_max: cfg.limits.ingest_drain_ms,
            ..IngestConfig::new(&cfg.data, secret)
        };
        let ingest =
            Ingest::start(ingest).map_err(|error| ProxyError::Ingest(error.to_string()))?;
        let recorder = Recorder::new(spool, cfg.limits.capture_bytes_max);
        let (ingest, counters) = (Arc::new(ingest), Arc::new(Counters::default()));
        let limiter = Limiter::new(cfg.limits.traffic_tenants_max);
        let (taking, limits) = (Arc::clone(&recorder), &cfg.limits);
        let feedback = Desk::new(cfg.feedback.clone(), limits, taking, Arc::clone(&limiter));
        let tunnels = Arc::new(Tunnels::default());
        Ok(Self {
            watches,
            recorder,
            ingest,
            counters,
            genai,
            feedback,
            engines,
            limiter,
            tunnels,
            tls,
            secret,
        })
    }

    async fn serve(
        &self,
        cfg: &ProxyConfig,
        mut inherited: Option<Inherited>,
        stop: CancellationToken,
        signals: bool,
        ready: impl FnOnce(Bound),
    ) -> Result<(), ProxyError> {
        let operator = self.operator(cfg)?;
        let data = Listener::open(upgrade::DATA, cfg.listen, inherited.as_mut()).await?;
        let admin = Listener::open(upgrade::ADMIN, cfg.admin, inherited.as_mut()).await?;
        let secure = match &cfg.listen_tls {
            Some(tls) => {
                Some(Listener::open(upgrade::SECURE, tls.address, inherited.as_mut()).await?)
            }
            None => None,
        };
        let bound = Bound {
            address: data.address,
            tls_address: secure.as_ref().map(|listener| listener.address),
            admin_address: admin.address,
        };
        let (background, end) = (TaskTracker::new(), CancellationToken::new());
        if signals {
            let acting = Signals::install()?;
            let watches = Arc::clone(&self.watches);
            background.spawn(acting.listen(stop.clone(), watches, cfg.upgrade_command.clone()));
        }
        let all = [Some(&data), secure.as_ref(), Some(&admin)];
        let sockets = all.into_iter().flatten().map(Listener::spare).collect::<Result<_, _>>()?;
        let admin_end = end.child_token();
        let idle = Duration::from_millis(cfg.limits.admin_idle_ms);
        let tcp = Bounded::new(admin.tcp, cfg.limits.admin_connections_max, idle);
        let served = axum::serve(tcp, admin::router(Arc::clone(&operator)))
            .with_graceful_shutdown(admin_end.clone().cancelled_owned());
        background.spawn(async move { served.await });
        self.follow_engines(cfg, &background, &end).await;
        let proxy = self.proxy(cfg);
        let counters = Arc::clone(&self.counters);
        let secure = secure.map(|listener| listener.tcp).zip(self.tls.clone());
        let listening = Listening::start(data.tcp, secure, proxy, &cfg.limits, counters);
        if let Some(inherited) = inherited {
            // It answers at once or not at all.
            let _ = tokio::task::spawn_blocking(move || inherited.ready()).await;
        }
        let offer = offer(cfg, sockets);
        announce(cfg, bound, signals)?;
        ready(bound);

        tokio::select! {
            () = stop.cancelled() => {
                info!("stopping: no new connections, waiting for open streams");
                operator.draining.store(true, Ordering::Release);
                if signals {
                    signals::tell_stopping();
                }
                drain(cfg.grace_ms, listening.drain(Duration::from_millis(cfg.grace_ms))).await;
            }
            pid = offer => {
                info!(pid, "the successor accepts: waiting for open streams");
                admin_end.cancel();
                hand_over(cfg, listening, &stop).await;
            }
        }
        end.cancel();
        Ok(())
    }

    fn operator(&self, cfg: &ProxyConfig) -> Result<Arc<Operator>, ProxyError> {
        Ok(Arc::new(Operator {
            tokens: Tokens::load(&cfg.data, cfg.admin_token_file.as_deref())?,
            hosts: cfg.admin_hosts.clone(),
            body_bytes_max: cfg.limits.admin_body_bytes_max,
            data: cfg.data.clone(),
            watches: Arc::clone(&self.watches),
            recorder: Arc::clone(&self.recorder),
            ingest: Arc::clone(&self.ingest),
            counters: Arc::clone(&self.counters),
            genai: Arc::clone(&self.genai),
            feedback: Arc::clone(&self.feedback),
            tls: self.tls.clone(),
            engines: Arc::clone(&self.engines),
            limiter: Arc::clone(&self.limiter),
            tunnels: Arc::clone(&self.tunnels),
            draining: AtomicBool::new(false),
        }))
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
        let every = Duration::from_millis(cfg.limits.watch_ms);
        for files in certificates(&self.engines, self.tls.as_deref()) {
            background.spawn(keep_current(files, every, end.clone()));
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
            feedback: Arc::clone(&self.feedback),
            paths_allowed: cfg.paths_allowed.clone(),
            names: Names::new(&self.secret),
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

/// All certificate files, to be read again when they change.
fn certificates(engines: &Engines, tls: Option<&Tls>) -> Vec<Arc<dyn Reread>> {
    tls.map(Tls::files).into_iter().chain([engines.files()]).collect()
}

fn spool_config(cfg: &ProxyConfig) -> SpoolConfig {
    let limits = &cfg.limits;
    SpoolConfig {
        queue_records_max: limits.spool_queue_records_max,
        queue_bytes_max: limits.spool_queue_bytes_max,
        part_bytes: limits.capture_part_bytes,
        part_buffers_max: limits.capture_part_buffers_max,
        disk_bytes_max: limits.spool_bytes_max,
        reserve_dir: Some(cfg.reserve.clone().unwrap_or_else(|| cfg.data.reserve_dir())),
        reserve_bytes_max: limits.reserve_bytes_max,
        tail_dir: cfg.tail.clone(),
        tail_bytes_max: limits.spool_tail_bytes_max,
        ..SpoolConfig::new(cfg.data.spool_dir())
    }
}

/// A bound listener.
struct Listener {
    name: &'static str,
    tcp: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Takes the listener over from the running proxy, or binds it.
    async fn open(
        name: &'static str,
        address: SocketAddr,
        inherited: Option<&mut Inherited>,
    ) -> Result<Self, ProxyError> {
        let fail = |source| ProxyError::Bind { address, source };
        let tcp = match inherited.and_then(|from| from.socket(name, address)) {
            Some(tcp) => {
                tcp.set_nonblocking(true).and_then(|()| TcpListener::from_std(tcp)).map_err(fail)?
            }
            None => TcpListener::bind(address).await.map_err(fail)?,
        };
        let address = tcp.local_addr().map_err(fail)?;
        Ok(Self { name, tcp, address })
    }

    /// A second descriptor, for a successor.
    fn spare(&self) -> Result<upgrade::offer::Socket, ProxyError> {
        let fail = |source| ProxyError::Bind { address: self.address, source };
        let fd = self.tcp.as_fd().try_clone_to_owned().map_err(fail)?;
        Ok(upgrade::offer::Socket { name: self.name, address: self.address, fd })
    }
}

/// Resolves when a successor has taken over; never, where that cannot be offered. Dropping it closes
/// the spare descriptors.
fn offer(cfg: &ProxyConfig, sockets: Vec<upgrade::offer::Socket>) -> impl Future<Output = u32> {
    let ready = Duration::from_millis(cfg.limits.upgrade_ready_ms);
    let offer = Offer::open(&cfg.data, sockets, ready);
    if let Err(error) = &offer {
        warn!(%error, "this proxy cannot be upgraded in place");
    }
    async move {
        match offer {
            Ok(offer) => offer.handed_over().await,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Tells the world where this process listens.
fn announce(cfg: &ProxyConfig, bound: Bound, signals: bool) -> Result<(), ProxyError> {
    let file = RunFile {
        pid: std::process::id(),
        address: bound.address.to_string(),
        admin_address: Some(bound.admin_address.to_string()),
        started_ms: now_ms(),
    };
    file.write(&cfg.data, "proxy")?;
    let Bound { address, tls_address, admin_address } = bound;
    let engines: Vec<String> = cfg.upstreams.iter().map(Upstream::authority).collect();
    info!(%address, ?tls_address, %admin_address, ?engines, "proxy ready");
    if signals {
        signals::tell_ready();
    }
    Ok(())
}

/// Waits for streams, and says so if they do not end.
async fn drain(grace_ms: u64, drained: impl Future<Output = bool>) {
    if !drained.await {
        warn!(grace_ms, "streams were still open after the grace period and are cut");
    }
}

/// After a successor took over: idle connections get time to leave by themselves, streams all they
/// need. A SIGTERM meanwhile shortens both to the usual grace.
async fn hand_over(cfg: &ProxyConfig, listening: Listening, stop: &CancellationToken) {
    let linger = Duration::from_millis(cfg.limits.upgrade_linger_ms);
    stop.run_until_cancelled(listening.hand_over(linger)).await;
    let grace = async {
        stop.cancelled().await;
        tokio::time::sleep(Duration::from_millis(cfg.grace_ms)).await;
        false
    };
    let drained = listening.drain(Duration::from_millis(cfg.limits.upgrade_drain_ms));
    let either = async {
        tokio::select! { drained = drained => drained, cut = grace => cut }
    };
    drain(cfg.limits.upgrade_drain_ms, either).await;
}
