//! Verdicts by what people said: before rules and model, and in place of what those said.
//!
//! The newest thumb or score decides; within the policy's dead band it says 0. Comments become
//! hints through the same checks as all others, beside the correction in the user's next message.
//! A comment without a number is read by the rules; where those are silent, it changes the hints and
//! leaves the verdict to rules and model. A demonstration alone makes a turn trainable with verdict 0.
//!
//! Invariant: what weighs 0 judges nothing; no comment's words are copied into a reason.

use hone_shared::clock::Clock;
use hone_shared::feedback::FeedbackKind;
use hone_shared::policy::{HintMode, JudgePolicy, PolicySet};
use hone_shared::store::{FeedbackRow, Said, Settled, Store, VerdictRow};
use serde_json::{Value, json};

use super::exchange::{Exchange, text_of};
use super::{JudgeError, hint, rules};

/// Turns of one route that are settled in one pass.
const TURNS_PER_PASS: usize = 64;

/// Settles what was said about turns of all routes that train. Returns the verdicts written.
pub(super) fn pass(
    store: &Store,
    policies: &PolicySet,
    clock: &Clock,
) -> Result<usize, JudgeError> {
    let mut judged = 0;
    for route in policies.routes.iter().filter(|route| route.mode.trains()) {
        let Some(policy) = policies.judge_of(route) else { continue };
        for said in store.feedback_to_judge(&route.name, TURNS_PER_PASS)? {
            let verdict = verdict(policy, store, &said, clock.now_ms())?;
            let settled = store.judge_by_feedback(&said, verdict.as_ref())?;
            judged += usize::from(settled == Settled::Stands);
            if settled == Settled::Late {
                let turn = said.turn.turn_id;
                tracing::info!(%turn, "feedback came after the turn was trained on; it is kept");
            }
        }
    }
    Ok(judged)
}

/// The verdict after all that was said; `None` where nothing changes.
fn verdict(
    policy: &JudgePolicy,
    store: &Store,
    said: &Said,
    now_ms: i64,
) -> Result<Option<VerdictRow>, JudgeError> {
    let choice = match &said.next {
        Some(next) => store.turn(next.child)?.map_or(0, |child| child.parent_choice),
        None => 0,
    };
    let seen = said.next.as_ref().and_then(|next| Exchange::of(next, choice));
    let answer = match (&seen, said.turn.choices.as_slice()) {
        (Some(seen), _) => seen.answer_text(),
        (None, [only]) => text_of(&only.message),
        // Nobody knows which of the answers was meant.
        (None, _) => return Ok(None),
    };
    let grade = grade(policy, &said.said);
    let demonstrated = said.said.iter().any(|row| row.kind == FeedbackKind::Demonstration);
    let (verdict, source, reason) = match (&grade, &said.verdict) {
        (Some(grade), _) => (grade.verdict, "feedback", grade.reason()),
        (None, Some(stands)) => (stands.verdict, stands.source.as_str(), stands.reason.clone()),
        (None, None) if demonstrated => (0, "feedback", "an answer was demonstrated".to_owned()),
        (None, None) => (0, "feedback", "a comment".to_owned()),
    };
    let corrected = seen.as_ref().filter(|_| said.verdict.is_none());
    let corrected = corrected.and_then(|seen| rules::judge(&policy.rules, seen)?.correction);
    let before = said.verdict.as_ref().map_or(&[][..], |stands| &stands.hints);
    let hints = match verdict {
        1 => Vec::new(),
        _ => hints(policy, &said.said, before.iter().cloned().chain(corrected), &answer),
    };
    let alone = grade.is_none() && said.verdict.is_none();
    let unchanged = grade.is_none() && said.verdict.as_ref().is_some_and(|v| v.hints == hints);
    if unchanged || alone && hints.is_empty() && !demonstrated {
        return Ok(None);
    }
    let stands = said.verdict.as_ref();
    Ok(Some(VerdictRow {
        turn_id: said.turn.turn_id,
        // Kept where the next state's words are in the hints, or say which answer was meant.
        child: said.next.as_ref().map(|next| next.child),
        verdict,
        source: source.to_owned(),
        reason,
        votes: grade.as_ref().map_or_else(
            || stands.map_or_else(|| json!([]), |stands| stands.votes.clone()),
            Grade::votes,
        ),
        hints,
        judge: policy.label(),
        judged_ms: now_ms,
        kind: stands.and_then(|stands| stands.kind),
        llm: stands.and_then(|stands| stands.llm.clone()),
    }))
}

/// What somebody thought of an answer, as a verdict.
struct Grade<'a> {
    verdict: i8,
    by: &'a FeedbackRow,
}

impl Grade<'_> {
    fn reason(&self) -> String {
        match (self.by.kind, self.by.value) {
            (FeedbackKind::Comment, _) => "the rules read a comment so".to_owned(),
            (kind, Some(value)) => format!("the newest {kind} was {value:+.2}"),
            (kind, None) => format!("the newest {kind}"),
        }
    }

    fn votes(&self) -> Value {
        let FeedbackRow { id, kind, value, weight, .. } = self.by;
        json!([{"feedback": id, "kind": kind, "value": value, "weight": weight,
            "verdict": self.verdict}])
    }
}

/// The newest number, else what the rules read in the newest comment.
fn grade<'a>(policy: &JudgePolicy, said: &'a [FeedbackRow]) -> Option<Grade<'a>> {
    let number = |row: &&FeedbackRow| matches!(row.kind, FeedbackKind::Thumb | FeedbackKind::Score);
    if let Some(by) = said.iter().rev().find(number) {
        let value = by.value? * by.weight;
        let verdict = match value {
            value if value.abs() < policy.feedback.dead_band => 0,
            value if value > 0.0 => 1,
            _ => -1,
        };
        return Some(Grade { verdict, by });
    }
    let by = said.iter().rev().find(|row| row.text.is_some())?;
    let hit = policy.rules.judge_user(by.text.as_deref()?)?;
    Some(Grade { verdict: hit.verdict, by })
}

/// Comments, newest first, then what else is known; whatever the checks let through.
fn hints(
    policy: &JudgePolicy,
    said: &[FeedbackRow],
    others: impl Iterator<Item = String>,
    answer: &str,
) -> Vec<String> {
    if policy.hint.mode == HintMode::Off {
        return Vec::new();
    }
    let comments = said.iter().rev().filter_map(|row| row.text.clone());
    let all: Vec<String> = comments.chain(others).collect();
    // What a person says outright may take an earlier wish back.
    hint::accept(&policy.hint, &all, answer, &[])
}

#[cfg(test)]
#[path = "feedback_tests.rs"]
mod tests;
