//! The demo's client: plain OpenAI chat requests through the proxy, each counted, sent or failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};

/// Reply length cap of every request of the demo.
pub const REPLY_TOKENS_MAX: u32 = 96;
const TEMPERATURE: f64 = 0.7;
const REQUEST_MAX: Duration = Duration::from_secs(180);

/// A chat client of one deployment.
pub struct Client {
    http: reqwest::Client,
    url: String,
    model: String,
    sent: AtomicU64,
    failed: AtomicU64,
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub text: String,
    /// As counted by the engine.
    pub tokens: u64,
    /// It ended by itself, not at the cap.
    pub ended: bool,
    /// The generation that produced it, as the response header says.
    pub generation: String,
}

/// Requests so far.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Requests {
    pub sent: u64,
    pub failed: u64,
}

impl Client {
    /// A client of `base_url` (without `/v1`).
    pub fn new(base_url: &str, model: &str) -> anyhow::Result<Client> {
        Ok(Client {
            http: reqwest::Client::builder().timeout(REQUEST_MAX).build()?,
            url: format!("{base_url}/v1/chat/completions"),
            model: model.into(),
            sent: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Sends the conversation; an error is counted as a failed request.
    pub async fn chat(&self, messages: &[Value], seed: u64) -> anyhow::Result<Reply> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        let reply = self.try_chat(messages, seed).await;
        if reply.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        reply
    }

    async fn try_chat(&self, messages: &[Value], seed: u64) -> anyhow::Result<Reply> {
        let request = json!({"model": self.model, "messages": messages, "temperature": TEMPERATURE,
            "max_tokens": REPLY_TOKENS_MAX, "seed": seed});
        let response = self.http.post(&self.url).json(&request).send().await?;
        let status = response.status();
        let generation = response
            .headers()
            .get("x-hone-generation")
            .and_then(|value| value.to_str().ok())
            .unwrap_or("base")
            .to_string();
        let body: Value = response.json().await.context("the answer is not JSON")?;
        anyhow::ensure!(status.is_success(), "{status}: {body}");
        let choice = &body["choices"][0];
        Ok(Reply {
            text: choice["message"]["content"].as_str().context("no content")?.to_string(),
            tokens: body["usage"]["completion_tokens"].as_u64().context("no usage")?,
            ended: choice["finish_reason"] == "stop",
            generation,
        })
    }

    /// Requests so far.
    pub fn requests(&self) -> Requests {
        Requests {
            sent: self.sent.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// A user message.
pub fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// An assistant message.
pub fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}
