//! One shape that a detector looks for: a cheap condition, a regular expression, a check.
//!
//! Invariant: after a candidate that fails its check, searching goes on behind the candidate's
//! first group, so the whole search stays linear.

use std::ops::Range;
use std::sync::OnceLock;

use regex::Regex;

/// What a text holds, counted once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts {
    bytes: usize,
    digits: usize,
    ats: usize,
    colons: usize,
    dots: usize,
    dashes: usize,
    equals: usize,
}

impl Facts {
    pub(super) fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let is = |wanted: u8| move |byte: &u8| *byte == wanted;
        Self {
            bytes: bytes.len(),
            digits: count(bytes, u8::is_ascii_digit),
            ats: count(bytes, is(b'@')),
            colons: count(bytes, is(b':')),
            dots: count(bytes, is(b'.')),
            dashes: count(bytes, is(b'-')),
            equals: count(bytes, is(b'=')),
        }
    }

    /// Whether a text holds nothing but its length that a built-in shape needs.
    pub(super) fn is_plain(text: &str) -> bool {
        let mark = |b: &u8| matches!(b, b'0'..=b'9' | b'@' | b':' | b'.' | b'-' | b'=');
        !text.as_bytes().iter().any(mark)
    }
}

/// How many bytes are so. By the block, so that a sum fits into one byte and the compiler counts
/// sixteen at once.
fn count(bytes: &[u8], is: impl Fn(&u8) -> bool) -> usize {
    let block = |block: &[u8]| block.iter().fold(0u8, |sum, byte| sum + u8::from(is(byte)));
    bytes.chunks(usize::from(u8::MAX)).map(|bytes| usize::from(block(bytes))).sum()
}

/// The least that a text must hold for a shape to be in it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Needs {
    pub bytes: usize,
    pub digits: usize,
    pub ats: usize,
    pub colons: usize,
    pub dots: usize,
    pub dashes: usize,
    pub equals: usize,
    /// Colons and equals signs together.
    pub separators: usize,
    /// Digits and equals signs together.
    pub marks: usize,
}

/// Looks at a candidate in its text; the part of it that is a hit, if any.
pub(super) type Check = fn(text: &str, candidate: Range<usize>) -> Option<Range<usize>>;

/// One shape.
pub(super) struct Shape {
    needs: Needs,
    pattern: &'static str,
    /// Compiled when a text first needs it: all of them together hold megabytes.
    regex: OnceLock<Option<Regex>>,
    check: Check,
}

impl Shape {
    /// A built-in shape.
    pub(super) fn new(needs: Needs, pattern: &'static str, check: Check) -> Self {
        Self { needs, pattern, regex: OnceLock::new(), check }
    }

    /// A pattern whose matches are hits, empty ones excepted.
    pub(super) fn plain(regex: Regex) -> Self {
        let regex = OnceLock::from(Some(regex));
        Self { needs: Needs::default(), pattern: "", regex, check: |_, found| Some(found) }
    }

    /// `None`: the pattern does not compile.
    pub(super) fn regex(&self) -> Option<&Regex> {
        self.regex.get_or_init(|| Regex::new(self.pattern).ok()).as_ref()
    }

    /// The shortest text without marks ([`Facts::is_plain`]) that can hold the shape.
    pub(super) fn plain_bytes_min(&self) -> usize {
        let length = |bytes: &usize| self.possible(&Facts { bytes: *bytes, ..Facts::default() });
        // A shape that needs more than its length is in no such text.
        Some(self.needs.bytes).filter(length).unwrap_or(usize::MAX)
    }

    /// Whether the text can hold the shape at all.
    pub(super) fn possible(&self, facts: &Facts) -> bool {
        facts.bytes >= self.needs.bytes
            && facts.digits >= self.needs.digits
            && facts.ats >= self.needs.ats
            && facts.colons >= self.needs.colons
            && facts.dots >= self.needs.dots
            && facts.dashes >= self.needs.dashes
            && facts.equals >= self.needs.equals
            && facts.colons + facts.equals >= self.needs.separators
            && facts.digits + facts.equals >= self.needs.marks
    }

    /// Adds all hits in `text` to `found`.
    pub(super) fn find_all(&self, text: &str, found: &mut Vec<Range<usize>>) {
        // What cannot be looked for could be anywhere.
        let Some(regex) = self.regex() else { return found.push(0..text.len()) };
        let mut at = 0;
        while let Some(candidate) = regex.find_at(text, at) {
            let range = candidate.range();
            let hit = (self.check)(text, range.clone()).filter(|hit| !hit.is_empty());
            at = match hit {
                Some(hit) => {
                    let end = hit.end.max(range.start + 1);
                    found.push(hit);
                    end
                }
                None => behind_first_group(candidate.as_str(), range),
            };
            while !text.is_char_boundary(at) {
                at += 1;
            }
            if at >= text.len() {
                return;
            }
        }
    }
}

/// Where a candidate that failed is tried again: behind its first separator, at most 8 times for
/// one candidate of 40 bytes, or behind it.
fn behind_first_group(candidate: &str, range: Range<usize>) -> usize {
    const TRIED_BYTES_MAX: usize = 64;
    let separator = |b: &u8| matches!(b, b' ' | b'-' | b'.' | b'/' | b':' | b'@');
    let bytes = candidate.as_bytes();
    let first = bytes.iter().take(TRIED_BYTES_MAX).position(separator);
    match first {
        Some(at) if at + 1 < bytes.len() => range.start + at + 1,
        _ => range.end.max(range.start + 1),
    }
}

/// The character before a position.
pub(super) fn before(text: &str, at: usize) -> Option<char> {
    text.get(..at).and_then(|head| head.chars().next_back())
}

/// The character at a position.
pub(super) fn after(text: &str, at: usize) -> Option<char> {
    text.get(at..).and_then(|tail| tail.chars().next())
}

/// Whether a range is a word of its own: no letter, digit or `_` touches it.
pub(super) fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    !word(before(text, range.start)) && !word(after(text, range.end))
}

/// As [`stands_alone`], and not a part of a longer number, version or path either.
pub(super) fn is_own_number(text: &str, range: &Range<usize>) -> bool {
    let joins = |c: Option<char>| matches!(c, Some('.' | '-' | '/' | '+' | '#' | '='));
    let digit = |at: usize| after(text, at).is_some_and(|c| c.is_ascii_digit());
    let next = after(text, range.end);
    let goes_on = matches!(next, Some('.' | '-' | '/' | ',')) && digit(range.end + 1);
    stands_alone(text, range) && !joins(before(text, range.start)) && !goes_on
}

/// The digits of a text, as numbers.
pub(super) fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}
