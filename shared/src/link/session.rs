//! Session ids that clients state themselves, in headers or in the body (`reference/proxy.md`
//! §4.1).
//!
//! Invariant: an id is prefixed with where it was found, so that equal values of different origin
//! are different sessions; names of persons (`user`, `safety_identifier`) are never taken for a
//! conversation.

use serde_json::Value;

use crate::turn::Headers;

/// Headers, most specific first.
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
    let header = HEADERS.iter().find_map(|name| {
        let found = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        usable(name, found.map(|(_, value)| value.as_str())?)
    });
    let metadata = || {
        let object = params.get("metadata")?;
        METADATA.iter().find_map(|key| {
            usable(&format!("metadata.{key}"), object.get(key).and_then(Value::as_str)?)
        })
    };
    let agent = || usable("metadata.user_id", &session_of_user(params.get("metadata")?)?);
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

/// Claude Code writes its session into `metadata.user_id`: JSON with a `session_id`, or
/// `user_…_session_<uuid>`.
fn session_of_user(metadata: &Value) -> Option<String> {
    let user = metadata.get("user_id").and_then(Value::as_str)?;
    if let Ok(Value::Object(fields)) = serde_json::from_str(user) {
        return fields.get("session_id").and_then(Value::as_str).map(str::to_owned);
    }
    user.rsplit_once("_session_").map(|(_, session)| session.to_owned())
}

/// The session that a client names in a header, as its name and the id; allocates nothing. `header`
/// looks up a header by lower-case name.
pub fn header_session<'a>(
    header: impl Fn(&str) -> Option<&'a str>,
) -> Option<(&'static str, &'a str)> {
    HEADERS.into_iter().find_map(|name| Some((name, meaningful(header(name)?)?)))
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
