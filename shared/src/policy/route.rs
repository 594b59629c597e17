//! `routes/<name>.toml`: which requests a route takes, and what is learned from them.
//!
//! Invariant: matching needs the path, the headers and the tenant only, never the body; so a
//! request is routed before its first body byte.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::limits::Checker;
use super::retention::{RawRetention, RetentionPolicy};
use super::round::{RawRound, RoundPolicy};
use super::traffic::{RawTraffic, TrafficPolicy};
use super::train::{RawTrain, TrainPolicy};
use super::{PolicyError, parse_toml};
use crate::registry::valid_name;
use crate::turn::Mode;

/// A checked route.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutePolicy {
    /// Name: the file's name without `.toml`.
    pub name: String,
    /// Among routes that match, the highest decides.
    pub priority: i32,
    /// Which requests it takes.
    pub matches: RouteMatch,
    /// Learning mode.
    pub mode: Mode,
    /// The alias whose generation is served.
    pub alias: String,
    /// How much of the bodies is kept.
    pub capture: CapturePolicy,
    /// How much one tenant may send.
    pub traffic: TrafficPolicy,
    /// Name of its judge.
    pub judge: String,
    /// Name of its gate.
    pub gate: String,
    /// Name of what its texts go through before they are stored; `None`: stored as they came.
    pub redaction: Option<String>,
    /// How long its turns are kept.
    pub retention: RetentionPolicy,
    /// When a round starts and what it takes.
    pub round: RoundPolicy,
    /// How a round trains.
    pub train: TrainPolicy,
}

/// Which requests a route takes: all three must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMatch {
    /// Exact paths, or prefixes that end in `*`. At least one.
    pub paths: Vec<String>,
    /// Lower-case header names with globs (`*` = any text) that their values must match. May be
    /// empty.
    pub headers: BTreeMap<String, String>,
    /// Tenant names; empty = every tenant.
    pub tenants: Vec<String>,
}

impl RouteMatch {
    /// Whether turns of a tenant belong to the route. Asked again when its turns are trained on:
    /// those of a tenant that the route no longer takes teach it nothing.
    pub fn takes_tenant(&self, tenant: &str) -> bool {
        self.tenants.is_empty() || self.tenants.iter().any(|taken| taken == tenant)
    }

    /// Whether a request belongs to the route.
    pub fn matches(
        &self,
        path: &str,
        headers: &dyn Fn(&str) -> Option<String>,
        tenant: &str,
    ) -> bool {
        let path_matches = self.paths.iter().any(|wanted| match wanted.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path == wanted,
        });
        path_matches
            && self.takes_tenant(tenant)
            && self
                .headers
                .iter()
                .all(|(name, pattern)| headers(name).is_some_and(|value| glob(pattern, &value)))
    }
}

/// Whether `text` matches a pattern in which `*` stands for any text. Linear in pattern times text
/// at worst.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = text.get(at + part.len()..).unwrap_or_default();
    }
    text.ends_with(tail)
}

/// How much of the bodies is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapturePolicy {
    /// Bytes of a request body.
    pub request_bytes_max: u64,
    /// Bytes of a response body.
    pub response_bytes_max: u64,
    /// What becomes of requests while nothing can be recorded.
    pub when_full: WhenFull,
}

/// What a route does while no turn can be recorded: queue, spool and reserve are full or cannot be
/// written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// Traffic goes on; the loss is counted and noted in the store.
    #[default]
    Pass,
    /// New requests are answered with 503 until there is room; they count as dropped (`shed`).
    Shed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    priority: Option<f64>,
    mode: Mode,
    alias: String,
    judge: String,
    gate: String,
    redaction: Option<String>,
    matches: RawMatch,
    #[serde(default)]
    capture: RawCapture,
    #[serde(default)]
    traffic: RawTraffic,
    #[serde(default)]
    round: RawRound,
    #[serde(default)]
    retention: RawRetention,
    #[serde(default)]
    train: RawTrain,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMatch {
    paths: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    tenants: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCapture {
    request_bytes_max: Option<f64>,
    response_bytes_max: Option<f64>,
    #[serde(default)]
    when_full: WhenFull,
}

impl RoutePolicy {
    pub(super) fn parse(file: &str, name: &str, text: &str) -> Result<Self, PolicyError> {
        let raw: RawRoute = parse_toml(file, text)?;
        let check = Checker { file };
        if !valid_name(&raw.alias) {
            let allowed =
                "1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit".to_owned();
            return Err(check.refuse("alias", &format!("\"{}\"", raw.alias), allowed));
        }
        Ok(Self {
            name: name.to_owned(),
            priority: check.real("priority", raw.priority)? as i32,
            matches: raw.matches.check(&check)?,
            mode: raw.mode,
            alias: raw.alias,
            capture: CapturePolicy {
                request_bytes_max: check
                    .long("capture.request_bytes_max", raw.capture.request_bytes_max)?,
                response_bytes_max: check
                    .long("capture.response_bytes_max", raw.capture.response_bytes_max)?,
                when_full: raw.capture.when_full,
            },
            traffic: raw.traffic.check(&check)?,
            judge: raw.judge,
            gate: raw.gate,
            redaction: raw.redaction,
            retention: raw.retention.check(&check)?,
            round: raw.round.check(&check)?,
            train: raw.train.check(&check)?,
        })
    }
}

impl RawMatch {
    fn check(self, check: &Checker<'_>) -> Result<RouteMatch, PolicyError> {
        let refused = self.paths.iter().find(|path| {
            let star_inside = path.strip_suffix('*').unwrap_or(path).contains('*');
            !path.starts_with('/') || star_inside || path.contains('?')
        });
        if self.paths.is_empty() || refused.is_some() {
            let found = refused.map_or("empty".to_owned(), |path| format!("\"{path}\""));
            let allowed = "paths that begin with / and may end in *".to_owned();
            return Err(check.refuse("matches.paths", &found, allowed));
        }
        if let Some(name) = self.headers.keys().find(|name| **name != name.to_ascii_lowercase()) {
            let allowed = "header names in lower case".to_owned();
            return Err(check.refuse("matches.headers", &format!("\"{name}\""), allowed));
        }
        Ok(RouteMatch { paths: self.paths, headers: self.headers, tenants: self.tenants })
    }
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn a_star_in_a_glob_stands_for_any_text() {
        for (pattern, text) in
            [("*", ""), ("a*", "abc"), ("*c", "abc"), ("a*c", "abxc"), ("abc", "abc")]
        {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("a*", "ba"), ("*c", "cb"), ("ab*ba", "aba"), ("abc", "abcd"), ("", "x")]
        {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }
}
