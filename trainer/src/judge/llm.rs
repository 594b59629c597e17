//! The model judge: m votes from any OpenAI-compatible endpoint.
//!
//! A remote endpoint is asked for all votes at once; the rest are dropped as soon as they cannot
//! change the majority. Our own engine serves clients and one sequence at a time, so it is asked for
//! one vote after the other, in the background: default endpoint is its base model, so that a trained
//! adapter never judges itself.
//!
//! Invariant: an endpoint that is down or busy yields [`Answer::Down`] or [`Answer::Yielded`], never a
//! verdict.

use super::parse::{self, Vote};
use super::wire::{Ballot, Tokens, Wire, prompt_tokens};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hone_shared::policy::LlmJudge;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Votes that are ever asked for, whatever the policy says.
const VOTES_MAX: usize = 9;
/// First wait before a repeat; later ones double.
const RETRY_MS: u64 = 200;
/// Endpoints whose model is remembered.
const ENDPOINTS_MAX: usize = 64;

/// What became of one question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// At least one response came; invalid ones are listed by their fault.
    Votes {
        /// Valid votes.
        valid: Vec<Vote>,
        /// Faults of the others.
        invalid: Vec<String>,
    },
    /// The endpoint cannot be used now; ask again later.
    Down(String),
    /// The engine serves clients first; ask again soon.
    Yielded,
    /// The endpoint will never answer this question (it is too long, or malformed for it).
    Refused(String),
}

/// An answer and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The answer.
    pub answer: Answer,
    /// Tokens of all requests; those of dropped ones are estimated.
    pub tokens: Tokens,
    /// From the first request to the last reply, milliseconds.
    pub duration_ms: u64,
}

/// A question as it is sent, but for the seed of each vote.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    body: Value,
    votes: usize,
    key: [u8; 32],
}

impl Question {
    /// Everything that the answer depends on, but for chance.
    pub fn new(policy: &LlmJudge, endpoint: &str, model: &str, messages: &[Value]) -> Self {
        let body = json!({
            "model": model,
            "messages": messages,
            "temperature": policy.temperature,
            "max_tokens": policy.tokens_max,
            "stream": false,
        });
        let votes = policy.votes.clamp(1, VOTES_MAX);
        let mut hash = Sha256::new();
        for part in [endpoint, &body.to_string(), &format!("{votes}/{}", policy.votes_valid_min)] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { body, votes, key: hash.finalize().into() }
    }

    /// Hash of it: the same question has the same key, and the same seeds.
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// Most tokens that asking can cost.
    pub fn tokens_max(&self) -> u64 {
        let reply = self.body["max_tokens"].as_u64().unwrap_or_default();
        self.votes as u64 * (prompt_tokens(&self.body) + reply)
    }

    /// The request for one vote. Votes differ by their seed, which a replay finds again.
    fn vote(&self, index: usize) -> Value {
        let mut body = self.body.clone();
        let seed = u32::from_le_bytes([self.key[0], self.key[1], self.key[2], 0]);
        body["seed"] = json!(seed + index as u32);
        body
    }
}

/// A client for judge endpoints.
pub struct LlmClient {
    wire: Wire,
    models: Mutex<HashMap<String, String>>,
}

impl LlmClient {
    /// `engine_url` is the base URL of our engine, without `/v1`.
    pub fn new(engine_url: &str) -> Result<Self, reqwest::Error> {
        Ok(Self { wire: Wire::new(engine_url)?, models: Mutex::default() })
    }

    /// The endpoint's base URL, for telling endpoints apart.
    pub fn endpoint<'a>(&'a self, policy: &'a LlmJudge) -> &'a str {
        self.wire.endpoint(policy)
    }

    /// Finds the model to name at the endpoint: the policy's, or the first that it lists.
    pub async fn model(&self, policy: &LlmJudge) -> Result<String, String> {
        if let Some(model) = &policy.model {
            return Ok(model.clone());
        }
        let endpoint = self.endpoint(policy).to_owned();
        let known = self.known().get(&endpoint).cloned();
        if let Some(model) = known {
            return Ok(model);
        }
        let model = self.wire.first_model(policy).await?;
        let mut known = self.known();
        if known.len() >= ENDPOINTS_MAX {
            known.clear();
        }
        known.insert(endpoint, model.clone());
        Ok(model)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The question for an exchange's messages.
    pub fn question(&self, policy: &LlmJudge, model: &str, messages: &[Value]) -> Question {
        Question::new(policy, self.endpoint(policy), model, messages)
    }

    /// Asks for votes until the majority stands; each vote has the policy's time limit.
    pub async fn ask(&self, policy: &LlmJudge, question: &Question) -> Asked {
        let began = Instant::now();
        let mut tally = Tally::default();
        if policy.endpoint.is_none() {
            for index in 0..question.votes {
                tally.take(self.vote(policy, question, index).await);
                if tally.over || tally.decided(policy, question.votes - index - 1) {
                    break;
                }
            }
        } else {
            let mut open: FuturesUnordered<_> =
                (0..question.votes).map(|index| self.vote(policy, question, index)).collect();
            while let Some(ballot) = open.next().await {
                tally.take(ballot);
                if tally.decided(policy, open.len()) {
                    break;
                }
            }
            // What is dropped was sent, so it is paid for.
            tally.tokens.prompt += open.len() as u64 * prompt_tokens(&question.body);
        }
        let duration_ms = began.elapsed().as_millis() as u64;
        Asked { tokens: tally.tokens, answer: tally.answer(), duration_ms }
    }

    /// One vote, with repeats while the endpoint is busy, all within the time limit.
    async fn vote(&self, policy: &LlmJudge, question: &Question, index: usize) -> Ballot {
        let body = question.vote(index);
        let limit = Duration::from_millis(policy.timeout_ms);
        let began = Instant::now();
        let mut repeats = 0;
        loop {
            let ballot = self.wire.ballot(policy, &body).await;
            let wait = Duration::from_millis(RETRY_MS << repeats);
            let again = matches!(&ballot, Ballot::Down(_)) && repeats < policy.retries_max;
            if !again || began.elapsed() + wait >= limit {
                return ballot;
            }
            tokio::time::sleep(wait).await;
            repeats += 1;
        }
    }
}

/// Ballots so far.
#[derive(Default)]
struct Tally {
    valid: Vec<Vote>,
    invalid: Vec<String>,
    down: Option<String>,
    refused: Option<String>,
    yielded: bool,
    tokens: Tokens,
    /// Asking on would be in vain.
    over: bool,
}

impl Tally {
    fn take(&mut self, ballot: Ballot) {
        match ballot {
            Ballot::Valid(vote, tokens) => {
                self.tokens += tokens;
                self.valid.push(vote);
            }
            Ballot::Invalid(fault, tokens) => {
                self.tokens += tokens;
                self.invalid.push(fault);
            }
            Ballot::Down(why) => self.down = Some(why),
            Ballot::Refused(why) => self.refused = Some(why),
            Ballot::Yielded => self.yielded = true,
        }
        self.over = self.down.is_some() || self.refused.is_some() || self.yielded;
    }

    fn decided(&self, policy: &LlmJudge, left: usize) -> bool {
        parse::decided(&self.valid, left, policy.votes_valid_min)
    }

    fn answer(self) -> Answer {
        let Self { valid, mut invalid, down, refused, yielded, .. } = self;
        match (valid.is_empty() && invalid.is_empty(), down, refused) {
            // Half a vote would be another vote than the same question gets later.
            _ if yielded => Answer::Yielded,
            (true, _, Some(why)) => Answer::Refused(why),
            (true, Some(why), None) => Answer::Down(why),
            (_, down, refused) => {
                invalid.extend(down);
                invalid.extend(refused);
                Answer::Votes { valid, invalid }
            }
        }
    }
}
