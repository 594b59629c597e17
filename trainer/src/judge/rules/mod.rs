//! The deterministic judge: what needs no model to be seen.
//!
//! The policy's `order` says which rules apply; the first that speaks decides. By default the user's
//! correction comes first ("thanks, but shorter" asks for a change), then everything that failed,
//! then approval: the reference's judges rewarded truncated and looping answers that a user waved
//! through, and every tool call that did not fail.
//!
//! | file | rules |
//! |---|---|
//! | `talk` | correction, approval, rephrased |
//! | `results` | outcome, protocol, patch_rejected, tool_error, exit_code, environment, no_effect |
//! | `progress` | repeated_call, self_message, wait_loop, overwritten, recovered |
//! | `tests` | tests |
//! | `answer` | truncated, empty_answer, garbage |
//!
//! Invariant: an answer that is truncated, unfinished, empty or garbage is never judged good.

mod answer;
mod progress;
mod results;
mod talk;
mod tests;

use super::exchange::Exchange;
use super::next::{NextState, history};
use hone_shared::policy::{RuleName, Rules};
use std::cell::OnceCell;

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

/// What the rules look at.
struct Case<'a> {
    rules: &'a Rules,
    seen: &'a Exchange,
    next: &'a NextState<'a>,
    answer: String,
    request: OnceCell<String>,
    task: OnceCell<String>,
}

impl<'a> Case<'a> {
    /// What a person asked last.
    fn request(&self) -> &str {
        self.request.get_or_init(|| history::request(&self.seen.messages))
    }

    /// What a person asked first and last.
    fn task(&self) -> &str {
        self.task.get_or_init(|| history::task(&self.seen.messages))
    }

    /// Earlier steps, youngest first.
    fn steps(&self) -> impl Iterator<Item = history::Step<'a>> + use<'a> {
        history::steps(&self.seen.messages)
    }
}

/// The verdict of the first rule that applies; `None` when no rule does.
pub fn judge(rules: &Rules, seen: &Exchange) -> Option<RuleVerdict> {
    judge_state(rules, seen, &NextState::of(seen))
}

/// As [`judge`], for a next state that was read already.
pub fn judge_state(rules: &Rules, seen: &Exchange, next: &NextState<'_>) -> Option<RuleVerdict> {
    let (request, task) = (OnceCell::new(), OnceCell::new());
    let case = Case { rules, seen, next, answer: seen.answer_text(), request, task };
    let found = rules.order.iter().find_map(|rule| apply(*rule, &case))?;
    Some(if found.verdict > 0 { answer::never_good(&case).unwrap_or(found) } else { found })
}

/// What a verdict by anybody else comes to: praise of an answer that is cut, broken off, empty or
/// garbage counts as 0.
pub fn at_most(rules: &Rules, seen: &Exchange, verdict: i8) -> i8 {
    let next = NextState::of(seen);
    let (request, task) = (OnceCell::new(), OnceCell::new());
    let case = Case { rules, seen, next: &next, answer: seen.answer_text(), request, task };
    if answer::never_good(&case).is_some() { verdict.min(0) } else { verdict }
}

fn apply(rule: RuleName, case: &Case<'_>) -> Option<RuleVerdict> {
    match rule {
        RuleName::Correction => talk::correction(case),
        RuleName::Outcome => results::outcome(case),
        RuleName::Protocol => results::protocol(case),
        RuleName::PatchRejected => results::patch_rejected(case),
        RuleName::Tests => tests::tests(case),
        RuleName::ToolError => results::tool_error(case)
            .or_else(|| results::missing_element(case))
            .or_else(|| talk::pasted_error(case)),
        RuleName::ExitCode => results::exit_code(case),
        RuleName::RepeatedCall => progress::repeated_call(case),
        RuleName::SelfMessage => progress::self_message(case),
        RuleName::WaitLoop => progress::wait_loop(case),
        RuleName::Overwritten => progress::overwritten(case),
        RuleName::NoEffect => results::no_effect(case),
        RuleName::Truncated => answer::truncated(case),
        RuleName::EmptyAnswer => answer::empty_answer(case),
        RuleName::Garbage => answer::garbage(case),
        RuleName::Rephrased => talk::rephrased(case),
        RuleName::Recovered => progress::recovered(case),
        RuleName::Approval => talk::approval(case),
        RuleName::Environment => results::environment(case),
    }
}

fn verdict(verdict: i8, rule: RuleName, reason: String) -> RuleVerdict {
    RuleVerdict { verdict, rule: rule.as_str(), reason, correction: None }
}

/// At most `chars` characters of a text, on one line.
pub fn shorten(text: &str, chars: usize) -> String {
    let mut flat = String::new();
    // A text of megabytes is not walked for a line of it.
    let head = text.char_indices().nth(chars * 8).map_or(text, |(at, _)| &text[..at]);
    for word in head.split_whitespace() {
        if !flat.is_empty() {
            flat.push(' ');
        }
        flat.push_str(word);
    }
    match flat.char_indices().nth(chars) {
        Some((at, _)) => format!("{}…", &flat[..at]),
        None => flat,
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod rules_tests;
