//! What the tap records about one request and its response: the unit that flows through hone.
//!
//! A turn is written to the spool as two records: [`Begin`] when the request body is complete and
//! [`Done`] at the end of the response; of a long response, a [`Part`] now and then between them. A
//! `Begin` without a `Done` in the spool of a dead process is a turn with [`Outcome::ProxyCrash`]
//! and with what its parts hold. Payload of a record: `u32` little-endian length of the
//! JSON meta, the JSON meta, then the raw body bytes.
//!
//! Invariant: bodies are kept as the bytes that crossed the wire; nothing here parses them.

mod generation;
mod part;

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use generation::Generation;
pub use part::{Part, PartHead};

use crate::feedback::Feedback;

/// Header names (lower case) with their values, in wire order.
pub type Headers = Vec<(String, String)>;

/// Why a word or a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// The text is none of the words that the type knows.
    #[error("`{found}` is not a {what}")]
    UnknownWord {
        /// The type that was asked for, in words.
        what: &'static str,
        /// The text that was found.
        found: String,
    },
    /// The record kind is none of 1 (begin), 2 (done), 3 (gap), 4 (feedback), 5 (part).
    #[error("record kind {0} is unknown")]
    UnknownKind(u8),
    /// The payload ends before its meta does.
    #[error("the record payload of {0} bytes is too short")]
    TooShort(usize),
    /// The meta is not the JSON that it should be.
    #[error("the record meta cannot be read: {0}")]
    Meta(#[from] serde_json::Error),
}

/// Identity of a turn: a UUIDv7, so that ids sort by time. Text form is hyphenated lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TurnId(pub Uuid);

impl TurnId {
    /// A fresh id for the present moment. Ids of one process grow; 4,096 fit into a millisecond, and
    /// more borrow from the next. Their last 62 bits cannot be guessed.
    ///
    /// Not [`Uuid::now_v7`], which asks the kernel for random bits twice per id.
    pub fn now() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        static SEED: LazyLock<[u8; 32]> = LazyLock::new(|| {
            let mut seed = [0; 32];
            let random = [Uuid::new_v4(), Uuid::new_v4()];
            let bytes = random.iter().flat_map(|uuid| uuid.as_bytes());
            seed.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            seed
        });
        let ms = u64::try_from(crate::clock::now_ms()).unwrap_or(0);
        let next = |last: u64| (ms << 12).max(last + 1);
        let update = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |l| Some(next(l)));
        // The closure never declines.
        let at = next(update.unwrap_or_else(|last| last));
        let random = blake3::keyed_hash(&SEED, &at.to_le_bytes());
        let random = random.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (ms, number) = (at >> 12, at & 0xfff);
        Self(Uuid::from_u64_pair((ms << 16) | 0x7000 | number, (random >> 2) | (1 << 63)))
    }
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TurnId {
    type Err = TurnError;

    fn from_str(text: &str) -> Result<Self, TurnError> {
        Uuid::try_parse(text)
            .map(Self)
            .map_err(|_| TurnError::UnknownWord { what: "turn id", found: text.to_owned() })
    }
}

/// Gives an enum of plain words its text form, its parser and a list of all its values.
macro_rules! words {
    ($name:ident, $what:literal, { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $name {
            /// All values, in order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word as it stands in files, tables, labels and JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = TurnError;

            fn from_str(text: &str) -> Result<Self, TurnError> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(TurnError::UnknownWord { what: $what, found: text.to_owned() }),
                }
            }
        }
    };
}
pub(crate) use words;

/// Learning mode of a route.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Pass through, store nothing.
    #[default]
    Off,
    /// Store only.
    Observe,
    /// Store, judge, train and gate; never serve the result.
    Shadow,
    /// As `Shadow`, and serve what passes the gate.
    Learn,
}

words!(Mode, "learning mode (off, observe, shadow, learn)", {
    Off = "off", Observe = "observe", Shadow = "shadow", Learn = "learn",
});

impl Mode {
    /// Whether turns are recorded at all.
    pub fn captures(self) -> bool {
        self != Self::Off
    }

    /// Whether turns are judged and trained on.
    pub fn trains(self) -> bool {
        matches!(self, Self::Shadow | Self::Learn)
    }

    /// Whether the trained result is served.
    pub fn serves(self) -> bool {
        self == Self::Learn
    }
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The whole response reached the client.
    Complete,
    /// The client went away before the answer was all there.
    ClientAbort,
    /// The engine could not be reached, answered with an error status or broke off.
    UpstreamError,
    /// The engine reported an error inside a response with status 200.
    ModelError,
    /// The proxy died between request and response.
    ProxyCrash,
}

words!(Outcome, "turn outcome", {
    Complete = "complete", ClientAbort = "client_abort", UpstreamError = "upstream_error",
    ModelError = "model_error", ProxyCrash = "proxy_crash",
});

/// Why a turn was not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The queue to the spool holds as many records as it may.
    QueueFull,
    /// The queue to the spool holds as many bytes as it may.
    QueueBytes,
    /// The spool has used up its disk quota.
    SpoolFull,
    /// The spool could not be written.
    SpoolError,
    /// The spool was already closed.
    Closed,
    /// A spooled record was damaged and is now in quarantine.
    Undecodable,
    /// A `Done` was spooled but its `Begin` was not.
    BeginLost,
    /// The route's policy refused the request, because it could not be recorded.
    Shed,
}

words!(DropReason, "drop reason", {
    QueueFull = "queue_full", QueueBytes = "queue_bytes", SpoolFull = "spool_full",
    SpoolError = "spool_error", Closed = "closed", Undecodable = "undecodable",
    BeginLost = "begin_lost", Shed = "shed",
});

/// The request half of a turn, recorded when the request body is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Identity of the turn.
    pub turn_id: TurnId,
    /// When the request arrived, milliseconds since 1970.
    pub started_ms: i64,
    /// Name of the route that matched.
    pub route: String,
    /// Learning mode of the route at that moment; decides later whether the turn is judged.
    pub mode: Mode,
    /// The alias that the route serves.
    pub alias: String,
    /// Keyed hash of the client's credentials, as text.
    pub tenant: String,
    /// Keyed hash of the client's address and user agent, as text: tells apart people who share a
    /// credential. Empty when unknown, as in records of before it was kept.
    #[serde(default)]
    pub client: String,
    /// HTTP method.
    pub method: String,
    /// Request path without the query.
    pub path: String,
    /// The request headers on the allow list.
    pub headers: Headers,
    /// The generation that the request was pinned to.
    pub generation: Generation,
    /// Version of the policy set that decided.
    pub policy_version: u64,
    /// The body; of one over the capture limit its beginning and its end ([`Cut`]).
    #[serde(skip)]
    pub body: Bytes,
    /// Length of the body on the wire, bytes.
    pub body_len: u64,
    /// Whether `body` is shorter than what crossed the wire.
    pub body_truncated: bool,
    /// Where `body` was cut, if it holds the two ends of a longer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_cut: Option<Cut>,
}

/// The response half of a turn, recorded when the exchange ended in whatever way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Identity of the turn.
    pub turn_id: TurnId,
    /// HTTP status sent to the client; 0 when none was sent.
    pub status: u16,
    /// How the exchange ended.
    pub outcome: Outcome,
    /// The response headers on the allow list.
    pub headers: Headers,
    /// From arrival to the first body byte, milliseconds.
    pub first_byte_ms: Option<u64>,
    /// From arrival to the end, milliseconds.
    pub duration_ms: u64,
    /// The generation that the engine says produced the response.
    pub generation: Option<Generation>,
    /// How often the request was sent upstream.
    pub attempts: u32,
    /// The body; of one over the capture limit its beginning and its end ([`Cut`]). In the spool,
    /// what follows the parts.
    #[serde(skip)]
    pub body: Bytes,
    /// How many bytes of the body were handed over before, as [`Part`]s; 0 once they are joined.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub body_at: u64,
    /// Length of the body on the wire, bytes.
    pub body_len: u64,
    /// Whether `body` is shorter than what crossed the wire.
    pub body_truncated: bool,
    /// Where `body` was cut, if it holds the two ends of a longer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_cut: Option<Cut>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A body of which only the two ends were kept: `body` is its first `head_bytes` bytes and then its
/// last ones. Only the first part may be parsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Length of the beginning, bytes.
    pub head_bytes: u64,
    /// BLAKE3 of the whole body as it crossed the wire, 64 hex digits.
    pub blake3: String,
}

impl Cut {
    /// The part of `body` that may be parsed: all of it, or its beginning when it was cut.
    pub fn readable(cut: Option<&Self>, body: &Bytes) -> Bytes {
        let head = cut.and_then(|cut| usize::try_from(cut.head_bytes).ok());
        body.slice(..head.map_or(body.len(), |head| head.min(body.len())))
    }
}

/// A durable note that turns were not recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Route of the turns; empty when unknown.
    pub route: String,
    /// Why they were not recorded.
    pub reason: DropReason,
    /// How many.
    pub count: u64,
    /// When the first of them was dropped, milliseconds since 1970; 0 where it was not noted.
    #[serde(default)]
    pub from_ms: i64,
    /// When the last of them was dropped, milliseconds since 1970.
    pub at_ms: i64,
}

/// One record of the spool.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// The request half of a turn.
    Begin(Begin),
    /// The response half of a turn.
    Done(Done),
    /// A note about turns that were dropped.
    Gap(Gap),
    /// What somebody said about a turn or a session.
    Feedback(Box<Feedback>),
    /// The next bytes of a response that has not ended.
    Part(Part),
}

impl Record {
    /// The number of the kind in a spool frame: 1 begin, 2 done, 3 gap, 4 feedback, 5 part.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Begin(_) => 1,
            Self::Done(_) => 2,
            Self::Gap(_) => 3,
            Self::Feedback(_) => 4,
            Self::Part(_) => 5,
        }
    }

    /// The turn that the record belongs to; the nil id for a gap; of feedback, its own id.
    pub fn turn_id(&self) -> TurnId {
        match self {
            Self::Begin(begin) => begin.turn_id,
            Self::Done(done) => done.turn_id,
            Self::Gap(_) => TurnId(Uuid::nil()),
            Self::Feedback(feedback) => TurnId(feedback.id.0),
            Self::Part(part) => part.turn_id,
        }
    }

    /// Bytes that the record holds in memory, to the accuracy that a queue limit needs.
    pub fn weight(&self) -> usize {
        let of = |headers: &Headers| -> usize {
            headers.iter().map(|(n, v)| n.len() + v.len() + 48).sum()
        };
        match self {
            Self::Begin(b) => 512 + b.body.len() + b.path.len() + of(&b.headers),
            Self::Done(d) => 256 + d.body.len() + of(&d.headers),
            Self::Gap(g) => 64 + g.route.len(),
            Self::Feedback(feedback) => feedback.weight_bytes(),
            Self::Part(p) => 256 + p.body.len() + p.head.as_ref().map_or(0, |h| of(&h.headers)),
        }
    }

    /// The payload of a spool frame. Cannot fail for the types of this module.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        self.encode_to(&mut payload);
        payload
    }

    /// Appends the payload of a spool frame.
    pub fn encode_to(&self, out: &mut Vec<u8>) {
        let (meta, body) = match self {
            Self::Begin(begin) => (serde_json::to_vec(begin), Some(&begin.body)),
            Self::Done(done) => (serde_json::to_vec(done), Some(&done.body)),
            Self::Gap(gap) => (serde_json::to_vec(gap), None),
            Self::Feedback(feedback) => (serde_json::to_vec(feedback), None),
            Self::Part(part) => (serde_json::to_vec(part), Some(&part.body)),
        };
        // Strings, numbers and lists of them always serialise; an empty meta would be refused by
        // `decode`.
        let meta = meta.unwrap_or_default();
        let body = body.map_or(&[][..], |b| &b[..]);
        out.reserve(4 + meta.len() + body.len());
        out.extend_from_slice(&u32::try_from(meta.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&meta);
        out.extend_from_slice(body);
    }

    /// Reads what [`Record::encode`] wrote. Errors: unknown kind, short payload, meta that is not
    /// ours.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, TurnError> {
        Self::decode_shared(kind, &Bytes::copy_from_slice(payload))
    }

    /// As [`Record::decode`]. The bodies of a `Done` and of a part, which are used at once, are parts of
    /// `payload`; that of a `Begin`, which waits, is a copy, so that it keeps nothing else in memory.
    pub fn decode_shared(kind: u8, payload: &Bytes) -> Result<Self, TurnError> {
        let short = || TurnError::TooShort(payload.len());
        let (len, rest) = payload.split_first_chunk::<4>().ok_or_else(short)?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| short())?;
        let (meta, body) = rest.split_at_checked(len).ok_or_else(short)?;
        match kind {
            1 => {
                let body = Bytes::copy_from_slice(body);
                Ok(Self::Begin(Begin { body, ..serde_json::from_slice(meta)? }))
            }
            2 => {
                let body = payload.slice_ref(body);
                Ok(Self::Done(Done { body, ..serde_json::from_slice(meta)? }))
            }
            3 => Ok(Self::Gap(serde_json::from_slice(meta)?)),
            4 => Ok(Self::Feedback(serde_json::from_slice(meta)?)),
            5 => {
                let body = payload.slice_ref(body);
                Ok(Self::Part(Part { body, ..serde_json::from_slice(meta)? }))
            }
            _ => Err(TurnError::UnknownKind(kind)),
        }
    }
}

#[cfg(test)]
#[path = "turn_tests.rs"]
mod tests;
