//! `[rules.phrases.<language>]`: what people say when an answer was right or wrong.
//!
//! A language is a table of lists, so that another is added without touching the first.
//!
//! * A **correction** is one sentence that says so; nothing in the message may excuse the answer.
//! * **Approval** is a whole message: every clause of it (what stands between commas and full stops)
//!   must be praise, thanks or a filler. One clause that is none of them, and the message is
//!   silent: that is where irony, praise of a third thing and the real complaint stand. Only one
//!   thing may follow praise: a sentence that begins as the next request does.
//!
//! Invariant: a message is never both; a correction wins, doubt means neither.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::patterns::{Patterns, fold};
use crate::policy::PolicyError;
use crate::policy::limits::Checker;
use crate::text;

/// Bytes of a message that are read, half of them at its beginning, half at its end.
const TEXT_BYTES_MAX: usize = 4096;
/// Sentences at the beginning in which a correction is looked for.
const SENTENCES_MAX: usize = 3;

/// All languages of one judge.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Phrases {
    correction: Patterns,
    correction_unless: Patterns,
    approval: Patterns,
    approval_weak: Patterns,
    approval_filler: Patterns,
    approval_next: Patterns,
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
    /// Thanks and no praise: politeness, where the answer gave nothing to thank for.
    pub is_weak: bool,
}

/// What one clause is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clause<'a> {
    Praise(&'a str),
    Thanks(&'a str),
    Filler,
}

impl Phrases {
    /// What a person's message says about the answer before it; `None` when the phrases are silent.
    pub fn judge(&self, text: &str) -> Option<RuleHit<'_>> {
        let text = without_quotes(&fold(text.trim()));
        let parts = ends(&text);
        let found = |list: &'_ Patterns| parts.iter().any(|part| list.is_match(part));
        if let Some(reason) = self.corrects(parts[0]) {
            let hit = RuleHit { verdict: -1, rule: "correction", reason, is_weak: false };
            return Some(hit).filter(|_| !found(&self.correction_unless));
        }
        if text.len() > self.chars_max || found(&self.approval_unless) {
            return None;
        }
        let (reason, is_weak) = self.praise(parts[0])?;
        Some(RuleHit { verdict: 1, rule: "approval", reason, is_weak })
    }

    /// The expression that corrects, near the beginning and not after praise: what comes later is
    /// often about something else.
    fn corrects(&self, text: &str) -> Option<&str> {
        let praises = |clause: &Clause<'_>| matches!(clause, Clause::Praise(_));
        for sentence in sentences(text).into_iter().take(SENTENCES_MAX).map(str::trim) {
            if let Some(reason) = self.correction.first(sentence) {
                return Some(reason);
            }
            if self.clauses(sentence).is_some_and(|clauses| clauses.iter().any(praises)) {
                return None;
            }
        }
        None
    }

    /// The expression that praises, and whether it only thanks.
    fn praise(&self, text: &str) -> Option<(&str, bool)> {
        let (mut praise, mut thanks) = (None, None);
        let sentences = sentences(text);
        for (at, sentence) in sentences.iter().enumerate() {
            let Some(clauses) = self.clauses(sentence) else {
                let is_last = at + 1 == sentences.len();
                let goes_on = is_last && self.approval_next.is_match(sentence.trim());
                return praise.filter(|_| goes_on).map(|reason| (reason, false));
            };
            for clause in clauses {
                match clause {
                    Clause::Praise(reason) => praise = praise.or(Some(reason)),
                    Clause::Thanks(reason) => thanks = thanks.or(Some(reason)),
                    Clause::Filler => {}
                }
            }
        }
        praise.map(|reason| (reason, false)).or(thanks.map(|reason| (reason, true)))
    }

    /// The clauses of a sentence; `None` if one of them is nothing that approval is made of.
    fn clauses(&self, sentence: &str) -> Option<Vec<Clause<'_>>> {
        if sentence.contains(['?', '？', '؟', '"']) || sentence.contains("...") {
            return None;
        }
        let separates =
            |c: char| matches!(c, ',' | ';' | ':' | '(' | ')' | '，' | '、' | '،' | '：');
        let mut found = Vec::new();
        for clause in sentence.split(separates).flat_map(|clause| clause.split(" - ")) {
            let words = clause.trim_matches(|c: char| !c.is_alphanumeric());
            // What is neither letter nor ASCII nor punctuation is a sign that says something.
            let signs: String = clause.chars().filter(|c| is_sign(*c)).collect();
            for part in [words, &signs].into_iter().filter(|part| !part.is_empty()) {
                found.push(self.clause(part)?);
            }
        }
        Some(found)
    }

    fn clause(&self, clause: &str) -> Option<Clause<'_>> {
        if let Some(reason) = self.approval.first(clause) {
            return Some(Clause::Praise(reason));
        }
        if let Some(reason) = self.approval_weak.first(clause) {
            return Some(Clause::Thanks(reason));
        }
        self.approval_filler.is_match(clause).then_some(Clause::Filler)
    }
}

/// Emoji and the like.
fn is_sign(c: char) -> bool {
    let punctuation = "¡¿。！・～〜–—‘’“”«»\u{fe0f}\u{200d}";
    !c.is_ascii() && !c.is_alphanumeric() && !c.is_whitespace() && !punctuation.contains(c)
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
        let wide = matches!(c, '。' | '！' | '？');
        let ends = wide || matches!(c, '.' | '!' | '?' | '\n' | ';');
        if ended && !ends && (c.is_whitespace() || line_ended) {
            found.extend(text.get(start..at).filter(|s| !s.trim().is_empty()));
            start = at;
        }
        ended = ends;
        line_ended = wide || c == '\n';
    }
    found.extend(text.get(start..).filter(|s| !s.trim().is_empty()));
    found
}

/// The beginning and the end of a text that is too long; the whole of a short one.
fn ends(text: &str) -> [&str; 2] {
    if text.len() <= TEXT_BYTES_MAX {
        return [text, ""];
    }
    [text::head(text, TEXT_BYTES_MAX / 2), text::tail(text, TEXT_BYTES_MAX / 2)]
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
    pub approval_weak: Vec<String>,
    #[serde(default)]
    pub approval_filler: Vec<String>,
    #[serde(default)]
    pub approval_next: Vec<String>,
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
        all.approval_weak.extend(one.approval_weak);
        all.approval_filler.extend(one.approval_filler);
        all.approval_next.extend(one.approval_next);
        all.approval_unless.extend(one.approval_unless);
    }
    let list = |key: &str, sources| Patterns::check(check, &format!("rules.{key}"), sources);
    Ok(Phrases {
        correction: list("correction", all.correction)?,
        correction_unless: list("correction_unless", all.correction_unless)?,
        approval: list("approval", all.approval)?,
        approval_weak: list("approval_weak", all.approval_weak)?,
        approval_filler: list("approval_filler", all.approval_filler)?,
        approval_next: list("approval_next", all.approval_next)?,
        approval_unless: list("approval_unless", all.approval_unless)?,
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
