//! Judges stored turns again and shows where the verdict would differ: `hone judge replay`.
//!
//! For trying a changed rubric on what really happened before it is put into use.
//!
//! Invariant: nothing is written; what stands, stands.

use super::eval::Model;
use super::exchange::Exchange;
use super::{Ruled, by_rules};
use hone_shared::next_state::StateKind;
use hone_shared::policy::PolicySet;
use hone_shared::store::{JudgeItem, Store, StoreError, VerdictRow};
use hone_shared::turn::TurnId;
use serde::Serialize;

/// Turns read from the store at a time.
const PAGE: usize = 64;

/// Why turns could not be judged again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model cannot be asked.
    #[error("the judge's model cannot be asked: {0}")]
    Model(String),
}

/// One turn, judged twice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replayed {
    /// The turn.
    pub turn: TurnId,
    /// Kind of its next state now.
    pub kind: StateKind,
    /// The verdict that stands.
    pub stands: i8,
    /// Who made it.
    pub stands_by: String,
    /// What is said now; `None`: the rules are silent, and no model was asked.
    pub now: Option<i8>,
    /// The rule, `llm`, or `none`.
    pub now_by: String,
    /// Why.
    pub reason: String,
}

impl Replayed {
    /// Whether what is said now contradicts what stands. Where nothing is said now, a verdict by rule is
    /// lost, and one by a model or by feedback stays what it is.
    pub fn differs(&self) -> bool {
        match self.now {
            _ if self.stands_by == "feedback" => false,
            Some(now) => now != self.stands,
            None => self.stands_by.starts_with("rule:") && self.stands != 0,
        }
    }
}

/// What a replay came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Replay {
    /// Turns that were judged again.
    pub turns: usize,
    /// Turns that could not be: their next state, their answer or their route is gone.
    pub skipped: usize,
    /// `changes[stands + 1][now + 1]`; silence counts as 0.
    pub changes: [[usize; 3]; 3],
    /// The turns whose verdict would differ.
    pub differing: Vec<Replayed>,
}

/// Judges the newest `limit` judged turns again, of one route or of all: by rule, and by `model`
/// where those are silent and the policy asks one. The same question has the same seeds as before.
/// Errors: the store, or a model that cannot be asked.
pub async fn replay(
    store: &Store,
    policies: &PolicySet,
    route: Option<&str>,
    limit: usize,
    model: Option<&dyn Model>,
) -> Result<Replay, ReplayError> {
    let mut found = Replay::default();
    let mut before = None;
    while found.turns + found.skipped < limit {
        let page = PAGE.min(limit - found.turns - found.skipped);
        let (items, next) = store.judged(route, before, page)?;
        if items.is_empty() {
            break;
        }
        before = Some(next);
        for (item, row) in items {
            match again(store, policies, item.as_ref(), &row, model).await? {
                None => found.skipped += 1,
                Some(one) => {
                    found.turns += 1;
                    let cell = |v: i8| usize::try_from(v + 1).unwrap_or(1).min(2);
                    found.changes[cell(one.stands)][cell(one.now.unwrap_or(0))] += 1;
                    if one.differs() {
                        found.differing.push(one);
                    }
                }
            }
        }
    }
    Ok(found)
}

async fn again(
    store: &Store,
    policies: &PolicySet,
    item: Option<&JudgeItem>,
    row: &VerdictRow,
    model: Option<&dyn Model>,
) -> Result<Option<Replayed>, ReplayError> {
    let Some(item) = item else { return Ok(None) };
    let Some(route) = policies.route(&item.turn.route) else { return Ok(None) };
    let choice = store.turn(item.child)?.map_or(0, |child| child.parent_choice);
    let Some(seen) = Exchange::of(item, choice) else { return Ok(None) };
    let Some(ruled) = by_rules(policies, route, &seen) else { return Ok(None) };
    let Ruled { kind, policy, rule } = ruled;
    let (now, now_by, reason) = match (rule, model) {
        (Some(rule), _) => (Some(rule.verdict), format!("rule:{}", rule.rule), rule.reason),
        (None, Some(model)) if !policy.llm.prompt.is_empty() => {
            let said = model.ask(&policy, &seen).await.map_err(ReplayError::Model)?;
            // No valid vote is stored as 0, too.
            (said.verdict.or(Some(0)), "llm".to_owned(), String::new())
        }
        (None, _) => (None, "none".to_owned(), String::new()),
    };
    let (turn, stands, stands_by) = (row.turn_id, row.verdict, row.source.clone());
    Ok(Some(Replayed { turn, kind, stands, stands_by, now, now_by, reason }))
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
