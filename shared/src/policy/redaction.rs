//! `redactions/<name>.toml`: what is replaced in the texts of a route before they are stored.
//!
//! Invariant: a replacement is never found by the rules of its own file, so redacting twice is
//! redacting once; no pattern can take more than linear time or match nothing.

use std::sync::Arc;

use regex::RegexBuilder;
use serde::Deserialize;

use super::limits::Checker;
use super::{PolicyError, PolicySet, parse_toml};
use crate::redact::{AppliesTo, Counts, Detector, Redactor, Rule, Search, Side};
use crate::registry::valid_name;

/// Most rules of one file.
const RULES_MAX: usize = 100;
/// Longest replacement, characters.
const REPLACEMENT_CHARS_MAX: usize = 64;
/// Compiled size of one pattern, bytes.
const PATTERN_BYTES_MAX: usize = 4 << 20;

/// A checked redaction.
#[derive(Debug, Clone)]
pub struct RedactionPolicy {
    /// Name: the file's name without `.toml`.
    pub name: String,
    /// Its rules, ready to be applied.
    pub redactor: Redactor,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRedaction {
    rules: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: String,
    detect: Option<String>,
    pattern: Option<String>,
    replacement: Option<String>,
    #[serde(default)]
    applies_to: RawSide,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawSide {
    #[default]
    Both,
    Request,
    Response,
}

impl RedactionPolicy {
    pub(super) fn parse(file: &str, name: &str, text: &str) -> Result<Self, PolicyError> {
        let raw: RawRedaction = parse_toml(file, text)?;
        let check = Checker { file };
        if raw.rules.is_empty() || raw.rules.len() > RULES_MAX {
            let found = format!("a list of {}", raw.rules.len());
            return Err(check.refuse("rules", &found, format!("1 to {RULES_MAX} rules")));
        }
        let rules = raw.rules.iter().map(|rule| rule.check(&check));
        let rules = rules.collect::<Result<Vec<Rule>, _>>()?;
        let mut names: Vec<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair.first() == pair.last()) {
            let found = twice.concat();
            return Err(check.refuse("rules.name", &found, "a name that no other rule has".into()));
        }
        let redactor = Redactor::new(rules);
        for rule in redactor.rules() {
            for side in [Side::Request, Side::Response] {
                if redactor.text(side, &rule.replacement, &mut Counts::new()).is_some() {
                    let found = format!("\"{}\"", rule.replacement);
                    let allowed = "a text that no rule of this file finds".to_owned();
                    return Err(check.refuse("rules.replacement", &found, allowed));
                }
            }
        }
        Ok(Self { name: name.to_owned(), redactor })
    }
}

impl PolicySet {
    /// What the texts of a route's turns go through before they are stored, in this order. A route
    /// that is not there any more goes through everything that is known: what it wanted cannot be
    /// asked, and too little is worse than too much.
    pub fn redactions_of(&self, route: &str) -> Vec<Arc<RedactionPolicy>> {
        match self.route(route) {
            None => self.redactions.values().cloned().collect(),
            Some(route) => {
                let name = route.redaction.as_ref();
                name.and_then(|name| self.redactions.get(name)).cloned().into_iter().collect()
            }
        }
    }
}

impl RawRule {
    fn check(&self, check: &Checker<'_>) -> Result<Rule, PolicyError> {
        if !valid_name(&self.name) {
            let allowed = "1 to 64 of A-Z a-z 0-9 . _ -, first a letter or digit".to_owned();
            return Err(check.refuse("rules.name", &format!("\"{}\"", self.name), allowed));
        }
        let replacement = self.replacement.clone().unwrap_or_else(|| format!("[{}]", self.name));
        if replacement.chars().count() > REPLACEMENT_CHARS_MAX
            || replacement.chars().any(char::is_control)
        {
            let allowed = format!("up to {REPLACEMENT_CHARS_MAX} printable characters");
            return Err(check.refuse("rules.replacement", &format!("{replacement:?}"), allowed));
        }
        let applies_to = match self.applies_to {
            RawSide::Both => AppliesTo::default(),
            RawSide::Request => AppliesTo { not_response: true, ..AppliesTo::default() },
            RawSide::Response => AppliesTo { not_request: true, ..AppliesTo::default() },
        };
        Ok(Rule::new(&self.name, self.search(check)?, &replacement, applies_to))
    }

    fn search(&self, check: &Checker<'_>) -> Result<Search, PolicyError> {
        let key = |key: &str| format!("rules.{}.{key}", self.name);
        match (&self.detect, &self.pattern) {
            (Some(detector), None) => {
                let found = detector.parse::<Detector>().map(Search::Detector);
                found.map_err(|all| check.refuse(&key("detect"), &format!("\"{detector}\""), all))
            }
            (None, Some(pattern)) => {
                let built = RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build();
                let refuse = |problem: String| {
                    check.refuse(&key("pattern"), &format!("{pattern:?}"), problem)
                };
                let regex = built.map_err(|error| refuse(error.to_string()))?;
                if regex.is_match("") {
                    return Err(refuse("a pattern that does not match the empty text".to_owned()));
                }
                Ok(Search::Pattern(regex))
            }
            _ => {
                let found = if self.detect.is_some() { "both are set" } else { "neither is set" };
                let allowed = "either `detect` or `pattern`".to_owned();
                Err(check.refuse(&key("detect"), found, allowed))
            }
        }
    }
}
