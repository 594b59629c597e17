//! Judge: a verdict, and hints, for every turn that has a next state.
//!
//! ```text
//! store, no verdict ─► rules ─► verdict                 (needs nothing outside this process)
//!                        └────► waiting ─► model, m votes ─► verdict or "ask again later"
//! ```
//! A pass settles what rules can settle, then asks the model about at most [`MODEL_TURNS_PER_PASS`]
//! turns of its queues ([`waiting`]); while it thinks, the rules go on. When an endpoint is down or a
//! judge's tokens are used up, those turns stay unjudged in the store; nothing else waits for them.
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
mod waiting;
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
use waiting::Waiting;

/// Turns for which the model is asked in one pass.
pub const MODEL_TURNS_PER_PASS: usize = 8;
/// Questions to the model in flight at once; each is m requests.
const MODEL_TURNS_AT_ONCE: usize = 2;
/// While the model is asked, the rules look for new turns so often.
const LOOK_MS: u64 = 500;

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
    /// Turns that are known to wait: for the model, or for their route to learn again.
    pub waiting: usize,
}

/// The judge of one trainer process.
pub struct Judge {
    client: Arc<LlmClient>,
    backoff: Backoff,
    waiting: Waiting,
    clock: Clock,
}

/// A turn that needs the model.
struct Question {
    line: waiting::Line,
    row: i64,
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
        let client = Arc::new(LlmClient::new(engine_url)?);
        Ok(Self { client, backoff: Backoff::default(), waiting: Waiting::default(), clock })
    }

    /// One pass over what is unjudged. May be dropped at any point: what was not written is found
    /// again.
    pub async fn pass(
        &mut self,
        store: &mut Store,
        policies: &PolicySet,
    ) -> Result<PassReport, JudgeError> {
        let mut judged = self.by_rules(store, policies)?;
        judged += self.by_model(store, policies).await?;
        Ok(PassReport { judged, waiting: self.waiting.len() })
    }

    /// Settles what needs no model, and puts the rest into its queue. Returns the verdicts written.
    fn by_rules(&mut self, store: &Store, policies: &PolicySet) -> Result<usize, JudgeError> {
        self.waiting.under(policies.version);
        let mut judged = feedback::pass(store, policies, &self.clock)?;
        for row in self.waiting.fresh(store)? {
            let item = match store.unjudged_item(row) {
                Ok(Some(item)) => item,
                Ok(None) => continue,
                // One that cannot be read must not hide all that come after it.
                Err(error @ StoreError::Malformed { .. }) => {
                    tracing::error!(row, %error, "a turn cannot be judged; it is left alone");
                    self.waiting.leave(row);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            match self.by_rule(store, policies, row, item)? {
                Settled::Verdict(verdict) => judged += usize::from(store.insert_verdict(&verdict)?),
                Settled::Leave => self.waiting.leave(row),
                Settled::Ask(question) => {
                    let room = question.policy.llm.waiting_max;
                    self.waiting.push(question.line, row, question.rule.is_some(), room);
                }
            }
        }
        Ok(judged)
    }

    /// Settles a turn by rule, or says what is missing.
    fn by_rule(
        &self,
        store: &Store,
        policies: &PolicySet,
        row: i64,
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
            Some(rule) if !(rule.correction.is_some() && wants_hint) => {
                let row = self.ruled(store, &item, &policy, (kind, &seen), &rule)?;
                Ok(Settled::Verdict(Box::new(row)))
            }
            rule if policy.llm.enabled => {
                let line = (route.name.clone(), policy.name.clone());
                let question = Question { line, row, item, seen, kind, policy, rule };
                Ok(Settled::Ask(Box::new(question)))
            }
            _ => {
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
