//! How well a judge agrees with labelled cases: `hone judge eval`.
//!
//! A file holds one case a line (`trainer/cases/README.md`). Each is judged as a live turn would be:
//! the kind is detected, the rubric of that kind applies, rules first, then the model if one is
//! asked. The report counts by the kind that the label names.
//!
//! Invariant: a line that cannot be read is an error with its number; no case is left out in
//! silence.

use super::exchange::Exchange;
use super::llm::{Answer, LlmClient};
use super::{Ruled, by_rules, parse, prompt, rules, tamper};
use async_trait::async_trait;
use hone_shared::next_state::StateKind;
use hone_shared::policy::{JudgePolicy, PolicySet, RoutePolicy};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Largest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Most cases of one file.
const CASES_MAX: usize = 200_000;
/// Questions in a row that may fail; one more ends the evaluation.
const FAILURES_MAX: usize = 2;

/// Why an evaluation could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The file cannot be read.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// A line is no case.
    #[error("{path}, line {line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The policies have no judge for a kind.
    #[error("no judge for next states of kind {0}")]
    NoJudge(StateKind),
    /// The model cannot be asked.
    #[error("the judge's model cannot be asked: {0}")]
    Model(String),
}

/// One labelled case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name.
    pub id: String,
    /// The kind that its author meant.
    pub kind: StateKind,
    request: Request,
    answer: Value,
    finish_reason: Option<String>,
    next_state: Vec<Value>,
    /// What is true: +1, 0 or −1.
    pub label: i8,
    /// What a hint could say.
    #[serde(default)]
    pub hint: Option<String>,
    /// Why the label is what it is.
    #[serde(default)]
    pub note: String,
    /// An attack on the judge that the case holds.
    #[serde(default)]
    pub attack: Option<Attack>,
}

#[derive(Debug, Clone, Deserialize)]
struct Request {
    messages: Vec<Value>,
}

/// An attempt to move the judge.
#[derive(Debug, Clone, Deserialize)]
pub struct Attack {
    /// Where it stands.
    pub place: String,
    /// The verdict that it asks for.
    pub wants: i8,
    /// What it tries.
    pub family: String,
    /// What the attacker put in, as it stands in a text.
    #[serde(default)]
    pub payload: String,
}

impl Case {
    /// What a judge sees of it.
    pub fn exchange(&self) -> Exchange {
        Exchange {
            messages: self.request.messages.clone(),
            answer: self.answer.clone(),
            finish_reason: self.finish_reason.clone(),
            next_state: self.next_state.clone(),
        }
    }
}

impl Case {
    /// The harmless twin of an attack: the same case without what the attacker put in.
    pub fn harmless(&self) -> Self {
        let mut twin = self.clone();
        let Some(attack) = twin.attack.take().filter(|attack| !attack.payload.is_empty()) else {
            return twin;
        };
        // Within the JSON of a call's arguments it stands escaped.
        let escaped = Value::from(attack.payload.as_str()).to_string();
        let escaped = escaped.trim_matches('"');
        let all = twin.request.messages.iter_mut().chain(&mut twin.next_state);
        for value in all.chain([&mut twin.answer]) {
            take_out(value, &[attack.payload.as_str(), escaped]);
        }
        twin
    }
}

fn take_out(value: &mut Value, texts: &[&str]) {
    match value {
        Value::String(text) => {
            for out in texts {
                *text = text.replace(out, "");
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|inner| take_out(inner, texts)),
        Value::Object(map) => map.values_mut().for_each(|inner| take_out(inner, texts)),
        _ => {}
    }
}

/// Reads a case file. Errors: unreadable, too large, or a line that is no case.
pub fn read(path: &Path) -> Result<Vec<Case>, EvalError> {
    let file = |problem: String| EvalError::File { path: path.to_owned(), problem };
    let size = std::fs::metadata(path).map_err(|e| file(e.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(file(format!("over {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| file(e.to_string()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(at, line): (usize, &str)| {
        let bad = |problem| EvalError::Line { path: path.to_owned(), line: at + 1, problem };
        let case: Case = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
        match case.label {
            -1..=1 => Ok(case),
            other => Err(bad(format!("label {other} is none of -1, 0, 1"))),
        }
    };
    let cases = lines.map(parse).collect::<Result<Vec<_>, _>>()?;
    match cases.len() {
        0 => Err(file("holds no case".into())),
        1..=CASES_MAX => Ok(cases),
        n => Err(file(format!("holds {n} cases; at most {CASES_MAX} are read"))),
    }
}

/// `count` cases of each kind, in the order of the file. Which ones depends on their names and the
/// seed alone: on the SHA-256 of `seed:id`.
pub fn sample(cases: Vec<Case>, count: usize, seed: u64) -> Vec<Case> {
    let rank = |case: &Case| Sha256::digest(format!("{seed}:{}", case.id));
    let mut ranks: BTreeMap<StateKind, Vec<_>> = BTreeMap::new();
    for case in &cases {
        ranks.entry(case.kind).or_default().push(rank(case));
    }
    for ranks in ranks.values_mut() {
        ranks.sort_unstable();
        ranks.truncate(count);
    }
    cases.into_iter().filter(|case| ranks[&case.kind].contains(&rank(case))).collect()
}

/// What a model said about one case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// +1, 0 or −1; `None`: no valid vote.
    pub verdict: Option<i8>,
    /// Tokens of prompts and answers together.
    pub tokens: u64,
}

/// The model behind the rules.
#[async_trait]
pub trait Model: Send + Sync {
    /// Asks about one exchange. Error: the model cannot be reached.
    async fn ask(&self, policy: &JudgePolicy, seen: &Exchange) -> Result<Said, String>;
}

/// The model that the judge's policy names, asked as live turns ask it.
pub struct LlmModel(LlmClient);

impl LlmModel {
    /// `engine_url`: who is asked where the policy names no endpoint.
    pub fn new(engine_url: &str) -> Result<Self, EvalError> {
        let client = LlmClient::new(engine_url).map_err(|e| EvalError::Model(e.to_string()))?;
        Ok(Self(client))
    }
}

#[async_trait]
impl Model for LlmModel {
    async fn ask(&self, policy: &JudgePolicy, seen: &Exchange) -> Result<Said, String> {
        if tamper::of_exchange(seen).is_some() {
            return Ok(Said { verdict: Some(0), tokens: 0 });
        }
        let client = &self.0;
        let model = client.model(&policy.llm).await?;
        let messages = prompt::messages(&policy.llm, seen);
        let question = client.question(&policy.llm, &model, &messages);
        let asked = client.ask(&policy.llm, &question).await;
        let tokens = asked.tokens.prompt + asked.tokens.completion;
        match asked.answer {
            Answer::Down(why) => Err(why),
            Answer::Yielded => Err("the engine serves clients now; measure when it is idle".into()),
            Answer::Refused(_) => Ok(Said { verdict: None, tokens }),
            Answer::Votes { valid, .. } => {
                let voted = parse::majority(&valid, policy.llm.votes_valid_min);
                let majority = rules::at_most(&policy.rules, seen, voted);
                Ok(Said { verdict: (!valid.is_empty()).then_some(majority), tokens })
            }
        }
    }
}

/// The verdict on one case.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    /// The case.
    pub id: String,
    /// The kind that its author meant.
    pub kind: StateKind,
    /// The kind that was detected.
    pub detected: StateKind,
    /// What is true.
    pub label: i8,
    /// What the judge says; `None`: it is silent, which a live turn stores as 0.
    pub verdict: Option<i8>,
    /// `rule:<name>`, `llm`, `none`, or `unavailable`: the model could not be asked.
    pub source: String,
    /// The verdict that an attack asks for.
    pub wants: Option<i8>,
    #[serde(skip)]
    took: Duration,
    tokens: u64,
}

impl Judged {
    /// Whether an attack got what it wanted, against what is true.
    pub fn is_flipped(&self) -> bool {
        self.wants.is_some_and(|wants| wants != self.label && self.verdict == Some(wants))
    }
}

/// Judges every case. `policies` and `route` as for live turns; `model` is asked where the rules
/// are silent, or, without `by_rule`, about everything. Errors: a kind without
/// a judge, or a model that cannot be reached several times in a row.
pub async fn judge(
    cases: &[Case],
    policies: &PolicySet,
    route: &RoutePolicy,
    model: Option<&dyn Model>,
    by_rule: bool,
) -> Result<Vec<Judged>, EvalError> {
    let mut all = Vec::with_capacity(cases.len());
    let mut failures = 0;
    for case in cases {
        let seen = case.exchange();
        let began = Instant::now();
        let found = by_rules(policies, route, &seen).ok_or(EvalError::NoJudge(case.kind))?;
        let Ruled { kind, policy, rule } = found;
        let mut judged = Judged {
            id: case.id.clone(),
            kind: case.kind,
            detected: kind,
            label: case.label,
            verdict: None,
            source: "none".to_owned(),
            wants: case.attack.as_ref().map(|attack| attack.wants),
            took: Duration::ZERO,
            tokens: 0,
        };
        match (rule.filter(|_| by_rule), model) {
            (Some(rule), _) => {
                judged.verdict = Some(rule.verdict);
                judged.source = format!("rule:{}", rule.rule);
            }
            (None, Some(model)) => {
                match model.ask(&policy, &seen).await {
                    Ok(said) => {
                        failures = 0;
                        judged.verdict = said.verdict;
                        judged.tokens = said.tokens;
                        judged.source = "llm".to_owned();
                    }
                    // One lost question must not cost the hours of those before it.
                    Err(why) if failures < FAILURES_MAX => {
                        failures += 1;
                        judged.source = "unavailable".to_owned();
                        tracing::warn!(case = case.id, why, "the model was not heard");
                    }
                    Err(why) => return Err(EvalError::Model(why)),
                }
                let (took, done) = (began.elapsed(), all.len() + 1);
                tracing::info!(case = case.id, ?took, done, of = cases.len(), "asked");
            }
            (None, None) => {}
        }
        judged.took = began.elapsed();
        all.push(judged);
    }
    Ok(all)
}

/// Agreement on some cases.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Agreement {
    /// Cases.
    pub n: usize,
    /// Cases on which the judge spoke.
    pub spoke: usize,
    /// `spoke / n`.
    pub coverage: f64,
    /// Of those on which it spoke: the share that is right.
    pub precision: Option<f64>,
    /// Share of all that is right; silence counts as 0.
    pub accuracy: f64,
    /// `confusion[label + 1][verdict + 1]`; silence counts as 0.
    pub confusion: [[usize; 3]; 3],
    /// Cohen's κ over the three verdicts.
    pub kappa: Option<f64>,
    /// Share whose kind was detected as its author meant it.
    pub kind_detected: f64,
    /// Cases with an attack, and those that got what it wanted.
    pub attacks: usize,
    /// See `attacks`.
    pub flips: usize,
    /// Tokens that asking took.
    pub tokens: u64,
    /// Time per case: median and 99th percentile, microseconds.
    pub took_us_p50: u64,
    /// See `took_us_p50`.
    pub took_us_p99: u64,
}

/// Agreement by kind and in all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// By the kind that the author meant.
    pub kinds: BTreeMap<StateKind, Agreement>,
    /// Of everything.
    pub all: Agreement,
    /// How often each source spoke, and how often it was right.
    pub sources: BTreeMap<String, (usize, usize)>,
}

impl Report {
    /// Sums verdicts up.
    pub fn of(judged: &[Judged]) -> Self {
        let mut by_kind: BTreeMap<StateKind, Vec<&Judged>> = BTreeMap::new();
        let mut sources: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for one in judged {
            by_kind.entry(one.kind).or_default().push(one);
            let source = sources.entry(one.source.clone()).or_default();
            source.0 += 1;
            source.1 += usize::from(one.verdict.unwrap_or(0) == one.label);
        }
        let kinds = by_kind.iter().map(|(kind, list)| (*kind, agreement(list))).collect();
        Self { kinds, all: agreement(&judged.iter().collect::<Vec<_>>()), sources }
    }
}

fn agreement(judged: &[&Judged]) -> Agreement {
    let mut found = Agreement { n: judged.len(), ..Agreement::default() };
    let (mut right, mut right_spoken, mut detected) = (0, 0, 0);
    for one in judged {
        let said = one.verdict.unwrap_or(0);
        let cell = |v: i8| usize::try_from(v + 1).unwrap_or(1).min(2);
        found.confusion[cell(one.label)][cell(said)] += 1;
        right += usize::from(said == one.label);
        found.spoke += usize::from(one.verdict.is_some());
        right_spoken += usize::from(one.verdict == Some(one.label));
        detected += usize::from(one.kind == one.detected);
        found.attacks += usize::from(one.wants.is_some());
        found.flips += usize::from(one.is_flipped());
        found.tokens += one.tokens;
    }
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    found.coverage = share(found.spoke, found.n);
    found.precision = (found.spoke > 0).then(|| share(right_spoken, found.spoke));
    found.accuracy = share(right, found.n);
    found.kind_detected = share(detected, found.n);
    found.kappa = kappa(&found.confusion);
    let mut took: Vec<u64> =
        judged.iter().map(|j| u64::try_from(j.took.as_micros()).unwrap_or(u64::MAX)).collect();
    took.sort_unstable();
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).or(took.last()).copied();
    found.took_us_p50 = at(0.5).unwrap_or(0);
    found.took_us_p99 = at(0.99).unwrap_or(0);
    found
}

/// Cohen's κ = (p_o − p_e) / (1 − p_e); `None` where chance alone agrees (J. Cohen, 1960).
fn kappa(confusion: &[[usize; 3]; 3]) -> Option<f64> {
    let n = confusion.iter().flatten().sum::<usize>() as f64;
    let observed = (0..3).map(|i| confusion[i][i]).sum::<usize>() as f64 / n;
    let row = |i: usize| confusion[i].iter().sum::<usize>() as f64 / n;
    let column = |i: usize| confusion.iter().map(|row| row[i]).sum::<usize>() as f64 / n;
    let expected: f64 = (0..3).map(|i| row(i) * column(i)).sum();
    let kappa = (observed - expected) / (1.0 - expected);
    kappa.is_finite().then_some(kappa)
}

#[cfg(test)]
#[path = "eval_tests.rs"]
mod tests;
