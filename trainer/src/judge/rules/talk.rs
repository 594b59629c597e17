//! What people say: corrections, approval, the same question again.
//!
//! Invariant: only a person's own words count here, never the output of a tool or a page.

use super::{Case, RuleVerdict, shorten, verdict};
use crate::judge::exchange::{role_of, text_of};
use crate::judge::next::observed::Observed;
use hone_shared::policy::{RuleName, fold};

/// Fewest words that make a question recognisable.
const WORDS_MIN: usize = 4;
/// Words of a question that are compared.
const WORDS_MAX: usize = 80;
/// Words that people add when they ask again.
const AGAIN: &[&str] = &[
    "i", "asked", "ask", "said", "say", "meant", "mean", "again", "please", "pls", "repeat",
    "once", "more", "my", "question", "was", "is", "the", "a", "an", "so", "ok", "and", "but",
    "no", "hello", "hey", "well", "just", "tell", "me", "can", "you", "could", "answer", "it",
    "that", "then", "now",
];

pub(super) fn correction(case: &Case<'_>) -> Option<RuleVerdict> {
    let corrects = |text: &&String| case.rules.judge_user(text).is_some_and(|hit| hit.verdict < 0);
    let text = case.next.said.iter().find(corrects)?;
    let reason = format!("the user corrected: {}", shorten(text, 120));
    let correction = Some(text.trim().to_owned());
    Some(RuleVerdict { correction, ..verdict(-1, RuleName::Correction, reason) })
}

/// All that people say must be approval; a result that failed is no occasion for it, nor is an
/// answer that declines.
pub(super) fn approval(case: &Case<'_>) -> Option<RuleVerdict> {
    let hits = case.next.said.iter().map(|text| case.rules.judge_user(text));
    let hits: Vec<_> = hits.collect::<Option<Vec<_>>>().unwrap_or_default();
    let text = case.next.said.first()?;
    let failed =
        |r: &Observed| r.is_error == Some(true) || r.exit_code.is_some_and(|code| code != 0);
    let declines = case.rules.answers.declines.is_match(&case.answer);
    // Thanks for a question are politeness.
    let asks = case.answer.trim_end().ends_with('?') && hits.iter().all(|hit| hit.is_weak);
    let approves = !hits.is_empty() && hits.iter().all(|hit| hit.verdict > 0);
    if !approves || declines || asks || case.next.results.iter().any(failed) {
        return None;
    }
    Some(verdict(1, RuleName::Approval, format!("the user approved: {}", shorten(text, 120))))
}

/// What a program printed when a person ran the answer's code, and nothing else.
pub(super) fn pasted_error(case: &Case<'_>) -> Option<RuleVerdict> {
    let [text] = case.next.said.as_slice() else { return None };
    let lists = &case.rules.results;
    if !case.answer.contains("```")
        || !lists.pasted_error.is_match(text)
        || lists.pasted_unless.is_match(text)
        || lists.environment.is_match(text)
        || case.rules.requests.wants_failure.is_match(case.task())
        || case.rules.requests.wants_tests.is_match(case.task())
    {
        return None;
    }
    let reason = format!("running it printed: {}", shorten(text, 120));
    Some(verdict(-1, RuleName::ToolError, reason))
}

/// The question that the answer was to answer, asked again in the same words.
pub(super) fn rephrased(case: &Case<'_>) -> Option<RuleVerdict> {
    let [text] = case.next.said.as_slice() else { return None };
    // Beside a result it is a harness that repeats the task.
    if !case.next.results.is_empty() || !repeats(case.request(), text) {
        return None;
    }
    // Who sends the same message all the time (a program, a quiz) does not complain by it.
    let mut before = case.seen.messages.iter().filter(|m| role_of(m) == "user").map(text_of);
    let asked_before = before.by_ref().filter(|earlier| repeats(earlier, text)).count();
    let requests = &case.rules.requests;
    if asked_before > 1 || requests.polls.is_match(text) || requests.draws.is_match(text) {
        return None;
    }
    let reason = format!("the user asked the same again: {}", shorten(text, 120));
    Some(verdict(-1, RuleName::Rephrased, reason))
}

/// Whether `later` holds every word of `earlier`, in order, and nothing else of substance.
fn repeats(earlier: &str, later: &str) -> bool {
    let (earlier, later) = (words(earlier), words(later));
    if earlier.len() < WORDS_MIN || later.len() > earlier.len() + AGAIN.len() {
        return false;
    }
    let mut wanted = earlier.iter().peekable();
    for word in &later {
        if wanted.peek().is_some_and(|next| *next == word) {
            wanted.next();
        } else if !AGAIN.contains(&word.as_str()) {
            return false;
        }
    }
    wanted.next().is_none()
}

fn words(text: &str) -> Vec<String> {
    let folded = fold(text);
    let words = folded.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.take(WORDS_MAX).map(str::to_lowercase).collect()
}
