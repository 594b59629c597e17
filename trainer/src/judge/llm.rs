//! The model judge: m votes at once from any OpenAI-compatible endpoint.
//!
//! Default endpoint: the engine's own base model, asked for by `x-hone-generation: base`, so that a
//! trained adapter never judges itself.
//!
//! Invariant: an endpoint that is down yields [`Answer::Down`], never a verdict; every request has
//! a time limit and every body a size limit.

use super::parse::{self, Vote};
use futures::future::join_all;
use hone_shared::policy::LlmJudge;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

/// Bytes of an endpoint's response that are read.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Votes that are ever asked for, whatever the policy says.
const VOTES_MAX: usize = 9;

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
    /// The endpoint will never answer this question (it is too long, or malformed for it).
    Refused(String),
}

/// One vote's fate.
enum Ballot {
    Valid(Vote),
    Invalid(String),
    Down(String),
    Refused(String),
}

/// A client for judge endpoints.
pub struct LlmClient {
    engine_url: String,
    local: reqwest::Client,
    remote: reqwest::Client,
    models: HashMap<String, String>,
}

impl LlmClient {
    /// `engine_url` is the base URL of our engine, without `/v1`.
    pub fn new(engine_url: &str) -> Result<Self, reqwest::Error> {
        let connect = Duration::from_secs(5);
        let local = reqwest::Client::builder().no_proxy().connect_timeout(connect).build()?;
        let remote = reqwest::Client::builder().connect_timeout(connect).build()?;
        let engine_url = engine_url.trim_end_matches('/').to_owned();
        Ok(Self { engine_url, local, remote, models: HashMap::new() })
    }

    /// The endpoint's base URL, for telling endpoints apart.
    pub fn endpoint<'a>(&'a self, policy: &'a LlmJudge) -> &'a str {
        policy.endpoint.as_deref().unwrap_or(&self.engine_url).trim_end_matches('/')
    }

    /// Finds the model to name at the endpoint: the policy's, or the first that it lists.
    pub async fn model(&mut self, policy: &LlmJudge) -> Result<String, String> {
        if let Some(model) = &policy.model {
            return Ok(model.clone());
        }
        let endpoint = self.endpoint(policy).to_owned();
        if let Some(model) = self.models.get(&endpoint) {
            return Ok(model.clone());
        }
        let request = self.request(policy, reqwest::Method::GET, "models")?;
        let sent = request.timeout(Duration::from_millis(policy.timeout_ms)).send().await;
        let response = sent.map_err(|e| format!("{endpoint}: {}", cause(&e)))?;
        let status = response.status();
        let body = read(response).await?;
        let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
        let model = parsed["data"][0]["id"].as_str().map(str::to_owned);
        let model =
            model.ok_or_else(|| format!("{endpoint}: HTTP {status} and no model listed"))?;
        self.models.insert(endpoint, model.clone());
        Ok(model)
    }

    /// Asks for all votes at once and waits for all of them, at most the policy's time limit.
    pub async fn ask(&self, policy: &LlmJudge, model: &str, messages: &[Value]) -> Answer {
        let body = json!({
            "model": model,
            "messages": messages,
            "temperature": policy.temperature,
            "max_tokens": policy.tokens_max,
            "stream": false,
        });
        let count = policy.votes.clamp(1, VOTES_MAX);
        let ballots = join_all((0..count).map(|_| self.ballot(policy, &body))).await;
        let (mut valid, mut invalid) = (Vec::new(), Vec::new());
        let (mut down, mut refused) = (None, None);
        for ballot in ballots {
            match ballot {
                Ballot::Valid(vote) => valid.push(vote),
                Ballot::Invalid(fault) => invalid.push(fault),
                Ballot::Down(why) => down = Some(why),
                Ballot::Refused(why) => refused = Some(why),
            }
        }
        match (valid.is_empty() && invalid.is_empty(), down, refused) {
            (true, _, Some(why)) => Answer::Refused(why),
            (true, Some(why), None) => Answer::Down(why),
            (_, down, refused) => {
                invalid.extend(down);
                invalid.extend(refused);
                Answer::Votes { valid, invalid }
            }
        }
    }

    async fn ballot(&self, policy: &LlmJudge, body: &Value) -> Ballot {
        let limit = Duration::from_millis(policy.timeout_ms);
        let request = match self.request(policy, reqwest::Method::POST, "chat/completions") {
            Ok(request) => request,
            Err(why) => return Ballot::Down(why),
        };
        let response = match request.timeout(limit).json(body).send().await {
            Ok(response) => response,
            Err(error) => return Ballot::Down(cause(&error)),
        };
        let status = response.status();
        let body = match read(response).await {
            Ok(body) => body,
            Err(why) => return Ballot::Down(why),
        };
        match status.as_u16() {
            200 => {}
            400 | 413 | 422 => return Ballot::Refused(format!("HTTP {status}")),
            _ => return Ballot::Down(format!("HTTP {status}")),
        }
        let parsed: Value = match serde_json::from_slice(&body) {
            Ok(parsed) => parsed,
            Err(error) => return Ballot::Invalid(format!("the response is not JSON: {error}")),
        };
        match parsed["choices"][0]["message"]["content"].as_str().map(parse::vote) {
            Some(Ok(vote)) => Ballot::Valid(vote),
            Some(Err(fault)) => Ballot::Invalid(fault),
            None => Ballot::Invalid("the response has no text".into()),
        }
    }

    fn request(
        &self,
        policy: &LlmJudge,
        method: reqwest::Method,
        path: &str,
    ) -> Result<reqwest::RequestBuilder, String> {
        let endpoint = self.endpoint(policy);
        let prefix = if endpoint.ends_with("/v1") { "" } else { "/v1" };
        let client = if policy.endpoint.is_none() { &self.local } else { &self.remote };
        let mut request = client.request(method, format!("{endpoint}{prefix}/{path}"));
        if policy.endpoint.is_none() {
            request = request.header("x-hone-generation", "base");
        }
        if let Some(name) = &policy.api_key_env {
            let key = std::env::var(name).map_err(|_| format!("${name} is not set"))?;
            request = request.bearer_auth(key);
        }
        Ok(request)
    }
}

async fn read(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| cause(&e))? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(format!("the response is over {BODY_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The innermost cause of a failed request, without its URL.
fn cause(error: &reqwest::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(next) = deepest.source() {
        deepest = next;
    }
    if error.is_timeout() { "timed out".into() } else { deepest.to_string() }
}
