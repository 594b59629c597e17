//! Keyed chains over canonical messages.
//!
//! Invariant: every hash is keyed by tenant and tagged by purpose; equal hashes of different
//! tenants, routes or kinds do not occur.

use serde_json::Value;

use super::Hash;
use super::canon::{canon, canon_loose};
use crate::wire::Named;

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
    pub fn pseudonym(&self, text: &str) -> String {
        let hash = self.hash("pseudonym", &[text.as_bytes()]);
        hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The hash of an id that the engine gave, as requests name it.
    pub fn named(&self, id: &str) -> Hash {
        self.hash("named", &[id.as_bytes()])
    }

    /// A keyed 128-bit hash of length-prefixed parts.
    pub(super) fn hash(&self, purpose: &str, parts: &[&[u8]]) -> Hash {
        let purpose = purpose.as_bytes();
        let all = || std::iter::once(&purpose).chain(parts);
        // In one piece: BLAKE3 then works on several KiB at once.
        let mut whole = Vec::with_capacity(all().map(|part| 8 + part.len()).sum());
        for part in all() {
            whole.extend_from_slice(&(part.len() as u64).to_le_bytes());
            whole.extend_from_slice(part);
        }
        let hash = blake3::keyed_hash(&self.key, &whole);
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
    /// The hash of all messages.
    pub fn last(&self) -> Hash {
        self.prefixes.last().copied().unwrap_or_default()
    }

    /// The hash of the first `len` messages.
    pub(super) fn of_first(&self, len: usize) -> Option<&Hash> {
        self.prefixes.get(len)
    }
}

/// All chains of a conversation, computed in one pass over its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Over the canonical forms.
    pub exact: Chain,
    /// Over the loose forms; a message that has none keeps the hash before it.
    pub loose: Chain,
    /// Over the loose forms of the messages that are no answers.
    pub skeleton: Chain,
}

/// The hashes of one message by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageHashes {
    exact: Hash,
    /// `None` for a message that has no loose form.
    loose: Option<Hash>,
}

impl MessageHashes {
    /// Hashes a message.
    pub fn of(key: &LinkKey, message: &Value) -> Self {
        let exact = key.hash("message", &[&canon(message)]);
        let loose = canon_loose(message).map(|bytes| key.hash("message", &[&bytes]));
        Self { exact, loose }
    }
}

impl History {
    /// Hashes every prefix of the messages. History that is only named is part of what comes before
    /// the first: "yes" to one response is not "yes" to another.
    pub fn of(key: &LinkKey, route: &str, named: &Named, messages: &[Value]) -> Self {
        let hashes: Vec<_> =
            messages.iter().map(|message| MessageHashes::of(key, message)).collect();
        Self::over(key, route, named, messages, &hashes)
    }

    /// As [`History::of`], of messages whose hashes are known.
    pub fn over(
        key: &LinkKey,
        route: &str,
        named: &Named,
        messages: &[Value],
        hashes: &[MessageHashes],
    ) -> Self {
        let names = names(named, messages);
        let begin = |purpose: &str| {
            let mut parts = vec![&b"v1"[..], route.as_bytes()];
            parts.extend(names.iter().map(String::as_bytes));
            let mut prefixes = Vec::with_capacity(messages.len() + 1);
            prefixes.push(key.hash(purpose, &parts));
            Chain { prefixes }
        };
        let (mut exact, mut loose) = (begin("chain"), begin("loose"));
        let mut skeleton = begin("skeleton");
        for (message, hashes) in messages.iter().zip(hashes) {
            exact.prefixes.push(key.hash("chain", &[&exact.last(), &hashes.exact]));
            let form = hashes.loose;
            let add = |chain: &mut Chain, purpose: &str, form: Option<&Hash>| {
                let before = chain.last();
                chain.prefixes.push(form.map_or(before, |f| key.hash(purpose, &[&before, f])));
            };
            add(&mut loose, "loose", form.as_ref());
            add(&mut skeleton, "skeleton", form.as_ref().filter(|_| !is_assistant(message)));
        }
        Self { exact, loose, skeleton }
    }
}

/// What a request names, as parts of a hash.
fn names(named: &Named, messages: &[Value]) -> Vec<String> {
    if !named.is_any() {
        return Vec::new();
    }
    let ids = messages.iter().flat_map(references);
    let stated = [&named.response, &named.conversation].into_iter();
    stated.map(|id| id.clone().unwrap_or_default()).chain(ids.map(str::to_owned)).collect()
}

/// Ids of the items that stand in a message by their ids only.
pub(super) fn references(message: &Value) -> impl Iterator<Item = &str> {
    let items = message.get("items").and_then(Value::as_array).into_iter().flatten();
    let named = items.filter(|i| i.get("type").and_then(Value::as_str) == Some("item_reference"));
    named.filter_map(|item| item.get("id").and_then(Value::as_str))
}

pub(super) fn step(key: &LinkKey, purpose: &str, before: &Hash, message: &[u8]) -> Hash {
    let message = key.hash("message", &[message]);
    key.hash(purpose, &[before, &message])
}

/// Whether a message is an answer.
pub(super) fn is_assistant(message: &Value) -> bool {
    message.get("role").and_then(Value::as_str) == Some("assistant")
}

/// How many messages at the beginning are instructions of this request alone.
pub(super) fn instructions(messages: &[Value]) -> usize {
    messages.iter().take_while(|message| message.get("instructions").is_some()).count()
}
