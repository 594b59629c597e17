//! A proxy for one test: its own data directory, policies and ports.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hone_proxy::{Bound, ProxyConfig, ProxyError, Upstream};
use hone_shared::data_dir::DataDir;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::client::{Response, ask, get_admin};
pub use crate::rows::{Row, turns_in};

/// How long a test waits for something that is bound to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running proxy.
pub struct Proxy {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub tls_address: Option<SocketAddr>,
    pub data: DataDir,
    _dir: tempfile::TempDir,
    stop: CancellationToken,
    thread: Option<JoinHandle<Result<(), ProxyError>>>,
}

/// The policy of all paths under `/v1/`, in a mode.
pub fn write_policies(data: &DataDir, mode: &str) {
    let dir = data.policies_dir();
    hone_shared::policy::install_builtin(&dir).unwrap();
    for entry in std::fs::read_dir(dir.join("routes")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let name = |section: &str| {
        let file = std::fs::read_dir(dir.join(section)).unwrap().next().unwrap().unwrap();
        file.path().file_stem().unwrap().to_string_lossy().into_owned()
    };
    let text = format!(
        "mode = \"{mode}\"\nalias = \"main\"\njudge = \"{}\"\ngate = \"{}\"\n\
         [matches]\npaths = [\"/v1/*\"]\n",
        name("judges"),
        name("gates")
    );
    std::fs::write(dir.join("routes/test.toml"), text).unwrap();
}

/// A configuration for `data` in front of `upstream`, on free ports.
pub fn config(data: &Path, upstream: SocketAddr) -> ProxyConfig {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let upstream = Upstream::parse(&format!("http://{upstream}")).unwrap();
    let mut cfg = ProxyConfig::new(DataDir::new(data), any, any, vec![upstream]);
    cfg.threads = 2;
    cfg.grace_ms = 10_000;
    cfg.limits.watch_ms = 3_600_000; // Tests refresh by hand.
    cfg
}

impl Proxy {
    /// A proxy in front of `upstream` with every path under `/v1/` in `mode`.
    pub async fn start(upstream: SocketAddr, mode: &str) -> Self {
        Self::with(upstream, mode, |_| {}).await
    }

    /// As `start`, with another configuration.
    pub async fn with(
        upstream: SocketAddr,
        mode: &str,
        change: impl FnOnce(&mut ProxyConfig),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cfg = config(dir.path(), upstream);
        cfg.data.create().unwrap();
        write_policies(&cfg.data, mode);
        change(&mut cfg);
        let (data, stop) = (cfg.data.clone(), CancellationToken::new());
        let (told, bound) = mpsc::channel::<Bound>();
        let token = stop.clone();
        let thread = std::thread::spawn(move || {
            hone_proxy::serve(cfg, token, false, |bound| told.send(bound).unwrap())
        });
        let bound = tokio::task::spawn_blocking(move || bound.recv()).await.unwrap();
        let Ok(bound) = bound else { panic!("no start: {:?}", thread.join()) };
        let (address, admin) = (bound.address, bound.admin_address);
        let tls_address = bound.tls_address;
        Self { address, admin, tls_address, data, _dir: dir, stop, thread: Some(thread) }
    }

    /// Begins the shutdown.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Ends the shutdown; how long it took.
    pub async fn join(&mut self) -> Duration {
        self.stop();
        let (thread, since) = (self.thread.take().unwrap(), Instant::now());
        let ended = tokio::task::spawn_blocking(move || thread.join()).await.unwrap();
        ended.unwrap().unwrap();
        since.elapsed()
    }

    /// A GET on the admin listener, with its token.
    pub async fn admin_get(&self, path: &str) -> Response {
        let token = self.data.admin_token().unwrap();
        get_admin(
            self.admin,
            path,
            &format!("Authorization: Bearer {token}\r\nConnection: close\r\n"),
        )
        .await
    }

    /// Any request on the admin listener, with its token.
    pub async fn admin_ask(&self, method: &str, path: &str, body: &str) -> Response {
        let (token, length) = (self.data.admin_token().unwrap(), body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        ask(self.admin, request.as_bytes()).await
    }

    /// Reads policies and aliases again.
    pub async fn refresh(&self) -> Value {
        let token = self.data.admin_token().unwrap();
        let request = format!(
            "POST /v1/refresh HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let response = ask(self.admin, request.as_bytes()).await;
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    pub async fn status(&self) -> Value {
        self.admin_get("/v1/status").await.json()
    }

    /// Waits until all `n` recorded requests have ended, then until nothing is pending; the
    /// counters.
    pub async fn settled(&self, n: u64) -> Value {
        let since = Instant::now();
        loop {
            let counters = self.status().await["counters"].clone();
            let dropped: u64 = counters["dropped"].as_object().unwrap().values().map(number).sum();
            let sum = number(&counters["stored"]) + dropped + number(&counters["pending"]);
            assert_eq!(number(&counters["requests"]), sum, "the books do not balance: {counters}");
            if number(&counters["requests"]) == n && number(&counters["pending"]) == 0 {
                return counters;
            }
            assert!(since.elapsed() < PATIENCE, "not settled: {counters}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All turns in the store, oldest first, as rows.
    pub fn turns(&self) -> Vec<Row> {
        turns_in(&self.data)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A JSON number.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// Waits until `check` holds.
pub async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let since = Instant::now();
    while !check() {
        assert!(since.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
