//! An ordinary OpenAI client of the proxy: chat completions, the list of models, and feedback.
//!
//! Invariant: every request has a deadline, and an answer is taken as the engine gave it.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// Header that names the episode, so that equal openings of two runs are two sessions.
const SESSION: &str = "x-session-id";
/// For feedback and the list of models.
const SHORT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answered.
    #[error("{url}: {source}")]
    Http {
        /// What was asked.
        url: String,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// It was refused.
    #[error("{url}: status {status}: {said}")]
    Refused {
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
        /// The beginning of the answer.
        said: String,
    },
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The response's id.
    pub id: String,
    /// The assistant message, as it goes into the next request.
    pub message: Value,
    /// As the engine counted.
    pub completion_tokens: u64,
}

/// A client of one deployment.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base_url: String,
    api_key: String,
    /// The model that is asked.
    pub model: String,
}

impl Client {
    /// A client of `base_url`, which ends in `/v1`. `model`: `None` = the first that is served.
    ///
    /// # Errors
    /// The deployment does not list its models.
    pub async fn connect(
        base_url: &str,
        api_key: &str,
        model: Option<String>,
    ) -> Result<Self, ClientError> {
        let base_url = base_url.trim_end_matches('/').to_owned();
        let http = reqwest::Client::new();
        let mut client = Self { http, base_url, api_key: api_key.to_owned(), model: String::new() };
        client.model = match model {
            Some(model) => model,
            None => {
                let list =
                    client.send(client.http.get(client.url("models")).timeout(SHORT)).await?;
                list["data"][0]["id"].as_str().unwrap_or_default().to_owned()
            }
        };
        Ok(client)
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base_url)
    }

    /// Asks for one chat completion; `fields` are added to the request.
    ///
    /// # Errors
    /// The engine or the proxy refuse, or `deadline` passes.
    pub async fn ask(
        &self,
        session: &str,
        messages: &[Value],
        fields: Map<String, Value>,
        deadline: Duration,
    ) -> Result<Answer, ClientError> {
        let mut body = json!({ "model": self.model, "messages": messages });
        if let Value::Object(body) = &mut body {
            body.extend(fields);
        }
        let request = self.http.post(self.url("chat/completions")).header(SESSION, session);
        let said = self.send(request.timeout(deadline).json(&body)).await?;
        let mut message = said["choices"][0]["message"].clone();
        if message["content"].is_null() && message["tool_calls"].is_null() {
            // No engine takes an answer back that says nothing at all.
            message = json!({ "role": "assistant", "content": "" });
        }
        // The fields that clients send back; engines add others that not all of them take.
        let kept = ["role", "content", "tool_calls"];
        let kept =
            kept.iter().filter_map(|key| Some(((*key).to_owned(), message.get(key)?.clone())));
        Ok(Answer {
            id: said["id"].as_str().unwrap_or_default().to_owned(),
            message: Value::Object(kept.collect()),
            completion_tokens: said["usage"]["completion_tokens"].as_u64().unwrap_or(0),
        })
    }

    /// Says how an episode ended, by the id of any of its responses. `key` makes it count once.
    ///
    /// # Errors
    /// The proxy refuses; status 404 or 405 when it has no feedback API.
    pub async fn outcome(
        &self,
        response_id: &str,
        solved: bool,
        key: &str,
    ) -> Result<String, ClientError> {
        let body = json!({ "response_id": response_id, "outcome": solved, "id": key });
        let said =
            self.send(self.http.post(self.url("feedback")).timeout(SHORT).json(&body)).await?;
        Ok(said["feedback_id"].as_str().unwrap_or_default().to_owned())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value, ClientError> {
        let request = request.bearer_auth(&self.api_key);
        let answered = request.send().await.map_err(|source| self.failed(source))?;
        let (url, status) = (answered.url().to_string(), answered.status());
        let text = answered.text().await.map_err(|source| self.failed(source))?;
        if !status.is_success() {
            let said = text.chars().take(300).collect();
            return Err(ClientError::Refused { url, status: status.as_u16(), said });
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    fn failed(&self, source: reqwest::Error) -> ClientError {
        let url = source.url().map_or_else(|| self.base_url.clone(), ToString::to_string);
        ClientError::Http { url, source: source.without_url() }
    }
}
