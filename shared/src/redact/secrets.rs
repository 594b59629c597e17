//! Credentials: keys of the well-known shapes, tokens, private keys, and secrets that are named as
//! such.
//!
//! Invariant: words, identifiers and placeholders are no secrets: a hit has the length and the
//! mixture of characters that the issuer gives out, or stands where only a secret stands.

use std::ops::Range;

use super::shape::{Needs, Shape, after, before};

/// Keys whose shape says who issued them.
pub(super) fn api_keys() -> Vec<Shape> {
    const SHAPES: &str = concat!(
        r"(?-u)(?:sk-[A-Za-z0-9_-]{20,400}|(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,250}|",
        r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}|",
        r"glpat-[A-Za-z0-9_-]{20,100}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|",
        r"ya29\.[A-Za-z0-9_-]{20,400}|xox[abeoprs]-[A-Za-z0-9-]{10,250}|",
        r"hf_[A-Za-z0-9]{30,60}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,400}|",
        r"SG\.[A-Za-z0-9_-]{16,40}\.[A-Za-z0-9_-]{16,80}|dop_v1_[a-f0-9]{64}|",
        r"gsk_[A-Za-z0-9]{40,80}|xai-[A-Za-z0-9]{40,100}|r8_[A-Za-z0-9]{30,60})",
    );
    // `xoxb-` and ten characters.
    vec![Shape::new(Needs { bytes: 15, ..Needs::default() }, SHAPES, api_key)]
}

/// JSON web tokens.
pub(super) fn jwts() -> Vec<Shape> {
    let token = r"(?-u)eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){2,4}";
    let needs = Needs { bytes: 13, dots: 2, ..Needs::default() };
    vec![Shape::new(needs, token, |text, found| begins_word(text, &found).then_some(found))]
}

/// PEM private keys, also those whose end was cut off.
pub(super) fn private_keys() -> Vec<Shape> {
    let whole = concat!(
        r"(?s-u:-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[ -~\s]*?-----END [",
        r"A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)",
    );
    let cut = r"(?s-u:-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\\\s:,-]*)";
    let needs = Needs { bytes: 27, dashes: 10, ..Needs::default() };
    vec![
        Shape::new(needs, whole, |_, found| Some(found)),
        Shape::new(needs, cut, |_, found| Some(found)),
    ]
}

/// Secrets by where they stand: after a name, in a header, in a URL.
pub(super) fn credentials() -> Vec<Shape> {
    const NAMED: &str = concat!(
        r#"(?i-u)(?:api[_-]?key|apikey|x-goog-api-key|access[_-]?key(?:[_-]?id)?|"#,
        r#"secret(?:[_-]?(?:access[_-]?)?key)?|client[_-]?secret|auth[_-]?token|"#,
        r#"access[_-]?token|refresh[_-]?token|id[_-]?token|bearer[_-]?token|token|"#,
        r#"password|passwd|passphrase|pwd)\\{0,2}["']?\s{0,3}(?:=>|:=|=|"#,
        r#":)\s{0,3}\\{0,2}["']?[!#-%*+\-./0-9:=?@A-Z^_a-z|~]{8,400}"#,
    );
    const HEADER: &str = r#"(?i-u)(?:bearer|basic)\s{1,3}[A-Za-z0-9._~+/=-]{12,2000}"#;
    const COOKIE: &str = r#"(?i-u)(?:set-)?cookie["']?\s{0,2}:\s{0,2}["']?[ !#-&(-~]{8,2000}"#;
    const QUERY: &str = concat!(
        r"(?i-u)[?&](?:key|sig|signature|api[_-]?key|token|access_token|code|",
        r"x-amz-signature)=[!-%'-~]{8,400}",
    );
    const USERINFO: &str = concat!(
        r#"(?i-u)[a-z][a-z0-9+.-]{1,20}://[!#-&(-.0-9;=?A-Z\[-~]{0,100}:[!#-&(-.0-9:;=?A-"#,
        r#"Z\[-~]{1,200}@"#,
    );
    let all = Needs::default();
    let pair = Needs { bytes: 15, colons: 1, equals: 1, ..all };
    vec![
        Shape::new(Needs { bytes: 12, separators: 1, ..all }, NAMED, named),
        Shape::new(Needs { bytes: 18, marks: 1, ..all }, HEADER, header),
        Shape::new(pair, COOKIE, |text, found| {
            value_after(text, found, ":")
                .filter(|hit| text.get(hit.clone()).is_some_and(|value| value.contains('=')))
        }),
        Shape::new(Needs { bytes: 13, equals: 1, ..all }, QUERY, |text, found| {
            value_after(text, found, "=")
        }),
        Shape::new(Needs { ats: 1, colons: 2, ..all }, USERINFO, userinfo),
    ]
}

fn begins_word(text: &str, found: &Range<usize>) -> bool {
    !before(text, found.start).is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// Random characters, not words joined by hyphens: digits and letters, and one long run of them.
fn api_key(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let key = text.get(found.clone())?;
    let fixed = key.starts_with("AKIA") || key.starts_with("ASIA");
    let goes_on = fixed && after(text, found.end).is_some_and(|c| c.is_ascii_alphanumeric());
    let run = key.split(['-', '.']).map(str::len).max().unwrap_or(0);
    let random = fixed || (digits(key) >= 2 && letters(key) >= 2 && run >= 10);
    (begins_word(text, &found) && random && !goes_on).then_some(found)
}

fn digits(text: &str) -> usize {
    text.bytes().filter(u8::is_ascii_digit).count()
}

fn letters(text: &str) -> usize {
    text.bytes().filter(u8::is_ascii_alphabetic).count()
}

/// The value behind the first separator of a candidate.
fn value_after(text: &str, found: Range<usize>, separators: &str) -> Option<Range<usize>> {
    let candidate = text.get(found.clone())?;
    let at = candidate.find(|c| separators.contains(c))?;
    let tail = candidate.get(at..)?;
    let skipped = tail.len()
        - tail.trim_start_matches([':', '=', '>', ' ', '\t', '"', '\'', '\\', '\n', '\r']).len();
    let start = found.start + at + skipped;
    (start < found.end).then_some(start..found.end)
}

fn named(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    // `max_tokens` and `mytoken` are other names; `my_token` and `OPENAI_API_KEY` are these.
    if before(text, found.start).is_some_and(char::is_alphanumeric) {
        return None;
    }
    let name_end = text.get(found.clone())?.find(['=', ':'])?;
    let name = text.get(found.start..found.start + name_end)?.to_ascii_lowercase();
    let value = value_after(text, found, ":=")?;
    is_secret_value(&name, text.get(value.clone())?).then_some(value)
}

fn header(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(found.clone())?;
    let at = candidate.find(char::is_whitespace)?;
    let value = candidate.get(at..)?;
    let start = found.end - value.trim_start().len();
    let token = value.trim_start();
    let random = digits(token) >= 1 && letters(token) >= 2 || token.ends_with('=');
    (begins_word(text, &found) && random).then_some(start..found.end)
}

fn userinfo(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(found.clone())?;
    let start = found.start + candidate.find("://")? + 3;
    Some(start..found.end - 1)
}

/// Names whose values are secrets, for values that stand in an object of their own.
pub(super) fn is_secret_name(name: &str) -> bool {
    const NAMES: [&str; 15] = [
        "apikey",
        "accesskey",
        "accesskeyid",
        "secret",
        "secretkey",
        "secretaccesskey",
        "clientsecret",
        "authtoken",
        "accesstoken",
        "refreshtoken",
        "token",
        "password",
        "passwd",
        "passphrase",
        "authorization",
    ];
    // As long as the longest of them, with its `x`.
    let mut folded = [0u8; 16];
    let mut len = 0;
    for byte in name.bytes().filter(u8::is_ascii_alphanumeric) {
        let Some(place) = folded.get_mut(len) else { return false };
        *place = byte.to_ascii_lowercase();
        len += 1;
    }
    let folded = folded.get(..len).unwrap_or_default();
    let bare = folded.strip_prefix(b"x").unwrap_or(folded);
    NAMES.iter().any(|known| [folded, bare].contains(&known.as_bytes()))
}

/// Whether a value that is called a secret is one, and not a placeholder, a variable or a type.
pub(super) fn is_secret_value(name: &str, value: &str) -> bool {
    const PLACEHOLDERS: [&str; 14] = [
        "your",
        "xxxx",
        "example",
        "changeme",
        "placeholder",
        "undefined",
        "none",
        "null",
        "string",
        "process.env",
        "os.environ",
        "env.",
        "****",
        "redacted",
    ];
    let folded = value.to_ascii_lowercase();
    let variable = value.starts_with(['$', '%', '<', '{', '[', '/', '*']);
    if variable || PLACEHOLDERS.iter().any(|word| folded.starts_with(word)) {
        return false;
    }
    let symbols = value.bytes().filter(|b| !b.is_ascii_alphanumeric()).count();
    if name.contains("pass") || name.contains("pwd") {
        return digits(value) >= 1 || symbols >= 1;
    }
    digits(value) >= 1 && letters(value) >= 2 && value.len() >= 10
}
