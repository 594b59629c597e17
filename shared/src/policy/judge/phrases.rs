//! `[rules.phrases.<language>]`: what people say when an answer was right or wrong.
//!
//! A language is a table of lists, so that another is added without touching the first. A message is
//! read sentence by sentence. Precision comes first: praise counts only at the beginning of a
//! sentence that is no question, near the beginning of a message that is not long, and only when
//! nothing in the whole message speaks against it.
//!
//! Invariant: a message is never both; a correction wins, doubt means neither.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::patterns::{Patterns, fold};
use crate::policy::PolicyError;
use crate::policy::limits::Checker;

/// Bytes of a message that are read, half of them at its beginning, half at its end.
const TEXT_BYTES_MAX: usize = 4096;
/// Sentences at the beginning in which praise counts, and words of one that may stand before it.
const SENTENCES_MAX: usize = 3;
const INTERJECTION_WORDS_MAX: usize = 2;

/// All languages of one judge.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Phrases {
    correction: Patterns,
    correction_unless: Patterns,
    approval: Patterns,
    approval_unless: Patterns,
    chars_max: usize,
}

/// What people's words say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleHit<'a> {
    /// +1 or −1.
    pub verdict: i8,
    /// `correction` or `approval`; a verdict's source is `rule:<this>`.
    pub rule: &'static str,
    /// The expression that matched.
    pub reason: &'a str,
}

impl Phrases {
    /// What a person's message says about the answer before it; `None` when the phrases are silent.
    pub fn judge(&self, text: &str) -> Option<RuleHit<'_>> {
        let text = without_quotes(&fold(text.trim()));
        let parts = ends(&text);
        let found = |list: &'_ Patterns| parts.iter().any(|part| list.is_match(part));
        if !found(&self.correction_unless)
            && let Some(reason) = parts.iter().find_map(|part| self.correction.first(part))
        {
            return Some(RuleHit { verdict: -1, rule: "correction", reason });
        }
        if text.len() > self.chars_max || found(&self.approval_unless) || found(&self.correction) {
            return None;
        }
        let reason = self.praise(parts[0])?;
        Some(RuleHit { verdict: 1, rule: "approval", reason })
    }
}

impl Phrases {
    /// Praise in the first sentence, or after interjections: what follows a question or a request
    /// ("In French now. Thanks!") is politeness.
    fn praise(&self, text: &str) -> Option<&str> {
        for sentence in sentences(text).into_iter().take(SENTENCES_MAX).map(str::trim) {
            if sentence.ends_with('?') {
                return None;
            }
            if let Some(reason) = self.approval.first(sentence) {
                return Some(reason);
            }
            if sentence.split_whitespace().count() > INTERJECTION_WORDS_MAX {
                return None;
            }
        }
        None
    }
}

/// A text without what stands in double quotes: those are somebody else's words.
fn without_quotes(text: &str) -> String {
    let mut parts = text.split('"');
    let mut kept = parts.next().unwrap_or_default().to_owned();
    while let Some(inside) = parts.next() {
        match parts.next() {
            Some(after) => {
                kept.push_str("\"\"");
                kept.push_str(after);
            }
            // A quote that does not end.
            None => kept.push_str(inside),
        }
    }
    kept
}

/// Sentences with the sign that ends them.
fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut start, mut ended, mut line_ended) = (0, false, false);
    for (at, c) in text.char_indices() {
        let ends = matches!(c, '.' | '!' | '?' | '\n' | ';');
        if ended && !ends && (c.is_whitespace() || line_ended) {
            found.extend(text.get(start..at).filter(|s| !s.trim().is_empty()));
            start = at;
        }
        ended = ends;
        line_ended = c == '\n';
    }
    found.extend(text.get(start..).filter(|s| !s.trim().is_empty()));
    found
}

/// The beginning and the end of a text that is too long; the whole of a short one.
fn ends(text: &str) -> [&str; 2] {
    if text.len() <= TEXT_BYTES_MAX {
        return [text, ""];
    }
    let head = (0..=TEXT_BYTES_MAX / 2).rev().find_map(|at| text.get(..at));
    let tail = (text.len() - TEXT_BYTES_MAX / 2..text.len()).find_map(|at| text.get(at..));
    [head.unwrap_or_default(), tail.unwrap_or_default()]
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPhrases {
    #[serde(default)]
    pub correction: Vec<String>,
    #[serde(default)]
    pub correction_unless: Vec<String>,
    #[serde(default)]
    pub approval: Vec<String>,
    #[serde(default)]
    pub approval_unless: Vec<String>,
}

/// Compiles the lists of all languages together.
pub(super) fn check(
    check: &Checker<'_>,
    languages: BTreeMap<String, RawPhrases>,
    chars_max: usize,
) -> Result<Phrases, PolicyError> {
    let mut all = RawPhrases::default();
    for (_, one) in languages {
        all.correction.extend(one.correction);
        all.correction_unless.extend(one.correction_unless);
        all.approval.extend(one.approval);
        all.approval_unless.extend(one.approval_unless);
    }
    Ok(Phrases {
        correction: Patterns::check(check, "rules.correction", all.correction)?,
        correction_unless: Patterns::check(
            check,
            "rules.correction_unless",
            all.correction_unless,
        )?,
        approval: Patterns::check(check, "rules.approval", all.approval)?,
        approval_unless: Patterns::check(check, "rules.approval_unless", all.approval_unless)?,
        chars_max,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_into_sentences_and_numbers_and_names_stay_whole() {
        let cut = sentences("Nice. It is 8.0 km!! Right?\nYes");
        let cut: Vec<&str> = cut.iter().map(|s| s.trim()).collect();
        assert_eq!(cut, ["Nice.", "It is 8.0 km!!", "Right?", "Yes"]);
        assert!(sentences("").is_empty());
    }

    #[test]
    fn only_the_ends_of_a_long_text_are_read() {
        let text = format!("a{}z", "é".repeat(TEXT_BYTES_MAX));
        let [head, tail] = ends(&text);
        assert!(head.starts_with('a') && tail.ends_with('z'));
        assert!(head.len() + tail.len() <= TEXT_BYTES_MAX);
    }
}
