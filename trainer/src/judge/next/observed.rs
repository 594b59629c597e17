//! What one call returned.
//!
//! Invariant: a statement of the tool about itself (an error flag, an exit code) is kept apart from
//! the words of its output.

use super::call::Call;
use super::suite::{self, TestRun};
use super::{exit, images_of};
use crate::judge::exchange::text_of;
use hone_shared::text;
use serde_json::Value;

/// Bytes at the beginning and at the end of a result in which patterns look for errors.
const HEAD_BYTES_MAX: usize = 600;
const TAIL_BYTES_MAX: usize = 1_000;
/// Longest JSON that is looked into.
const JSON_BYTES_MAX: usize = 256 * 1024;

/// A result, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// Index of the call that it answers.
    pub call: Option<usize>,
    /// Whether that call ran a command.
    pub is_command: bool,
    /// The text.
    pub text: String,
    /// The exit code that it states.
    pub exit_code: Option<i64>,
    /// What the tool says about itself: `isError`, `error`, `ok`, `success`, `status`.
    pub is_error: Option<bool>,
    /// HTTP status that it begins with or states.
    pub http: Option<u16>,
    /// The run of tests that it reports.
    pub tests: Option<TestRun>,
    /// Image parts.
    pub images: usize,
}

impl Observed {
    pub(super) fn of(at: Option<usize>, call: Option<&Call<'_>>, message: &Value) -> Self {
        let text = text_of(message);
        let json = json_of(&text);
        let flag = message.get("is_error").and_then(Value::as_bool);
        let exit_code = match &json {
            Some(json) => exit::in_json(json),
            None => exit::code(&text),
        };
        let is_error = flag.or_else(|| json.as_ref().and_then(states_error));
        let http = json.as_ref().and_then(status_of).or_else(|| leading_status(&text));
        let tests = suite::run(&text);
        let is_command = call.is_some_and(|call| call.command().is_some());
        let images = images_of(message);
        Self { call: at, is_command, text, exit_code, is_error, http, tests, images }
    }

    /// The beginning and the end of the text, where errors stand.
    pub fn ends(&self) -> String {
        if self.text.len() <= HEAD_BYTES_MAX + TAIL_BYTES_MAX {
            return self.text.clone();
        }
        let (head, tail) =
            (text::head(&self.text, HEAD_BYTES_MAX), text::tail(&self.text, TAIL_BYTES_MAX));
        format!("{head}\n{tail}")
    }
}

fn json_of(text: &str) -> Option<Value> {
    let text = text.trim();
    let is_object = text.starts_with('{') && text.ends_with('}') && text.len() <= JSON_BYTES_MAX;
    is_object.then(|| serde_json::from_str(text).ok()).flatten()
}

/// What a JSON result says about itself; `None` where it says nothing.
fn states_error(json: &Value) -> Option<bool> {
    let flag = |keys: &[&str]| keys.iter().find_map(|key| json.get(key)?.as_bool());
    if let Some(flag) = flag(&["isError", "is_error"]) {
        return Some(flag);
    }
    match json.get("error").or_else(|| json.get("errors")) {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(Value::Array(list)) if list.is_empty() => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(_) => return Some(true),
    }
    if let Some(good) = flag(&["success", "ok"]) {
        return Some(!good);
    }
    const BAD: [&str; 6] = ["error", "failed", "failure", "rejected", "invalid", "denied"];
    let status = json.get("status").and_then(Value::as_str)?;
    BAD.contains(&status.to_ascii_lowercase().as_str()).then_some(true)
}

fn status_of(json: &Value) -> Option<u16> {
    let keys = ["status_code", "statusCode", "http_status", "status"];
    let found = keys.iter().find_map(|key| json.get(key).and_then(Value::as_u64))?;
    u16::try_from(found).ok().filter(|status| (100..600).contains(status))
}

/// `404 Not Found …`, `HTTP/1.1 503 …`, `HTTP 503`, `Error: 400 Bad Request`.
fn leading_status(text: &str) -> Option<u16> {
    let line = text.trim_start().lines().next()?;
    let line = line.trim_start_matches("Error: ").trim_start_matches("Request failed: ");
    let rest = match line.strip_prefix("HTTP") {
        Some(rest) => rest.trim_start_matches("/1.1").trim_start_matches("/2").trim_start(),
        None => line,
    };
    let digits = rest.get(..3)?;
    let after = rest.get(3..)?;
    let ends = after.is_empty() && rest.len() < line.len()
        || after.strip_prefix(' ').is_some_and(|word| word.starts_with(char::is_uppercase));
    let status = digits.parse().ok().filter(|status| (100..600).contains(status))?;
    ends.then_some(status)
}
