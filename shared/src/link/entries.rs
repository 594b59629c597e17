//! What to index for a stored turn, so that later requests find it.
//!
//! Invariant: an entry says nothing to who lacks the tenant's key.

use serde_json::{Value, json};

use super::canon::{Loose, canon};
use super::chain::{LinkKey, is_assistant, step};
use super::{Entry, Hash, HashKind, Incoming, TOOL_CALL_ENTROPY_BITS_MIN};
use crate::wire::{Choice, ResponseView};

/// What to index for a turn. Sorted, without duplicates.
pub fn entries(
    key: &LinkKey,
    incoming: &Incoming<'_>,
    response: Option<&ResponseView>,
) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut add = |kind, hash, choice| found.push(Entry { kind, hash, choice });
    add(HashKind::Prompt, incoming.history.exact.last(), 0);
    add(HashKind::Skeleton, incoming.history.skeleton.last(), 0);
    if let Some(session) = incoming.explicit_session {
        add(HashKind::Session, session_hash(key, session), 0);
    }
    if let Some(hash) = idempotency_hash(key, incoming) {
        add(HashKind::Idempotency, hash, 0);
    }
    let kept = response.and_then(|response| response.conversation.as_ref());
    if let Some(id) = incoming.named.conversation.as_ref().or(kept) {
        add(HashKind::Conversation, key.named(id), 0);
    }
    if let Some(response) = response {
        if let Some(id) = response.id.as_ref().filter(|_| response.resumable) {
            add(HashKind::ResponseId, key.named(id), 0);
        }
        for choice in &response.choices {
            answer(key, incoming, choice, &mut add);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The entries of one answer.
fn answer(
    key: &LinkKey,
    incoming: &Incoming<'_>,
    choice: &Choice,
    add: &mut impl FnMut(HashKind, Hash, u32),
) {
    let Choice { index, message, .. } = choice;
    let messages = incoming.messages.len();
    let mut chained = |before: usize, message: &Value| {
        let (exact, loose) = (&incoming.history.exact, &incoming.history.loose);
        if let Some(before) = exact.of_first(before) {
            add(HashKind::Out, step(key, "chain", before, &canon(message)), *index);
        }
        let form = Loose::of(message);
        let Some(form) = form else { return };
        let message_hash = key.hash("message", &[&form.bytes]);
        if let Some(before) = loose.of_first(before) {
            add(HashKind::LooseOut, key.hash("loose", &[before, &message_hash]), *index);
        }
        if form.is_telling {
            add(HashKind::Assistant, assistant_of(key, &message_hash), *index);
        }
    };
    chained(messages, message);
    // A request may begin the answer itself; clients send both back as one.
    if let Some(whole) = incoming.messages.last().and_then(|begun| prefilled(begun, message)) {
        chained(messages.saturating_sub(1), &whole);
    }
    for id in call_ids(message) {
        match call_hash(key, id) {
            Some(hash) => add(HashKind::ToolCall, hash, *index),
            None => {
                if let Some(hash) = scoped_call_hash(key, incoming, id) {
                    add(HashKind::ScopedCall, hash, *index);
                }
            }
        }
    }
    for id in item_ids(message) {
        add(HashKind::ResponseId, key.named(id), *index);
    }
}

fn prefilled(begun: &Value, answer: &Value) -> Option<Value> {
    let begun = Some(begun).filter(|begun| is_assistant(begun))?.get("content")?.as_str()?;
    let rest = answer.get("content")?.as_str()?;
    let mut whole = answer.clone();
    *whole.get_mut("content")? = json!(format!("{begun}{rest}"));
    Some(whole)
}

/// The hashes of an answer by itself: as it is indexed, then as it was until schema 7. `None` when
/// it is too short to say which turn it is.
pub(super) fn assistant_hashes(key: &LinkKey, message: &Value) -> Option<[Hash; 2]> {
    let form = Loose::of(message).filter(|form| form.is_telling)?;
    let message_hash = key.hash("message", &[&form.bytes]);
    Some([assistant_of(key, &message_hash), key.hash("assistant", &[&form.bytes])])
}

/// Over a hash that is there already, and not over the text again.
fn assistant_of(key: &LinkKey, message_hash: &Hash) -> Hash {
    key.hash("assistant message", &[message_hash])
}

/// The hash of a tool call's id; `None` when it is too predictable to say which turn it is.
pub(super) fn call_hash(key: &LinkKey, id: &str) -> Option<Hash> {
    let random = tool_call_entropy_bits(id) >= TOOL_CALL_ENTROPY_BITS_MIN;
    random.then(|| key.hash("tool call", &[id.as_bytes()]))
}

/// The hash of a predictable id within the narrowest scope that is known; `None` without any.
pub(super) fn scoped_call_hash(key: &LinkKey, incoming: &Incoming<'_>, id: &str) -> Option<Hash> {
    let scopes = [
        ("session", incoming.explicit_session.unwrap_or_default()),
        ("person", incoming.person),
        ("client", incoming.client),
    ];
    let (kind, scope) = scopes.into_iter().find(|(_, scope)| !scope.is_empty())?;
    let id = Some(id).filter(|id| !id.is_empty())?;
    Some(key.hash("scoped call", &[kind.as_bytes(), scope.as_bytes(), id.as_bytes()]))
}

/// The hash of an explicit session.
pub(super) fn session_hash(key: &LinkKey, session: &str) -> Hash {
    key.hash("session", &[session.as_bytes()])
}

/// The hash of an idempotency key with its prompt: some clients send one key for everything.
pub(super) fn idempotency_hash(key: &LinkKey, incoming: &Incoming<'_>) -> Option<Hash> {
    let id = incoming.idempotency_key?;
    Some(key.hash("idempotency", &[id.as_bytes(), &incoming.history.exact.last()]))
}

fn call_ids(message: &Value) -> impl Iterator<Item = &str> {
    let calls = message.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    calls.filter_map(|call| call.get("id").and_then(Value::as_str))
}

/// Ids of the items that an answer was made of.
fn item_ids(message: &Value) -> impl Iterator<Item = &str> {
    let list = |key: &str| message.get(key).and_then(Value::as_array).into_iter().flatten();
    let whole = list("items").filter_map(|item| item.get("id").and_then(Value::as_str));
    list("item_ids").filter_map(Value::as_str).chain(whole)
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

#[cfg(test)]
mod tests {
    use super::super::{Answers, History, LinkKind, MemoryIndex, Resolution, resolve};
    use super::*;
    use crate::turn::{Outcome, TurnId};
    use crate::wire::Named;

    #[test]
    fn an_answer_that_was_indexed_before_schema_7_is_found_by_itself() {
        let key = LinkKey::new(&[7; 32], "t");
        let answer =
            json!({"role": "assistant", "content": "Paris is the capital of it, I think."});
        let messages = [answer.clone(), json!({"role": "user", "content": "Are you sure?"})];
        let named = Named::default();
        let history = |messages: &[Value]| History::of(&key, "chat", &named, messages);
        let (before, after) = (history(&[]), history(&messages));
        let child = Incoming {
            turn_id: TurnId::now(),
            started_ms: 2,
            messages: &messages,
            shown: &messages,
            history: &after,
            named: &named,
            explicit_session: None,
            person: "",
            client: "",
            retry: false,
            idempotency_key: None,
        };
        let (turn_id, none): (_, &[Value]) = (TurnId::now(), &[]);
        let parent = Incoming { turn_id, messages: none, history: &before, ..child };
        let session_id = turn_id.to_string();
        let root = Resolution { session_id, link: None, repeat_of: None, retry: false };
        let answers = Answers { outcome: Outcome::Complete, choices: vec![] };
        let form = Loose::of(&answer).unwrap();
        let hash = key.hash("assistant", &[&form.bytes]);
        let mut index = MemoryIndex::default();
        let entry = Entry { kind: HashKind::Assistant, hash, choice: 0 };
        index.insert(&parent, &root, answers, &[entry]);
        let Ok(found) = resolve(&index, &key, &child);
        let link = found.link.unwrap();
        assert_eq!((link.parent, link.kind), (turn_id, LinkKind::Truncated));
    }
}
