//! JSON with bounds: how many values, how deep, and what is forgiven.
//!
//! Values are counted before anything is built, so that a body of a million keys costs one scan;
//! nesting beyond 128 levels is refused by serde_json itself. Two faults that real clients make are
//! mended, because engines forgive them too: bytes that are no UTF-8, and half a surrogate pair (a
//! JavaScript string that was cut in the middle of an emoji).
//!
//! Invariant: memory and time are linear in the body, with at most [`JSON_VALUES_MAX`] values.

use serde_json::Value;

use super::WireError;

/// Most values (numbers, texts, lists, objects, keys apart) in one body or event. About 150 MB of
/// memory at the worst, while the body is being read.
pub const JSON_VALUES_MAX: usize = 1_000_000;

/// Reads one JSON text. A byte order mark may lead.
pub(super) fn parse(what: &'static str, body: &[u8]) -> Result<Value, WireError> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    // The shortest values take two bytes each with the comma between them.
    if body.len() / 2 > JSON_VALUES_MAX && values(body) > JSON_VALUES_MAX {
        let problem = format!("it has more than {JSON_VALUES_MAX} values");
        return Err(WireError::Json { what, problem });
    }
    serde_json::from_slice(body).or_else(|error| {
        let error = || WireError::Json { what, problem: error.to_string() };
        let mended = mend(body).ok_or_else(error)?;
        serde_json::from_str(&mended).map_err(|_| error())
    })
}

/// How many values the text holds, if it is JSON: commas and openings outside of strings.
fn values(body: &[u8]) -> usize {
    let mut count = 1;
    let mut rest = body.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b',' | b'[' | b'{' => count += 1,
            b'"' => loop {
                match rest.next() {
                    Some(b'\\') => drop(rest.next()),
                    Some(b'"') | None => break,
                    Some(_) => {}
                }
            },
            _ => {}
        }
    }
    count
}

/// The text with U+FFFD for what is no Unicode; `None` when there is nothing to mend.
fn mend(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let mut mended = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some((before, after)) = rest.split_once('\\') {
        mended.push_str(before);
        let pair = after.get(5..).and_then(|next| next.strip_prefix('\\')).and_then(unit);
        let (written, taken) = match (unit(after), pair) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (after.get(..11), 11),
            (Some(0xd800..=0xdfff), _) => (Some("ufffd"), 5),
            // Any other escape: the character after the backslash goes with it.
            _ => {
                let len = after.chars().next().map_or(0, char::len_utf8);
                (after.get(..len), len)
            }
        };
        mended.push('\\');
        mended.push_str(written.unwrap_or_default());
        rest = after.get(taken..).unwrap_or_default();
    }
    mended.push_str(rest);
    (mended.as_bytes() != body).then_some(mended)
}

/// The UTF-16 unit of an escape whose backslash is gone: `u` and four hex digits.
fn unit(escape: &str) -> Option<u16> {
    let digits = escape.strip_prefix('u')?.get(..4)?;
    // `from_str_radix` would take a sign.
    let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn half_an_emoji_and_bytes_that_are_no_text_are_replaced() {
        let read = |body: &[u8]| parse("test", body).unwrap();
        assert_eq!(
            read(br#"["a\ud83d","\udc4d","\ud83d\udc4d","\\ud83d","\n"]"#),
            json!(["a\u{fffd}", "\u{fffd}", "\u{1F44D}", "\\ud83d", "\n"])
        );
        assert_eq!(read(b"[\"\xff\\u00e9\"]"), json!(["\u{fffd}\u{e9}"]));
        for broken in [&b"[\"\\ud8"[..], b"\\", b"[\"\\u+0d8\"]", b"\xff", b"{\"a\":\\ud800}"] {
            assert!(parse("test", broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn values_are_counted_outside_of_strings() {
        assert_eq!(values(br#"{"a,[\"{":[1,2,"\\"],"b":{}}"#), 7);
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        assert!(parse("test", deep.as_bytes()).is_err());
        let many = |count: usize| format!("[{}0]", "0,".repeat(count));
        assert!(parse("test", many(JSON_VALUES_MAX - 2).as_bytes()).is_ok());
        assert!(parse("test", many(JSON_VALUES_MAX).as_bytes()).is_err());
    }
}
