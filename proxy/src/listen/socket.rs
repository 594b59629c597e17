//! A client's connection, as pingora wants to see it: over TCP or anything else that reads and
//! writes.
//!
//! What pingora's own stream does not give an accept loop outside its `Server`: a read side that
//! lets only well-framed requests through (see [`super::inlet`]); a write buffer that gathers what
//! is there to write ([`super::cork`]); an end for clients that do not read; and a lingering
//! close, so that a client which is still sending its body when it is refused reads the answer
//! instead of a reset.
//!
//! Invariant: what was written is flushed or the connection is broken; the connection's place is
//! given back only when the socket is closed.

use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Door;
use super::cork::{Cork, Corked};
use super::gate::Refusal;
use super::inlet::{Inlet, Stop};
use super::pace::{Clock, Pace};
use super::places::Place;
use crate::admit::reply;

/// Most that a lingering close reads and throws away, bytes.
const LINGER_BYTES_MAX: u64 = 16 << 20;

/// How the answer begins that makes a connection a websocket.
const SWITCHING: &[u8] = b"HTTP/1.1 101 ";

/// What carries a client's bytes.
pub trait Transport: AsyncRead + AsyncWrite + Debug + Unpin + Send + Sync + 'static {}
impl<T: AsyncRead + AsyncWrite + Debug + Unpin + Send + Sync + 'static> Transport for T {}

/// What a connection needs to end politely.
#[derive(Debug)]
pub struct Linger {
    /// The connection's place among all connections.
    pub place: Place,
    /// Owns the task that lingers.
    pub tracker: TaskTracker,
    /// Once set, connections close at once.
    pub stop: CancellationToken,
    /// How long to read on.
    pub time: Duration,
}

/// The connection.
#[derive(Debug)]
pub struct Socket<S: Transport> {
    /// `None` only after drop has taken it apart.
    inner: Option<(Corked<S>, Linger)>,
    fd: i32,
    /// One for all requests, so that the address is asked for once.
    digest: Arc<SocketDigest>,
    accepted: SystemTime,
    /// The client has closed its side or is gone: there is nobody to linger for.
    ended: bool,
    /// Bytes were written since the last read: the client may still be sending while it is
    /// answered.
    answered: bool,
    inlet: Inlet,
    /// The rest of the answer to a request that was refused; nothing is read any more.
    refusal: Option<Bytes>,
    send: Pace,
    clock: Clock,
    door: Arc<Door>,
}

impl<S: Transport> Socket<S> {
    /// Wraps a connection whose TCP socket is `fd`.
    pub fn new(stream: S, fd: i32, linger: Linger, door: Arc<Door>) -> Self {
        Self {
            inner: Some((Corked::new(stream), linger)),
            fd,
            digest: Arc::new(SocketDigest::from_raw_fd(fd)),
            accepted: SystemTime::now(),
            ended: false,
            answered: false,
            inlet: Inlet::new(Arc::clone(&door)),
            refusal: None,
            send: Pace::new(door.write, door.send_bytes_per_s_min),
            clock: Clock::default(),
            door,
        }
    }

    /// Whether the client begins with the HTTP/2 preface; what was read for it is read again by
    /// whoever reads next.
    pub async fn speaks_h2(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|cx| {
            let (io, inlet) = self.parts()?;
            inlet.poll_protocol(io, cx)
        })
        .await
    }

    /// What puts off the flushes of this connection.
    pub fn cork(&self) -> Option<Cork<S>> {
        self.inner.as_ref().map(|(io, _)| io.cork())
    }

    /// The request was answered; the next one on this connection may come. Whether it may.
    pub fn next_request(&mut self) -> bool {
        self.inlet.answered()
    }

    fn parts(&mut self) -> io::Result<(Pin<&mut Corked<S>>, &mut Inlet)> {
        match &mut self.inner {
            Some((io, _)) => Ok((Pin::new(io), &mut self.inlet)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn io(&mut self) -> io::Result<Pin<&mut Corked<S>>> {
        Ok(self.parts()?.0)
    }

    fn note<T>(&mut self, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.ended |= matches!(poll, Poll::Ready(Err(_)));
        poll
    }

    /// Notes how a write went, and ends it when the client has not read for too long.
    fn paced<T>(
        &mut self,
        poll: Poll<io::Result<T>>,
        bytes: impl Fn(&T) -> usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        let poll = match poll {
            Poll::Pending if self.clock.passed(self.send.waits(), cx) => {
                self.door.counters.reader_cut();
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Ready(Ok(done)) => {
                self.send.moved(bytes(&done));
                Poll::Ready(Ok(done))
            }
            other => other,
        };
        self.note(poll)
    }

    /// Begins to answer a request that nobody else has seen.
    fn refuse(&mut self, refusal: Refusal) {
        self.door.counters.refused(refusal);
        self.door.counters.answered(refusal.into());
        self.refusal = Some(reply::raw(refusal));
        self.answered = true;
    }

    /// Goes on answering it. Afterwards the connection looks as if the client had ended it.
    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(mut rest) = self.refusal.take_if(|rest| !rest.is_empty()) {
            let poll = Pin::new(&mut *self).poll_write(cx, &rest);
            if let Poll::Ready(Ok(n)) = poll {
                rest.advance(n);
            }
            self.refusal = Some(rest);
            if std::task::ready!(poll).is_err() {
                return Poll::Ready(Ok(()));
            }
        }
        // Whether or not it arrives, nothing more can be done.
        Pin::new(self).poll_flush(cx).map(|_| Ok(()))
    }
}

impl<S: Transport> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.refusal.is_some() {
            return self.poll_refuse(cx);
        }
        let before = buf.filled().len();
        let (io, inlet) = self.parts()?;
        match inlet.poll_read(io, cx, buf) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                self.ended |= buf.filled().len() == before && buf.remaining() > 0;
                self.answered = false;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Stop::Refused(refusal))) => {
                self.refuse(refusal);
                self.poll_refuse(cx)
            }
            Poll::Ready(Err(Stop::Broken(error))) => {
                if let Some(refusal) = reply::refusal(&error) {
                    // Pingora answers, if it still can; there is nothing more to read.
                    self.door.counters.refused(refusal);
                    self.refusal = Some(Bytes::new());
                } else {
                    self.ended = true;
                }
                Poll::Ready(Err(error))
            }
        }
    }
}

impl<S: Transport> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.answered = true;
        if self.inlet.may_switch() && bytes.starts_with(SWITCHING) {
            self.inlet.open();
        }
        let poll = self.io()?.poll_write(cx, bytes);
        self.paced(poll, |n| *n, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = self.io()?.poll_flush(cx);
        self.paced(poll, |()| 0, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = self.io()?.poll_shutdown(cx);
        self.paced(poll, |()| 0, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.answered = true;
        let poll = self.io()?.poll_write_vectored(cx, slices);
        self.paced(poll, |n| *n, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl<S: Transport> Drop for Socket<S> {
    fn drop(&mut self) {
        let Some((mut io, linger)) = self.inner.take() else { return };
        // With what pingora wrote without flushing: the part of a body before an engine died.
        let Some(stream) = io.finish() else { return };
        let polite = self.answered && !self.ended && !linger.stop.is_cancelled();
        if polite && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let tracker = linger.tracker.clone();
            tracker.spawn_on(close_slowly(stream, linger), &runtime);
        }
    }
}

/// Says that no more will come, then reads until the client closes too, for a bounded time and
/// amount.
async fn close_slowly(mut stream: impl Transport, linger: Linger) {
    let rest = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(LINGER_BYTES_MAX), &mut tokio::io::sink()).await
    };
    let bounded = tokio::time::timeout(linger.time, rest);
    // However it ends, the socket is closed and the place given back.
    let _ = linger.stop.run_until_cancelled(bounded).await;
    drop(linger.place);
}

#[async_trait]
impl<S: Transport> Shutdown for Socket<S> {
    async fn shutdown(&mut self) {
        // The other side may be gone already; there is nothing left to do about it.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl<S: Transport> UniqueID for Socket<S> {
    fn id(&self) -> i32 {
        self.fd
    }
}

impl<S: Transport> GetTimingDigest for Socket<S> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest { established_ts: self.accepted, ..TimingDigest::default() })]
    }
}

impl<S: Transport> GetProxyDigest for Socket<S> {
    fn get_proxy_digest(&self) -> Option<Arc<pingora::protocols::raw_connect::ProxyDigest>> {
        None
    }
}

impl<S: Transport> GetSocketDigest for Socket<S> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl<S: Transport> Ssl for Socket<S> {}

impl<S: Transport> Peek for Socket<S> {}
