//! Where the rules are silent: which turns a model is asked about now, and what follows from its
//! answer.
//!
//! ```text
//! question ─► speaks to the judge? ─► verdict 0
//!          ─► asked before? ─────────► the same votes
//!          ─► cap reached, endpoint down, engine busy? ─► later
//!          └► votes ─► kept, paid for ─► verdict, hints
//! ```
//!
//! Invariant: no model is asked beyond the policy's caps, and what it cost is stored before its
//! verdict is.

use super::llm::{self, Answer, Asked};
use super::parse::{self, Vote};
use super::{
    Judge, JudgeError, LOOK_MS, MODEL_TURNS_AT_ONCE, MODEL_TURNS_PER_PASS, Question, Settled, hint,
    prompt, rules, tamper,
};
use futures::StreamExt;
use hone_shared::policy::{HintMode, JudgePolicy, LlmJudge, PolicySet};
use hone_shared::store::{AnswerKey, JudgeItem, LlmTrace, Store, VerdictRow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;

/// How long the engine is left alone after it served clients first.
const YIELD_MS: i64 = 1_000;
/// Earlier hints of a session that a new one is compared with.
const SESSION_HINTS_MAX: usize = 32;

/// An answer as it is kept for the next time.
#[derive(Serialize, Deserialize)]
struct Kept {
    valid: Vec<Vote>,
    invalid: Vec<String>,
}

/// A question that will be asked now.
struct Ready {
    question: Question,
    model: String,
    endpoint: String,
    asked: llm::Question,
}

impl Judge {
    /// Asks the model about turns of its queues; rules go on meanwhile. Returns the verdicts
    /// written by either.
    pub(super) async fn by_model(
        &mut self,
        store: &Store,
        policies: &PolicySet,
    ) -> Result<usize, JudgeError> {
        let (questions, mut judged) = self.questions(store, policies)?;
        let (mut planned, mut ready) = (0, Vec::new());
        for question in questions {
            if let Some(why) = tamper::of_exchange(&question.seen) {
                let row = self.tampered(store, &question, why)?;
                judged += self.write(store, &question, Some(row))?;
                continue;
            }
            match self.prepare(store, question, &mut planned).await? {
                Prepared::Ask(next) => ready.push(*next),
                Prepared::Known(next, answer) => {
                    let asked = Asked { answer, tokens: Default::default(), duration_ms: 0 };
                    let row = self.settle(store, &next, asked)?;
                    judged += self.write(store, &next.question, row)?;
                }
                Prepared::Wait(question) => {
                    let row = self.without_model(store, &question)?;
                    judged += self.write(store, &question, row)?;
                }
            }
        }
        // Our own engine serves one sequence at a time, and clients before us.
        let shared = ready.iter().any(|next| next.question.policy.llm.endpoint.is_none());
        let at_once = if shared { 1 } else { MODEL_TURNS_AT_ONCE };
        let client = self.client.clone();
        let client = &client;
        let mut answers = futures::stream::iter(ready.into_iter().map(|next| async move {
            let asked = client.ask(&next.question.policy.llm, &next.asked).await;
            (next, asked)
        }))
        .buffer_unordered(at_once);
        let every = Duration::from_millis(LOOK_MS);
        let mut look = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                answer = answers.next() => {
                    let Some((next, asked)) = answer else { return Ok(judged) };
                    self.pay(store, &next, &asked)?;
                    let row = self.settle(store, &next, asked)?;
                    judged += self.write(store, &next.question, row)?;
                }
                _ = look.tick() => judged += self.by_rules(store, policies)?,
            }
        }
    }

    /// The next questions of the queues whose judges may be asked now, and how many of those turns
    /// needed no model after all.
    fn questions(
        &mut self,
        store: &Store,
        policies: &PolicySet,
    ) -> Result<(Vec<Question>, usize), JudgeError> {
        let now_ms = self.clock.now_ms();
        let mut open = HashSet::new();
        for (name, judge) in &policies.judges {
            let endpoint = self.client.endpoint(&judge.llm);
            if self.backoff.open(endpoint, now_ms) && within_caps(store, name, judge, now_ms, 1)? {
                open.insert(name.as_str());
            }
        }
        let (mut questions, mut judged) = (Vec::new(), 0);
        for (line, row) in self.waiting.picks(MODEL_TURNS_PER_PASS, |judge| open.contains(judge)) {
            let item = store.unjudged_item(row)?;
            match item.map(|item| self.by_rule(store, policies, row, item)).transpose()? {
                Some(Settled::Ask(question)) => questions.push(*question),
                // Judged by feedback, erased, or continued otherwise than before.
                other => {
                    self.waiting.settled(&line, row);
                    if let Some(Settled::Verdict(verdict)) = other {
                        judged += usize::from(store.insert_verdict(&verdict)?);
                    }
                }
            }
        }
        Ok((questions, judged))
    }

    /// Writes a verdict and takes its turn off the queue; without one, the turn waits on, behind
    /// others unless the endpoint is away from all of them. Returns the verdicts written.
    fn write(
        &mut self,
        store: &Store,
        question: &Question,
        verdict: Option<VerdictRow>,
    ) -> Result<usize, JudgeError> {
        let (line, row) = (&question.line, question.row);
        let Some(verdict) = verdict else {
            let endpoint = self.client.endpoint(&question.policy.llm);
            if self.backoff.open(endpoint, self.clock.now_ms()) {
                self.waiting.later(line, row);
            }
            return Ok(0);
        };
        let new = store.insert_verdict(&verdict)?;
        self.waiting.settled(line, row);
        Ok(usize::from(new))
    }

    /// Finds the model, looks for an earlier answer and at the caps.
    async fn prepare(
        &mut self,
        store: &Store,
        question: Question,
        planned: &mut u64,
    ) -> Result<Prepared, JudgeError> {
        let policy = question.policy.clone();
        let endpoint = self.client.endpoint(&policy.llm).to_owned();
        let now_ms = self.clock.now_ms();
        if !self.backoff.open(&endpoint, now_ms) {
            return Ok(Prepared::Wait(Box::new(question)));
        }
        let model = match self.client.model(&policy.llm).await {
            Ok(model) => model,
            Err(why) => {
                self.endpoint_failed(&endpoint, &why);
                return Ok(Prepared::Wait(Box::new(question)));
            }
        };
        let messages = prompt::messages(&policy.llm, &question.seen);
        let asked = self.client.question(&policy.llm, &model, &messages);
        let kept = store.judge_answer(asked.key())?;
        let kept = kept.and_then(|text| serde_json::from_str::<Kept>(&text).ok());
        let cost = asked.tokens_max();
        let next = Box::new(Ready { question, model, endpoint, asked });
        if let Some(Kept { valid, invalid }) = kept {
            return Ok(Prepared::Known(next, Answer::Votes { valid, invalid }));
        }
        if !within_caps(store, &policy.name, &policy, now_ms, *planned + cost)? {
            tracing::debug!(judge = policy.name, "the judge's tokens are used up; it waits");
            return Ok(Prepared::Wait(Box::new(next.question)));
        }
        *planned += cost;
        Ok(Prepared::Ask(next))
    }

    /// Stores what an answer cost, and the answer for the next time.
    fn pay(&self, store: &Store, next: &Ready, asked: &Asked) -> Result<(), JudgeError> {
        let policy = &next.question.policy;
        let now_ms = self.clock.now_ms();
        let tokens = asked.tokens.prompt + asked.tokens.completion;
        if tokens > 0 {
            store.add_judge_spend(&policy.name, now_ms, tokens)?;
        }
        // Votes that could not be had might be had the next time: only whole answers are kept.
        if let Answer::Votes { valid, invalid } = &asked.answer
            && !valid.is_empty()
            && policy.llm.answers_kept_max > 0
        {
            let kept = Kept { valid: valid.clone(), invalid: invalid.clone() };
            let text = serde_json::to_string(&kept).unwrap_or_default();
            let item = &next.question.item;
            let key =
                AnswerKey { key: next.asked.key(), turn: item.turn.turn_id, child: item.child };
            store.keep_judge_answer(key, &text, now_ms, policy.llm.answers_kept_max)?;
        }
        Ok(())
    }

    /// Turns the model's answer into a row, or nothing when it has to be asked again.
    fn settle(
        &mut self,
        store: &Store,
        next: &Ready,
        asked: Asked,
    ) -> Result<Option<VerdictRow>, JudgeError> {
        let q = &next.question;
        let trace = trace(&q.policy.llm, &next.model, &asked);
        let (valid, invalid) = match asked.answer {
            Answer::Down(why) => {
                self.endpoint_failed(&next.endpoint, &why);
                return self.without_model(store, q);
            }
            Answer::Yielded => {
                self.backoff.pause(&next.endpoint, self.clock.now_ms(), YIELD_MS);
                return self.without_model(store, q);
            }
            Answer::Refused(why) => (Vec::new(), vec![why]),
            Answer::Votes { valid, invalid } => (valid, invalid),
        };
        self.backoff.succeeded(&next.endpoint);
        let (verdict, source, reason) = decision(q, &valid, &invalid);
        let earlier = self.earlier_hints(store, &q.item)?;
        let mut hints = Vec::new();
        if verdict < 1 && q.policy.hint.mode == HintMode::Llm {
            let critics = valid.iter().filter(|v| v.verdict == -1);
            hints.extend(critics.filter_map(|v| v.hint.clone()));
        }
        let mut hints = hint::accept(&q.policy.hint, &hints, &q.seen.answer_text(), &earlier);
        if hints.is_empty()
            && let Some(rule) = &q.rule
        {
            hints = self.ruled(store, &q.item, &q.policy, (q.kind, &q.seen), rule)?.hints;
        }
        let faults = invalid.iter().map(|fault| json!({"invalid": rules::shorten(fault, 200)}));
        let votes = Value::Array(valid.iter().map(|v| json!(v)).chain(faults).collect());
        let row =
            self.row(&q.item, &q.policy, Some(q.kind), verdict, &source, reason, votes, hints);
        Ok(Some(VerdictRow { llm: Some(trace), ..row }))
    }

    /// The verdict on an exchange that speaks to its judge: the rule's, or none.
    fn tampered(&self, store: &Store, q: &Question, why: &str) -> Result<VerdictRow, JudgeError> {
        if let Some(row) = self.without_model(store, q)? {
            return Ok(row);
        }
        let reason = format!("the text speaks to its judge ({why}); no model is asked");
        Ok(self.row(
            &q.item,
            &q.policy,
            Some(q.kind),
            0,
            "rule:tampered",
            reason,
            json!([]),
            vec![],
        ))
    }

    /// What can be said without the model: the rule's verdict if there is one.
    fn without_model(&self, store: &Store, q: &Question) -> Result<Option<VerdictRow>, JudgeError> {
        let rule = q.rule.as_ref();
        rule.map(|rule| self.ruled(store, &q.item, &q.policy, (q.kind, &q.seen), rule)).transpose()
    }

    /// Hints that the turn's session has already.
    pub(super) fn earlier_hints(
        &self,
        store: &Store,
        item: &JudgeItem,
    ) -> Result<Vec<String>, JudgeError> {
        let turn = &item.turn;
        Ok(store.session_hints(&turn.tenant, &turn.session_id, SESSION_HINTS_MAX)?)
    }

    fn endpoint_failed(&mut self, endpoint: &str, why: &str) {
        let wait_ms = self.backoff.failed(endpoint, self.clock.now_ms());
        tracing::warn!(why, wait_ms, "the judge endpoint is down; rules go on");
    }
}

/// What can be done about a question now.
enum Prepared {
    Ask(Box<Ready>),
    Known(Box<Ready>, Answer),
    Wait(Box<Question>),
}

/// Whether a judge may spend so many tokens more.
fn within_caps(
    store: &Store,
    judge: &str,
    policy: &JudgePolicy,
    now_ms: i64,
    tokens: u64,
) -> Result<bool, JudgeError> {
    let llm = &policy.llm;
    let caps = [llm.tokens_per_hour_max as u64, llm.tokens_per_day_max as u64];
    if caps == [0, 0] {
        return Ok(true);
    }
    let spent = store.judge_spent(judge, now_ms)?;
    let spent = [spent.hour, spent.day];
    Ok(caps.iter().zip(spent).all(|(cap, spent)| *cap == 0 || spent + tokens <= *cap))
}

/// Verdict, source and reason.
fn decision(q: &Question, valid: &[Vote], invalid: &[String]) -> (i8, String, String) {
    if let Some(rule) = &q.rule {
        return (rule.verdict, format!("rule:{}", rule.rule), rule.reason.clone());
    }
    let voted = parse::majority(valid, q.policy.llm.votes_valid_min);
    let majority = rules::at_most(&q.policy.rules, &q.seen, voted);
    if majority != voted {
        let reason = "praised, but the answer is cut, broken off, empty or garbage".to_owned();
        return (majority, "llm".to_owned(), reason);
    }
    let because = valid.iter().find(|v| v.verdict == majority && !v.reason.is_empty());
    let none = format!("{} valid votes, {} invalid, no majority", valid.len(), invalid.len());
    (majority, "llm".to_owned(), because.map_or(none, |vote| vote.reason.clone()))
}

fn trace(policy: &LlmJudge, model: &str, asked: &Asked) -> LlmTrace {
    LlmTrace {
        model: model.to_owned(),
        prompt: prompt::version(policy),
        prompt_tokens: asked.tokens.prompt,
        completion_tokens: asked.tokens.completion,
        duration_ms: asked.duration_ms,
    }
}

#[cfg(test)]
#[path = "asking_tests.rs"]
mod tests;
