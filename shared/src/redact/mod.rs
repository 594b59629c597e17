//! Redaction: what must not be stored is replaced before it reaches SQLite.
//!
//! A [`Redactor`] is a list of rules: built-in detectors with checksums ([`Detector`]) or patterns
//! of the operator. The ingest applies it to every text of a turn after the turn was linked over
//! the original, so that links survive; only the redacted text is stored.
//!
//! ```text
//! text ─► prefilter (digits, @, :) ─► candidates ─► checksum, shape, surroundings ─► replaced
//! ```
//! Rules act one after the other, in the order of the file. Everything runs in time linear in the
//! text: candidates come from the `regex` crate, checks look at a bounded piece.
//!
//! Invariant: redacting twice is redacting once; what is counted are rules, never texts.

mod checksum;
mod detect;
mod json;
mod national;
mod secrets;
mod shape;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use regex::Regex;

pub use detect::Detector;
use shape::{Facts, Shape};

/// Longest text that is searched, bytes. A longer one is replaced whole: it cannot be a message
/// that anybody wrote.
pub const TEXT_BYTES_MAX: usize = 64 << 20;
/// What stands for a text that is longer.
const TOO_LONG: &str = "[too long to redact]";
/// Passes of one rule over a text that its own replacements changed.
const PASSES_MAX: usize = 4;

/// How often each rule hit.
pub type Counts = BTreeMap<String, u64>;

/// Which half of a turn a text belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What the client sent.
    Request,
    /// What came back.
    Response,
}

/// Which halves a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AppliesTo {
    /// Not the request.
    pub not_request: bool,
    /// Not the response.
    pub not_response: bool,
}

impl AppliesTo {
    fn covers(self, side: Side) -> bool {
        match side {
            Side::Request => !self.not_request,
            Side::Response => !self.not_response,
        }
    }
}

/// What a rule looks for.
#[derive(Clone)]
pub enum Search {
    /// One of the built-in detectors.
    Detector(Detector),
    /// A pattern of the operator.
    Pattern(Regex),
}

/// One rule.
#[derive(Clone)]
pub struct Rule {
    /// Its name; counted and shown.
    pub name: String,
    /// What stands in place of what was found.
    pub replacement: String,
    /// Where it looks.
    pub applies_to: AppliesTo,
    /// The detector by which it finds, for values whose key says that they are secret.
    by_key: bool,
    shapes: Arc<[Shape]>,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Rule {
    /// A rule.
    pub fn new(name: &str, search: Search, replacement: &str, applies_to: AppliesTo) -> Self {
        let (shapes, by_key) = match search {
            Search::Detector(detector) => {
                (detector.shapes(), matches!(detector, Detector::Credential))
            }
            Search::Pattern(regex) => (Arc::from([Shape::plain(regex)]), false),
        };
        let (name, replacement) = (name.to_owned(), replacement.to_owned());
        Self { name, replacement, applies_to, by_key, shapes }
    }
}

/// Rules, ready to be applied. Cheap to share, safe to use from many threads.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    rules: Vec<Rule>,
    /// Shorter texts in which no mark stands are what no rule looks for: most keys and words.
    plain_bytes_min: usize,
}

impl Redactor {
    /// A redactor with these rules, in this order.
    pub fn new(rules: Vec<Rule>) -> Self {
        let shapes = rules.iter().flat_map(|rule| rule.shapes.iter());
        let plain_bytes_min = shapes.map(Shape::plain_bytes_min).min().unwrap_or(usize::MAX);
        Self { rules, plain_bytes_min }
    }

    /// Its rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The text without what the rules find; `None` when there is nothing to change.
    pub fn text(&self, side: Side, text: &str, counts: &mut Counts) -> Option<String> {
        if text.len() < self.plain_bytes_min && Facts::is_plain(text) {
            return None;
        }
        if text.len() > TEXT_BYTES_MAX {
            *counts.entry("too_long".to_owned()).or_default() += 1;
            return Some(TOO_LONG.to_owned());
        }
        let mut facts = Facts::of(text);
        let mut changed: Option<String> = None;
        for rule in self.rules.iter().filter(|rule| rule.applies_to.covers(side)) {
            // A replacement can bring together what was apart; the bound is for patterns that
            // match their own surroundings.
            for _ in 0..PASSES_MAX {
                let current = changed.as_deref().unwrap_or(text);
                let Some((next, hits)) = rule.apply(current, &facts) else { break };
                facts = Facts::of(&next);
                *counts.entry(rule.name.clone()).or_default() += hits;
                changed = Some(next);
            }
        }
        changed
    }
}

impl Rule {
    /// The text with this rule's hits replaced, and their number; `None` when there are none.
    fn apply(&self, text: &str, facts: &Facts) -> Option<(String, u64)> {
        let mut found = Vec::new();
        for shape in self.shapes.iter().filter(|shape| shape.possible(facts)) {
            shape.find_all(text, &mut found);
        }
        // What already is a replacement stays as it is.
        found.retain(|range| text.get(range.clone()).is_some_and(|hit| hit != self.replacement));
        if found.is_empty() {
            return None;
        }
        found.sort_unstable_by_key(|range| (range.start, std::cmp::Reverse(range.end)));
        let mut out = String::with_capacity(text.len());
        let (mut at, mut hits) = (0, 0);
        for range in found {
            if range.start < at {
                continue;
            }
            out.push_str(text.get(at..range.start).unwrap_or_default());
            out.push_str(&self.replacement);
            at = range.end;
            hits += 1;
        }
        out.push_str(text.get(at..).unwrap_or_default());
        Some((out, hits))
    }
}

#[cfg(test)]
mod tests;
