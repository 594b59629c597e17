//! Test verdicts: what a step did to the suite.
//!
//! Invariant: a green run is praise only where an earlier run was red and nothing was switched off;
//! a red run is blame only for a step that changed something itself.

use super::{Case, RuleVerdict, verdict};
use crate::judge::next::call::Call;
use crate::judge::next::observed::Observed;
use crate::judge::next::suite::{self, TestRun};
use hone_shared::policy::RuleName;

pub(super) fn tests(case: &Case<'_>) -> Option<RuleVerdict> {
    let (result, now) = case.next.results.iter().rev().find_map(|r| Some((r, r.tests?)))?;
    let before = earlier(case);
    // A suite's words and the command's exit code that contradict each other prove nothing.
    let piped = case.next.calls.iter().any(|call| call.text().contains('|'));
    if !piped && result.exit_code.is_some_and(|code| (code == 0) != (now.failed == 0)) {
        return None;
    }
    if now.is_green() {
        return fixed(case, before?, now);
    }
    if now.failed > 0 && edits(case) {
        return broken(case, result, before, now);
    }
    None
}

/// The youngest earlier run, and whether tests were switched off since or are now.
fn earlier(case: &Case<'_>) -> Option<TestRun> {
    case.steps().find_map(|step| step.results().into_iter().flatten().find_map(|t| suite::run(&t)))
}

fn fixed(case: &Case<'_>, before: TestRun, now: TestRun) -> Option<RuleVerdict> {
    let skips = |call: &Call<'_>| case.rules.calls.skips_tests.is_match(&call.text());
    let tricked = case.next.calls.iter().any(skips)
        || case.steps().take(8).any(|step| step.calls.iter().any(skips));
    let reason = format!("{} tests failed before, all {} pass now", before.failed, now.passed);
    let real = before.failed > 0 && now.skipped <= before.skipped && now.ran() >= before.failed;
    (real && !tricked).then(|| verdict(1, RuleName::Tests, reason))
}

fn broken(
    case: &Case<'_>,
    result: &Observed,
    before: Option<TestRun>,
    now: TestRun,
) -> Option<RuleVerdict> {
    let worse = before.is_none_or(|before| now.failed > before.failed);
    let excused = case.rules.results.excused.is_match(&result.ends())
        || case.rules.requests.wants_failure.is_match(case.task());
    let reason = format!("the step changed files and {} tests fail", now.failed);
    (worse && !excused).then(|| verdict(-1, RuleName::Tests, reason))
}

fn edits(case: &Case<'_>) -> bool {
    case.next.calls.iter().any(|call| case.rules.calls.edits.is_match(&call.text()))
}
