//! Chunks that repeat the one before but for their text.
//!
//! Why: an engine streams hundreds of chunks whose JSON differs in one string only. Reading each of
//! them was half of what storing a streamed turn cost; comparing bytes costs a fiftieth.
//!
//! Invariant: a chunk is a repetition only if its JSON is certain to be that of the chunk before
//! with another `choices[0].delta.content`. The place of the text is proven once, by reading the
//! chunk with another text in it; and whatever is no repetition is read.

use serde_json::Value;

use super::json;
use super::sse::Seen;

/// Patterns that may be learned without ever having been repeated: streams of several choices
/// alternate.
const LEARNED_MAX: u32 = 8;

/// What the chunk before looked like.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    pattern: Option<Pattern>,
    learned: u32,
    repeated: u32,
}

#[derive(Debug)]
struct Pattern {
    /// The chunk's bytes around its text.
    before: Vec<u8>,
    after: Vec<u8>,
    choice: u32,
}

impl Repeats {
    /// The text of a chunk that repeats the one before, and the choice that it belongs to.
    pub(super) fn text<'a>(&mut self, seen: Seen<'a>) -> Option<(u32, &'a str)> {
        let pattern = self.pattern.as_ref().filter(|_| seen.name.is_empty())?;
        let text = seen.data.strip_prefix(&*pattern.before)?.strip_suffix(&*pattern.after)?;
        let text = std::str::from_utf8(text).ok().filter(|text| is_plain(text))?;
        self.repeated = self.repeated.saturating_add(1);
        Some((pattern.choice, text))
    }

    /// Takes note of a chunk that was read.
    pub(super) fn learn(&mut self, seen: Seen<'_>, chunk: &Value) {
        self.pattern = None;
        if seen.name.is_empty() && self.learned < LEARNED_MAX.saturating_add(self.repeated) {
            self.pattern = Pattern::of(seen.data, chunk);
            self.learned += u32::from(self.pattern.is_some());
        }
    }
}

impl Pattern {
    /// `None` for a chunk that does anything else than add to a text.
    fn of(data: &[u8], chunk: &Value) -> Option<Self> {
        let (choice, text) = only_text(chunk)?;
        const KEY: &[u8] = b"\"content\"";
        let (before, after) = memchr::memmem::find_iter(data, KEY)
            .find_map(|at| around(data, at + KEY.len(), text.as_bytes()))?;
        let pattern = Self { before: before.to_vec(), after: after.to_vec(), choice };
        // Another text in this place must change that text and nothing else.
        let probe = if text == "x" { "y" } else { "x" };
        let read = json::parse("event", &[before, probe.as_bytes(), after].concat()).ok()?;
        let mut expected = chunk.clone();
        *expected.pointer_mut("/choices/0/delta/content")? = Value::from(probe);
        (read == expected).then_some(pattern)
    }
}

/// What stands before and after a text, if it is the value of the key that ends at `at`.
fn around<'a>(data: &'a [u8], at: usize, text: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let value = data.get(at..)?.trim_ascii_start().strip_prefix(b":")?;
    let value = value.trim_ascii_start().strip_prefix(b"\"")?;
    let after = value.strip_prefix(text).filter(|rest| rest.starts_with(b"\""))?;
    Some((data.get(..data.len() - value.len())?, after))
}

/// The choice and the text of a chunk that has nothing else to say than the text.
fn only_text(chunk: &Value) -> Option<(u32, &str)> {
    let says = |object: &Value, key: &str| object.get(key).is_some_and(|value| !value.is_null());
    let [choice] = chunk.get("choices")?.as_array()?.as_slice() else { return None };
    let more = ["usage", "error"].into_iter().any(|key| says(chunk, key))
        || ["finish_reason", "logprobs", "text"].into_iter().any(|key| says(choice, key))
        || chunk.get("object").and_then(Value::as_str) == Some("error");
    let delta = choice.get("delta")?.as_object().filter(|_| !more)?;
    // A role that is said again stays what it is.
    let alone = |(key, value): (&String, &Value)| {
        value.is_null() || value.is_string() && matches!(key.as_str(), "content" | "role")
    };
    let text = delta.get("content")?.as_str().filter(|text| is_plain(text))?;
    let index = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
    Some((u32::try_from(index).ok()?, text)).filter(|_| delta.iter().all(alone))
}

/// Whether JSON writes the text as it is.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte >= b' ' && !matches!(byte, b'"' | b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(data: &str) -> Seen<'_> {
        Seen { name: "", data: data.as_bytes() }
    }

    fn learned(data: &str) -> Repeats {
        let mut repeats = Repeats::default();
        repeats.learn(seen(data), &serde_json::from_str(data).unwrap());
        repeats
    }

    #[test]
    fn a_chunk_that_differs_in_its_text_only_is_a_repetition() {
        let chunk = |text: &str| {
            let delta = json!({"role": "assistant", "content": text, "tool_calls": null});
            json!({"id": "content", "choices": [{"index": 3, "delta": delta}]}).to_string()
        };
        let mut repeats = learned(&chunk("Hello"));
        for text in ["", " world", "caf\u{e9}", "x"] {
            assert_eq!(repeats.text(seen(&chunk(text))), Some((3, text)));
        }
        for text in ["a\"b", "a\\b", "a\nb"] {
            assert_eq!(repeats.text(seen(&chunk(text))), None, "{text:?} is written with escapes");
        }
        assert_eq!(repeats.text(seen(&chunk("a").replace("content\",", "other\","))), None);
        let chunk = chunk("a");
        let named = Seen { name: "error", ..seen(&chunk) };
        assert_eq!(repeats.text(named), None);
    }

    #[test]
    fn a_chunk_that_says_more_than_a_text_teaches_nothing() {
        for chunk in [
            r#"{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1}}"#,
            r#"{"choices":[{"delta":{"content":"a","reasoning":"b"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"}},{"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a\u0041"}}]}"#,
            r#"{"content":"a","choices":[{"delta":{"\u0063ontent":"a"}}]}"#,
            r#"{"content":"a","choices":[{"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"},"logprobs":{}}]}"#,
            r#"{"choices":[]}"#,
        ] {
            assert!(learned(chunk).pattern.is_none(), "{chunk}");
        }
    }

    #[test]
    fn a_stream_of_several_choices_is_soon_left_alone() {
        let chunk = |index: u32| {
            json!({"choices": [{"index": index, "delta": {"content": "a"}}]}).to_string()
        };
        let mut repeats = Repeats::default();
        for round in 0..100 {
            let chunk = chunk(round % 2);
            assert_eq!(repeats.text(seen(&chunk)), None);
            repeats.learn(seen(&chunk), &serde_json::from_str(&chunk).unwrap());
        }
        assert_eq!(repeats.learned, LEARNED_MAX);
    }
}
