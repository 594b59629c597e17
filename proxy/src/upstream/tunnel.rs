//! Connections that stop being HTTP: WebSocket.
//!
//! Their bytes are nobody's turn: they pass untouched in both directions and are only counted. A
//! tunnel ends when either side closes, when nothing has passed either way for the idle limit, or
//! when a shutdown's grace period is over.
//!
//! Only `Upgrade: websocket` is passed on; pingora takes every other `Upgrade` off the request,
//! which is then answered as ordinary HTTP. (A tunnel of h2c would carry requests past the door:
//! invariant 6.)
//!
//! Invariant: a tunnel is counted as open until its guard is dropped.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{Error, ErrorType, OrErr};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// All tunnels of the process.
#[derive(Debug, Default)]
pub struct Tunnels {
    opened: AtomicU64,
    open: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

/// The figures of tunnels.
#[derive(Debug, Serialize)]
pub struct TunnelState {
    /// Since the start.
    pub opened: u64,
    /// Now.
    pub open: u64,
    /// From clients to engines.
    pub sent_bytes: u64,
    /// From engines to clients.
    pub received_bytes: u64,
}

/// One open tunnel.
#[derive(Debug)]
pub struct Tunnel(Arc<Tunnels>);

impl Tunnels {
    /// The engine agreed to the upgrade.
    pub fn open(self: &Arc<Self>) -> Tunnel {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Tunnel(Arc::clone(self))
    }

    /// The figures now.
    pub fn snapshot(&self) -> TunnelState {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TunnelState {
            opened: read(&self.opened),
            open: read(&self.open),
            sent_bytes: read(&self.sent_bytes),
            received_bytes: read(&self.received_bytes),
        }
    }
}

impl Tunnel {
    /// Counts bytes on their way to the engine.
    pub fn sent(&self, bytes: usize) {
        self.0.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes on their way to the client.
    pub fn received(&self, bytes: usize) {
        self.0.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connects for a request that asks for an upgrade.
///
/// Pingora (#946, open) takes the end of the upgrade request's own empty body for the end of the
/// tunnel, if the engine's 101 is read before that body's end was handled; a fast engine's
/// WebSocket then closes at once. The end is handled as soon as the engine's side has to wait for
/// the first time, so connections from here let the first read after every write wait one turn.
#[derive(Debug)]
pub(super) struct Patient;

#[async_trait]
impl L4Connect for Patient {
    async fn connect(&self, address: &SocketAddr) -> pingora::Result<Stream> {
        let SocketAddr::Inet(address) = address else {
            return Error::e_explain(ErrorType::ConnectError, "not a TCP address");
        };
        let tcp = TcpStream::connect(address).await.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
                _ => ErrorType::ConnectError,
            };
            Error::because(kind, "connecting for an upgrade", error)
        })?;
        tcp.set_nodelay(true).or_err(ErrorType::SocketError, "no delay")?;
        let socket = Box::new(PatientSocket { tcp, wait: false });
        Ok(Stream::from(VirtualSocketStream::new(socket)))
    }
}

#[derive(Debug)]
struct PatientSocket {
    tcp: TcpStream,
    /// The next read has to wait one turn.
    wait: bool,
}

impl AsyncRead for PatientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.wait) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for PatientSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, bytes));
        self.wait = true;
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl VirtualSocket for PatientSocket {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.tcp.set_nodelay(true),
            // Keep-alive: the idle limit of tunnels finds a dead peer.
            _ => Ok(()),
        }
    }
}
