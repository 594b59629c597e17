//! The accept loop of the data listener, and its end.
//!
//! Pingora's own `Server` always sleeps its whole grace period, cannot report port 0 and dies of
//! SIGHUP; this loop hands each connection to pingora's HTTP machinery and waits at shutdown only
//! while streams are open.
//!
//! Invariant: every connection is a task of the tracker, holds one of a bounded number of permits
//! until its socket is closed, and has a deadline for its first byte.

pub mod socket;
pub mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::socket::Socket;
use crate::config::Limits;
use crate::service::Service;

/// What an HTTP/2 client with prior knowledge sends first.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Between two looks at a first packet that ends inside the preface.
const PREFACE_POLL: Duration = Duration::from_millis(5);
/// After an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The running data listener.
pub struct Listening {
    proxy: Arc<HttpProxy<Service>>,
    tracker: TaskTracker,
    stop: CancellationToken,
    shutdown: watch::Sender<bool>,
}

/// What one connection needs.
struct Connection {
    proxy: Arc<HttpProxy<Service>>,
    tracker: TaskTracker,
    stop: CancellationToken,
    shutdown: ShutdownWatch,
    first_byte: Duration,
    linger: Duration,
    idle_s: u64,
}

impl Listening {
    /// Starts accepting on `tcp`.
    pub fn start(tcp: TcpListener, proxy: Arc<HttpProxy<Service>>, limits: &Limits) -> Self {
        let (shutdown, _) = watch::channel(false);
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let permits = Arc::new(Semaphore::new(limits.connections_max));
        let template = Connection {
            proxy: Arc::clone(&proxy),
            tracker: tracker.clone(),
            stop: stop.clone(),
            shutdown: shutdown.subscribe(),
            first_byte: Duration::from_millis(limits.client_first_byte_ms),
            linger: Duration::from_millis(limits.client_linger_ms),
            idle_s: limits.client_idle_ms.div_ceil(1000).max(1),
        };
        tracker.spawn(accept_loop(tcp, permits, template));
        Self { proxy, tracker, stop, shutdown }
    }

    /// Stops accepting, closes idle connections, and waits until the open streams have ended, at
    /// most `grace`. Returns whether they all did.
    pub async fn drain(self, grace: Duration) -> bool {
        self.stop.cancel();
        let _ = self.shutdown.send(true);
        self.proxy.http_cleanup().await;
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

async fn accept_loop(tcp: TcpListener, permits: Arc<Semaphore>, template: Connection) {
    let stop = template.stop.clone();
    loop {
        let accepted = stop.run_until_cancelled(async {
            // The permit comes first: when all are taken, clients wait in the kernel's backlog.
            let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
            Some((tcp.accept().await, permit))
        });
        match accepted.await {
            Some(Some((Ok((stream, _)), permit))) => {
                let connection = template.clone();
                template.tracker.spawn(connection.serve(stream, permit));
            }
            Some(Some((Err(error), _))) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Some(None) | None => return,
        }
    }
}

impl Clone for Connection {
    fn clone(&self) -> Self {
        Self {
            proxy: Arc::clone(&self.proxy),
            tracker: self.tracker.clone(),
            stop: self.stop.clone(),
            shutdown: self.shutdown.clone(),
            first_byte: self.first_byte,
            linger: self.linger,
            idle_s: self.idle_s,
        }
    }
}

impl Connection {
    async fn serve(self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let first = tokio::time::timeout(self.first_byte, speaks_h2(&stream));
        let h2 = match self.stop.run_until_cancelled(first).await {
            Some(Ok(Ok(h2))) => h2,
            Some(Ok(Err(error))) => return debug!(%error, "connection ended before its first byte"),
            Some(Err(_)) | None => return,
        };
        let linger = socket::Linger {
            permit,
            tracker: self.tracker.clone(),
            stop: self.stop.clone(),
            time: self.linger,
        };
        let socket = Box::new(Socket::new(stream, linger));
        if h2 {
            self.proxy.process_new(socket, &self.shutdown).await;
        } else {
            self.serve_h1(socket).await;
        }
    }

    /// Request after request on one connection, as pingora's own loop does it.
    async fn serve_h1(&self, socket: Box<Socket>) {
        let mut session = ServerSession::new_http1(socket);
        let keepalive = (!*self.shutdown.borrow()).then_some(self.idle_s);
        session.set_keepalive(keepalive);
        let mut reusable = self.proxy.process_new_http(session, &self.shutdown).await;
        while let Some((stream, settings)) = reusable.map(|r| r.consume()) {
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            reusable = self.proxy.process_new_http(session, &self.shutdown).await;
        }
    }
}

/// Whether the client begins with the HTTP/2 preface; nothing is consumed. Pingora's own test waits
/// for 24 bytes, which a short HTTP/1 request never sends.
async fn speaks_h2(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0u8; H2_PREFACE.len()];
    loop {
        let n = stream.peek(&mut seen).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if seen[..n] != H2_PREFACE[..n] {
            return Ok(false);
        }
        if n == H2_PREFACE.len() {
            return Ok(true);
        }
        tokio::time::sleep(PREFACE_POLL).await;
    }
}
