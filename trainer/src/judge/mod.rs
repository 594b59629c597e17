//! Judge: a verdict, and hints, for every turn that has a next state.
//!
//! ```text
//! store.unjudged ─► rules ─► verdict                 (needs nothing outside this process)
//!                     └────► model, m votes ─► verdict or "ask again later"
//! ```
//! A pass first settles everything that rules can settle, then asks the model for at most
//! [`MODEL_TURNS_PER_PASS`] turns. When the endpoint is down those turns stay unjudged in the store
//! and the endpoint is left alone for a while; nothing else waits for it.
//!
//! Invariant: a verdict is written once, with its votes and reasons; a turn is never judged from a
//! failure of the judge.

mod asking;
pub mod backoff;
pub mod eval;
pub mod exchange;
mod feedback;
pub mod hint;
pub mod llm;
pub mod next;
pub mod parse;
pub mod prompt;
pub mod replay;
pub mod rules;
pub mod tamper;
pub mod visible;
pub mod wire;

use backoff::Backoff;
use exchange::Exchange;
use hone_shared::clock::Clock;
use hone_shared::next_state::StateKind;
use hone_shared::policy::{HintMode, JudgePolicy, PolicySet, RoutePolicy};
use hone_shared::store::{JudgeItem, Store, StoreError, VerdictRow};
use llm::LlmClient;
use rules::RuleVerdict;
use serde_json::{Value, json};
use std::sync::Arc;

/// Turns for which the model is asked in one pass.
pub const MODEL_TURNS_PER_PASS: usize = 8;
/// Questions to the model in flight at once; each is m requests.
const MODEL_TURNS_AT_ONCE: usize = 2;
/// New turns read from the store per pass, on top of those that wait for an endpoint.
const TURNS_PER_PASS: usize = 64;
/// Turns waiting for an endpoint that are looked past.
const WAITING_MAX: usize = 4_096;

/// Why a pass could not be made.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No HTTP client could be built.
    #[error("judge client: {0}")]
    Client(#[from] reqwest::Error),
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassReport {
    /// Verdicts written.
    pub judged: usize,
    /// Turns left for later: endpoint down or not yet its turn.
    pub waiting: usize,
}

/// The judge of one trainer process.
pub struct Judge {
    client: LlmClient,
    backoff: Backoff,
    waiting: usize,
    clock: Clock,
}

/// A turn that needs the model.
struct Question {
    item: JudgeItem,
    seen: Exchange,
    kind: StateKind,
    policy: Arc<JudgePolicy>,
    rule: Option<RuleVerdict>,
}

/// What the rules of a route say about an exchange.
#[derive(Debug, Clone)]
pub struct Ruled {
    /// Kind of the next state.
    pub kind: StateKind,
    /// The judge that the kind, or the route, chose.
    pub policy: Arc<JudgePolicy>,
    /// The verdict; `None` where the rules are silent.
    pub rule: Option<RuleVerdict>,
}

/// Detects the kind of the next state, unless the route's judge is that of one kind, takes its
/// judge, and asks the rules. `None`: the set has no such judge.
pub fn by_rules(policies: &PolicySet, route: &RoutePolicy, seen: &Exchange) -> Option<Ruled> {
    let mut next = next::NextState::of(seen);
    // A judge called `chat` is what all routes had before there were kinds.
    let stated = route.judge.parse().ok().filter(|kind| *kind != StateKind::Chat);
    next.kind = stated.unwrap_or(next.kind);
    let policy = policies.judge_for(route, next.kind)?.clone();
    let rule = rules::judge_state(&policy.rules, seen, &next);
    Some(Ruled { kind: next.kind, policy, rule })
}

impl Judge {
    /// A judge whose default endpoint is the engine at `engine_url`.
    pub fn new(engine_url: &str, clock: Clock) -> Result<Self, JudgeError> {
        let client = LlmClient::new(engine_url)?;
        Ok(Self { client, backoff: Backoff::default(), waiting: 0, clock })
    }

    /// One pass over what is unjudged.
    pub async fn pass(
        &mut self,
        store: &mut Store,
        policies: &PolicySet,
    ) -> Result<PassReport, JudgeError> {
        let limit = TURNS_PER_PASS + self.waiting.min(WAITING_MAX);
        let judged = feedback::pass(store, policies, &self.clock)?;
        let mut report = PassReport { judged, ..PassReport::default() };
        let mut questions = Vec::new();
        for item in store.unjudged(limit)? {
            match self.by_rule(store, policies, item)? {
                Settled::Verdict(row) => report.judged += usize::from(store.insert_verdict(&row)?),
                Settled::Ask(question) => questions.push(*question),
                Settled::Leave => report.waiting += 1,
            }
        }
        report.waiting += questions.len();
        let now = self.clock.now_ms();
        let backoff = &self.backoff;
        let client = &self.client;
        questions.retain(|q| q.rule.is_some() || backoff.open(client.endpoint(&q.policy.llm), now));
        questions.truncate(MODEL_TURNS_PER_PASS);
        for row in self.by_model(store, questions).await? {
            report.judged += usize::from(store.insert_verdict(&row)?);
            report.waiting -= 1;
        }
        self.waiting = report.waiting;
        Ok(report)
    }

    /// Settles a turn by rule, or says what is missing.
    fn by_rule(
        &self,
        store: &Store,
        policies: &PolicySet,
        item: JudgeItem,
    ) -> Result<Settled, JudgeError> {
        let route = policies.route(&item.turn.route).filter(|route| route.mode.trains());
        let Some(route) = route else { return Ok(Settled::Leave) };
        let choice = store.turn(item.child)?.map_or(0, |child| child.parent_choice);
        let Some(seen) = Exchange::of(&item, choice) else {
            let Some(policy) = policies.judge_of(route) else { return Ok(Settled::Leave) };
            let missing = "the answer that was continued is not stored".to_owned();
            let row =
                self.row(&item, policy, None, 0, "rule:no_answer", missing, json!([]), vec![]);
            return Ok(Settled::Verdict(Box::new(row)));
        };
        let Some(Ruled { kind, policy, rule }) = by_rules(policies, route, &seen) else {
            return Ok(Settled::Leave);
        };
        let wants_hint = policy.hint.mode == HintMode::Llm && policy.llm.enabled;
        match rule {
            Some(rule) if rule.correction.is_some() && wants_hint => {
                Ok(Settled::Ask(Box::new(Question { item, seen, kind, policy, rule: Some(rule) })))
            }
            Some(rule) => {
                let row = self.ruled(store, &item, &policy, (kind, &seen), &rule)?;
                Ok(Settled::Verdict(Box::new(row)))
            }
            None if policy.llm.enabled => {
                Ok(Settled::Ask(Box::new(Question { item, seen, kind, policy, rule: None })))
            }
            None => {
                let reason = "no rule applies and the model judge is off".to_owned();
                let row =
                    self.row(&item, &policy, Some(kind), 0, "rule:none", reason, json!([]), vec![]);
                Ok(Settled::Verdict(Box::new(row)))
            }
        }
    }

    /// A verdict by rule, with the user's own words as the hint unless hints are off.
    fn ruled(
        &self,
        store: &Store,
        item: &JudgeItem,
        policy: &JudgePolicy,
        (kind, seen): (StateKind, &Exchange),
        rule: &RuleVerdict,
    ) -> Result<VerdictRow, JudgeError> {
        let words: Vec<String> = match policy.hint.mode {
            HintMode::Off => Vec::new(),
            HintMode::Verbatim | HintMode::Llm => rule.correction.iter().cloned().collect(),
        };
        let earlier = match words.is_empty() {
            true => Vec::new(),
            false => self.earlier_hints(store, item)?,
        };
        let hints = hint::accept(&policy.hint, &words, &seen.answer_text(), &earlier);
        let source = format!("rule:{}", rule.rule);
        let reason = rule.reason.clone();
        Ok(self.row(item, policy, Some(kind), rule.verdict, &source, reason, json!([]), hints))
    }

    #[allow(clippy::too_many_arguments)] // The columns of one table row.
    fn row(
        &self,
        item: &JudgeItem,
        policy: &JudgePolicy,
        kind: Option<StateKind>,
        verdict: i8,
        source: &str,
        reason: String,
        votes: Value,
        hints: Vec<String>,
    ) -> VerdictRow {
        VerdictRow {
            turn_id: item.turn.turn_id,
            child: Some(item.child),
            verdict,
            source: source.to_owned(),
            reason,
            votes,
            hints,
            judge: policy.label(),
            judged_ms: self.clock.now_ms(),
            kind,
            llm: None,
        }
    }
}

/// What the rules could do about a turn.
enum Settled {
    Verdict(Box<VerdictRow>),
    Ask(Box<Question>),
    Leave,
}

#[cfg(test)]
mod issue_4_tests;
#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
