//! One write per look at a connection.
//!
//! Pingora moves a response through a channel of four tasks, and writes and flushes after every
//! four: a burst of fifty SSE chunks costs thirteen system calls. Here the flush of a connection is
//! put off until its task has nothing more to do at this moment, and the task is polled on for as
//! long as it keeps itself awake. What the engine has sent already leaves in one write; nothing
//! ever waits for what it has not sent, and the end of a response does not wait for what the proxy
//! does after it ([`response_ends`]).
//!
//! * [`Corked`]: the stream that pingora writes to, and [`Cork`], a handle on it.
//! * [`Corking`]: the connection's future. It polls, and flushes at the end of each look.
//!
//! Invariant: when a look ends, everything written was handed to the stream below, or the stream
//! refused to take it; then the flush goes on when it is writable, and the next flush that pingora
//! asks for waits for it, so that a slow client slows its own stream only.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::hold::Look;

/// Bytes that are put off at most; more are written at once.
const WRITE_BYTES_MAX: usize = 16 << 10;
/// A buffer that has grown beyond this is not kept between writes, so that idle connections are
/// cheap.
const KEPT_BYTES_MAX: usize = 4 << 10;
/// How often a task that keeps itself awake is polled before others get their turn: 64 chunks.
const POLLS_MAX: usize = 16;

thread_local! {
    /// The next flush in this look is the last of a response.
    static ENDS: Cell<bool> = const { Cell::new(false) };
}

/// Says that the last bytes of a response are being written: the next flush is not put off.
pub fn response_ends() {
    ENDS.set(true);
}

/// A stream whose flushes can be put off.
#[derive(Debug)]
pub struct Corked<S> {
    shared: Arc<Mutex<Inner<S>>>,
}

#[derive(Debug)]
struct Inner<S> {
    /// `None` once the stream was taken out.
    stream: Option<S>,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are written already.
    written: usize,
    /// A look is under way, and will flush at its end.
    corked: bool,
    /// The stream below did not take everything at once.
    stuck: bool,
    /// The stream below has bytes that it was not asked to flush.
    unflushed: bool,
    /// How a flush at the end of a look failed: the next write says so.
    failed: Option<io::ErrorKind>,
}

fn lock<S>(shared: &Mutex<Inner<S>>) -> MutexGuard<'_, Inner<S>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Corked<S> {
    /// A buffered stream. Flushes are put off only inside a [`Corking`] of it.
    pub fn new(stream: S) -> Self {
        let shared = Arc::new(Mutex::new(Inner {
            stream: Some(stream),
            buffer: Vec::new(),
            written: 0,
            corked: false,
            stuck: false,
            unflushed: false,
            failed: None,
        }));
        Self { shared }
    }

    /// What puts off the flushes of this stream.
    pub fn cork(&self) -> Cork<S> {
        Cork { shared: Arc::clone(&self.shared) }
    }

    /// Flushes what can be flushed at once, whatever look is under way, and takes the stream out.
    pub fn finish(&mut self) -> Option<S> {
        let mut inner = lock(&self.shared);
        // Whatever does not go now is lost with the connection.
        let _ = inner.poll_flush(&mut Context::from_waker(Waker::noop()));
        inner.stream.take()
    }
}

/// A handle on a [`Corked`] stream that is owned elsewhere.
pub struct Cork<S> {
    shared: Arc<Mutex<Inner<S>>>,
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// The future that uses the stream, with one flush at the end of each look at it.
    pub fn hold<F: Future>(self, future: F) -> Corking<F, S> {
        let (state, outer) = (AtomicU8::new(IDLE), Mutex::new(Waker::noop().clone()));
        let signal = Arc::new(Signal { state, outer });
        let waker = Waker::from(Arc::clone(&signal));
        Corking { future: Box::pin(future), shared: self.shared, signal, waker }
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn stream(&mut self) -> io::Result<Pin<&mut S>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Hands the buffer to the stream below.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            let Self { stream: Some(stream), buffer, written, .. } = self else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            let Poll::Ready(n) = Pin::new(stream).poll_write(cx, &buffer[*written..]) else {
                self.stuck = true;
                return Poll::Pending;
            };
            match n? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        (self.written, self.stuck) = (0, false);
        self.buffer.clear();
        if self.buffer.capacity() > KEPT_BYTES_MAX {
            self.buffer = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        if self.unflushed {
            ready!(self.stream()?.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.failed {
            return Poll::Ready(Err(kind.into()));
        }
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.buffer.len() + total > WRITE_BYTES_MAX {
            ready!(self.poll_drain(cx))?;
        }
        self.unflushed = true;
        if total > WRITE_BYTES_MAX {
            return self.stream()?.poll_write_vectored(cx, slices);
        }
        slices.iter().for_each(|slice| self.buffer.extend_from_slice(slice));
        Poll::Ready(Ok(total))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut lock(&self.shared).stream {
            Some(stream) => Pin::new(stream).poll_read(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.shared).poll_write(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.shared).poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.shared);
        match inner.failed {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None if inner.corked && !inner.stuck && !ENDS.take() => Poll::Ready(Ok(())),
            None => inner.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.shared);
        ready!(inner.poll_flush(cx))?;
        inner.stream()?.poll_shutdown(cx)
    }
}

/// The task is waiting: a wake must reach the runtime.
const IDLE: u8 = 0;
/// The task is being looked at: a wake is noted, and looked at before the look ends.
const POLLING: u8 = 1;
/// It was woken meanwhile.
const WOKEN: u8 = 2;

/// Tells whether a task was woken while it was polled.
struct Signal {
    state: AtomicU8,
    outer: Mutex<Waker>,
}

impl Signal {
    fn outer(&self) -> MutexGuard<'_, Waker> {
        self.outer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == IDLE {
            self.outer().wake_by_ref();
        }
    }
}

/// A connection's future that flushes its stream at the end of each look.
pub struct Corking<F, S> {
    future: Pin<Box<F>>,
    shared: Arc<Mutex<Inner<S>>>,
    signal: Arc<Signal>,
    waker: Waker,
}

impl<F: Future, S: AsyncWrite + Unpin> Future for Corking<F, S> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        this.signal.outer().clone_from(cx.waker());
        let inner_cx = &mut Context::from_waker(&this.waker);
        // What it writes to an engine leaves in one piece, too.
        let _look = Look::begin();
        lock(&this.shared).corked = true;
        ENDS.set(false);
        for _ in 0..POLLS_MAX {
            this.signal.state.store(POLLING, Ordering::Release);
            if let Poll::Ready(output) = this.future.as_mut().poll(inner_cx) {
                let mut inner = lock(&this.shared);
                inner.corked = false;
                // Whatever does not go now is lost with the connection.
                let _ = inner.stream.is_some().then(|| inner.poll_flush(inner_cx));
                return Poll::Ready(output);
            }
            if this.signal.state.load(Ordering::Acquire) != WOKEN || !coop_budget_left() {
                break;
            }
        }
        let mut inner = lock(&this.shared);
        inner.corked = false;
        // While it is pending, the stream wakes this task when it can go on.
        if let Poll::Ready(Err(error)) = inner.poll_flush(inner_cx) {
            inner.failed = Some(error.kind());
        }
        drop(inner);
        if this.signal.state.swap(IDLE, Ordering::AcqRel) == WOKEN {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// Once the task's share of the runtime is used up, everything it polls answers "later".
fn coop_budget_left() -> bool {
    tokio::task::coop::has_budget_remaining()
}

#[cfg(test)]
#[path = "cork_tests.rs"]
mod tests;
