//! The framing gate: which bytes of a client's HTTP/1 stream may reach pingora.
//!
//! A state machine without I/O: head → body → answered → next head. It is offered bytes in their
//! order and says how many of them may pass. A head is held back until it is complete and checked;
//! what is already known of its body is checked with it, so that a request that is malformed in its
//! first packet reaches nobody.
//!
//! Uses nothing but the standard library and nothing else of this crate: the fuzz target compiles
//! it alone.
//!
//! Invariant: at any time, exactly whole heads and in-order parts of their bodies have passed, and
//! the end of each message is where every reader of RFC 9112 sees it.

pub mod chunked;
pub mod fields;
pub mod frames;
pub mod head;
pub mod refusal;
pub mod target;

use self::chunked::Chunked;
use self::fields::Framing;
use self::head::Head;
pub use self::refusal::Refusal;

/// Bounds of a head.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// A whole head, bytes.
    pub head_bytes_max: usize,
    /// Its first line, bytes.
    pub request_line_bytes_max: usize,
    /// Its fields.
    pub fields_max: usize,
}

/// Where in the exchange a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the first byte of a request.
    Idle,
    /// A head has begun.
    Head,
    /// The head has passed, the body has not ended.
    Body,
    /// The request is complete and has not been answered; what comes now is the next one.
    Answering,
    /// No longer HTTP/1: everything passes.
    Open,
}

#[derive(Debug)]
enum State {
    /// `blank`: an empty line was skipped, as RFC 9112 §2.2 asks.
    Idle {
        blank: bool,
    },
    Head(Head),
    Length(u64),
    Chunked(Box<Chunked>),
    Answering {
        websocket: bool,
    },
    Open,
}

/// What becomes of offered bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offer {
    /// So many at the beginning are dropped: an empty line before a request.
    pub skip: usize,
    /// So many after them may pass. The rest is to be offered again, together with what follows.
    pub pass: usize,
}

/// The gate of one connection.
#[derive(Debug)]
pub struct Gate {
    caps: Caps,
    state: State,
    expects: bool,
}

impl Gate {
    /// Before the first request.
    pub const fn new(caps: Caps) -> Self {
        Self { caps, state: State::Idle { blank: false }, expects: false }
    }

    /// Everything passes from now on.
    pub fn open(&mut self) {
        self.state = State::Open;
    }

    /// Where the connection is.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Idle { .. } => Phase::Idle,
            State::Head(_) => Phase::Head,
            State::Length(_) | State::Chunked(_) => Phase::Body,
            State::Answering { .. } => Phase::Answering,
            State::Open => Phase::Open,
        }
    }

    /// Whether the client of the last head waits for an interim answer before it sends the body.
    pub fn expects(&self) -> bool {
        self.expects
    }

    /// Whether the request that is being answered asked for a websocket.
    pub fn may_switch(&self) -> bool {
        matches!(self.state, State::Answering { websocket: true })
    }

    /// The request was answered: what comes now is the next one. Returns whether its body had
    /// ended, without which there is no next one.
    pub fn answered(&mut self) -> bool {
        let whole = matches!(self.state, State::Answering { .. });
        if whole {
            self.state = State::Idle { blank: false };
        }
        whole
    }

    /// Decides about bytes: those that were held at the last offer, and what has arrived since.
    ///
    /// Errors: the rule that was broken; none of the offered bytes may pass, and nothing may be
    /// offered again.
    pub fn offer(&mut self, bytes: &[u8]) -> Result<Offer, Refusal> {
        let mut offer = Offer::default();
        loop {
            let rest = &bytes[offer.skip + offer.pass..];
            if rest.is_empty() {
                return Ok(offer);
            }
            match &mut self.state {
                State::Idle { blank } => match rest {
                    [b'\r'] if !*blank => return Ok(offer),
                    [b'\r', b'\n', ..] if !*blank => {
                        *blank = true;
                        offer.skip += 2;
                    }
                    _ => self.state = State::Head(Head::default()),
                },
                State::Head(head) => match head.scan(rest, &self.caps)? {
                    None => return Ok(offer),
                    Some(end) => {
                        offer.pass += end.bytes;
                        self.expects = end.expects;
                        self.state = match end.framing {
                            Framing::Length(0) => State::Answering { websocket: end.websocket },
                            Framing::Length(bytes) => State::Length(bytes),
                            Framing::Chunked => State::Chunked(Box::default()),
                        };
                    }
                },
                State::Length(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    offer.pass += here;
                    *left -= here as u64;
                    if *left == 0 {
                        self.state = State::Answering { websocket: false };
                    }
                }
                State::Chunked(body) => {
                    offer.pass += body.scan(rest)?;
                    if body.ended() {
                        self.state = State::Answering { websocket: false };
                    }
                }
                State::Answering { .. } => return Ok(offer),
                State::Open => offer.pass += rest.len(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
