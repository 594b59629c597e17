//! Who reads turns on their way into the store, and remembers the messages it has read.
//!
//! Why: a client sends its whole history again with every request. What a message is hashed to and
//! whether anything in it is redacted follows from its text and its tenant alone, so it is worked
//! out once; the message's own key finds it again.
//!
//! Invariant: what is remembered of a message is what would be worked out again. It is bounded, and
//! belongs to a tenant by the key; that nothing was redacted holds for the very policies that were
//! looked at, which are kept alive for as long.

use std::collections::HashMap;
use std::sync::Arc;

use super::IngestTurn;
use super::bodies::Key;
use crate::link::{LinkKey, MessageHashes};
use crate::policy::RedactionPolicy;
use crate::turn::{Begin, Done};

/// Most messages remembered: two generations of half as many, about 3 MiB.
const MESSAGES_MAX: usize = 1 << 15;
/// Most tenants whose keys are remembered.
const TENANTS_MAX: usize = 1 << 10;
/// Most combinations of redaction policies that are told apart.
const POLICIES_MAX: usize = 64;

/// Reads turns. One per thread that does.
pub struct TurnReader {
    secret: [u8; 32],
    keys: HashMap<String, Arc<LinkKey>>,
    young: HashMap<Key, Seen>,
    old: HashMap<Key, Seen>,
    /// The combinations of policies that were looked at, with their numbers.
    policies: Vec<(u32, Vec<Arc<RedactionPolicy>>)>,
    numbered: u32,
}

/// What is remembered of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) hashes: MessageHashes,
    /// The policies that find nothing in it; 0: not known.
    pub(super) clean: u32,
}

impl std::fmt::Debug for TurnReader {
    /// Without secret and keys: this may end up in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let messages = self.young.len() + self.old.len();
        f.debug_struct("TurnReader").field("messages", &messages).finish_non_exhaustive()
    }
}

impl TurnReader {
    /// A reader that has seen nothing. `secret` is the one of the data directory; it keys the links.
    pub fn new(secret: [u8; 32]) -> Self {
        let (young, old) = (HashMap::new(), HashMap::new());
        Self { secret, keys: HashMap::new(), young, old, policies: Vec::new(), numbered: 0 }
    }

    /// Reads the bodies of a turn; all texts are redacted after the links were computed.
    pub fn read(
        &mut self,
        begin: Begin,
        done: Option<Done>,
        redactions: &[Arc<RedactionPolicy>],
    ) -> IngestTurn {
        IngestTurn::read(self, begin, done, redactions)
    }

    pub(super) fn key(&mut self, tenant: &str) -> Arc<LinkKey> {
        if let Some(key) = self.keys.get(tenant) {
            return Arc::clone(key);
        }
        if self.keys.len() >= TENANTS_MAX {
            self.keys.clear();
        }
        let key = Arc::new(LinkKey::new(&self.secret, tenant));
        self.keys.insert(tenant.to_owned(), Arc::clone(&key));
        key
    }

    /// What is remembered of a message.
    pub(super) fn seen(&self, key: &Key) -> Option<Seen> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    /// Remembers a message.
    pub(super) fn remember(&mut self, key: Key, seen: Seen) {
        if self.young.len() >= MESSAGES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, seen);
    }

    /// The number of a combination of policies, never 0. The policies stay alive with it, so that no
    /// other ones can be mistaken for them.
    pub(super) fn number(&mut self, policies: &[Arc<RedactionPolicy>]) -> u32 {
        let same = |known: &[Arc<RedactionPolicy>]| {
            known.len() == policies.len()
                && known.iter().zip(policies).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        if let Some((number, _)) = self.policies.iter().find(|(_, known)| same(known)) {
            return *number;
        }
        if self.policies.len() >= POLICIES_MAX {
            // Files were reloaded often: numbers are never given again.
            self.policies.clear();
        }
        self.numbered = self.numbered.wrapping_add(1).max(1);
        self.policies.push((self.numbered, policies.to_vec()));
        self.numbered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicySet;

    #[test]
    fn what_is_remembered_is_bounded_and_the_youngest_stays() {
        let mut reader = TurnReader::new([7; 32]);
        let hashes = MessageHashes::of(&LinkKey::new(&[7; 32], "t"), &serde_json::json!({}));
        let key = |n: usize| (n as u128).to_le_bytes();
        (0..MESSAGES_MAX * 2).for_each(|n| reader.remember(key(n), Seen { hashes, clean: 1 }));
        assert!(reader.young.len() + reader.old.len() <= MESSAGES_MAX);
        assert!(reader.seen(&key(MESSAGES_MAX * 2 - 1)).is_some());
        assert!(reader.seen(&key(0)).is_none());
        (0..TENANTS_MAX * 2).for_each(|n| drop(reader.key(&n.to_string())));
        assert!(reader.keys.len() <= TENANTS_MAX);
    }

    #[test]
    fn only_the_very_same_policies_have_the_same_number() {
        let mut reader = TurnReader::new([7; 32]);
        let load =
            || PolicySet::builtin().unwrap().redactions.values().cloned().collect::<Vec<_>>();
        let (first, reloaded) = (load(), load());
        let number = reader.number(&first);
        assert_eq!(reader.number(&first), number);
        assert_ne!(reader.number(&reloaded), number, "a file may have changed");
        assert_ne!(reader.number(&[]), number);
        for _ in 0..POLICIES_MAX * 2 {
            assert!(reader.number(&load()) > number);
        }
        assert!(reader.policies.len() <= POLICIES_MAX);
        assert!(reader.number(&first) > number, "forgotten, so looked at again");
    }
}
