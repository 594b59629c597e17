//! The read side of a client's connection: the socket's bytes, through the framing gate.
//!
//! The common request arrives in one packet: it is read straight into pingora's buffer, checked
//! there, and left there. Only what may not pass yet is held in a buffer of our own.
//!
//! Invariant: a byte is in pingora's buffer only if the gate let it pass; what is held is bounded
//! by the largest head.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::Door;
use super::gate::frames::{Frames, PREFACE};
use super::gate::{Gate, Phase, Refusal};
use super::pace::{Clock, Pace};

/// What is read at once while nothing may pass, bytes.
const READ_BYTES: usize = 4096;
/// A buffer of at least this size is read into directly; smaller ones only ask whether the client
/// is still there.
const DIRECT_BYTES_MIN: usize = 64;

/// Why no more is read.
#[derive(Debug)]
pub enum Stop {
    /// A head was refused, of which nobody has seen anything: to be answered here.
    Refused(Refusal),
    /// The connection broke, or broke the rules amid a body: whoever reads the body answers.
    Broken(io::Error),
}

/// The read side.
#[derive(Debug)]
pub struct Inlet {
    gate: Gate,
    /// Counts frames, if the client speaks HTTP/2.
    frames: Option<Frames>,
    held: BytesMut,
    /// So many of the held bytes may pass.
    passed: usize,
    /// Held bytes that the gate has not been offered yet.
    fresh: bool,
    /// Since when a head has been waited for: its first byte, or its end.
    since: Option<Instant>,
    clock: Clock,
    body: Pace,
    /// The current body has begun to arrive.
    begun: bool,
    door: Arc<Door>,
}

impl Inlet {
    /// Before the first byte.
    pub fn new(door: Arc<Door>) -> Self {
        Self {
            gate: Gate::new(door.caps),
            frames: None,
            held: BytesMut::new(),
            passed: 0,
            fresh: false,
            since: None,
            clock: Clock::default(),
            body: Pace::new(door.body_grace, door.body_bytes_per_s_min),
            begun: false,
            door,
        }
    }

    /// Reads until it is known which protocol the client begins with. Whether it is HTTP/2.
    pub fn poll_protocol(
        &mut self,
        mut io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        loop {
            let seen = self.held.len().min(PREFACE.len());
            if seen > 0 && self.held[..seen] != PREFACE[..seen] {
                self.fresh = true;
                return Poll::Ready(Ok(false));
            }
            if seen == PREFACE.len() {
                let mut frames = Frames::new(self.door.h2_frames_per_s_max);
                frames.scan(&self.held).map_err(io::Error::other)?;
                self.frames = Some(frames);
                self.open();
                return Poll::Ready(Ok(true));
            }
            self.held.reserve(READ_BYTES);
            if ready!(poll_read_buf(io.as_mut(), cx, &mut self.held))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Everything passes from now on.
    pub fn open(&mut self) {
        self.gate.open();
        (self.passed, self.fresh) = (self.held.len(), false);
    }

    /// Whether an answer of 101 makes the connection a websocket.
    pub fn may_switch(&self) -> bool {
        self.gate.may_switch()
    }

    /// The request was answered: the next one may come. Whether it may.
    pub fn answered(&mut self) -> bool {
        self.fresh = !self.held.is_empty();
        self.since = None;
        self.gate.answered()
    }

    /// Reads what may pass. `Ok` without a byte: the client has ended its side, or was idle for too
    /// long.
    pub fn poll_read(
        &mut self,
        mut io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Stop>> {
        loop {
            let phase = self.gate.phase();
            if self.passed > 0 {
                let here = self.passed.min(buf.remaining());
                buf.put_slice(&self.held[..here]);
                self.passed -= here;
                self.drop_held(here);
                return Poll::Ready(Ok(()));
            }
            if phase == Phase::Open {
                return self.poll_open(io, cx, buf);
            }
            if self.fresh && phase != Phase::Answering {
                self.offer_held()?;
                continue;
            }
            let direct = self.held.is_empty() && buf.remaining() >= DIRECT_BYTES_MIN;
            let read = match phase {
                Phase::Idle | Phase::Body if direct => {
                    let before = buf.filled().len();
                    let polled = io.as_mut().poll_read(cx, buf);
                    polled.map_ok(|()| buf.filled().len() - before)
                }
                Phase::Answering if self.held.len() >= self.door.caps.head_bytes_max => {
                    // The next requests have to wait until this one is answered.
                    return Poll::Pending;
                }
                _ => {
                    self.held.reserve(READ_BYTES);
                    poll_read_buf(io.as_mut(), cx, &mut self.held)
                }
            };
            let n = match read {
                Poll::Pending => return self.poll_overdue(phase, cx),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Stop::Broken(error))),
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(n)) => n,
            };
            match phase {
                Phase::Idle => self.since = None,
                Phase::Body => {
                    self.begun = true;
                    self.body.moved(n);
                }
                _ => {}
            }
            if direct && matches!(phase, Phase::Idle | Phase::Body) {
                if self.offer_direct(buf, n)? {
                    return Poll::Ready(Ok(()));
                }
            } else {
                self.fresh = true;
            }
        }
    }

    /// Reads what is no longer HTTP/1.
    fn poll_open(
        &mut self,
        io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Stop>> {
        let before = buf.filled().len();
        ready!(io.poll_read(cx, buf)).map_err(Stop::Broken)?;
        if let Some(frames) = &mut self.frames
            && let Err(refusal) = frames.scan(&buf.filled()[before..])
        {
            buf.set_filled(before);
            return Poll::Ready(Err(Stop::Broken(io::Error::other(refusal))));
        }
        Poll::Ready(Ok(()))
    }

    /// Offers what is held.
    fn offer_held(&mut self) -> Result<(), Stop> {
        self.fresh = false;
        let phase = self.gate.phase();
        let offer = self.gate.offer(&self.held).map_err(|refusal| stop(phase, refusal))?;
        self.drop_held(offer.skip);
        self.passed = offer.pass;
        self.body_begins(phase);
        Ok(())
    }

    /// Offers the last `n` bytes of `buf`, takes away what may not stay there, and says whether
    /// anything stays.
    fn offer_direct(&mut self, buf: &mut ReadBuf<'_>, n: usize) -> Result<bool, Stop> {
        let (phase, before) = (self.gate.phase(), buf.filled().len() - n);
        let offer = self.gate.offer(&buf.filled()[before..]).map_err(|refusal| {
            buf.set_filled(before);
            stop(phase, refusal)
        })?;
        let stays = if offer.skip == 0 { offer.pass } else { 0 };
        self.passed = offer.pass - stays;
        self.held.extend_from_slice(&buf.filled()[before + offer.skip + stays..]);
        buf.set_filled(before + stays);
        self.body_begins(phase);
        Ok(stays > 0)
    }

    /// A head has passed, if it has.
    fn body_begins(&mut self, before: Phase) {
        if before != Phase::Body && self.gate.phase() == Phase::Body {
            self.begun = !self.gate.expects();
            self.body.refill();
        }
    }

    fn drop_held(&mut self, n: usize) {
        self.held.advance(n);
        if self.held.is_empty() {
            // An open stream should not keep a buffer that it may never need again.
            self.held = BytesMut::new();
        }
    }

    /// Nothing has arrived. Whether that has lasted too long.
    fn poll_overdue(&mut self, phase: Phase, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        let waits = |since: &mut Option<Instant>| *since.get_or_insert_with(Instant::now);
        let idle = phase == Phase::Idle && self.held.is_empty();
        let deadline = match phase {
            Phase::Idle if idle => waits(&mut self.since) + self.door.idle,
            Phase::Idle | Phase::Head => waits(&mut self.since) + self.door.head,
            Phase::Body if self.begun => self.body.waits(),
            Phase::Body | Phase::Answering | Phase::Open => return Poll::Pending,
        };
        if !self.clock.passed(deadline, cx) {
            return Poll::Pending;
        }
        Poll::Ready(match phase {
            _ if idle => Ok(()),
            Phase::Body => Err(stop(phase, Refusal::BodySlow)),
            _ => Err(stop(phase, Refusal::HeadSlow)),
        })
    }
}

/// Who has to answer: nobody has seen anything of a head, but all of what came before a body.
fn stop(phase: Phase, refusal: Refusal) -> Stop {
    match phase {
        Phase::Idle | Phase::Head => Stop::Refused(refusal),
        _ => Stop::Broken(io::Error::other(refusal)),
    }
}
