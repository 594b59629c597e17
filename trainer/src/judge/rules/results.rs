//! What tools, shells and environments say about an action.
//!
//! A failure is negative only where it is the action's own: a wrong argument, a missing file, a
//! misspelt command. A search that finds nothing, a test run that shows failures, a server that is
//! down are not. What is read with a call (a log, a document) may speak of errors freely.
//!
//! Invariant: the absence of an error is no praise: rewarding that taught the reference's agents to
//! wait and to write to themselves.

use super::{Case, RuleVerdict, shorten, verdict};
use crate::judge::exchange::{role_of, text_of};
use crate::judge::next::call::Call;
use crate::judge::next::observed::Observed;
use crate::judge::next::{is_observation, page};
use hone_shared::policy::RuleName;

/// Longest message that may be an environment's statement.
const STATEMENT_BYTES_MAX: usize = 2_000;

/// Texts in which an environment speaks about the step: results, and short messages in its voice.
fn statements<'a>(case: &'a Case<'_>) -> impl Iterator<Item = String> + 'a {
    let said = case.next.said.iter().filter(|said| said.len() <= STATEMENT_BYTES_MAX);
    let results = case.next.results.iter().filter(move |r| !shows(case, r)).map(Observed::ends);
    results.chain(said.cloned())
}

fn call_of<'a>(case: &'a Case<'_>, result: &Observed) -> Option<&'a Call<'a>> {
    result.call.and_then(|at| case.next.calls.get(at))
}

/// Whether a call only shows what somebody else wrote.
fn shows(case: &Case<'_>, result: &Observed) -> bool {
    call_of(case, result).is_some_and(|call| case.rules.calls.reads.is_match(&call.text()))
}

pub(super) fn outcome(case: &Case<'_>) -> Option<RuleVerdict> {
    let (success, failure) = (&case.rules.results.success, &case.rules.results.failure);
    if success.is_empty() && failure.is_empty() {
        return None;
    }
    let texts: Vec<String> = statements(case).collect();
    if let Some(text) = texts.iter().find(|text| failure.is_match(text)) {
        return Some(verdict(-1, RuleName::Outcome, told(text)));
    }
    let text = texts.iter().find(|text| success.is_match(text))?;
    Some(verdict(1, RuleName::Outcome, told(text)))
}

fn told(text: &str) -> String {
    format!("the environment said: {}", shorten(text, 120))
}

pub(super) fn protocol(case: &Case<'_>) -> Option<RuleVerdict> {
    let list = &case.rules.results.protocol;
    let text = statements(case).find(|text| list.is_match(text))?;
    Some(verdict(-1, RuleName::Protocol, told(&text)))
}

pub(super) fn patch_rejected(case: &Case<'_>) -> Option<RuleVerdict> {
    let list = &case.rules.results.patch_rejected;
    let edits = |r: &&Observed| {
        call_of(case, r).is_some_and(|call| case.rules.calls.edits.is_match(&call.text()))
    };
    let found = case.next.results.iter().filter(edits).find(|r| list.is_match(&r.ends()))?;
    Some(verdict(-1, RuleName::PatchRejected, told(&found.text)))
}

/// Whether a fault is not the answer's.
fn is_outside(case: &Case<'_>, result: &Observed) -> bool {
    matches!(result.http, Some(408 | 425 | 429 | 500..=599))
        || case.rules.results.environment.is_match(&result.ends())
}

/// Whether a tool says that the call failed.
fn is_failed_call<'a>(case: &'a Case<'_>, result: &Observed) -> Option<&'a str> {
    match (result.exit_code, result.is_error, result.http) {
        // An exit code has a rule of its own; a command that succeeded may print what it likes.
        (Some(_), _, _) => None,
        (None, Some(false), _) => None,
        (None, Some(true), _) => Some("the tool reports an error"),
        (None, None, Some(400..=599)) => Some("the tool reports an HTTP error"),
        (None, None, _) if result.tests.is_some() || shows_text(case, result) => None,
        (None, None, _) => case.rules.tool_error.first(&result.ends()),
    }
}

/// A reading call whose result is content: its error would be the whole of a short text.
fn shows_text(case: &Case<'_>, result: &Observed) -> bool {
    let one_line = result.text.trim().lines().count() <= 1;
    shows(case, result) && !one_line
}

pub(super) fn tool_error(case: &Case<'_>) -> Option<RuleVerdict> {
    case.next.results.iter().find_map(|result| {
        let reason = is_failed_call(case, result)?;
        if page::is_page(&result.text) || is_outside(case, result) {
            return None;
        }
        let text = shorten(&result.text, 120);
        Some(verdict(-1, RuleName::ToolError, format!("{reason}: {text}")))
    })
}

/// A command's exit code. With `results.exit_faults` only faults of the command itself count.
pub(super) fn exit_code(case: &Case<'_>) -> Option<RuleVerdict> {
    if !case.rules.exit_code {
        return None;
    }
    let faults = &case.rules.results.exit_faults;
    case.next.results.iter().find_map(|result| {
        let code = result.exit_code.filter(|code| *code != 0)?;
        if !faults.is_empty() {
            let probes = |call: &Call<'_>| case.rules.calls.probes.is_match(&call.text());
            let excused = call_of(case, result).is_some_and(probes)
                || result.tests.is_some()
                || is_outside(case, result)
                || shows(case, result) && !faults.is_match(last_line(&result.text));
            if excused || !(code == 127 || faults.is_match(&result.ends())) {
                return None;
            }
        }
        let text = shorten(&result.text, 120);
        Some(verdict(-1, RuleName::ExitCode, format!("exit code {code}: {text}")))
    })
}

fn last_line(text: &str) -> &str {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.rev().nth(1).unwrap_or_default()
}

/// A fault of the network, the server or a limit: nothing is said about the answer.
pub(super) fn environment(case: &Case<'_>) -> Option<RuleVerdict> {
    let failed = |r: &&Observed| {
        r.exit_code.is_some_and(|code| code != 0)
            || (r.exit_code.is_none() && r.is_error != Some(false) && !shows_text(case, r))
    };
    let outside = |r: &&Observed| !page::is_page(&r.text) && is_outside(case, r);
    let mut all = case.next.results.iter();
    let found = all.by_ref().filter(failed).find(outside)?;
    if !case.next.said.is_empty() {
        return None;
    }
    let reason = format!("a fault that is not the answer's: {}", shorten(&found.text, 120));
    Some(verdict(0, RuleName::Environment, reason))
}

/// An action after which the page is the same, or of which the environment says that nothing
/// happened.
pub(super) fn no_effect(case: &Case<'_>) -> Option<RuleVerdict> {
    let [call] = case.next.calls.as_slice() else { return None };
    let [result] = case.next.results.as_slice() else { return None };
    let list = &case.rules.results.no_effect;
    if !shows(case, result) && list.is_match(&result.ends()) {
        return Some(verdict(-1, RuleName::NoEffect, told(&result.text)));
    }
    if list.is_empty() || case.rules.calls.looks.is_match(&call.text()) {
        return None;
    }
    let users = case.seen.messages.iter().rev();
    let mut shown =
        users.filter(|m| matches!(role_of(m), "user" | "tool")).map(|m| (m, text_of(m)));
    let before = shown.find(|(m, text)| page::is_page(text) || is_observation(m, text))?.1;
    let reason = "the page is the same after the action";
    page::same(&before, &result.text).then(|| verdict(-1, RuleName::NoEffect, reason.into()))
}
