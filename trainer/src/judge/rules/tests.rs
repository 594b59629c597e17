//! Test verdicts: what a step did to the suite.
//!
//! ```text
//! an earlier run, red ─► an edit, of no test ─► this run, green, no fewer tests    +1
//! an earlier run, green ─► this step's edit, of no test ─► this run, red           −1
//! code in the answer ─► a person pastes a run of it, and nothing else              +1, −1
//! ```
//!
//! Invariant: a run proves something only about a change that lies between it and another run.

use super::{Case, RuleVerdict, results, verdict};
use crate::judge::next::call::Call;
use crate::judge::next::observed::Observed;
use crate::judge::next::suite::{self, TestRun};
use hone_shared::policy::RuleName;

/// Steps back in which the earlier run and the edits are looked for.
const STEPS_MAX: usize = 8;

pub(super) fn tests(case: &Case<'_>) -> Option<RuleVerdict> {
    let Some((result, now)) = case.next.results.iter().rev().find_map(|r| Some((r, r.tests?)))
    else {
        return pasted(case);
    };
    // A suite's words and the command's exit code that contradict each other prove nothing.
    let piped = case.next.calls.iter().any(|call| call.text().contains('|'));
    if !piped && result.exit_code.is_some_and(|code| (code == 0) != (now.failed == 0)) {
        return None;
    }
    let flaky = case.rules.results.excused.is_match(case.task());
    if flaky || !case.next.said.is_empty() || results::is_outside(case, result) {
        return None;
    }
    let (before, edits) = earlier(case);
    let tampered = edits.iter().chain(&case.next.calls).any(|call| is_tampering(case, call));
    if tampered {
        return None;
    }
    if now.is_green() {
        return fixed(before?, now).filter(|_| edits.iter().any(|call| is_edit(case, call)));
    }
    let own = case.next.calls.iter().any(|call| is_edit(case, call));
    if now.failed > 0 && own { broken(case, result, before?, now) } else { None }
}

/// The youngest earlier run, and the calls since then, the answer's own among them.
fn earlier<'a>(case: &'a Case<'_>) -> (Option<TestRun>, Vec<Call<'a>>) {
    let mut calls: Vec<Call<'a>> = case.next.calls.clone();
    for step in case.steps().take(STEPS_MAX) {
        let run = step.results().into_iter().flatten().find_map(|text| suite::run(&text));
        if run.is_some() {
            return (run, calls);
        }
        calls.extend(step.calls);
    }
    (None, calls)
}

fn is_edit(case: &Case<'_>, call: &Call<'_>) -> bool {
    case.rules.calls.edits.is_match(&call.text())
}

/// Whether a call changes tests, or makes them pass by not running them.
fn is_tampering(case: &Case<'_>, call: &Call<'_>) -> bool {
    let text = call.text();
    case.rules.calls.skips_tests.is_match(&text)
        || is_edit(case, call) && case.rules.calls.touches_tests.is_match(&text)
}

fn fixed(before: TestRun, now: TestRun) -> Option<RuleVerdict> {
    let reason = format!("{} tests failed before, all {} pass now", before.failed, now.passed);
    let real = before.failed > 0 && now.skipped <= before.skipped && now.ran() >= before.ran();
    real.then(|| verdict(1, RuleName::Tests, reason))
}

fn broken(
    case: &Case<'_>,
    result: &Observed,
    before: TestRun,
    now: TestRun,
) -> Option<RuleVerdict> {
    let excused = case.rules.results.excused.is_match(&result.ends())
        || case.rules.requests.wants_failure.is_match(case.task());
    let reason = format!("all tests passed before, {} fail after this change", now.failed);
    (before.is_green() && !excused).then(|| verdict(-1, RuleName::Tests, reason))
}

/// A run that a person pastes as the whole reply to code: a red one speaks only against code that
/// is not tests itself, and that had no failures before.
fn pasted(case: &Case<'_>) -> Option<RuleVerdict> {
    let [text] = case.next.said.as_slice() else { return None };
    let now = suite::run(text)?;
    let lists = &case.rules.results;
    let excused = [&lists.pasted_unless, &lists.excused, &lists.environment];
    if !case.answer.contains("```") || excused.iter().any(|list| list.is_match(text)) {
        return None;
    }
    let asked = &case.rules.requests;
    if now.is_green() && now.skipped == 0 {
        let reason = format!("all {} tests pass with the answer's code", now.passed);
        return Some(verdict(1, RuleName::Tests, reason));
    }
    let wanted = [&asked.wants_tests, &asked.wants_failure].iter().any(|l| l.is_match(case.task()));
    let first = case.steps().all(|step| step.results().iter().flatten().next().is_none());
    let reason = format!("{} tests fail with the answer's code", now.failed);
    (now.failed > 0 && !wanted && first).then(|| verdict(-1, RuleName::Tests, reason))
}
