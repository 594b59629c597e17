//! The deterministic judge: what needs no model to be seen.
//!
//! In this order, the first that applies decides: correction by the user, tool error, exit code,
//! repeated identical call, truncation, empty answer, approval by the user. Correction stands
//! before approval because "thanks, but shorter" asks for a change; every failure stands before
//! approval because the reference's judges rewarded truncated and looping answers that a user waved
//! through.
//!
//! Invariant: a truncated or an empty answer is never approved.

use super::exchange::{Exchange, calls_of, role_of, text_of};
use hone_shared::policy::Rules;

/// A verdict by rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleVerdict {
    /// +1, 0 or −1.
    pub verdict: i8,
    /// Name of the rule, as it stands in `source` after `rule:`.
    pub rule: &'static str,
    /// One sentence for a person.
    pub reason: String,
    /// The user's correction in the user's words.
    pub correction: Option<String>,
}

/// The verdict of the first rule that applies; `None` when no rule does.
pub fn judge(rules: &Rules, seen: &Exchange) -> Option<RuleVerdict> {
    by_correction(rules, seen)
        .or_else(|| by_tools(rules, seen))
        .or_else(|| by_repetition(rules, seen))
        .or_else(|| by_truncation(rules, seen))
        .or_else(|| empty_answer(seen))
        .or_else(|| by_approval(rules, seen))
}

fn by_correction(rules: &Rules, seen: &Exchange) -> Option<RuleVerdict> {
    let corrects = |text: &String| rules.judge_user(text).is_some_and(|hit| hit.verdict < 0);
    let text = texts(seen, "user").find(corrects)?;
    let reason = format!("the user corrected: {}", shorten(&text, 120));
    let correction = Some(text.trim().to_owned());
    Some(RuleVerdict { verdict: -1, rule: "correction", reason, correction })
}

/// Only failures count: a call that did not fail is not yet a good call (rewarding those taught the
/// reference's agents to wait and to write to themselves).
fn by_tools(rules: &Rules, seen: &Exchange) -> Option<RuleVerdict> {
    texts(seen, "tool").find_map(|text| {
        let hit = rules.judge_tool(&text).filter(|hit| hit.verdict < 0)?;
        Some(verdict(-1, hit.rule, format!("{}: {}", hit.reason, shorten(&text, 120))))
    })
}

/// The answer's calls, each counted with the identical ones right before it.
fn by_repetition(rules: &Rules, seen: &Exchange) -> Option<RuleVerdict> {
    let mut run: Option<((String, String), usize)> = None;
    let mut longest = 0;
    let before: Vec<_> = seen.messages.iter().flat_map(calls_of).collect();
    let answered = calls_of(&seen.answer);
    let first_of_answer = before.len();
    for (at, call) in before.into_iter().chain(answered).enumerate() {
        let count = match &run {
            Some((last, count)) if *last == call => count + 1,
            _ => 1,
        };
        if at >= first_of_answer {
            longest = longest.max(count);
        }
        run = Some((call, count));
    }
    if longest <= rules.repeat_calls_max.max(1) {
        return None;
    }
    let reason = format!("the same call with the same arguments {longest} times in a row");
    Some(verdict(-1, "repeated_call", reason))
}

fn by_truncation(rules: &Rules, seen: &Exchange) -> Option<RuleVerdict> {
    if !seen.truncated() {
        return None;
    }
    if rules.truncated_is_negative {
        return Some(verdict(-1, "truncated", "the answer was cut at the token limit".into()));
    }
    let reason = "the answer was cut at the token limit, so approval does not count";
    by_approval(rules, seen).map(|_| verdict(0, "truncated", reason.into()))
}

fn by_approval(rules: &Rules, seen: &Exchange) -> Option<RuleVerdict> {
    let approves = |text: &String| rules.judge_user(text).is_some_and(|hit| hit.verdict > 0);
    let text = texts(seen, "user").find(approves)?;
    Some(verdict(1, "approval", format!("the user approved: {}", shorten(&text, 120))))
}

fn empty_answer(seen: &Exchange) -> Option<RuleVerdict> {
    let empty = seen.answer_text().trim().is_empty() && calls_of(&seen.answer).is_empty();
    empty.then(|| verdict(-1, "empty_answer", "the answer was empty".into()))
}

fn verdict(verdict: i8, rule: &'static str, reason: String) -> RuleVerdict {
    RuleVerdict { verdict, rule, reason, correction: None }
}

/// Texts of the next state's messages of one role.
fn texts<'a>(seen: &'a Exchange, role: &'a str) -> impl Iterator<Item = String> + 'a {
    let of_role = seen.next_state.iter().filter(move |m| role_of(m) == role);
    of_role.map(text_of)
}

/// At most `chars` characters of a text, on one line.
pub fn shorten(text: &str, chars: usize) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(chars) {
        Some((at, _)) => format!("{}…", &flat[..at]),
        None => flat,
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
