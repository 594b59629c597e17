//! Driver of the adapter API that our backend and mistral.rs ≥ 0.9.1 serve.
//!
//! `POST /v1/load_lora_adapter {lora_name, lora_path, expected_generation}` ·
//! `POST /v1/unload_lora_adapter {lora_name, expected_generation}` · `GET /v1/lora_adapters`.
//! 429 and 503 are retried with growing waits; 409 "already loaded" is success if the list agrees.
//!
//! Invariant: every call ends within [`ATTEMPTS_MAX`] tries of [`CALL_LIMIT`] each.

use super::{Driver, DriverError};
use async_trait::async_trait;
use hone_shared::turn::Generation;
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Tries of one call.
const ATTEMPTS_MAX: u32 = 8;
/// First wait between tries; doubles up to [`WAIT_LAST`].
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// Longest wait between tries.
const WAIT_LAST: Duration = Duration::from_secs(3);
/// Limit of one try; building an engine with an adapter takes seconds.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// The driver.
pub struct HoneDriver {
    base: String,
    http: reqwest::Client,
}

impl HoneDriver {
    /// `engine_url` without `/v1`, such as `http://127.0.0.1:9000`.
    pub fn new(engine_url: &str) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder().no_proxy().timeout(CALL_LIMIT);
        let http = http.connect_timeout(Duration::from_secs(5)).build()?;
        Ok(Self { base: engine_url.trim_end_matches('/').to_owned(), http })
    }

    async fn call(&self, path: &str, body: Option<&Value>) -> Result<Value, DriverError> {
        let mut wait = WAIT_FIRST;
        for attempt in 1.. {
            let result = self.once(path, body).await;
            match result {
                Err(DriverError::Unavailable(_)) if attempt < ATTEMPTS_MAX => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(WAIT_LAST);
                }
                other => return other,
            }
        }
        Err(DriverError::Unavailable("no try was made".into()))
    }

    async fn once(&self, path: &str, body: Option<&Value>) -> Result<Value, DriverError> {
        let url = format!("{}{path}", self.base);
        let request = match body {
            Some(body) => self.http.post(url).json(body),
            None => self.http.get(url),
        };
        let unavailable = |e: reqwest::Error| DriverError::Unavailable(e.without_url().to_string());
        let response = request.send().await.map_err(unavailable)?;
        let status = response.status();
        let answer: Value = response.json().await.unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        let message = answer["error"]["message"].as_str().unwrap_or("no message").to_owned();
        let code = answer["error"]["code"].as_str().unwrap_or_default();
        Err(match (status, code) {
            (_, "lora_limit_reached") | (StatusCode::INSUFFICIENT_STORAGE, _) => {
                DriverError::Full(message)
            }
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) => {
                DriverError::Unavailable(format!("HTTP {status}: {message}"))
            }
            _ => DriverError::Refused { status: status.as_u16(), message },
        })
    }

    async fn confirm(&self, generation: &Generation) -> Result<(), DriverError> {
        if self.list().await?.contains(generation) {
            return Ok(());
        }
        Err(DriverError::Unconfirmed(generation.clone()))
    }
}

#[async_trait]
impl Driver for HoneDriver {
    async fn load(&self, generation: &Generation, dir: &Path) -> Result<(), DriverError> {
        if self.list().await?.contains(generation) {
            return Ok(());
        }
        // No `expected_generation` here: it names what the load would replace, and a generation's
        // name is only ever loaded with its own content.
        let body = json!({"lora_name": generation.as_str(), "lora_path": dir});
        match self.call("/v1/load_lora_adapter", Some(&body)).await {
            // A try that was cut off may have worked: 409 says that somebody was faster.
            Ok(_) | Err(DriverError::Refused { status: 409, .. }) => {}
            Err(error) => return Err(error),
        }
        self.confirm(generation).await
    }

    async fn unload(&self, generation: &Generation) -> Result<(), DriverError> {
        let body = json!({"lora_name": generation.as_str()});
        match self.call("/v1/unload_lora_adapter", Some(&body)).await {
            Ok(_) | Err(DriverError::Refused { status: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list(&self) -> Result<Vec<Generation>, DriverError> {
        let answer = self.call("/v1/lora_adapters", None).await?;
        let entries = answer["data"].as_array().cloned().unwrap_or_default();
        let names = entries.iter().filter_map(|entry| entry["generation"].as_str());
        Ok(names.filter_map(|name| Generation::parse(name).ok()).collect())
    }
}

#[cfg(test)]
#[path = "hone_tests.rs"]
mod tests;
