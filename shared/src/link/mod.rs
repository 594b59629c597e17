//! Which turn does a request continue? Found by content, with no help from the client.
//!
//! Every message has a canonical form ([`canon`]); a tenant's keyed BLAKE3 chains those hashes
//! ([`Chain`]). When a turn is stored, [`entries`] says what to index: the chain past each of its
//! answers, and looser keys for clients that change the history. A new request then probes its own
//! prefixes ([`resolve`]). What was named and not sent is found by the engine's ids. Retries are
//! told from regenerations: a retry is no new branch.
//!
//! ```text
//! c_0 = K(route)    c_i = K(c_{i-1} | K(canon(m_i)))
//! out_j = K(c_k | K(canon(answer_j)))  =  the c_{k+1} of a request that continues it
//! ```
//! Invariant: hashes are keyed by tenant, so no request can ever be linked to a turn of another
//! tenant.

mod canon;
mod chain;
mod choose;
mod compacted;
mod entries;
mod kinds;
mod memory;
mod resolve;
mod session;
mod similar;

use std::ops::Range;

use serde_json::Value;

use crate::turn::{Outcome, TurnId};
use crate::wire::{Choice, Named};

pub use canon::{canon, fold, loose_text};
pub use chain::{Chain, History, LinkKey, MessageHashes};
pub use entries::{entries, tool_call_entropy_bits};
pub use kinds::{HashKind, LinkKind, UnknownLinkKind};
pub use memory::MemoryIndex;
pub use resolve::resolve;
pub use session::{
    HEADERS_READ, explicit_session, header_session, idempotency_key, is_retry, person, stored_names,
};
pub use similar::similarity;

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
/// Shortest summary, in characters after folding, that is looked for in a request that lost its
/// history.
pub const SUMMARY_CHARS_MIN: usize = 200;
/// How long after a turn the same prompt may still be a retry of it, milliseconds: three attempts
/// of a client that waits ten minutes for each fit in.
pub const RETRY_AGE_MS_MAX: i64 = 3600 * 1000;
/// Least similarity of an edited answer to the one that was given.
pub const SIMILARITY_MIN: f64 = 0.9;

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
    /// How it ended.
    pub outcome: Outcome,
    /// Pseudonym of the person that the client named; empty when none.
    pub person: String,
    /// Keyed hash of the client's address and user agent; empty when unknown.
    pub client: String,
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
    /// Its messages, oldest first, as they were sent.
    pub messages: &'a [Value],
    /// The same messages as they are stored (redacted): what is compared with stored answers.
    pub shown: &'a [Value],
    /// The hashes of the messages as they were sent.
    pub history: &'a History,
    /// What of the history the request only names.
    pub named: &'a Named,
    /// What [`explicit_session`] found.
    pub explicit_session: Option<&'a str>,
    /// [`LinkKey::pseudonym`] of what [`person`] found; empty when nothing.
    pub person: &'a str,
    /// Keyed hash of the client's address and user agent; empty when unknown.
    pub client: &'a str,
    /// Whether the client says that it sends the request again ([`is_retry`]).
    pub retry: bool,
    /// What [`idempotency_key`] found.
    pub idempotency_key: Option<&'a str>,
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
    /// it. Where `restores` is set, the answer is the last message of what is restored.
    pub answer_at: usize,
    /// The messages that the parent's own history, with its answer, takes the place of: the request
    /// only names it. `None` when the request brings its history.
    pub restores: Option<Range<usize>>,
}

/// Where a request belongs.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolution {
    /// The session: the explicit one of this tenant, else the parent's, else the request's own turn
    /// id.
    pub session_id: String,
    /// The parent; `None` for a root.
    pub link: Option<Link>,
    /// The newest earlier turn with the very same prompt: this one is a retry or a regeneration of
    /// it.
    pub repeat_of: Option<TurnId>,
    /// Whether the same request was sent before: the client says so, or that one did not complete.
    pub retry: bool,
}
