//! The answer itself: cut off, empty, or garbage.
//!
//! Invariant: none of these answers is ever judged good, whoever approves of it.

use super::{Case, RuleVerdict, verdict};
use hone_shared::policy::RuleName;
use std::collections::HashMap;

/// Words of an answer of which the repetition is measured, at most.
const WORDS_MAX: usize = 4_000;
/// Groups of four words needed before repetition means anything.
const GROUPS_MIN: usize = 24;
/// Share of groups that occurred before, from which an answer is garbage.
const REPEATED_SHARE_MAX: f64 = 0.6;
/// Length of one unbroken run of the same character that is garbage, unless it draws a line.
const RUN_MAX: usize = 200;
/// Share of replacement characters from which a text cannot be read, and their least number.
const REPLACED_SHARE_MAX: f64 = 0.05;
const REPLACED_MIN: usize = 3;
/// Bytes of an answer that may be nothing but an error text.
const PLACEHOLDER_BYTES_MAX: usize = 400;

/// What is said instead of praise for an answer that may not be praised.
pub(super) fn never_good(case: &Case<'_>) -> Option<RuleVerdict> {
    if case.seen.truncated() {
        let reason = "the answer was cut at the token limit, so approval does not count";
        return Some(verdict(0, RuleName::Truncated, reason.into()));
    }
    let bad_ends = ["error", "abort", "aborted", "cancelled", "canceled", "failed", "incomplete"];
    let finish = case.seen.finish_reason.as_deref().unwrap_or_default();
    if bad_ends.contains(&finish) {
        let reason = format!("generation ended with `{finish}`, so approval does not count");
        return Some(RuleVerdict { verdict: 0, rule: "unfinished", reason, correction: None });
    }
    empty_answer(case).or_else(|| garbage(case))
}

/// An answer that was cut, unless it was welcome all the same: then the evidence conflicts.
pub(super) fn truncated(case: &Case<'_>) -> Option<RuleVerdict> {
    let welcome = |text: &String| case.rules.answers.cut_but_welcome.is_match(text);
    let negative = case.rules.truncated_is_negative
        && case.seen.truncated()
        && !case.next.said.iter().any(welcome);
    let reason = "the answer was cut at the token limit";
    negative.then(|| verdict(-1, RuleName::Truncated, reason.into()))
}

pub(super) fn empty_answer(case: &Case<'_>) -> Option<RuleVerdict> {
    let empty = case.answer.trim().is_empty() && case.next.calls.is_empty();
    empty.then(|| verdict(-1, RuleName::EmptyAnswer, "the answer was empty".into()))
}

pub(super) fn garbage(case: &Case<'_>) -> Option<RuleVerdict> {
    if case.rules.requests.odd_text.is_match(case.request()) {
        return None;
    }
    let reason = fault(&case.answer).map(str::to_owned).or_else(|| {
        let text = case.answer.trim();
        let short = text.len() <= PLACEHOLDER_BYTES_MAX && case.next.calls.is_empty();
        let found = short.then(|| case.rules.answers.placeholder.first(text)).flatten();
        found.map(|_| "an error text stands in place of an answer".to_owned())
    })?;
    Some(verdict(-1, RuleName::Garbage, reason))
}

fn fault(text: &str) -> Option<&'static str> {
    let replaced = text.matches('\u{fffd}').count();
    if replaced >= REPLACED_MIN
        && replaced as f64 > text.chars().count() as f64 * REPLACED_SHARE_MAX
    {
        return Some("the answer cannot be read");
    }
    if has_long_run(text) || repeated_share(text) > REPEATED_SHARE_MAX {
        return Some("the answer repeats itself");
    }
    None
}

fn has_long_run(text: &str) -> bool {
    let (mut last, mut length) = ('\0', 0usize);
    for c in text.chars() {
        length = if c == last { length + 1 } else { 1 };
        last = c;
        if length > RUN_MAX && !matches!(c, '-' | '=' | '_' | '*' | '#' | ' ' | '.' | '\n') {
            return true;
        }
    }
    false
}

/// Share of the 4-word groups that occurred before, 0 for a short text.
fn repeated_share(text: &str) -> f64 {
    let words: Vec<&str> = text.split_whitespace().take(WORDS_MAX).collect();
    if words.len() < GROUPS_MIN + 3 {
        return 0.0;
    }
    let mut counts: HashMap<&[&str], usize> = HashMap::with_capacity(words.len());
    for group in words.windows(4) {
        *counts.entry(group).or_default() += 1;
    }
    1.0 - counts.len() as f64 / (words.len() - 3) as f64
}
