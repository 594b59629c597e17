//! Which turn does a request continue? Found by content, with no help from the client.
//!
//! Every message has a canonical form ([`canon`]); a tenant's keyed BLAKE3 chains those hashes
//! ([`Chain`]). When a turn is stored, [`entries`] says what to index: the chain past each of its
//! answers, and looser keys for clients that change the history. A new request then probes its own
//! prefixes ([`resolve`]). Algorithm: `reference/proxy.md` §4.2.
//!
//! ```text
//! c_0 = K(route)    c_i = K(c_{i-1} | K(canon(m_i)))
//! out_j = K(c_k | K(canon(answer_j)))  =  the c_{k+1} of a request that continues it
//! ```
//! Invariant: hashes are keyed by tenant, so no request can ever be linked to a turn of another
//! tenant.

mod canon;
mod chain;
mod memory;
mod resolve;
mod session;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::turn::{Outcome, TurnId};
use crate::wire::Choice;

pub use canon::{canon, fold, loose_text, similarity};
pub use chain::{Chain, LinkKey, entries, out_hash, tool_call_entropy_bits};
pub use memory::MemoryIndex;
pub use resolve::resolve;
pub use session::{explicit_session, header_session};

/// A keyed 128-bit hash.
pub type Hash = [u8; 16];

/// Most candidates that one probe may return; more of the same text are told apart by nothing
/// anyway.
pub const CANDIDATES_MAX: usize = 64;
/// Most positions of a conversation that are probed, counted from its end.
pub const PROBES_MAX: usize = 256;
/// A truncated history is matched without an explicit session only against turns this young,
/// milliseconds.
pub const TRUNCATED_AGE_MS_MAX: i64 = 24 * 3600 * 1000;
/// Shortest answer, in characters after folding, that identifies a turn by itself.
pub const ASSISTANT_CHARS_MIN: usize = 32;
/// Least entropy, in bits, of a tool call id that identifies a turn by itself.
pub const TOOL_CALL_ENTROPY_BITS_MIN: f64 = 64.0;
/// Least similarity of an edited answer to the one that was given.
pub const SIMILARITY_MIN: f64 = 0.9;

/// How a parent was found, surest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// The history up to and with the answer is the same.
    Exact,
    /// A tool result names a call that the parent made.
    ToolCallId,
    /// The same but for white space, system messages and unknown keys; or the answer is the part of
    /// an aborted one.
    Loose,
    /// The user's messages are the same and the answer is at least 90 % similar.
    Edited,
    /// The history was cut at its beginning; the last answer is the parent's.
    Truncated,
}

impl LinkKind {
    /// All kinds, surest first.
    pub const ALL: &'static [Self] =
        &[Self::Exact, Self::ToolCallId, Self::Loose, Self::Edited, Self::Truncated];

    /// The word as it stands in tables and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::ToolCallId => "tool_call_id",
            Self::Loose => "loose",
            Self::Edited => "edited",
            Self::Truncated => "truncated",
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no [`LinkKind`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a link kind (exact, tool_call_id, loose, edited, truncated)")]
pub struct UnknownLinkKind(pub String);

impl FromStr for LinkKind {
    type Err = UnknownLinkKind;

    fn from_str(text: &str) -> Result<Self, UnknownLinkKind> {
        let found = Self::ALL.iter().find(|kind| kind.as_str() == text);
        found.copied().ok_or_else(|| UnknownLinkKind(text.chars().take(40).collect()))
    }
}

/// What an indexed hash stands for. The number is its column value in the store and never changes
/// its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum HashKind {
    /// The chain past an answer: one per choice.
    Out = 1,
    /// The same over folded text, without system messages: one per choice.
    LooseOut = 2,
    /// The chain over the prompt without assistant and system messages: one per turn, choice 0.
    Skeleton = 3,
    /// The folded answer alone, when it is long enough: one per choice.
    Assistant = 4,
    /// An id of a tool call, when it is random enough: one per call.
    ToolCall = 5,
    /// The whole prompt's chain: one per turn, choice 0. Finds retries and regenerations.
    Prompt = 6,
}

impl HashKind {
    /// The column value.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// One row to index for a stored turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// What the hash stands for.
    pub kind: HashKind,
    /// The keyed hash.
    pub hash: Hash,
    /// The choice that it belongs to; 0 for hashes of the prompt.
    pub choice: u32,
}

/// A stored turn that has an entry with the probed hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The turn.
    pub turn_id: TurnId,
    /// The choice of the entry.
    pub choice: u32,
    /// The session that the turn was put into.
    pub session_id: String,
    /// The turn's own parent and the choice of it that was continued.
    pub parent: Option<(TurnId, u32)>,
    /// How many stored turns name this turn and this choice as their parent.
    pub children: u32,
    /// When the turn began, milliseconds since 1970.
    pub started_ms: i64,
}

/// What a stored turn answered; needed only when the text was changed by the client.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// How the turn ended; an aborted answer is matched by its beginning.
    pub outcome: Outcome,
    /// All its answers.
    pub choices: Vec<Choice>,
}

/// The index over stored turns that [`resolve`] asks. The store implements it.
///
/// Contract: a turn is visible as soon as it has been inserted, even inside the same transaction,
/// because a child may come in the same batch as its parent. Ties of `started_ms` are broken by the
/// larger turn id.
pub trait LinkIndex {
    /// Why the index could not be read.
    type Error;

    /// The turns with an entry `(kind, hash)`, newest first, at most `limit` of them. One row per
    /// (turn, choice).
    fn find(
        &self,
        kind: HashKind,
        hash: &Hash,
        limit: usize,
    ) -> Result<Vec<Candidate>, Self::Error>;

    /// The answers of a turn; `None` when it is not stored (any more).
    fn answers(&self, turn: TurnId) -> Result<Option<Answers>, Self::Error>;
}

/// A request that is to be linked.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// Its own id; names the session of a root turn. Never linked to itself.
    pub turn_id: TurnId,
    /// When it began, milliseconds since 1970.
    pub started_ms: i64,
    /// The route that it took.
    pub route: &'a str,
    /// Its messages, oldest first, as they were sent.
    pub messages: &'a [Value],
    /// The same messages as they are stored (redacted): what is compared with stored answers.
    pub shown: &'a [Value],
    /// What [`explicit_session`] found.
    pub explicit_session: Option<&'a str>,
}

/// The parent of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// The turn that is continued.
    pub parent: TurnId,
    /// The choice of it that is continued.
    pub choice: u32,
    /// How it was found.
    pub kind: LinkKind,
    /// How sure that is, 0 to 1: 1 for an exact match that only one turn has.
    pub confidence: f64,
    /// How many turns matched equally well.
    pub candidates: u32,
    /// Index in the request's messages of the parent's answer. The next state is everything after
    /// it.
    pub answer_at: usize,
}

/// Where a request belongs.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolution {
    /// The session: the explicit one of this tenant, else the parent's, else the request's own turn
    /// id.
    pub session_id: String,
    /// The parent; `None` for a root.
    pub link: Option<Link>,
    /// The newest earlier turn with the very same prompt: this one is a retry (if that one did not
    /// complete) or a regeneration of it.
    pub repeat_of: Option<TurnId>,
}
