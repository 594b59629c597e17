//! Feedback: what people and programs say about an answer or an episode, by the API.
//!
//! ```text
//! body (native, TensorZero, Langfuse, Portkey) ─► parse ─► Given ─► by(tenant) ─► Feedback ─► spool ─► store
//! ```
//! Four shapes become one: a target, and one to five parts. Numbers are mapped to −1…1 here, once.
//!
//! Invariant: a [`Feedback`] is whole and within its limits, whatever the client sent; text that is
//! not understood is refused with words that say what would be.

mod demonstration;
mod fields;
mod foreign;
mod native;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::turn::{TurnError, TurnId};

use fields::Fields;

/// Longest id of a response, session or feedback, characters.
pub const ID_CHARS_MAX: usize = 256;
/// Longest comment, characters.
pub const COMMENT_CHARS_MAX: usize = 8_000;
/// The tenant of what an operator says: it may be about any tenant's turn.
pub const ANY_TENANT: &str = "*";

/// Why a body is refused. Both texts are for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FeedbackError {
    /// The field that is wrong, where it is one.
    pub param: Option<&'static str>,
    /// What is wrong, and what would be right.
    pub message: String,
}

fn wrong(param: &'static str, message: impl Into<String>) -> FeedbackError {
    FeedbackError { param: Some(param), message: message.into() }
}

/// Identity of one piece of feedback: a UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FeedbackId(pub Uuid);

impl FeedbackId {
    /// A fresh id.
    pub fn now() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of what a tenant sends under its own idempotency key: the same for the same, so that
    /// sending it again is answered alike and stored once.
    pub fn of(tenant: &str, key: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("hone 2026-11 feedback id");
        hasher.update(&(tenant.len() as u64).to_le_bytes());
        hasher.update(tenant.as_bytes()).update(key.as_bytes());
        let hash = hasher.finalize();
        let bytes = hash.as_bytes().first_chunk::<16>().copied().unwrap_or_default();
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }
}

impl fmt::Display for FeedbackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for FeedbackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for FeedbackId {
    type Err = TurnError;

    fn from_str(text: &str) -> Result<Self, TurnError> {
        let unknown = |_| TurnError::UnknownWord { what: "feedback id", found: text.to_owned() };
        Uuid::try_parse(text).map(Self).map_err(unknown)
    }
}

/// Whose body it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// hone's own.
    Native,
    /// TensorZero's `POST /feedback`.
    Tensorzero,
    /// Langfuse's `POST /api/public/scores`.
    Langfuse,
    /// Portkey's `POST /v1/feedback`.
    Portkey,
}

crate::turn::words!(Shape, "feedback shape", {
    Native = "native", Tensorzero = "tensorzero", Langfuse = "langfuse", Portkey = "portkey",
});

/// What a part of feedback is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedbackKind {
    /// Up or down.
    Thumb,
    /// A number on a scale.
    Score,
    /// Words: what was right, or what should have been different.
    Comment,
    /// The answer as it should have been.
    Demonstration,
    /// How an episode ended.
    Outcome,
}

crate::turn::words!(FeedbackKind, "kind of feedback", {
    Thumb = "thumb", Score = "score", Comment = "comment", Demonstration = "demonstration",
    Outcome = "outcome",
});

/// What feedback is about, as its sender names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The engine's id of the response; a turn id is understood too.
    Response(String),
    /// A turn.
    Turn(TurnId),
    /// A session: the client's own name for it, or hone's.
    Session(String),
}

impl Target {
    /// What kind of thing it names.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Response(_) => "response",
            Self::Turn(_) => "turn",
            Self::Session(_) => "session",
        }
    }
}

/// One thing that is said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// +1 or −1.
    Thumb(f64),
    /// From −1 to 1.
    Score(f64),
    /// In words.
    Comment(String),
    /// An assistant's message.
    Demonstration(Value),
    /// From −1 to 1, of a whole episode.
    Outcome(f64),
}

impl Part {
    /// What it is.
    pub fn kind(&self) -> FeedbackKind {
        match self {
            Self::Thumb(_) => FeedbackKind::Thumb,
            Self::Score(_) => FeedbackKind::Score,
            Self::Comment(_) => FeedbackKind::Comment,
            Self::Demonstration(_) => FeedbackKind::Demonstration,
            Self::Outcome(_) => FeedbackKind::Outcome,
        }
    }

    /// Its number, if it is one.
    pub fn value(&self) -> Option<f64> {
        match self {
            Self::Thumb(value) | Self::Score(value) | Self::Outcome(value) => Some(*value),
            Self::Comment(_) | Self::Demonstration(_) => None,
        }
    }
}

/// What operators say about scores whose bodies do not name a scale.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scales(pub BTreeMap<String, [f64; 2]>);

impl Scales {
    /// The scale of a metric: the configured one, else −1…1.
    fn of(&self, metric: &str) -> [f64; 2] {
        self.0.get(metric).copied().unwrap_or([-1.0, 1.0])
    }
}

/// A body that was understood; nobody has said yet whose it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    /// Its shape.
    pub shape: Shape,
    /// What it is about.
    pub target: Target,
    /// What it says: at least one part, none of a kind twice.
    pub parts: Vec<Part>,
    /// How much its sender wants it to count, 0 to 1.
    pub weight: f64,
    /// The sender's idempotency key.
    pub key: Option<String>,
    /// It is only to be checked.
    pub dry_run: bool,
}

/// Reads a body. `shape`: what the path says it is; otherwise its fields tell.
pub fn parse(shape: Option<Shape>, body: &[u8], scales: &Scales) -> Result<Given, FeedbackError> {
    let fields = Fields::of(body)?;
    match shape.unwrap_or_else(|| shape_of(&fields)) {
        Shape::Native => native::read(fields),
        Shape::Tensorzero => foreign::tensorzero(fields, scales),
        Shape::Langfuse => foreign::langfuse(fields, scales),
        Shape::Portkey => foreign::portkey(fields),
    }
}

fn shape_of(fields: &Fields) -> Shape {
    let any = |names: &[&str]| names.iter().any(|name| fields.has(name));
    if any(&["metric_name"]) {
        Shape::Tensorzero
    } else if any(&["traceId", "observationId", "sessionId", "dataType"]) {
        Shape::Langfuse
    } else if any(&["trace_id"]) {
        Shape::Portkey
    } else {
        Shape::Native
    }
}

/// Feedback of somebody: what the spool holds and the store gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feedback {
    /// Its identity.
    pub id: FeedbackId,
    /// Keyed hash of the sender's credentials, or [`ANY_TENANT`].
    pub tenant: String,
    /// The shape in which it came.
    pub shape: Shape,
    /// What it is about.
    pub target: Target,
    /// What it says.
    pub parts: Vec<Part>,
    /// How much it counts, 0 to 1; at 0 it is stored and never used.
    pub weight: f64,
    /// When it came, milliseconds since 1970.
    pub made_ms: i64,
}

impl Given {
    /// The feedback of a tenant. `weight`: how much anything of this sender's counts.
    pub fn by(self, tenant: &str, weight: f64, made_ms: i64) -> Feedback {
        Feedback {
            id: self.key.map_or_else(FeedbackId::now, |key| FeedbackId::of(tenant, &key)),
            tenant: tenant.to_owned(),
            shape: self.shape,
            target: self.target,
            parts: self.parts,
            weight: (self.weight * weight).clamp(0.0, 1.0),
            made_ms,
        }
    }
}

impl Feedback {
    /// Bytes that it holds in memory, to the accuracy that a queue limit needs.
    pub fn weight_bytes(&self) -> usize {
        let of = |part: &Part| match part {
            Part::Comment(text) => text.len(),
            Part::Demonstration(message) => 2 * message.to_string().len(),
            _ => 0,
        };
        512 + self.parts.iter().map(of).sum::<usize>()
    }
}

#[cfg(test)]
#[path = "feedback_tests.rs"]
mod tests;
