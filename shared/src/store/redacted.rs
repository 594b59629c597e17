//! Redaction of a turn on its way into the store.
//!
//! Links are hashed over the original before this; what is stored and what is compared with stored
//! texts is redacted. A body that could not be read is redacted as text; where even that is not
//! safe, it is not kept.
//!
//! Invariant: on a redacting route no text reaches the store that did not go through every rule.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::{Result, Store};
use crate::feedback::Part;
use crate::link::LinkKey;
use crate::policy::RedactionPolicy;
use crate::redact::{Counts, Side};
use crate::turn::{Begin, Done, Headers, TurnId};
use crate::wire::coding::inflate;
use crate::wire::{RequestView, ResponseView};

/// What the texts of one turn go through.
#[derive(Debug, Default)]
pub(super) struct Redaction<'a> {
    policies: &'a [Arc<RedactionPolicy>],
    pub(super) counts: Counts,
    /// A body was not kept because it could not be redacted safely.
    pub(super) withheld: bool,
}

impl<'a> Redaction<'a> {
    pub(super) fn new(policies: &'a [Arc<RedactionPolicy>]) -> Self {
        Self { policies, ..Self::default() }
    }

    fn text(&mut self, side: Side, text: &str) -> Option<String> {
        let mut changed: Option<String> = None;
        for policy in self.policies {
            let current = changed.as_deref().unwrap_or(text);
            if let Some(next) = policy.redactor.text(side, current, &mut self.counts) {
                changed = Some(next);
            }
        }
        changed
    }

    fn value(&mut self, side: Side, value: &mut Value) -> bool {
        let counts = &mut self.counts;
        self.policies.iter().fold(false, |any, p| p.redactor.value(side, value, counts) | any)
    }

    fn string(&mut self, side: Side, text: &mut String) {
        if let Some(redacted) = self.text(side, text) {
            *text = redacted;
        }
    }

    fn headers(&mut self, side: Side, headers: &mut Headers) {
        for (_, value) in headers {
            self.string(side, value);
        }
    }

    /// The request. Returns its original messages where they differ from what is stored now. `clean`
    /// says in which messages nothing will be found.
    pub(super) fn request(
        &mut self,
        begin: &mut Begin,
        request: Option<&mut RequestView>,
        clean: impl Fn(usize) -> bool,
    ) -> Option<Vec<Value>> {
        if self.policies.is_empty() {
            return None;
        }
        self.headers(Side::Request, &mut begin.headers);
        self.string(Side::Request, &mut begin.path);
        let request = request?;
        self.value(Side::Request, &mut request.params);
        if let Some(model) = &mut request.model {
            self.string(Side::Request, model);
        }
        let finds =
            |message| self.policies.iter().any(|p| p.redactor.finds(Side::Request, message));
        let mut messages = request.messages.iter().enumerate();
        if !messages.any(|(at, message)| !clean(at) && finds(message)) {
            return None;
        }
        let original = request.messages.clone();
        for message in &mut request.messages {
            self.value(Side::Request, message);
        }
        Some(original)
    }

    /// A comment or a demonstration: words of the client about a response.
    pub(super) fn feedback(&mut self, part: &mut Part) {
        match part {
            Part::Comment(text) => self.string(Side::Request, text),
            Part::Demonstration(message) => {
                self.value(Side::Request, message);
            }
            Part::Thumb(_) | Part::Score(_) | Part::Outcome(_) => {}
        }
    }

    /// The client's own name of the session. One that holds something to redact becomes a keyed
    /// hash of itself, so that different sessions stay different.
    pub(super) fn session(&mut self, key: &LinkKey, named: String) -> String {
        let source = named.split(':').next().unwrap_or_default().to_owned();
        match self.text(Side::Request, &named) {
            None => named,
            Some(_) => format!("{source}:~{}", key.pseudonym(&named)),
        }
    }

    /// The response.
    pub(super) fn response(
        &mut self,
        done: Option<&mut Done>,
        response: Option<&mut ResponseView>,
    ) {
        if self.policies.is_empty() {
            return;
        }
        if let Some(done) = done {
            self.headers(Side::Response, &mut done.headers);
        }
        let Some(response) = response else { return };
        for choice in &mut response.choices {
            self.value(Side::Response, &mut choice.message);
            if let Some(reason) = &mut choice.finish_reason {
                self.string(Side::Response, reason);
            }
        }
        if let Some(error) = &mut response.error {
            self.value(Side::Response, error);
        }
    }

    /// What is kept of a body that could not be read. Nothing of a stream: what is cut across its
    /// events cannot be found in it.
    pub(super) fn raw(
        &mut self,
        side: Side,
        headers: &Headers,
        body: &Bytes,
        truncated: bool,
    ) -> Option<Vec<u8>> {
        if self.policies.is_empty() {
            return Some(body.to_vec());
        }
        let kept = self.raw_text(side, headers, body, truncated);
        self.withheld |= kept.is_none();
        kept
    }

    fn raw_text(
        &mut self,
        side: Side,
        headers: &Headers,
        body: &Bytes,
        truncated: bool,
    ) -> Option<Vec<u8>> {
        let header = |name: &str| {
            let found = headers.iter().find(|(n, _)| n == name);
            found.map(|(_, value)| value.to_ascii_lowercase())
        };
        let plain = inflate(header("content-encoding").as_deref(), body).ok()?;
        let text = std::str::from_utf8(&plain).ok()?;
        let stream = header("content-type").is_some_and(|kind| kind.contains("event-stream"))
            || text.lines().take(LINES_LOOKED_AT).any(|line| line.starts_with("data:"));
        if stream || text.contains('\0') {
            return None;
        }
        // The secret that a cut goes through is no longer recognised.
        let text = if truncated { without_last_word(text) } else { text };
        if let Ok(mut value) = serde_json::from_str::<Value>(text) {
            let changed = self.value(side, &mut value);
            let kept = if changed { value.to_string() } else { text.to_owned() };
            return Some(kept.into_bytes());
        }
        // Not JSON, though it may be nearly: escapes would hide what is in it.
        if text.contains("\\u") {
            return None;
        }
        Some(self.text(side, text).unwrap_or_else(|| text.to_owned()).into_bytes())
    }
}

impl Store {
    /// How often each redaction rule hit in a turn.
    pub fn turn_redactions(&self, turn: TurnId) -> Result<Counts> {
        let mut find = self.conn.prepare_cached(
            "SELECT r.rule, r.count FROM turn_redactions r JOIN turns t ON t.id = r.turn
             WHERE t.turn_id = ?1",
        )?;
        let rows = find.query_map([turn.to_string()], |row| {
            Ok((row.get::<_, String>(0)?, super::uint(row.get(1)?)))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// Lines of a body in which the beginning of an event stream shows.
const LINES_LOOKED_AT: usize = 32;
/// Most bytes that a cut body loses at its end.
const LAST_WORD_BYTES_MAX: usize = 4096;

fn without_last_word(text: &str) -> &str {
    let from = text.len().saturating_sub(LAST_WORD_BYTES_MAX);
    let last = text.rfind(|c: char| c.is_whitespace() || matches!(c, '"' | ',' | '&'));
    let at = last.filter(|at| *at >= from).unwrap_or(from);
    text.get(..at).unwrap_or_default()
}
