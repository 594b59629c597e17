//! Which kind of next state this is: from calls, their results, and, for a person's reply, from what
//! the answer holds.
//!
//! Invariant: detection reads what is there and never asks a model; in doubt it says what was called
//! (`tool`) or who spoke (`chat`).

use super::call::Call;
use super::history::{self, STEPS_MAX};
use super::{NextState, page};
use crate::judge::exchange::{Exchange, has_calls, role_of, text_of};
use hone_shared::next_state::StateKind;
use hone_shared::text;
use regex::RegexSet;
use std::sync::LazyLock;

const GUI: usize = 0;
const SWE_TOOL: usize = 1;
const SHELL: usize = 2;
const CODE: usize = 3;

/// Names of tools.
static NAMES: LazyLock<Option<RegexSet>> = LazyLock::new(|| {
    RegexSet::new([
        concat!(
            r"(?i)^(browser|computer|gui|desktop|playwright|puppeteer)([_.-]|$)|^page[_.-]|",
            r"^(left_|right_|double_)?(click|tap|swipe|scroll|hover|drag|type|type_text|press|",
            r"press_key|goto|go_to|navigate|screenshot|take_screenshot|select_option|fill|back)",
            r"(_\w+)?$"
        ),
        concat!(
            r"(?i)apply_?(patch|diff)|str_replace|edit_?file|search_?replace|run_?tests?|create_pr|",
            r"^(multi)?edit$|git_(diff|commit|apply)|^submit$"
        ),
        r"(?i)^(ba|z|power)?sh(ell)?$|terminal|^exec|execute_(bash|command)|run_(shell_)?command|local_shell|^container\.exec$|^cmd$|^send_keys$|tmux",
        r"(?i)^(run|exec(ute)?)_?(python|code|js|javascript|notebook|cell)$|^code_interpreter$|^submit_(solution|code)$",
    ])
    .ok()
});
/// Command lines of software engineering.
static SWE_COMMAND: LazyLock<Option<regex::Regex>> = LazyLock::new(|| {
    regex::Regex::new(concat!(
        r"(?i)\bgit (diff|apply|commit|stash|bisect|checkout|status|log|show|push|rebase|merge)\b|",
        r"\b(pytest|unittest|tox|mypy|cargo (test|build|check|clippy|fmt)|npm (test|run|audit|install)|",
        r"go (test|build|vet)|jest|vitest|mocha|mvn|gradle|make (test|check)|ctest|eslint|tsc|ruff)\b|",
        r"\bsed -i\b|(^|[;&|]\s*)(cat|sed -n|head|tail|grep)\b.*\.(py|rs|ts|tsx|js|go|java|c|cpp|h|rb|kt)\b"
    ))
    .ok()
});

/// What a system prompt says that the model is: an agent in a repository, at a shell, at a screen, or
/// somebody who answers questions about code.
static ROLES: LazyLock<Option<RegexSet>> = LazyLock::new(|| {
    RegexSet::new([
        r"(?i)\b(software|autonomous|staff|senior|backend|devops) (engineer|developer)\b|\b(git )?(repository|repo|codebase)\b|\brepair (python )?code\b",
        concat!(
            r"(?i)\b(terminal|shell|command[- ]line|bash) agent\b|\bbash block\b|",
            r"\b(control|operate|drive|use|have|at) (a|an|the) (\w+ )?(shell|terminal|command line)\b|\b(sysadmin|system administrator)\b"
        ),
        concat!(
            r"(?i)\b(operate|control|drive|use|navigate)s? (a|an|the) [^.\n]{0,30}",
            r"(browser|phone|desktop|screen|web ?page|website|mail program|app|computer|tablet|gui)\b|",
            r"\baccessibility actions\b|\b(gui|web|browser|mobile|desktop)[- ]agent\b"
        ),
        r"(?i)\b(programming|coding|code review\w*|pair programmer|write code|programmer)\b",
    ])
    .ok()
});
const ROLE_KINDS: [StateKind; 4] =
    [StateKind::Swe, StateKind::Terminal, StateKind::Gui, StateKind::Code];
/// Bytes of a system prompt in which the role stands.
const ROLE_BYTES_MAX: usize = 600;

fn of_system(seen: &Exchange) -> Option<StateKind> {
    let message = seen.messages.first().filter(|m| matches!(role_of(m), "system" | "developer"))?;
    let text = text_of(message);
    let head = text::head(&text, ROLE_BYTES_MAX);
    let at = ROLES.as_ref()?.matches(head).iter().next()?;
    ROLE_KINDS.get(at).copied()
}

/// The kind of a next state.
pub fn kind(seen: &Exchange, state: &NextState<'_>) -> StateKind {
    let from_calls = of_calls(&state.calls);
    match of_system(seen) {
        // Questions about code are answered with tools, too.
        Some(StateKind::Code) if from_calls.is_some() => {}
        Some(kind) => return kind,
        None => {}
    }
    if from_calls == Some(StateKind::Gui) || state.results.iter().any(|r| page::is_page(&r.text)) {
        return StateKind::Gui;
    }
    if !state.results.is_empty() {
        if state.results.iter().any(|r| r.images > 0) {
            return StateKind::Gui;
        }
        let earlier = of_history(seen);
        // Code without a call, run by a person: what it printed is a reply to code.
        if from_calls.is_none() && earlier.is_none() && has_code_block(&seen.answer_text()) {
            return StateKind::Code;
        }
        let tested = state.results.iter().any(|r| r.tests.is_some());
        return match (from_calls, earlier) {
            (Some(StateKind::Swe), _) | (_, Some(StateKind::Swe)) => StateKind::Swe,
            _ if tested => StateKind::Swe,
            (Some(kind), _) => kind,
            (None, _) if state.results.iter().any(|r| r.exit_code.is_some()) => StateKind::Terminal,
            (None, earlier) => earlier.unwrap_or(StateKind::Tool),
        };
    }
    let asked = seen.messages.last().filter(|m| role_of(m) != "assistant").map(text_of);
    if asked.is_some_and(|text| page::is_page(&text)) {
        return StateKind::Gui;
    }
    // What an answer shows as text is an action only where something ran it.
    if let Some(kind) = from_calls.filter(|_| has_calls(&seen.answer)) {
        return kind;
    }
    if let Some(kind) = of_history(seen) {
        return kind;
    }
    if speaks_of_code(seen, state) { StateKind::Code } else { StateKind::Chat }
}

fn of_calls(calls: &[Call<'_>]) -> Option<StateKind> {
    let mut found = None;
    for call in calls {
        let names = NAMES.as_ref()?.matches(call.name);
        let swe =
            call.command().is_some_and(|c| SWE_COMMAND.as_ref().is_some_and(|f| f.is_match(c)));
        if names.matched(SWE_TOOL) || swe {
            return Some(StateKind::Swe);
        }
        if names.matched(CODE) {
            found = found.or(Some(StateKind::Code));
        } else if names.matched(GUI) {
            found = Some(StateKind::Gui);
        } else if names.matched(SHELL) || call.command().is_some() {
            found = found.or(Some(StateKind::Terminal));
        } else {
            found = found.or(Some(StateKind::Tool));
        }
    }
    found
}

/// The kind that the youngest earlier calls had; software engineering wins, for it uses shells.
fn of_history(seen: &Exchange) -> Option<StateKind> {
    let mut found = None;
    for step in history::steps(&seen.messages).take(STEPS_MAX / 2) {
        match of_calls(&step.calls) {
            Some(StateKind::Swe) => return Some(StateKind::Swe),
            Some(kind) => found = found.or(Some(kind)),
            None => {}
        }
    }
    found
}

fn has_code_block(text: &str) -> bool {
    text.contains("```")
}

/// Words that are hardly ever used of anything else.
static CODE_WORDS: LazyLock<Option<regex::Regex>> = LazyLock::new(|| {
    regex::Regex::new(concat!(
        r"(?i)\b(pull request|code review|stack ?trace|regex|refactor\w*|unit tests?|segfault|compilers?|linter|",
        r"tabs or spaces|explain analyze|typescript|javascript|kotlin|haskell|postgres|sqlite|dataframe|numpy|",
        r"pandas|dockerfile|makefile|quicksort|big-o|idempotent)\b|\bO\((1|n|log n)|\w+\(\)|^diff --git|",
        r"\b\w+\.(py|rs|ts|js|go|cpp|java|kt)\b|\b(in|use|uses|using|does) (python|rust|java|ruby|golang)\b|\bthis PR\b"
    ))
    .ok()
});

fn speaks_of_code(seen: &Exchange, state: &NextState<'_>) -> bool {
    let has_code = |text: &str| {
        text.matches('`').nth(1).is_some()
            || CODE_WORDS.as_ref().is_some_and(|words| words.is_match(text))
    };
    has_code(&seen.answer_text())
        || state.said.iter().any(|said| has_code(said) || said.contains("[edit "))
        || seen.messages.iter().rev().take(4).any(|m| has_code(&text_of(m)))
}
