//! The accept loop of the data listener, and its end.
//!
//! Pingora's own `Server` always sleeps its whole grace period, cannot report port 0 and dies of
//! SIGHUP; this loop hands each connection to pingora's HTTP machinery and waits at shutdown only
//! while streams are open.
//!
//! Each connection goes through a [`socket`], whose read side ([`inlet`]) lets only what the framing
//! [`gate`] has checked reach pingora, and which ends clients that keep others waiting ([`pace`]).
//!
//! Invariant: every connection is a task of the tracker, holds one of a bounded number of places
//! until its socket is closed, and has a deadline for whatever it is waited for.

pub mod cork;
pub mod gate;
pub mod inlet;
pub mod pace;
pub mod places;
pub mod socket;
pub mod tls;

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
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

use self::gate::{Caps, Refusal};
use self::places::{Place, Places};
use self::socket::{Socket, Transport};
use self::tls::Tls;
use crate::admin::counters::Counters;
use crate::config::Limits;
use crate::service::Service;

/// After an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The running data listener.
pub struct Listening {
    proxy: Arc<HttpProxy<Service>>,
    tracker: TaskTracker,
    accept: CancellationToken,
    stop: CancellationToken,
    shutdown: watch::Sender<bool>,
}

/// What all connections share: how long and how much, and where it is counted.
#[derive(Debug)]
pub struct Door {
    /// Bounds of a head.
    pub caps: Caps,
    /// From a connection to its first byte.
    pub first_byte: Duration,
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// How long a body may be waited for, beyond what its bytes take at the minimum rate.
    pub body_grace: Duration,
    /// The minimum rate of a body.
    pub body_bytes_per_s_min: u32,
    /// How long a client may leave unread what is written to it, beyond what it takes at the
    /// minimum rate.
    pub write: Duration,
    /// The minimum rate at which a client reads.
    pub send_bytes_per_s_min: u32,
    /// Control frames of an HTTP/2 connection.
    pub h2_frames_per_s_max: u32,
    /// How long a closing connection still reads.
    pub linger: Duration,
    /// Where refusals are counted.
    pub counters: Arc<Counters>,
}

impl Door {
    /// The limits that concern it.
    pub fn new(limits: &Limits, counters: Arc<Counters>) -> Self {
        let ms = Duration::from_millis;
        Self {
            caps: Caps {
                head_bytes_max: limits.client_head_bytes_max,
                request_line_bytes_max: limits.client_request_line_bytes_max,
                fields_max: limits.client_fields_max,
            },
            first_byte: ms(limits.client_first_byte_ms),
            head: ms(limits.client_head_ms),
            idle: ms(limits.client_idle_ms),
            body_grace: ms(limits.client_body_grace_ms),
            body_bytes_per_s_min: limits.client_body_bytes_per_s_min,
            write: ms(limits.client_write_ms),
            send_bytes_per_s_min: limits.client_send_bytes_per_s_min,
            h2_frames_per_s_max: limits.h2_frames_per_s_max,
            linger: ms(limits.client_linger_ms),
            counters,
        }
    }
}

/// What one connection needs.
#[derive(Clone)]
struct Connection {
    proxy: Arc<HttpProxy<Service>>,
    tracker: TaskTracker,
    stop: CancellationToken,
    shutdown: ShutdownWatch,
    door: Arc<Door>,
}

impl Listening {
    /// Starts accepting on `tcp`, and with TLS on `secure`. Both share all limits.
    pub fn start(
        tcp: TcpListener,
        secure: Option<(TcpListener, Arc<Tls>)>,
        proxy: Arc<HttpProxy<Service>>,
        limits: &Limits,
        counters: Arc<Counters>,
    ) -> Self {
        let (shutdown, _) = watch::channel(false);
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let accept = stop.child_token();
        let entrance = Arc::new(Entrance {
            permits: Arc::new(Semaphore::new(limits.connections_max)),
            places: Places::new(limits.connections_per_address_max),
            accept: accept.clone(),
            template: Connection {
                proxy: Arc::clone(&proxy),
                tracker: tracker.clone(),
                stop: stop.clone(),
                shutdown: shutdown.subscribe(),
                door: Arc::new(Door::new(limits, counters)),
            },
        });
        tracker.spawn(Arc::clone(&entrance).accept_loop(tcp, None));
        if let Some((tcp, tls)) = secure {
            tracker.spawn(entrance.accept_loop(tcp, Some(tls)));
        }
        Self { proxy, tracker, accept, stop, shutdown }
    }

    /// Stops accepting, because a successor does. Connections stay: each is told with its next
    /// answer that it ends, so that no request meets a connection that closes in that moment.
    /// Returns when all have ended, or after `linger`.
    pub async fn hand_over(&self, linger: Duration) {
        self.accept.cancel();
        let _ = self.shutdown.send(true);
        self.tracker.close();
        // Those that are left are idle, or stream: `drain` tells them apart.
        let _ = tokio::time::timeout(linger, self.tracker.wait()).await;
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

/// Where connections come in.
struct Entrance {
    permits: Arc<Semaphore>,
    places: Arc<Places>,
    accept: CancellationToken,
    template: Connection,
}

impl Entrance {
    async fn accept_loop(self: Arc<Self>, tcp: TcpListener, tls: Option<Arc<Tls>>) {
        loop {
            let accepted = self.accept.run_until_cancelled(async {
                // The permit comes first: when all are taken, clients wait in the kernel's backlog.
                let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
                Some((tcp.accept().await, permit))
            });
            match accepted.await {
                Some(Some((Ok((stream, client)), permit))) => {
                    self.admit(stream, client, permit, tls.clone());
                }
                Some(Some((Err(error), _))) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Some(None) | None => return,
            }
        }
    }

    fn admit(
        &self,
        stream: TcpStream,
        client: SocketAddr,
        permit: OwnedSemaphorePermit,
        tls: Option<Arc<Tls>>,
    ) {
        let Some(place) = self.places.take(client.ip(), permit) else {
            return self.template.door.counters.refused(Refusal::AddressFull);
        };
        // A stream without the option works, only more slowly.
        let _ = stream.set_nodelay(true);
        let (fd, connection) = (stream.as_raw_fd(), self.template.clone());
        match tls {
            None => self.template.tracker.spawn(connection.serve(stream, fd, place)),
            Some(tls) => self.template.tracker.spawn(connection.serve_tls(stream, fd, place, tls)),
        };
    }
}

impl Connection {
    /// As [`Connection::serve`], after a handshake.
    async fn serve_tls(self, stream: TcpStream, fd: i32, place: Place, tls: Arc<Tls>) {
        let shaken = self.stop.run_until_cancelled(tls.accept(stream)).await;
        if let Some(Some(stream)) = shaken {
            self.serve(stream, fd, place).await;
        }
    }

    /// Serves requests over `stream`, whose TCP socket is `fd`, until it ends.
    async fn serve(self, stream: impl Transport, fd: i32, place: Place) {
        let linger = socket::Linger {
            place,
            tracker: self.tracker.clone(),
            stop: self.stop.clone(),
            time: self.door.linger,
        };
        let mut socket = Box::new(Socket::new(stream, fd, linger, Arc::clone(&self.door)));
        let first = tokio::time::timeout(self.door.first_byte, socket.speaks_h2());
        let h2 = match self.stop.run_until_cancelled(first).await {
            Some(Ok(Ok(h2))) => h2,
            Some(Ok(Err(error))) => return debug!(%error, "connection ended before its first byte"),
            Some(Err(_)) | None => return,
        };
        if h2 {
            self.proxy.process_new(socket, &self.shutdown).await;
        } else if let Some(cork) = socket.cork() {
            cork.hold(self.serve_h1(socket)).await;
        }
    }

    /// Request after request on one connection, as pingora's own loop does it, except that the gate
    /// lets the next one in only when this one is answered.
    async fn serve_h1<S: Transport>(&self, socket: Box<Socket<S>>) {
        let mut session = ServerSession::new_http1(socket);
        // Without a time limit of pingora's: the inlet ends idle connections.
        session.set_keepalive((!*self.shutdown.borrow()).then_some(0));
        let mut reusable = self.proxy.process_new_http(session, &self.shutdown).await;
        while let Some((stream, settings)) = reusable.map(|r| r.consume()) {
            let Ok(mut socket) = stream.into_any().downcast::<Socket<S>>() else { return };
            if !socket.next_request() {
                return;
            }
            let mut session = ServerSession::new_http1(socket);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            reusable = self.proxy.process_new_http(session, &self.shutdown).await;
        }
    }
}
