//! Whether a step got anywhere: loops, messages to oneself, waiting, files lost, failures repaired.
//!
//! Invariant: a repeated call is only negative where its result is known to be the same, unless it
//! was repeated without end.

use super::{Case, RuleVerdict, results, verdict};
use crate::judge::exchange::{role_of, text_of};
use crate::judge::next::call::{Call, comparable};
use crate::judge::next::history::Step;
use crate::judge::next::{exit, is_observation, suite};
use hone_shared::policy::RuleName;

/// Longest cycle of calls that is recognised, and how often it has to occur.
const CYCLE_MAX: usize = 4;
const CYCLES_MIN: usize = 3;

/// A call with what it returned.
struct Done<'a> {
    call: Call<'a>,
    result: Option<String>,
}

impl Done<'_> {
    /// The same call with the same result; one that is not known is not the same.
    fn same_as(&self, other: &Done<'_>) -> bool {
        self.call.same_as(&other.call)
            && match (&self.result, &other.result) {
                (Some(a), Some(b)) => a == b || comparable(a) == comparable(b),
                _ => false,
            }
    }
}

/// All calls, oldest first, the answer's last; and how many of them are the answer's.
fn done<'a>(case: &'a Case<'_>) -> (Vec<Done<'a>>, usize) {
    let calls = &case.next.calls;
    let mut found: Vec<Done<'a>> = Vec::new();
    // Images cannot be compared.
    let result = |at: usize| {
        let all: Vec<_> = case.next.results_of(at).collect();
        let text = all.iter().map(|r| r.text.as_str()).collect::<Vec<_>>().join("\n");
        (!all.is_empty() && all.iter().all(|r| r.images == 0)).then_some(text)
    };
    for (at, call) in calls.iter().enumerate().rev() {
        found.push(Done { call: call.clone(), result: result(at) });
    }
    let own = found.len();
    let names: Vec<&str> = calls.iter().map(|call| call.name).collect();
    for (back, step) in case.steps().enumerate() {
        // Older texts are read only where a name occurs that the answer calls, too.
        let named = || step.calls.iter().any(|call| names.contains(&call.name));
        let results = match back < CYCLE_MAX * CYCLES_MIN || named() {
            true => step.results(),
            false => vec![None; step.calls.len()],
        };
        let Step { calls, .. } = step;
        let pairs = calls.into_iter().zip(results).rev();
        found.extend(pairs.map(|(call, result)| Done { call, result }));
    }
    found.reverse();
    (found, own)
}

pub(super) fn repeated_call(case: &Case<'_>) -> Option<RuleVerdict> {
    if case.next.calls.is_empty() {
        return None;
    }
    let (all, own) = done(case);
    let polls = case.rules.requests.polls.is_match(case.task());
    let first = all.len() - own;
    for at in first..all.len() {
        let (upto, last) = (all.get(..at).unwrap_or_default(), all.get(at)?);
        let run = 1 + upto.iter().rev().take_while(|d| d.call.same_as(&last.call)).count();
        let equal = 1 + upto.iter().rev().take_while(|d| d.same_as(last)).count();
        let failed = last.result.as_deref().is_some_and(|text| has_failed(case, at - first, text));
        let adds_up = case.rules.calls.adds_up.is_match(&last.call.text());
        // Asked for by a person since, or held up by the network: trying again is right.
        let called_for = polls || equal > 1 && is_called_for(case, at - first);
        let too_often = equal > case.rules.repeat_calls_max.max(1) && !adds_up && !called_for
            || equal > 1 && failed && !called_for
            || run > case.rules.repeat_calls_bound;
        if too_often {
            let how = if equal > 1 { "with the same result " } else { "" };
            let reason = format!("the same call with the same arguments {how}{run} times in a row");
            return Some(verdict(-1, RuleName::RepeatedCall, reason));
        }
    }
    let cycle = (2..=CYCLE_MAX).find(|period| is_cycle(case, &all, *period)).filter(|_| !polls)?;
    let reason = format!("the same {cycle} calls with the same results again and again");
    Some(verdict(-1, RuleName::RepeatedCall, reason))
}

/// Whether a person spoke since the step before, or a fault that is not the answer's met the call.
fn is_called_for(case: &Case<'_>, call: usize) -> bool {
    let asked = case
        .seen
        .messages
        .last()
        .is_some_and(|last| role_of(last) == "user" && !is_observation(last, &text_of(last)));
    asked || case.next.results_of(call).any(|result| results::is_outside(case, result))
}

/// Whether the last calls are the same few, again and again.
fn is_cycle(case: &Case<'_>, all: &[Done<'_>], period: usize) -> bool {
    let Some(start) = all.len().checked_sub(period * CYCLES_MIN) else { return false };
    let tail = all.get(start..).unwrap_or_default();
    let adds_up = |d: &Done<'_>| case.rules.calls.adds_up.is_match(&d.call.text());
    if tail.iter().any(adds_up) {
        return false;
    }
    let varied = tail.iter().take(period).skip(1).any(|d| !d.same_as(&tail[0]));
    let known = tail.iter().all(|d| d.result.is_some());
    varied && known && tail.iter().zip(tail.iter().skip(period)).all(|(a, b)| a.same_as(b))
}

fn has_failed(case: &Case<'_>, call: usize, text: &str) -> bool {
    let stated = case.next.results_of(call).any(|r| r.is_error == Some(true));
    stated
        || exit::code(text).is_some_and(|code| code != 0)
        || suite::run(text).is_some_and(|run| run.failed > 0)
        || case.rules.tool_error.is_match(text)
}

pub(super) fn self_message(case: &Case<'_>) -> Option<RuleVerdict> {
    let list = &case.rules.calls.self_message;
    if case.rules.requests.note_to_self.is_match(case.task()) {
        return None;
    }
    let found = case.next.calls.iter().find(|call| list.is_match(&call.text()))?;
    let reason = format!("`{}` writes to itself", found.name);
    Some(verdict(-1, RuleName::SelfMessage, reason))
}

/// A step that only waits, after a step that only waited.
pub(super) fn wait_loop(case: &Case<'_>) -> Option<RuleVerdict> {
    let list = &case.rules.calls.waits;
    let waits = |calls: &[Call<'_>]| {
        !calls.is_empty() && calls.iter().all(|call| list.is_match(&call.text()))
    };
    if list.is_empty()
        || !waits(&case.next.calls)
        || case.rules.requests.polls.is_match(case.task())
    {
        return None;
    }
    // A result that says more than that time has passed may be what was waited for.
    let idle = |text: &str| case.rules.results.waited.is_match(text.trim());
    if !case.next.results.iter().all(|r| r.images == 0 && idle(&r.text)) {
        return None;
    }
    let nothing = |step: &Step<'_>| step.results().iter().all(|r| r.as_deref().is_some_and(idle));
    let waited = |step: &Step<'_>| waits(&step.calls) && nothing(step);
    let times = 1 + case.steps().take_while(waited).count();
    let reason = format!("nothing but waiting, {times} times in a row");
    (times > 1).then(|| verdict(-1, RuleName::WaitLoop, reason))
}

/// A file that was to be added to, and was replaced.
pub(super) fn overwritten(case: &Case<'_>) -> Option<RuleVerdict> {
    if !case.rules.requests.appends.is_match(case.request()) {
        return None;
    }
    let shown = |at: usize| case.next.results_of(at).any(|r| replaced(case, &r.text));
    let calls = case.next.calls.iter().enumerate();
    let lost = |(at, call): &(usize, &Call<'_>)| match call.command() {
        Some(command) => redirects_over(command, case.request()),
        None => case.rules.calls.overwrites.is_match(&call.text()) && shown(*at),
    };
    let (_, call) = calls.into_iter().find(lost)?;
    let reason = format!("`{}` replaced a file that was to be added to", call.name);
    Some(verdict(-1, RuleName::Overwritten, reason))
}

/// Whether a result says that earlier content is gone. Where it states both sizes, a file that
/// grew was written whole, with what it held before.
fn replaced(case: &Case<'_>, text: &str) -> bool {
    let after = |word: &str| {
        let rest = text.get(text.find(word)? + word.len()..)?.trim_start();
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest.get(..digits)?.parse::<u64>().ok()
    };
    let grew = after("wrote").zip(after("previous size")).is_some_and(|(now, was)| now > was);
    case.rules.results.overwritten.is_match(text) && !grew
}

/// Words of a request for a new file, which may be written over.
const NEW_FILE: [&str; 4] = ["save", "into a new", "copy", "create"];

/// Whether a command writes text that it states itself with `>` or `tee` over a file that the
/// request names. A command that reads the file may put all of it back.
fn redirects_over(command: &str, request: &str) -> bool {
    let states = ["echo ", "printf "].iter().any(|head| command.trim_start().starts_with(head));
    let adds = command.contains(">>") || command.contains("tee -a") || command.contains("cat ");
    let asked = request.to_lowercase();
    if !states || adds || NEW_FILE.iter().any(|word| asked.contains(word)) {
        return false;
    }
    let mut words = command.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let target = match word {
            ">" | "tee" => words.peek().copied().unwrap_or_default(),
            _ => word.strip_prefix('>').unwrap_or_default(),
        };
        let target = target.trim_matches(|c: char| matches!(c, '"' | '\'' | ';'));
        if target.len() > 2 && request.contains(target) {
            return true;
        }
    }
    false
}

/// The command of the step before failed; this one runs the same program and succeeds.
pub(super) fn recovered(case: &Case<'_>) -> Option<RuleVerdict> {
    let [call] = case.next.calls.as_slice() else { return None };
    let command = call.command()?;
    let [result] = case.next.results.as_slice() else { return None };
    if result.exit_code != Some(0)
        || !case.next.said.is_empty()
        || case.rules.calls.ignores_failure.is_match(command)
        || case.rules.calls.probes.is_match(command)
        || case.rules.tool_error.is_match(&result.ends())
    {
        return None;
    }
    let step = case.steps().next()?;
    let [before] = step.calls.as_slice() else { return None };
    let failed = step
        .results()
        .into_iter()
        .flatten()
        .any(|text| exit::code(&text).is_some_and(|code| code != 0));
    let same = programs(before.command()?).iter().all(|p| programs(command).contains(p));
    let changed = !before.same_as(call);
    let reason = "the command that had failed before succeeds".to_owned();
    (failed && same && changed).then(|| verdict(1, RuleName::Recovered, reason))
}

/// Programs and first words of subcommands that a command line runs, without `sudo` and the like.
fn programs(command: &str) -> Vec<&str> {
    let parts = command.split(['|', ';', '\n']).flat_map(|part| part.split("&&"));
    let program = |part: &'_ str| -> Option<usize> {
        let skip = ["sudo", "env", "time", "nohup"];
        part.split_whitespace().position(|word| !skip.contains(&word) && !word.contains('='))
    };
    let of = parts.filter_map(|part| part.split_whitespace().nth(program(part)?));
    of.filter(|word| *word != "cd").collect()
}
