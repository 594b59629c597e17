//! `routes/<name>.toml`: which requests a route takes, and what is learned from them.
//!
//! Invariant: matching needs the path, the headers and the tenant only, never the body; so a
//! request is routed before its first body byte.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::limits::Checker;
use super::retention::{RawRetention, RetentionPolicy};
use super::traffic::{RawTraffic, TrafficPolicy};
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

/// When a round starts and what it takes.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundPolicy {
    /// Samples that start a round.
    pub samples_min: usize,
    /// Samples that a round takes at most.
    pub samples_max: usize,
    /// Age of the oldest sample, ms, at which a round starts with fewer.
    pub age_ms_max: u64,
    /// Share of the samples kept for the gate.
    pub holdout_share: f64,
    /// Samples of one session.
    pub per_session_max: usize,
    /// Samples of one tenant.
    pub per_tenant_max: usize,
}

/// Arithmetic of training. The gate always computes in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 operands with f32 sums where the processor has them, f32 elsewhere: about 1.6 times as
    /// fast.
    #[default]
    Bf16,
    /// f32 throughout.
    F32,
}

/// Whose distribution, with the hint, is taught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Teacher {
    /// The base model, adapter off.
    #[default]
    Base,
    /// The generation that is being served.
    Incumbent,
}

/// How a round trains. Units and meanings: [`super::LIMITS`].
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "every field is described in the table of limits")]
pub struct TrainPolicy {
    pub rank: usize,
    pub alpha: f64,
    pub learning_rate: f64,
    pub updates: usize,
    pub replies: usize,
    pub temperature: f64,
    pub reply_tokens_max: usize,
    pub prompt_tokens_max: usize,
    pub weight_opd: f64,
    pub weight_rl: f64,
    pub kl_beta: f64,
    pub clip_low: f64,
    pub clip_high: f64,
    pub advantage_max: f64,
    pub grad_norm_max: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub weight_decay: f64,
    /// Whose distribution, with the hint, is taught.
    pub teacher: Teacher,
    /// Arithmetic of training.
    pub precision: Precision,
    /// Whether a round continues from the incumbent's adapter instead of a fresh one.
    pub warm_start: bool,
    pub seed: u64,
    pub threads: usize,
    pub stop: StopPolicy,
}

/// Anomalies that stop a round. Units and meanings: [`super::LIMITS`].
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "every field is described in the table of limits")]
pub struct StopPolicy {
    pub grad_norm_max: f64,
    pub log_ratio_max: f64,
    pub entropy_min: f64,
    pub reply_tokens_min_mean: f64,
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRound {
    samples_min: Option<f64>,
    samples_max: Option<f64>,
    age_ms_max: Option<f64>,
    holdout_share: Option<f64>,
    per_session_max: Option<f64>,
    per_tenant_max: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrain {
    rank: Option<f64>,
    alpha: Option<f64>,
    learning_rate: Option<f64>,
    updates: Option<f64>,
    replies: Option<f64>,
    temperature: Option<f64>,
    reply_tokens_max: Option<f64>,
    prompt_tokens_max: Option<f64>,
    weight_opd: Option<f64>,
    weight_rl: Option<f64>,
    kl_beta: Option<f64>,
    clip_low: Option<f64>,
    clip_high: Option<f64>,
    advantage_max: Option<f64>,
    grad_norm_max: Option<f64>,
    adam_beta1: Option<f64>,
    adam_beta2: Option<f64>,
    weight_decay: Option<f64>,
    #[serde(default)]
    teacher: Teacher,
    #[serde(default)]
    precision: Precision,
    warm_start: Option<bool>,
    seed: Option<f64>,
    threads: Option<f64>,
    #[serde(default)]
    stop: RawStop,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStop {
    grad_norm_max: Option<f64>,
    log_ratio_max: Option<f64>,
    entropy_min: Option<f64>,
    reply_tokens_min_mean: Option<f64>,
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

impl RawRound {
    fn check(self, check: &Checker<'_>) -> Result<RoundPolicy, PolicyError> {
        let round = RoundPolicy {
            samples_min: check.count("round.samples_min", self.samples_min)?,
            samples_max: check.count("round.samples_max", self.samples_max)?,
            age_ms_max: check.long("round.age_ms_max", self.age_ms_max)?,
            holdout_share: check.real("round.holdout_share", self.holdout_share)?,
            per_session_max: check.count("round.per_session_max", self.per_session_max)?,
            per_tenant_max: check.count("round.per_tenant_max", self.per_tenant_max)?,
        };
        let (min, max) = (round.samples_min as f64, round.samples_max as f64);
        check.ordered(("round.samples_min", min), ("round.samples_max", max))?;
        Ok(round)
    }
}

impl RawTrain {
    fn check(self, check: &Checker<'_>) -> Result<TrainPolicy, PolicyError> {
        Ok(TrainPolicy {
            rank: check.count("train.rank", self.rank)?,
            alpha: check.real("train.alpha", self.alpha)?,
            learning_rate: check.real("train.learning_rate", self.learning_rate)?,
            updates: check.count("train.updates", self.updates)?,
            replies: check.count("train.replies", self.replies)?,
            temperature: check.real("train.temperature", self.temperature)?,
            reply_tokens_max: check.count("train.reply_tokens_max", self.reply_tokens_max)?,
            prompt_tokens_max: check.count("train.prompt_tokens_max", self.prompt_tokens_max)?,
            weight_opd: check.real("train.weight_opd", self.weight_opd)?,
            weight_rl: check.real("train.weight_rl", self.weight_rl)?,
            kl_beta: check.real("train.kl_beta", self.kl_beta)?,
            clip_low: check.real("train.clip_low", self.clip_low)?,
            clip_high: check.real("train.clip_high", self.clip_high)?,
            advantage_max: check.real("train.advantage_max", self.advantage_max)?,
            grad_norm_max: check.real("train.grad_norm_max", self.grad_norm_max)?,
            adam_beta1: check.real("train.adam_beta1", self.adam_beta1)?,
            adam_beta2: check.real("train.adam_beta2", self.adam_beta2)?,
            weight_decay: check.real("train.weight_decay", self.weight_decay)?,
            teacher: self.teacher,
            precision: self.precision,
            warm_start: self.warm_start.unwrap_or(true),
            seed: check.long("train.seed", self.seed)?,
            threads: check.count("train.threads", self.threads)?,
            stop: self.stop.check(check)?,
        })
    }
}

impl RawStop {
    fn check(self, check: &Checker<'_>) -> Result<StopPolicy, PolicyError> {
        Ok(StopPolicy {
            grad_norm_max: check.real("train.stop.grad_norm_max", self.grad_norm_max)?,
            log_ratio_max: check.real("train.stop.log_ratio_max", self.log_ratio_max)?,
            entropy_min: check.real("train.stop.entropy_min", self.entropy_min)?,
            reply_tokens_min_mean: check
                .real("train.stop.reply_tokens_min_mean", self.reply_tokens_min_mean)?,
        })
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
