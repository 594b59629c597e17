//! Runs of test suites in a text: how many passed, failed and were skipped.
//!
//! Understood: cargo test, pytest, unittest, go test, jest, vitest, mocha, JUnit-like summaries
//! (Maven, Gradle, Ant), TAP.
//!
//! Invariant: a run is only found where the framework states its counts; no counts, no run.

use regex::{Captures, Regex};
use std::sync::LazyLock;

/// Bytes at the end of a text that are searched: summaries stand at the end.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// What a run of tests came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TestRun {
    /// Passed.
    pub passed: u64,
    /// Failed, errors included.
    pub failed: u64,
    /// Not run.
    pub skipped: u64,
}

impl TestRun {
    /// Whether all that ran passed, and any ran.
    pub fn is_green(self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// Tests that ran.
    pub fn ran(self) -> u64 {
        self.passed + self.failed
    }
}

struct Forms {
    cargo: Regex,
    counts: Regex,
    count: Regex,
    unittest: Regex,
    unittest_end: Regex,
    go: Regex,
    go_package: Regex,
    mocha: Regex,
    junit: Regex,
    tap: Regex,
    tap_plan: Regex,
}

static FORMS: LazyLock<Option<Forms>> = LazyLock::new(|| {
    let new = |form: &str| Regex::new(form).ok();
    Some(Forms {
        cargo: new(r"(?m)^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored")?,
        counts: new(concat!(
            r"(?im)^[\s=>]*(?:tests?:?\s+)?\(?((?:\d+ (?:passed|failed|errors?|skipped|todo|",
            r"pending|xfailed|xpassed|warnings?|deselected|total)\b(?:, | \| | )?)+)",
            r"(?:in [\d.]+ ?m?s\b.*|\(\d+\)|[=\s)])*$"
        ))?,
        count: new(r"(?i)(\d+) (passed|failed|errors?|skipped|todo|pending|xfailed|total)")?,
        unittest: new(r"(?m)^Ran (\d+) tests? in ")?,
        unittest_end: new(
            r"(?m)^(?:OK|FAILED)(?: \((?:failures=(\d+))?(?:, )?(?:errors=(\d+))?(?:, )?(?:skipped=(\d+))?.*\))?$",
        )?,
        go: new(r"(?m)^\s*--- (PASS|FAIL|SKIP): ")?,
        go_package: new(r"(?m)^(ok|FAIL)\s+\S+/?\S*\s+(?:[\d.]+s|\(cached\)|\[build failed\])")?,
        mocha: new(r"(?m)^\s*(\d+) (passing|failing|pending)\b")?,
        junit: new(r"(?i)Tests run: (\d+), Failures: (\d+), Errors: (\d+)(?:, Skipped: (\d+))?")?,
        tap: new(r"(?m)^(not ok|ok) \d+\b(.*)$")?,
        tap_plan: new(r"(?m)^1\.\.\d+\s*$")?,
    })
});

/// The run that a text reports; the sum, where one command ran several.
pub fn run(text: &str) -> Option<TestRun> {
    let start = text.len().saturating_sub(TEXT_BYTES_MAX);
    let text = (start..=text.len()).find_map(|at| text.get(at..))?;
    const WORDS: [&str; 12] = [
        "passed",
        "failed",
        "passing",
        "failing",
        "Ran ",
        "Tests run",
        "tests run",
        "--- ",
        "ok ",
        "FAIL",
        "Passed",
        "Failed",
    ];
    if !WORDS.iter().any(|word| text.contains(word)) {
        return None;
    }
    let forms = FORMS.as_ref()?;
    cargo(forms, text)
        .or_else(|| junit(forms, text))
        .or_else(|| unittest(forms, text))
        .or_else(|| counts(forms, text))
        .or_else(|| mocha(forms, text))
        .or_else(|| go(forms, text))
        .or_else(|| tap(forms, text))
}

fn number(found: &Captures<'_>, group: usize) -> u64 {
    found.get(group).and_then(|n| n.as_str().parse().ok()).unwrap_or(0)
}

fn cargo(forms: &Forms, text: &str) -> Option<TestRun> {
    let mut sum = None;
    for found in forms.cargo.captures_iter(text) {
        let sum: &mut TestRun = sum.get_or_insert_default();
        sum.passed += number(&found, 1);
        sum.failed += number(&found, 2);
        sum.skipped += number(&found, 3);
    }
    sum
}

/// Maven prints a line per class and then the total: the last line counts.
fn junit(forms: &Forms, text: &str) -> Option<TestRun> {
    let found = forms.junit.captures_iter(text).last()?;
    let failed = number(&found, 2) + number(&found, 3);
    let skipped = number(&found, 4);
    let passed = number(&found, 1).saturating_sub(failed + skipped);
    Some(TestRun { passed, failed, skipped })
}

fn unittest(forms: &Forms, text: &str) -> Option<TestRun> {
    let ran = number(&forms.unittest.captures_iter(text).last()?, 1);
    let end = forms.unittest_end.captures_iter(text).last()?;
    let (failed, skipped) = (number(&end, 1) + number(&end, 2), number(&end, 3));
    Some(TestRun { passed: ran.saturating_sub(failed + skipped), failed, skipped })
}

/// pytest, jest, vitest: the last line of counts that is about tests.
fn counts(forms: &Forms, text: &str) -> Option<TestRun> {
    let mut last = None;
    for line in forms.counts.captures_iter(text) {
        let whole = line.get(0).map_or("", |m| m.as_str()).to_ascii_lowercase();
        if whole.contains("files") || whole.contains("suites") || !whole.contains("ed") {
            continue;
        }
        let mut run = TestRun::default();
        for found in forms.count.captures_iter(line.get(1).map_or("", |m| m.as_str())) {
            let counted = number(&found, 1);
            match found.get(2).map_or("", |m| m.as_str()).to_ascii_lowercase().as_str() {
                "passed" => run.passed += counted,
                "failed" | "error" | "errors" => run.failed += counted,
                "total" => {}
                _ => run.skipped += counted,
            }
        }
        last = Some(run);
    }
    last.filter(|run| run.ran() + run.skipped > 0)
}

fn mocha(forms: &Forms, text: &str) -> Option<TestRun> {
    let mut run = None;
    for found in forms.mocha.captures_iter(text) {
        let run: &mut TestRun = run.get_or_insert_default();
        let counted = number(&found, 1);
        match found.get(2).map_or("", |m| m.as_str()) {
            "passing" => run.passed = counted,
            "failing" => run.failed = counted,
            _ => run.skipped = counted,
        }
    }
    run.filter(|run| run.ran() > 0)
}

fn go(forms: &Forms, text: &str) -> Option<TestRun> {
    let mut run = TestRun::default();
    for found in forms.go.captures_iter(text) {
        match found.get(1).map_or("", |m| m.as_str()) {
            "PASS" => run.passed += 1,
            "FAIL" => run.failed += 1,
            _ => run.skipped += 1,
        }
    }
    // Without -v only packages and failures are listed.
    for found in forms.go_package.captures_iter(text) {
        match (found.get(1).map_or("", |m| m.as_str()), run.failed) {
            ("ok", _) => run.passed += 1,
            (_, 0) => run.failed += 1,
            _ => {}
        }
    }
    (run.ran() > 0).then_some(run)
}

fn tap(forms: &Forms, text: &str) -> Option<TestRun> {
    if !forms.tap_plan.is_match(text) {
        return None;
    }
    let mut run = TestRun::default();
    for found in forms.tap.captures_iter(text) {
        let rest = found.get(2).map_or("", |m| m.as_str()).to_ascii_uppercase();
        let excused = rest.contains("# SKIP") || rest.contains("# TODO");
        match (excused, found.get(1).map_or("", |m| m.as_str())) {
            (true, _) => run.skipped += 1,
            (false, "ok") => run.passed += 1,
            _ => run.failed += 1,
        }
    }
    (run.ran() > 0).then_some(run)
}
