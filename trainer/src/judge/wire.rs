//! One question to one endpoint: the request, its limits, and what the reply means.
//!
//! The engine that also serves clients is asked in the background: it gives way to them and says so
//! with 503 `engine_yielded`. An endpoint that refuses a JSON schema is asked again without one, and
//! remembered.
//!
//! Invariant: every request has a time limit and every body a size limit.

use super::parse::{self, Vote};
use super::prompt;
use hone_shared::policy::LlmJudge;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bytes of an endpoint's response that are read.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Endpoints that are remembered to refuse schemas.
const ENDPOINTS_MAX: usize = 64;
/// Characters to a token, for endpoints that do not say what they counted.
const CHARS_PER_TOKEN: usize = 3;

/// Tokens of one or more requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the prompts.
    pub prompt: u64,
    /// Of the replies.
    pub completion: u64,
}

impl std::ops::AddAssign for Tokens {
    fn add_assign(&mut self, other: Self) {
        self.prompt += other.prompt;
        self.completion += other.completion;
    }
}

/// One vote's fate.
#[derive(Debug)]
pub enum Ballot {
    /// A vote.
    Valid(Vote, Tokens),
    /// A reply that is no vote, and why.
    Invalid(String, Tokens),
    /// The endpoint cannot be used now.
    Down(String),
    /// The engine serves clients first.
    Yielded,
    /// The endpoint will never answer this.
    Refused(String),
}

/// HTTP to judge endpoints.
pub struct Wire {
    engine_url: String,
    local: reqwest::Client,
    remote: reqwest::Client,
    schemaless: Mutex<HashSet<String>>,
}

impl Wire {
    /// `engine_url` is the base URL of our engine, without `/v1`.
    pub fn new(engine_url: &str) -> Result<Self, reqwest::Error> {
        let connect = Duration::from_secs(5);
        let local = reqwest::Client::builder().no_proxy().connect_timeout(connect).build()?;
        let remote = reqwest::Client::builder().connect_timeout(connect).build()?;
        let engine_url = engine_url.trim_end_matches('/').to_owned();
        Ok(Self { engine_url, local, remote, schemaless: Mutex::default() })
    }

    /// The endpoint's base URL, for telling endpoints apart.
    pub fn endpoint<'a>(&'a self, policy: &'a LlmJudge) -> &'a str {
        policy.endpoint.as_deref().unwrap_or(&self.engine_url).trim_end_matches('/')
    }

    /// The first model that the endpoint lists.
    pub async fn first_model(&self, policy: &LlmJudge) -> Result<String, String> {
        let endpoint = self.endpoint(policy);
        let request = self.request(policy, Method::GET, "models")?;
        let sent = request.timeout(Duration::from_millis(policy.timeout_ms)).send().await;
        let response = sent.map_err(|e| format!("{endpoint}: {}", cause(&e)))?;
        let status = response.status();
        let body = read(response).await?;
        let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
        let model = parsed["data"][0]["id"].as_str().map(str::to_owned);
        model.ok_or_else(|| format!("{endpoint}: HTTP {status} and no model listed"))
    }

    /// Asks for one vote, once.
    pub async fn ballot(&self, policy: &LlmJudge, body: &Value) -> Ballot {
        let endpoint = self.endpoint(policy);
        let plain = self.remembered().contains(endpoint);
        let first = self.sent(policy, body, !plain).await;
        let Ballot::Refused(_) = &first else { return first };
        if plain {
            return first;
        }
        // Refused for the schema, or for the question itself? The same without one tells.
        let second = self.sent(policy, body, false).await;
        if matches!(second, Ballot::Valid(..) | Ballot::Invalid(..)) {
            let mut remembered = self.remembered();
            if remembered.len() >= ENDPOINTS_MAX {
                remembered.clear();
            }
            remembered.insert(endpoint.to_owned());
        }
        second
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.schemaless.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sent(&self, policy: &LlmJudge, body: &Value, schema: bool) -> Ballot {
        let request = match self.request(policy, Method::POST, "chat/completions") {
            Ok(request) => request.timeout(Duration::from_millis(policy.timeout_ms)),
            Err(why) => return Ballot::Down(why),
        };
        let mut body = body.clone();
        if schema {
            let schema = json!({"name": "verdict", "strict": true, "schema": prompt::schema()});
            body["response_format"] = json!({"type": "json_schema", "json_schema": schema});
        }
        let response = match request.json(&body).send().await {
            Ok(response) => response,
            Err(error) => return Ballot::Down(cause(&error)),
        };
        let status = response.status();
        let reply = match read(response).await {
            Ok(reply) => reply,
            Err(why) => return Ballot::Down(why),
        };
        let parsed: Value = serde_json::from_slice(&reply).unwrap_or_default();
        match status.as_u16() {
            200 => voted(&parsed, &body),
            400 | 413 | 422 => Ballot::Refused(format!("HTTP {status}")),
            503 if parsed["error"]["code"] == "engine_yielded" => Ballot::Yielded,
            _ => Ballot::Down(format!("HTTP {status}")),
        }
    }

    fn request(
        &self,
        policy: &LlmJudge,
        method: Method,
        path: &str,
    ) -> Result<reqwest::RequestBuilder, String> {
        let endpoint = self.endpoint(policy);
        let prefix = if endpoint.ends_with("/v1") { "" } else { "/v1" };
        let client = if policy.endpoint.is_none() { &self.local } else { &self.remote };
        let mut request = client.request(method, format!("{endpoint}{prefix}/{path}"));
        if policy.endpoint.is_none() {
            // Never an adapter that it would judge itself; never before a client.
            request = request.header("x-hone-generation", "base");
            request = request.header("x-hone-priority", "background");
        }
        if let Some(name) = &policy.api_key_env {
            let key = std::env::var(name).map_err(|_| format!("${name} is not set"))?;
            request = request.bearer_auth(key);
        }
        Ok(request)
    }
}

/// What a response says.
fn voted(reply: &Value, asked: &Value) -> Ballot {
    let text = reply["choices"][0]["message"]["content"].as_str();
    let counted = |name: &str, otherwise: u64| reply["usage"][name].as_u64().unwrap_or(otherwise);
    let tokens = Tokens {
        prompt: counted("prompt_tokens", prompt_tokens(asked)),
        completion: counted("completion_tokens", estimate(text.unwrap_or_default())),
    };
    match text.map(parse::vote) {
        Some(Ok(vote)) => Ballot::Valid(vote, tokens),
        Some(Err(fault)) => Ballot::Invalid(fault, tokens),
        None => Ballot::Invalid("the response has no text".into(), tokens),
    }
}

/// About how many tokens the prompt of a request has.
pub fn prompt_tokens(body: &Value) -> u64 {
    let messages = body["messages"].as_array().into_iter().flatten();
    messages.map(|m| estimate(m["content"].as_str().unwrap_or_default())).sum()
}

fn estimate(text: &str) -> u64 {
    text.chars().count().div_ceil(CHARS_PER_TOKEN) as u64
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
