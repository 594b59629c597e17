//! What clients state themselves, in headers or in the body (`reference/proxy.md` §4.1): session,
//! person, and that a request is a retry.
//!
//! Invariant: an id is prefixed with where it was found, so that equal values of different origin
//! are different sessions; names of persons (`user`, `safety_identifier`) are never taken for a
//! conversation.

use serde_json::Value;

use super::LinkKey;
use crate::turn::Headers;

/// Set by the providers' own clients: 0 at the first attempt.
const RETRY_COUNT: &str = "x-stainless-retry-count";
/// The same for all attempts of one request.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Every header that linking reads: the proxy must record them.
pub const HEADERS_READ: [&str; 16] = {
    let mut all = [RETRY_COUNT; 16];
    let mut at = 0;
    while at < HEADERS.len() {
        all[at] = HEADERS[at];
        at += 1;
    }
    all[at] = IDEMPOTENCY_KEY;
    all
};

/// Headers that name a session, most specific first.
const HEADERS: [&str; 14] = [
    "x-claude-code-session-id",
    "x-session-id",
    "session-id",
    "session_id",
    "x-session-affinity",
    "x-opencode-session",
    "x-openclaw-session-key",
    "x-openwebui-chat-id",
    "x-litellm-session-id",
    "helicone-session-id",
    "x-conversation-id",
    "conversation-id",
    "conversation_id",
    "x-thread-id",
];

/// Keys of the body, and of its `metadata`, most specific first.
const METADATA: [&str; 4] = ["session_id", "conversation_id", "chat_id", "thread_id"];
const BODY: [&str; 6] = [
    "session_id",
    "litellm_session_id",
    "conversation_id",
    "conversation",
    "prompt_cache_key",
    "thread_id",
];

/// Longest id, characters; a longer one is cut.
const CHARS_MAX: usize = 256;
/// What an unconfigured client sends for everybody.
const MEANINGLESS: [&str; 6] = ["unknown", "default", "null", "none", "undefined", "0"];

/// The session that a client names, as `<source>:<id>`. `params` is the request body without its
/// messages.
pub fn explicit_session(headers: &Headers, params: &Value) -> Option<String> {
    let header = HEADERS.iter().find_map(|name| usable(name, header(headers, name)?));
    let metadata = || {
        let object = params.get("metadata")?;
        METADATA.iter().find_map(|key| {
            usable(&format!("metadata.{key}"), object.get(key).and_then(Value::as_str)?)
        })
    };
    let agent = || {
        let user = params.pointer("/metadata/user_id").and_then(Value::as_str)?;
        usable("metadata.user_id", &agent(user).1?)
    };
    let body = || {
        BODY.iter().find_map(|key| {
            let value = params.get(key)?;
            // `conversation` may be an object with an id.
            let id = value.as_str().or_else(|| value.get("id").and_then(Value::as_str));
            usable(key, id?)
        })
    };
    header.or_else(metadata).or_else(agent).or_else(body)
}

/// The person that the client names, who may have many sessions: as sent, never to be stored.
pub fn person(params: &Value) -> Option<String> {
    let text = |key: &str| params.get(key).and_then(Value::as_str).map(str::to_owned);
    let agent = || agent(params.pointer("/metadata/user_id").and_then(Value::as_str)?).0;
    let found = text("safety_identifier").or_else(|| text("user")).or_else(agent)?;
    usable("", &found)
}

/// Whether the client says that it sends the request again.
pub fn is_retry(headers: &Headers) -> bool {
    let count = header(headers, RETRY_COUNT).and_then(|count| count.trim().parse::<u64>().ok());
    count.is_some_and(|count| count > 0)
}

/// The key that all attempts of one request share.
pub fn idempotency_key(headers: &Headers) -> Option<&str> {
    header(headers, IDEMPOTENCY_KEY).map(str::trim).filter(|key| !key.is_empty())
}

fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

/// Person and session in Anthropic's `metadata.user_id`, as Claude Code writes it: JSON with a
/// `session_id`, or `user_…_session_<uuid>`. Other clients name the person only.
fn agent(user: &str) -> (Option<String>, Option<String>) {
    if let Ok(Value::Object(fields)) = serde_json::from_str(user) {
        let text = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
        return (text("account_uuid").or_else(|| text("device_id")), text("session_id"));
    }
    match user.rsplit_once("_session_") {
        Some((person, session)) => (Some(person.to_owned()), Some(session.to_owned())),
        None => (Some(user.to_owned()), None),
    }
}

/// The session that a client names in a header, as its name and the id; allocates nothing. `header`
/// looks up a header by lower-case name.
pub fn header_session<'a>(
    header: impl Fn(&str) -> Option<&'a str>,
) -> Option<(&'static str, &'a str)> {
    HEADERS.into_iter().find_map(|name| Some((name, meaningful(header(name)?)?)))
}

/// Every name under which a session may be stored that its client calls `id`, wherever it said so,
/// redacted or not.
pub fn stored_names(key: &LinkKey, id: &str) -> Vec<String> {
    let Some(id) = meaningful(id) else { return Vec::new() };
    let metadata = METADATA.iter().chain(&["user_id"]).map(|name| format!("metadata.{name}"));
    let plain = HEADERS.iter().chain(&BODY).map(|name| (*name).to_owned());
    let names = plain.chain(metadata).filter_map(|source| Some((usable(&source, id)?, source)));
    let both = names.flat_map(|(named, source)| {
        let hidden = format!("{source}:~{}", key.pseudonym(&named));
        [key.session(&named), key.session(&hidden)]
    });
    both.collect()
}

fn usable(source: &str, value: &str) -> Option<String> {
    let id: String = meaningful(value)?.chars().take(CHARS_MAX).collect();
    Some(format!("{source}:{id}"))
}

fn meaningful(value: &str) -> Option<&str> {
    let value = value.trim();
    let meaningless = MEANINGLESS.iter().any(|word| value.eq_ignore_ascii_case(word));
    let refused = value.is_empty() || meaningless || value.chars().any(char::is_control);
    (!refused).then_some(value)
}
