//! What an operator can set, with every limit and its default in one table.
//!
//! Invariant: nothing else in this crate reads the environment or a literal limit; a queue, pool or
//! wait that is not bounded here is a bug.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use hone_shared::data_dir::DataDir;
use serde::{Deserialize, Serialize};

mod feedback;
mod file;

pub use feedback::{Answer, FeedbackConfig, FeedbackFile};
pub(crate) use file::learns_alone;
pub use file::{ConfigFileError, ProxyFile, check};

use crate::pem::KeyFiles;
use crate::upstream::EngineTls;

/// Where memory outlives a process, on Linux.
const TAIL: &str = "/dev/shm";

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the upstream `{given}` cannot be used: {problem}")]
pub struct UpstreamError {
    given: String,
    problem: &'static str,
}

/// One engine behind the proxy: scheme, host and port. Paths are the client's business and are
/// never rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Whether to speak TLS to it.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Upstream {
    /// Reads `http://host[:port]` or `https://host[:port]`. Errors: another scheme, a path, a
    /// query, user data, no host.
    pub fn parse(url: &str) -> Result<Self, UpstreamError> {
        let fail = |problem| UpstreamError { given: url.to_owned(), problem };
        let (tls, rest) = match url.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(fail("write it as http://host:port or https://host:port")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(fail("leave the path away: clients send /v1/... themselves"));
        }
        if authority.contains('@') {
            return Err(fail("it may not hold a user name or password"));
        }
        let (host, port) = split_port(authority).ok_or_else(|| fail("the port is not a number"))?;
        if host.is_empty() {
            return Err(fail("the host is missing"));
        }
        let port = port.unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host: host.to_owned(), port })
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => format!("[{}]:{}", self.host, self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    /// The `Host` header to send, where the engine may be one of several behind a name; `None`
    /// keeps the client's own.
    pub fn host_header(&self) -> Option<String> {
        let by_name = self.host.parse::<IpAddr>().is_err() && self.host != "localhost";
        let default_port = self.port == if self.tls { 443 } else { 80 };
        by_name.then(|| if default_port { self.host.clone() } else { self.authority() })
    }
}

/// Splits `host[:port]` and `[v6][:port]`; `None` when the port is not a number.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    if let Some((host, rest)) = authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    match authority.split_once(':') {
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((authority, None)),
    }
}

/// Everything that [`crate::run`] needs.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// The installation's data directory.
    pub data: DataDir,
    /// Where clients connect. Port 0 takes a free port; `run/proxy.json` says which.
    pub listen: SocketAddr,
    /// Where operators connect, with the token of `<data>/admin.token`.
    pub admin: SocketAddr,
    /// Where clients connect with TLS, besides `listen`.
    pub listen_tls: Option<ListenTls>,
    /// The engines, all serving the same model; at least one.
    pub upstreams: Vec<Upstream>,
    /// How TLS is spoken to those with `https`.
    pub engine_tls: EngineTls,
    /// What a health check asks an engine for; done only where there are several to choose from.
    pub engine_health_path: String,
    /// How long a shutdown waits for open streams, milliseconds. It waits only while there are any.
    pub grace_ms: u64,
    /// Worker threads; 0 = one per core.
    pub threads: usize,
    /// Take the listeners of the proxy that runs in this data directory over, if one does.
    pub upgrade: bool,
    /// Program and arguments that SIGUSR2 starts as the successor; they must include `--upgrade`.
    pub upgrade_command: Option<Vec<OsString>>,
    /// Further admin tokens, besides `<data>/admin.token`: one `NAME TOKEN` per line, mode 0600.
    /// Needed to listen for operators anywhere but on a loopback address.
    pub admin_token_file: Option<PathBuf>,
    /// Names by which operators may call the admin listener, besides addresses and `localhost`.
    pub admin_hosts: Vec<String>,
    /// Prefixes of the paths that clients may reach, in whole segments; empty: all but admin
    /// endpoints. What hone answers itself (feedback) needs no prefix.
    pub paths_allowed: Vec<String>,
    /// Where turns are spooled while the spool in the data directory is full or cannot be written;
    /// best on another disk. `None`: `<data>/reserve`.
    pub reserve: Option<PathBuf>,
    /// A directory in a memory file system, where records outlive a killed proxy until they are
    /// written to the spool; `None`: answers wait where the spool is late, at most
    /// `record_wait_ms_max`.
    pub tail: Option<PathBuf>,
    /// How feedback is answered.
    pub feedback: FeedbackConfig,
    /// All other bounds.
    pub limits: Limits,
}

impl ProxyConfig {
    /// A configuration with every default: no TLS, grace 30 s, one thread per core.
    pub fn new(
        data: DataDir,
        listen: SocketAddr,
        admin: SocketAddr,
        upstreams: Vec<Upstream>,
    ) -> Self {
        Self {
            data,
            listen,
            admin,
            listen_tls: None,
            upstreams,
            engine_tls: EngineTls::default(),
            engine_health_path: "/health".to_owned(),
            grace_ms: 30_000,
            threads: 0,
            upgrade: false,
            upgrade_command: None,
            admin_token_file: None,
            admin_hosts: Vec::new(),
            paths_allowed: Vec::new(),
            reserve: None,
            tail: Some(PathBuf::from(TAIL)),
            feedback: FeedbackConfig::default(),
            limits: Limits::default(),
        }
    }
}

/// A listener that speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenTls {
    /// Where clients connect.
    pub address: SocketAddr,
    /// The certificate shown to them; read again when the files change.
    pub files: KeyFiles,
}

/// The bounds. Times in milliseconds, sizes in bytes. In `proxy.toml` they stand under `[limits]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Client connections at once; further ones wait in the kernel's backlog.
    pub connections_max: usize,
    /// Of those, connections from one address (one /64 for IPv6); further ones are closed.
    pub connections_per_address_max: usize,
    /// Concurrent streams on one HTTP/2 connection.
    pub h2_streams_max: u32,
    /// Control frames (pings, settings, resets …) of one HTTP/2 connection per second; ten times
    /// that at once.
    pub h2_frames_per_s_max: u32,
    /// From accepting a connection to its first byte.
    pub client_first_byte_ms: u64,
    /// From the first byte of a request head to its last.
    pub client_head_ms: u64,
    /// A whole request head; a larger one is answered with 431.
    pub client_head_bytes_max: usize,
    /// Its first line; a longer one is answered with 414.
    pub client_request_line_bytes_max: usize,
    /// Its fields; more are answered with 431.
    pub client_fields_max: usize,
    /// Between two reads of a request body.
    pub client_read_ms: u64,
    /// How long a request body may be waited for in all, beyond what its bytes take at the minimum
    /// rate.
    pub client_body_grace_ms: u64,
    /// The minimum rate of a request body.
    pub client_body_bytes_per_s_min: u32,
    /// How long a client may leave unread what is written to it, beyond what it takes at the
    /// minimum rate.
    pub client_write_ms: u64,
    /// The minimum rate at which a client reads.
    pub client_send_bytes_per_s_min: u32,
    /// How long an idle client connection stays open.
    pub client_idle_ms: u64,
    /// How long a closing connection still reads, so that the client gets the answer before the
    /// reset.
    pub client_linger_ms: u64,
    /// Largest request body; a larger one is answered with 413.
    pub request_bytes_max: u64,
    /// Connecting to the engine.
    pub upstream_connect_ms: u64,
    /// Between two reads from the engine; bounds the wait for a first token.
    pub upstream_read_ms: u64,
    /// For one write to the engine.
    pub upstream_write_ms: u64,
    /// How long an idle engine connection is kept. Seconds below the engine's own keep-alive
    /// (uvicorn: 5 s), or requests race against its close.
    pub upstream_idle_ms: u64,
    /// Idle engine connections per thread.
    pub upstream_idle_max: usize,
    /// How often a request may be sent upstream.
    pub upstream_attempts_max: usize,
    /// Bodies up to this size can be replayed, so they may use a pooled connection (pingora's retry
    /// buffer).
    pub upstream_replay_bytes_max: u64,
    /// How often the engine's name is resolved again.
    pub upstream_resolve_ms: u64,
    /// Concurrent streams on one HTTP/2 connection to an engine.
    pub upstream_h2_streams_max: usize,
    /// Engines that may be configured.
    pub engines_max: usize,
    /// Between two health checks of an engine.
    pub engine_probe_ms: u64,
    /// For one health check.
    pub engine_probe_timeout_ms: u64,
    /// Failed connects, or failed health checks, in a row that put an engine's address out of use.
    pub engine_failures_max: u32,
    /// How long failed connects put it out of use; health checks decide by themselves.
    pub engine_cooldown_ms: u64,
    /// How long a WebSocket may be silent in both directions.
    pub tunnel_idle_ms: u64,
    /// How long an answer waits at most for its request to be recorded, when the thread that records
    /// gets no processor, milliseconds. Only without a tail, or where it has no room.
    pub record_wait_ms_max: u64,
    /// For the TLS handshake of a client.
    pub tls_handshake_ms: u64,
    /// Pairs of route and tenant whose traffic is counted apart; further ones share.
    pub traffic_tenants_max: usize,
    /// Bytes that all captures in flight may hold together; beyond it captures are cut and marked.
    pub capture_bytes_max: u64,
    /// Largest body of feedback; a larger one is answered with 413.
    pub feedback_body_bytes_max: usize,
    /// For the upload of one body of feedback.
    pub feedback_upload_ms: u64,
    /// Bytes of all bodies of feedback that are being uploaded; beyond it, answered with 503.
    pub feedback_upload_bytes_max: usize,
    /// Pieces of feedback of one tenant per minute; all without a credential are one tenant.
    pub feedback_per_minute_max: u64,
    /// How long the rest of a request body is read, for the record, when the engine cannot be
    /// reached.
    pub rest_read_ms: u64,
    /// Records that wait in memory for the spool.
    pub spool_queue_records_max: usize,
    /// Bytes that wait in memory for the spool.
    pub spool_queue_bytes_max: usize,
    /// Bytes of the tail in memory; beyond it, records are written at once.
    pub spool_tail_bytes_max: u64,
    /// Bytes of the spool on disk; beyond it, turns go to the reserve.
    pub spool_bytes_max: u64,
    /// Bytes of the reserve on disk; beyond it, each route's `capture.when_full` decides.
    pub reserve_bytes_max: u64,
    /// Length of the parts in which a long response goes to the spool while it streams; so much of
    /// each open stream is in memory, at most.
    pub capture_part_bytes: usize,
    /// Buffers of parts that are kept to be filled again.
    pub capture_part_buffers_max: usize,
    /// How often policy files and aliases are looked at.
    pub watch_ms: u64,
    /// While the proxy without the ingest uses so much of all processors, per mille, turns wait in
    /// the spool...
    pub ingest_give_way_above_per_mille: u32,
    /// ... until one of them has waited so long...
    pub ingest_give_way_ms_max: u64,
    /// ... or there are so many bytes of them.
    pub ingest_give_way_bytes_max: u64,
    /// How long the ingest may take to empty the spool at shutdown.
    pub ingest_drain_ms: u64,
    /// Operators' connections at once; further ones wait.
    pub admin_connections_max: usize,
    /// How long an operator's connection may be silent.
    pub admin_idle_ms: u64,
    /// Largest request body on the admin listener.
    pub admin_body_bytes_max: usize,
    /// How long a successor may take from asking for the listeners to being ready.
    pub upgrade_ready_ms: u64,
    /// How long connections that are idle stay open after a successor took over, so that none closes
    /// in the moment of a request.
    pub upgrade_linger_ms: u64,
    /// How long streams may go on after a successor took over.
    pub upgrade_drain_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            connections_per_address_max: 4096,
            h2_streams_max: 100,
            h2_frames_per_s_max: 100,
            client_first_byte_ms: 10_000,
            client_head_ms: 10_000,
            client_head_bytes_max: 64 << 10,
            client_request_line_bytes_max: 8 << 10,
            client_fields_max: 100,
            client_read_ms: 60_000,
            client_body_grace_ms: 10_000,
            client_body_bytes_per_s_min: 240,
            client_write_ms: 10_000,
            client_send_bytes_per_s_min: 240,
            client_idle_ms: 60_000,
            client_linger_ms: 1_000,
            request_bytes_max: 64 << 20,
            upstream_connect_ms: 2_000,
            upstream_read_ms: 600_000,
            upstream_write_ms: 60_000,
            upstream_idle_ms: 2_000,
            upstream_idle_max: 128,
            upstream_attempts_max: 3,
            upstream_replay_bytes_max: 64 << 10,
            upstream_resolve_ms: 5_000,
            upstream_h2_streams_max: 100,
            engines_max: 64,
            engine_probe_ms: 2_000,
            engine_probe_timeout_ms: 1_000,
            engine_failures_max: 3,
            engine_cooldown_ms: 10_000,
            tunnel_idle_ms: 300_000,
            record_wait_ms_max: 250,
            tls_handshake_ms: 10_000,
            traffic_tenants_max: 65_536,
            capture_bytes_max: 256 << 20,
            feedback_body_bytes_max: 64 << 10,
            feedback_upload_ms: 10_000,
            feedback_upload_bytes_max: 64 << 20,
            feedback_per_minute_max: 600,
            rest_read_ms: 5_000,
            spool_queue_records_max: 65_536,
            spool_queue_bytes_max: 256 << 20,
            spool_tail_bytes_max: 8 << 20,
            spool_bytes_max: 16 << 30,
            reserve_bytes_max: 1 << 30,
            capture_part_bytes: 10 << 10,
            capture_part_buffers_max: 64,
            watch_ms: 500,
            ingest_give_way_above_per_mille: 150,
            ingest_give_way_ms_max: 5_000,
            ingest_give_way_bytes_max: 256 << 20,
            ingest_drain_ms: 10_000,
            admin_connections_max: 64,
            admin_idle_ms: 30_000,
            admin_body_bytes_max: 64 << 10,
            upgrade_ready_ms: 60_000,
            upgrade_linger_ms: 5_000,
            upgrade_drain_ms: 3_600_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_scheme_a_host_and_a_port() {
        let plain = Upstream::parse("http://127.0.0.1:8000/").unwrap();
        assert_eq!(plain, Upstream { tls: false, host: "127.0.0.1".to_owned(), port: 8000 });
        assert_eq!(plain.host_header(), None, "an address keeps the client's Host");
        let named = Upstream::parse("https://engine.example").unwrap();
        assert_eq!((named.port, named.host_header().as_deref()), (443, Some("engine.example")));
        let six = Upstream::parse("http://[::1]:9").unwrap();
        assert_eq!(six.authority(), "[::1]:9");
        assert_eq!(
            Upstream::parse("http://engine:8000").unwrap().host_header().unwrap(),
            "engine:8000"
        );
    }

    #[test]
    fn an_upstream_that_cannot_be_used_says_why() {
        for (given, word) in [
            ("127.0.0.1:8000", "http://host:port"),
            ("ftp://x", "http://host:port"),
            ("http://x/v1", "path"),
            ("http://u:p@x", "password"),
            ("http://:80", "host"),
            ("http://x:http", "number"),
        ] {
            let text = Upstream::parse(given).unwrap_err().to_string();
            assert!(text.contains(word) && text.contains(given), "{text}");
        }
    }
}
