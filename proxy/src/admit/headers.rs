//! Which headers are stripped, which are hidden from logs, and which are recorded with a turn.
//!
//! Invariant: a credential is never recorded: only names on an allow list are, and values that
//! carry secrets are marked sensitive before anything could print them.

use hone_shared::turn::Headers;
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::{HeaderNameVariant, RequestHeader};

/// Asks, per request, not to be learned from.
pub const LEARN: &str = "x-hone-learn";
/// The generation that serves: set by the proxy for the engine, reported by the engine to everyone.
pub const GENERATION: &str = "x-hone-generation";
/// Prefix of all headers that are hone's own; clients cannot send them further than here.
const OWN_PREFIX: &str = "x-hone-";

/// Longest recorded header value, bytes; the rest is cut.
const VALUE_BYTES_MAX: usize = 512;

/// Whether a request header says something about the turn: kind, client, session, tracing,
/// retries.
fn recorded_in_request(name: &str) -> bool {
    // A `match` compares lengths before bytes; a list would compare every name with every entry.
    matches!(
        name,
        "content-type"
            | "content-encoding"
            | "user-agent"
            | "x-session-id"
            | "x-session-affinity"
            | "x-opencode-session"
            | "session-id"
            | "session_id"
            | "x-client-request-id"
            | "x-claude-code-session-id"
            | "x-openwebui-chat-id"
            | "x-openclaw-session-key"
            | "x-litellm-session-id"
            | "helicone-session-id"
            | "conversation-id"
            | "x-thread-id"
            | "x-openwebui-message-id"
            | "conversation_id"
            | "x-conversation-id"
            | "x-turn-type"
            | "x-session-done"
            | "x-request-id"
            | "traceparent"
            | "tracestate"
            | "openai-organization"
            | "openai-project"
            | "anthropic-version"
            | "anthropic-beta"
            | "x-stainless-retry-count"
            | "x-stainless-lang"
            | "x-stainless-package-version"
            | "idempotency-key"
    )
}

/// Whether ingest needs a response header, or it helps to find the request in the engine's log.
fn recorded_in_response(name: &str) -> bool {
    // A `match` compares lengths before bytes; a list would compare every name with every entry.
    matches!(
        name,
        "content-type"
            | "content-encoding"
            | "x-request-id"
            | "request-id"
            | "openai-processing-ms"
            | "openai-version"
            | "retry-after"
    )
}

/// Headers whose values are secrets.
const SECRETS: &[&str] =
    &["authorization", "proxy-authorization", "cookie", "api-key", "x-api-key", "x-goog-api-key"];

/// Removes every `x-hone-*` header. Returns whether the client had asked not to be learned from.
pub fn strip_own(request: &mut RequestHeader) -> bool {
    let own = |name: &&HeaderName| name.as_str().starts_with(OWN_PREFIX);
    if !request.headers.keys().any(|name| own(&name)) {
        return false;
    }
    let opted_out = request
        .headers
        .get_all(LEARN)
        .iter()
        .any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"off"));
    let names: Vec<HeaderName> = request.headers.keys().filter(own).cloned().collect();
    for name in &names {
        request.remove_header(name);
    }
    opted_out
}

/// Marks the values of credentials, so that no debug print shows them. Names keep their case,
/// values their bytes.
pub fn hide_secrets(request: &mut RequestHeader) -> pingora::Result<()> {
    if !SECRETS.iter().any(|name| request.headers.contains_key(*name)) {
        return Ok(());
    }
    let mut hidden: Vec<(String, HeaderValue)> = Vec::new();
    request.map(|name, value| {
        let name = match &name {
            HeaderNameVariant::Case(name) => name.as_slice(),
            HeaderNameVariant::Titled(name) => name.as_bytes(),
        };
        if SECRETS.iter().any(|secret| name.eq_ignore_ascii_case(secret.as_bytes())) {
            let mut value = value.clone();
            value.set_sensitive(true);
            hidden.push((String::from_utf8_lossy(name).into_owned(), value));
        }
        Ok(())
    })?;
    for name in SECRETS {
        request.remove_header(*name);
    }
    for (name, value) in hidden {
        request.append_header(name, value)?;
    }
    Ok(())
}

/// Where a credential may be; the first that holds one names the tenant.
const CREDENTIALS: [&str; 4] = ["authorization", "x-api-key", "api-key", "x-goog-api-key"];

/// The credential that names the tenant, as the client sent it. What is empty or no text says
/// nothing: some clients send a bearer without a token beside their key.
pub fn credential(headers: &HeaderMap) -> Option<&str> {
    let texts = |name| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    CREDENTIALS.into_iter().find_map(|name| texts(name).find(|text| holds_a_secret(text)))
}

fn holds_a_secret(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && !["bearer", "basic"].iter().any(|name| text.eq_ignore_ascii_case(name))
}

/// The program that the client says it is.
pub fn user_agent(headers: &HeaderMap) -> Option<&str> {
    headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok())
}

/// The request headers to record.
pub fn recorded_request(headers: &HeaderMap) -> Headers {
    recorded(headers, recorded_in_request)
}

/// The response headers to record.
pub fn recorded_response(headers: &HeaderMap) -> Headers {
    recorded(headers, recorded_in_response)
}

fn recorded(headers: &HeaderMap, allowed: fn(&str) -> bool) -> Headers {
    let pairs = headers.iter().filter(|(name, _)| allowed(name.as_str()));
    pairs.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

fn text(value: &HeaderValue) -> String {
    let bytes = value.as_bytes();
    String::from_utf8_lossy(&bytes[..bytes.len().min(VALUE_BYTES_MAX)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hone_shared::link::HEADERS_READ;

    fn request(pairs: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut request = RequestHeader::build("POST", b"/v1/chat/completions", None).unwrap();
        for (name, value) in pairs {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn every_header_that_linking_reads_is_recorded_and_none_of_them_is_a_secret() {
        for name in HEADERS_READ {
            let asked = request(&[(name, "1")]);
            let recorded = recorded_request(&asked.headers);
            assert_eq!(recorded, [(name.to_owned(), "1".to_owned())]);
            assert!(!SECRETS.contains(&name), "{name}");
        }
    }

    #[test]
    fn own_headers_are_stripped_and_only_an_opt_out_is_heard() {
        let mut asked =
            request(&[("X-Hone-Generation", "base"), ("x-hone-learn", "OFF"), ("a", "b")]);
        assert!(strip_own(&mut asked));
        assert_eq!(asked.headers.len(), 1);
        let mut other = request(&[("x-hone-learn", "on")]);
        assert!(!strip_own(&mut other));
        assert!(other.headers.is_empty());
    }

    #[test]
    fn the_first_header_that_holds_a_credential_names_the_tenant() {
        for (sent, found) in [
            (&[("x-api-key", "b"), ("authorization", "Bearer a")][..], Some("Bearer a")),
            (&[("authorization", "Bearer"), ("x-api-key", "b")], Some("b")),
            (&[("authorization", "bearer \t"), ("x-api-key", "b")], Some("b")),
            (&[("authorization", "Basic "), ("api-key", "c")], Some("c")),
            (&[("authorization", ""), ("x-api-key", " "), ("api-key", "c")], Some("c")),
            (&[("authorization", ""), ("authorization", "Bearer a")], Some("Bearer a")),
            (&[("authorization", "Bearer \u{e4}"), ("x-api-key", "b")], Some("b")),
            (&[("x-goog-api-key", "d"), ("api-key", "c")], Some("c")),
            (&[("x-goog-api-key", "d")], Some("d")),
            (&[("authorization", "Bearerish")], Some("Bearerish")),
            (&[("authorization", "Bearer")], None),
            (&[], None),
        ] {
            assert_eq!(credential(&request(sent).headers), found, "{sent:?}");
        }
    }

    #[test]
    fn secrets_are_hidden_from_debug_prints_and_never_recorded() {
        let mut request = request(&[
            ("Authorization", "Bearer sk-secret"),
            ("x-api-key", "sk-secret"),
            ("cookie", "sk-secret"),
            ("user-agent", "test"),
        ]);
        hide_secrets(&mut request).unwrap();
        assert!(!format!("{:?}", request.headers).contains("sk-secret"));
        assert_eq!(credential(&request.headers), Some("Bearer sk-secret"));
        let recorded = recorded_request(&request.headers);
        assert_eq!(recorded, [("user-agent".to_owned(), "test".to_owned())]);
    }
}
