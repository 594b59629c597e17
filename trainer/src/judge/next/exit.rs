//! Exit codes in the output of commands, in the conventions of shells and agents.
//!
//! `exit code 1`, `[exit code: 1]`, `exit=1`, `(exit 1)`, `$? = 1`, `return code 1`,
//! `<returncode>1</returncode>`, `Process exited with code 1`, `Command failed with exit code 2.`,
//! `[Command finished with exit code 0]`, `Exit-Code: 0`, and JSON with `exit_code`, `exitCode`,
//! `returncode` or `metadata.exit_code`.
//!
//! Invariant: only a line that says nothing else is believed, at the end or the beginning of the
//! text: a log or a document may speak of exit codes anywhere.

use regex::Regex;
use serde_json::Value;
use std::sync::LazyLock;

/// Lines at the end, without empty ones, in which the code may stand.
const LAST_LINES: usize = 4;
/// Lines at the beginning.
const FIRST_LINES: usize = 2;
/// Longest line that says nothing but the code.
const LINE_BYTES_MAX: usize = 160;
/// Longest JSON that is looked into.
const JSON_BYTES_MAX: usize = 256 * 1024;

static LINE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?i)^[\s\[({<*#-]*",
        r"(?:the )?(?:(?:process|command|program|script|shell|task|it)\b[a-z0-9 ,;-]{0,70}?)?",
        r"(?:(?:was |has |is )?(?:finished|failed|completed|terminated|ended|done)\s)?(?:with (?:an? )?)?",
        r"(?:exit(?:ed)?|return(?:ed)?|\$\?|rc)[\s_-]*(?:with )?(?:(?:exit[\s_-]*)?(?:code|status|value))?",
        r"\s*[:=>]*\s*(-?\d{1,10})(?:\s*</[a-z_]+>)?[\])}>.\s*]*$"
    ))
    .ok()
});

/// The exit code that a text states.
pub fn code(text: &str) -> Option<i64> {
    let trimmed = text.trim();
    if trimmed.starts_with('{') && trimmed.len() <= JSON_BYTES_MAX {
        let lower = ["exit", "returncode", "return_code"];
        if !lower.iter().any(|word| trimmed.contains(word)) {
            return None;
        }
        return serde_json::from_str(trimmed).ok().and_then(|value| in_json(&value));
    }
    let mut lines = trimmed.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().rev().take(LAST_LINES).find_map(in_line);
    last.or_else(|| lines.by_ref().take(FIRST_LINES).find_map(in_line))
}

fn in_line(line: &str) -> Option<i64> {
    let hints = [b'x', b'X', b'?', b'r', b'R', b'='];
    if line.len() > LINE_BYTES_MAX || !line.bytes().any(|byte| hints.contains(&byte)) {
        return None;
    }
    LINE.as_ref()?.captures(line)?.get(1)?.as_str().parse().ok()
}

/// Whether a text shows commands with what they printed, or begins as an error message does.
pub fn is_session(text: &str) -> bool {
    text.starts_with("error:") || text.lines().any(|line| line.starts_with("$ "))
}

/// The code in a JSON result.
pub fn in_json(value: &Value) -> Option<i64> {
    const KEYS: [&str; 6] =
        ["exit_code", "exitCode", "returncode", "return_code", "exit_status", "exitStatus"];
    let at = |value: &Value| KEYS.iter().find_map(|key| value.get(key).and_then(Value::as_i64));
    at(value).or_else(|| at(value.get("metadata")?)).or_else(|| at(value.get("result")?))
}
