//! Keyed chains over canonical messages, and what is indexed for a stored turn.
//!
//! Invariant: every hash is keyed by tenant and tagged by purpose; equal hashes of different
//! tenants, routes or kinds do not occur.

use serde_json::Value;

use super::canon::{canon, canon_loose, loose_text};
use super::{ASSISTANT_CHARS_MIN, Entry, Hash, HashKind, TOOL_CALL_ENTROPY_BITS_MIN};
use crate::wire::Choice;

/// A tenant's key. Rotating the secret begins a new epoch: older turns are no longer found.
#[derive(Clone)]
pub struct LinkKey {
    key: [u8; 32],
    tenant: String,
}

impl LinkKey {
    /// The key of one tenant.
    pub fn new(secret: &[u8; 32], tenant: &str) -> Self {
        let master = crate::secret::derive(secret, "link");
        let key = *blake3::keyed_hash(&master, tenant.as_bytes()).as_bytes();
        Self { key, tenant: tenant.to_owned() }
    }

    /// The session id under which a client's own id is stored: two tenants with the same id have
    /// two sessions.
    pub fn session(&self, explicit: &str) -> String {
        let tenant: String = self.tenant.chars().take(12).collect();
        format!("{tenant}/{explicit}")
    }

    /// A stable name for something that must not be stored itself: 16 hex digits, keyed by tenant.
    pub(crate) fn pseudonym(&self, text: &str) -> String {
        let hash = self.hash("pseudonym", &[text.as_bytes()]);
        hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// A keyed 128-bit hash of length-prefixed parts.
    pub(super) fn hash(&self, purpose: &str, parts: &[&[u8]]) -> Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in std::iter::once(&purpose.as_bytes()).chain(parts) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let hash = hasher.finalize();
        hash.as_bytes().first_chunk::<16>().copied().unwrap_or_default()
    }
}

/// The chain of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// `prefixes[i]` is the hash of the first `i` messages; `prefixes[0]` of the route alone.
    /// Length: messages + 1.
    pub prefixes: Vec<Hash>,
}

impl Chain {
    /// Hashes every prefix of the messages.
    pub fn of(key: &LinkKey, route: &str, messages: &[Value]) -> Self {
        Self::build(key, "chain", route, messages, |message| Some(canon(message)))
    }

    /// The same over loose forms; a message that has none keeps the hash before it.
    pub(super) fn loose(key: &LinkKey, route: &str, messages: &[Value]) -> Self {
        Self::build(key, "loose", route, messages, canon_loose)
    }

    /// The same over loose forms of the messages that are no answers.
    pub(super) fn skeleton(key: &LinkKey, route: &str, messages: &[Value]) -> Self {
        let form =
            |message: &Value| if is_assistant(message) { None } else { canon_loose(message) };
        Self::build(key, "skeleton", route, messages, form)
    }

    fn build(
        key: &LinkKey,
        purpose: &str,
        route: &str,
        messages: &[Value],
        form: impl Fn(&Value) -> Option<Vec<u8>>,
    ) -> Self {
        let mut last = key.hash(purpose, &[b"v1", route.as_bytes()]);
        let mut prefixes = Vec::with_capacity(messages.len() + 1);
        prefixes.push(last);
        for message in messages {
            if let Some(bytes) = form(message) {
                last = step(key, purpose, &last, &bytes);
            }
            prefixes.push(last);
        }
        Self { prefixes }
    }

    /// The hash of all messages.
    pub fn last(&self) -> Hash {
        self.prefixes.last().copied().unwrap_or_default()
    }
}

fn step(key: &LinkKey, purpose: &str, before: &Hash, message: &[u8]) -> Hash {
    let message = key.hash("message", &[message]);
    key.hash(purpose, &[before, &message])
}

/// The chain past an answer: `c_k` is the last prefix of the prompt's [`Chain`]. A request that
/// continues this answer has the same hash as its prefix.
pub fn out_hash(key: &LinkKey, c_k: &Hash, answer: &Value) -> Hash {
    step(key, "chain", c_k, &canon(answer))
}

/// What to index for a turn, so that later requests find it. Sorted, without duplicates.
pub fn entries(key: &LinkKey, route: &str, messages: &[Value], choices: &[Choice]) -> Vec<Entry> {
    let chain = Chain::of(key, route, messages);
    let loose = Chain::loose(key, route, messages);
    let skeleton = Chain::skeleton(key, route, messages);
    let mut found = vec![
        Entry { kind: HashKind::Prompt, hash: chain.last(), choice: 0 },
        Entry { kind: HashKind::Skeleton, hash: skeleton.last(), choice: 0 },
    ];
    for Choice { index: choice, message, .. } in choices {
        let mut add = |kind, hash| found.push(Entry { kind, hash, choice: *choice });
        add(HashKind::Out, out_hash(key, &chain.last(), message));
        if let Some(bytes) = canon_loose(message) {
            add(HashKind::LooseOut, step(key, "loose", &loose.last(), &bytes));
        }
        if let Some(hash) = assistant_hash(key, message) {
            add(HashKind::Assistant, hash);
        }
        for id in call_ids(message) {
            if let Some(hash) = call_hash(key, id) {
                add(HashKind::ToolCall, hash);
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Whether a message is an answer.
pub(super) fn is_assistant(message: &Value) -> bool {
    message.get("role").and_then(Value::as_str) == Some("assistant")
}

/// The hash of an answer by itself; `None` when it is too short to say which turn it is.
pub(super) fn assistant_hash(key: &LinkKey, message: &Value) -> Option<Hash> {
    let long_enough = loose_text(message).chars().count() >= ASSISTANT_CHARS_MIN;
    let bytes = canon_loose(message).filter(|_| long_enough)?;
    Some(key.hash("assistant", &[&bytes]))
}

/// The hash of a tool call's id; `None` when it is too predictable to say which turn it is.
pub(super) fn call_hash(key: &LinkKey, id: &str) -> Option<Hash> {
    let random = tool_call_entropy_bits(id) >= TOOL_CALL_ENTROPY_BITS_MIN;
    random.then(|| key.hash("tool call", &[id.as_bytes()]))
}

fn call_ids(message: &Value) -> impl Iterator<Item = &str> {
    let calls = message.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    calls.filter_map(|call| call.get("id").and_then(Value::as_str))
}

/// A cautious estimate of an id's entropy, bits: the part after the last `_` or of a UUID, at the
/// bits per character of its alphabet (10, 16 or 62) or of the characters that it really uses,
/// whichever is less.
pub fn tool_call_entropy_bits(id: &str) -> f64 {
    let is_uuid = id.len() >= 36 && id.matches('-').count() >= 4;
    let random = if is_uuid { id } else { id.rsplit(['_', '-']).next().unwrap_or_default() };
    let chars: Vec<char> = random.chars().filter(char::is_ascii_alphanumeric).collect();
    let distinct: std::collections::BTreeSet<char> = chars.iter().copied().collect();
    let alphabet: f64 = if distinct.iter().all(char::is_ascii_digit) {
        10.0
    } else if distinct.iter().all(char::is_ascii_hexdigit) {
        16.0
    } else {
        62.0
    };
    let used = distinct.len().max(1) as f64;
    chars.len() as f64 * alphabet.log2().min(used.log2())
}
