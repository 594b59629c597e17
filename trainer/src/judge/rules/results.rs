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
use crate::judge::next::page;
use hone_shared::policy::RuleName;
use hone_shared::text;

/// Longest message that may be an environment's statement.
const STATEMENT_BYTES_MAX: usize = 2_000;
/// Longest result that is nothing but an error.
const ERROR_BYTES_MAX: usize = 1_200;
/// Shortest value that is recognised as a person's own.
const VALUE_BYTES_MIN: usize = 3;
/// First bytes of a text in which it says what it is.
const HEAD_BYTES_MAX: usize = 120;
/// Steps back in which the same call is looked for.
const AGAIN_STEPS_MAX: usize = 3;

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
    let calls = &case.rules.calls;
    let reads = |text: &str| calls.reads.is_match(text) && !calls.edits.is_match(text);
    call_of(case, result).is_some_and(|call| reads(&call.text()))
}

pub(super) fn outcome(case: &Case<'_>) -> Option<RuleVerdict> {
    let (success, failure) = (&case.rules.results.success, &case.rules.results.failure);
    if success.is_empty() && failure.is_empty() {
        return None;
    }
    let lists = &case.rules.results;
    let nobodys =
        |text: &String| lists.undecided.is_match(text) || lists.environment.is_match(text);
    let texts: Vec<String> = statements(case).filter(|text| !nobodys(text)).collect();
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
    let rejected = |r: &&Observed| list.is_match(&r.ends()) && !is_outside(case, r);
    let found = case.next.results.iter().filter(edits).find(rejected)?;
    if case.rules.results.excused.is_match(&found.ends()) {
        return None;
    }
    Some(verdict(-1, RuleName::PatchRejected, told(&found.text)))
}

/// Whether a status speaks of a server or a limit, and not of the request.
fn is_servers_fault(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

/// Whether a fault is not the answer's.
pub(super) fn is_outside(case: &Case<'_>, result: &Observed) -> bool {
    result.http.is_some_and(is_servers_fault)
        || case.rules.results.environment.is_match(&result.ends())
}

/// Whether a failure was asked for, or is what the step was to find.
fn is_wanted(case: &Case<'_>) -> bool {
    case.rules.requests.wants_failure.is_match(case.task())
}

/// A call that was wrong in itself: arguments that are no JSON, or an error in the words of a
/// tool's check of its arguments. What a server forbids, lacks or declines is nobody's fault here.
pub(super) fn tool_error(case: &Case<'_>) -> Option<RuleVerdict> {
    let lists = &case.rules.results;
    let head = |text: &str| lists.error_heads.is_empty() || lists.error_heads.is_match(text);
    case.next.results.iter().find_map(|result| {
        let call = call_of(case, result);
        let text = result.ends();
        let is_error = result.exit_code.is_none()
            && result.is_error != Some(false)
            && text.len() <= ERROR_BYTES_MAX
            && !page::is_page(&result.text)
            && (result.is_error == Some(true) || head(&text));
        let excused = [&lists.excused, &lists.forbids].iter().any(|list| list.is_match(&text))
            || is_outside(case, result)
            || is_wanted(case)
            // What a command prints has its exit code, and may be the fault of an earlier step.
            || call.is_some_and(|call| call.command().is_some());
        if !is_error || excused || shows_text(case, result) {
            return None;
        }
        let reason = match call.is_some_and(Call::has_broken_arguments) {
            true => "the arguments are no JSON",
            false => {
                let passed_on = call.is_some_and(|call| passed_on(case, call, &text));
                case.rules.tool_error.first(&text).filter(|_| !passed_on)?
            }
        };
        let text = shorten(&result.text, 120);
        Some(verdict(-1, RuleName::ToolError, format!("{reason}: {text}")))
    })
}

/// Whether the error quotes a value that the call had from the person: then it is theirs.
fn passed_on(case: &Case<'_>, call: &Call<'_>, error: &str) -> bool {
    let task = case.task().to_lowercase();
    let quotes = |c: char| matches!(c, '\'' | '"' | '`' | '\u{2018}' | '\u{2019}');
    let quoted = error.split(quotes).skip(1).step_by(2).map(str::trim);
    let got = error.rsplit_once("got ").map(|(_, value)| value.trim());
    quoted
        .chain(got)
        .filter(|value| value.len() >= VALUE_BYTES_MIN)
        .any(|value| call.arguments.contains(value) && task.contains(&value.to_lowercase()))
}

/// A reading call whose result is content: its error would be the whole of a short text.
fn shows_text(case: &Case<'_>, result: &Observed) -> bool {
    let one_line = result.text.trim().lines().count() <= 1;
    shows(case, result) && !one_line
}

/// An element that was never on the page that the answer saw.
pub(super) fn missing_element(case: &Case<'_>) -> Option<RuleVerdict> {
    let list = &case.rules.results.missing_element;
    let found = case.next.results.iter().find_map(|result| {
        let call = call_of(case, result)?;
        let head = result.text.trim_start().lines().next().unwrap_or_default();
        if !list.is_match(head) || is_outside(case, result) {
            return None;
        }
        let before = seen_before(case)?;
        let named = |word: &&str| word.len() <= 24 && head.contains(*word);
        let word = |c: char| !(c.is_alphanumeric() || matches!(c, '#' | '-' | '_'));
        // Names of elements hold a digit or a sign; a word such as `click` is no element.
        let is_name = |w: &&str| w.contains(|c: char| c.is_ascii_digit() || c == '#');
        let mut names = call.arguments.split(word).filter(is_name).filter(named).peekable();
        names.peek()?;
        let absent = names.all(|name| !before.split(word).any(|known| known == name));
        absent.then_some(result)
    })?;
    Some(verdict(-1, RuleName::ToolError, told(&found.text)))
}

/// The page or result that the answer saw last.
fn seen_before(case: &Case<'_>) -> Option<String> {
    let shown = case.seen.messages.iter().rev();
    let mut shown = shown.filter(|m| matches!(role_of(m), "user" | "tool"));
    shown.next().map(text_of)
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
                || is_wanted(case)
                || shows(case, result) && !faults.is_match(last_line(&result.text));
            if excused || !faults.is_match(&result.ends()) {
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

/// A fault of the network, the server or a limit: nothing is said about the answer. Not where it
/// is the finding, nor where the same call met it before.
pub(super) fn environment(case: &Case<'_>) -> Option<RuleVerdict> {
    let outside = |r: &&Observed| !page::is_page(&r.text) && says_outside(case, r);
    let found = case.next.results.iter().find(outside)?;
    let requests = &case.rules.requests;
    let sought = [&requests.asks_status, &requests.polls].iter().any(|l| l.is_match(case.task()));
    let again = |call: &Call<'_>| {
        case.steps().take(AGAIN_STEPS_MAX).any(|step| step.calls.iter().any(|c| c.same_as(call)))
    };
    if !case.next.said.is_empty() || sought || case.next.calls.iter().any(again) {
        return None;
    }
    let reason = format!("a fault that is not the answer's: {}", shorten(&found.text, 120));
    Some(verdict(0, RuleName::Environment, reason))
}

/// Whether a result as a whole is a fault of the world, and does not only speak of one: by an exit
/// code, an error flag or a status, or in the first words of a text that is no content.
fn says_outside(case: &Case<'_>, result: &Observed) -> bool {
    let list = &case.rules.results.environment;
    let is_command = call_of(case, result).is_some_and(|call| call.command().is_some());
    match (result.exit_code, result.is_error, result.http) {
        (Some(code), ..) => code != 0 && !shows(case, result) && list.is_match(&result.ends()),
        (None, Some(is_error), _) => is_error && is_outside(case, result),
        (None, None, Some(status)) if is_servers_fault(status) => !shows_text(case, result),
        _ if result.text.trim_start().starts_with(['{', '[', '<']) => false,
        _ => {
            let line = result.text.trim_start().lines().next().unwrap_or_default();
            let one_line = result.text.trim().lines().count() == 1;
            !is_command
                && one_line
                && list.is_match(text::head(line, HEAD_BYTES_MAX))
                && !is_misnamed(case, result)
        }
    }
}

/// Whether a name could not be resolved that the person never wrote: it may be misspelt.
fn is_misnamed(case: &Case<'_>, result: &Observed) -> bool {
    let text = result.text.to_lowercase();
    let unresolved = ["resolve", "name_not", "name or service", "name resolution", "enotfound"];
    if !unresolved.iter().any(|word| text.contains(word)) {
        return false;
    }
    let task = case.task().to_lowercase();
    let part = |c: char| !(c.is_alphanumeric() || matches!(c, '.' | '-'));
    let Some(call) = call_of(case, result) else { return true };
    let hosts = call.arguments.split(part).filter(|word| word.trim_matches('.').contains('.'));
    !hosts.into_iter().any(|host| task.contains(&host.to_lowercase()))
}

/// An action of which the environment says that nothing happened, or on an element that does
/// nothing, after which the page is the same. A page that is the same after a click on a link or a
/// button proves nothing: a download leaves no trace.
pub(super) fn no_effect(case: &Case<'_>) -> Option<RuleVerdict> {
    let [call] = case.next.calls.as_slice() else { return None };
    let [result] = case.next.results.as_slice() else { return None };
    let list = &case.rules.results.no_effect;
    if list.is_empty() || shows(case, result) || !case.next.said.is_empty() {
        return None;
    }
    if list.is_match(&result.ends()) {
        return Some(verdict(-1, RuleName::NoEffect, told(&result.text)));
    }
    if case.rules.calls.looks.is_match(&call.text()) {
        return None;
    }
    let before = seen_before(case)?;
    let reason = "the page is the same after an action on a piece of text";
    let idle = page::is_static(&before, &call.arguments) && page::same(&before, &result.text);
    idle.then(|| verdict(-1, RuleName::NoEffect, reason.into()))
}
