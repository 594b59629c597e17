//! A client's TCP connection, as pingora wants to see it.
//!
//! Two things that pingora's own stream does not give an accept loop outside its `Server`: a write
//! buffer, so that a response head and a short body leave in one packet; and a lingering close, so
//! that a client which is still sending its body when it is refused reads the answer instead of a
//! reset.
//!
//! Invariant: what was written is flushed or the connection is broken; the connection's permit is
//! given back only when the socket is closed.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Write buffer, bytes: a response head and a short JSON body, or a batch of SSE chunks.
const WRITE_BYTES: usize = 8 << 10;
/// Most that a lingering close reads and throws away, bytes.
const LINGER_BYTES_MAX: u64 = 16 << 20;

/// What a connection needs to end politely.
#[derive(Debug)]
pub struct Linger {
    /// The connection's place among all connections.
    pub permit: OwnedSemaphorePermit,
    /// Owns the task that lingers.
    pub tracker: TaskTracker,
    /// Once set, connections close at once.
    pub stop: CancellationToken,
    /// How long to read on.
    pub time: Duration,
}

/// The connection.
#[derive(Debug)]
pub struct Socket {
    /// `None` only after drop has taken it apart.
    inner: Option<(BufWriter<TcpStream>, Linger)>,
    fd: i32,
    accepted: SystemTime,
    /// The client has closed its side or is gone: there is nobody to linger for.
    ended: bool,
    /// Bytes were written since the last read: the client may still be sending while it is
    /// answered.
    answered: bool,
}

impl Socket {
    /// Wraps an accepted connection and turns Nagle's algorithm off.
    pub fn new(stream: TcpStream, linger: Linger) -> Self {
        // A stream without the option works, only more slowly.
        let _ = stream.set_nodelay(true);
        let fd = stream.as_raw_fd();
        let inner = Some((BufWriter::with_capacity(WRITE_BYTES, stream), linger));
        Self { inner, fd, accepted: SystemTime::now(), ended: false, answered: false }
    }

    fn io(&mut self) -> io::Result<Pin<&mut BufWriter<TcpStream>>> {
        match &mut self.inner {
            Some((io, _)) => Ok(Pin::new(io)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn note<T>(&mut self, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.ended |= matches!(poll, Poll::Ready(Err(_)));
        poll
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = self.io()?.poll_read(cx, buf);
        if matches!(poll, Poll::Ready(Ok(()))) {
            self.ended |= buf.filled().len() == before && buf.remaining() > 0;
            self.answered = false;
        }
        self.note(poll)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.answered = true;
        let poll = self.io()?.poll_write(cx, bytes);
        self.note(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = self.io()?.poll_flush(cx);
        self.note(poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = self.io()?.poll_shutdown(cx);
        self.note(poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.answered = true;
        let poll = self.io()?.poll_write_vectored(cx, slices);
        self.note(poll)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some((mut io, linger)) = self.inner.take() else { return };
        // What pingora wrote without flushing: the part of a body before an engine died.
        let _ = Pin::new(&mut io).poll_flush(&mut Context::from_waker(Waker::noop()));
        let polite = self.answered && !self.ended && !linger.stop.is_cancelled();
        if polite && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let tracker = linger.tracker.clone();
            tracker.spawn_on(close_slowly(io.into_inner(), linger), &runtime);
        }
    }
}

/// Says that no more will come, then reads until the client closes too, for a bounded time and
/// amount.
async fn close_slowly(mut stream: TcpStream, linger: Linger) {
    let rest = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(LINGER_BYTES_MAX), &mut tokio::io::sink()).await
    };
    let bounded = tokio::time::timeout(linger.time, rest);
    // However it ends, the socket is closed and the permit given back.
    let _ = linger.stop.run_until_cancelled(bounded).await;
    drop(linger.permit);
}

#[async_trait]
impl Shutdown for Socket {
    async fn shutdown(&mut self) {
        // The other side may be gone already; there is nothing left to do about it.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Socket {
    fn id(&self) -> i32 {
        self.fd
    }
}

impl GetTimingDigest for Socket {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest { established_ts: self.accepted, ..TimingDigest::default() })]
    }
}

impl GetProxyDigest for Socket {
    fn get_proxy_digest(&self) -> Option<Arc<pingora::protocols::raw_connect::ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Socket {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::new(SocketDigest::from_raw_fd(self.fd)))
    }
}

impl Ssl for Socket {}

impl Peek for Socket {}
