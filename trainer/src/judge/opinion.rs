//! What the judge would say about one exchange, without a store: for measuring.
//!
//! The order is that of a pass: rules, then the look for words to the judge, then the model. No
//! cache, no caps, no hints.
//!
//! Invariant: an opinion is not a verdict; nothing is stored.

use super::exchange::Exchange;
use super::llm::{Answer, LlmClient};
use super::wire::Tokens;
use super::{parse, prompt, rules, tamper};
use hone_shared::policy::JudgePolicy;

/// What would be said, by whom, and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Opinion {
    /// +1, 0 or −1.
    pub verdict: i8,
    /// `rule:<name>`, `llm`, or `none` where nobody could say anything.
    pub source: String,
    /// Tokens of the model.
    pub tokens: Tokens,
    /// Time of the model, milliseconds.
    pub duration_ms: u64,
}

impl Opinion {
    fn free(verdict: i8, source: String) -> Self {
        Self { verdict, source, tokens: Tokens::default(), duration_ms: 0 }
    }
}

/// The opinion of rules and model; `model` is the name to give to the endpoint, none = rules alone.
pub async fn of(
    client: &LlmClient,
    policy: &JudgePolicy,
    model: Option<&str>,
    seen: &Exchange,
) -> Opinion {
    if let Some(rule) = rules::judge(&policy.rules, seen) {
        return Opinion::free(rule.verdict, format!("rule:{}", rule.rule));
    }
    let Some(model) = model else { return Opinion::free(0, "none".into()) };
    if tamper::of_exchange(seen).is_some() {
        return Opinion::free(0, "rule:tampered".into());
    }
    let messages = prompt::messages(&policy.llm, seen);
    let question = client.question(&policy.llm, model, &messages);
    let asked = client.ask(&policy.llm, &question).await;
    let (verdict, source) = match &asked.answer {
        Answer::Votes { valid, .. } => (parse::majority(valid, policy.llm.votes_valid_min), "llm"),
        Answer::Down(_) | Answer::Yielded | Answer::Refused(_) => (0, "none"),
    };
    let (tokens, duration_ms) = (asked.tokens, asked.duration_ms);
    Opinion { verdict, source: source.to_owned(), tokens, duration_ms }
}
