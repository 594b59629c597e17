//! What chat and legacy completions share: from the parsed job to running choices, and the facts
//! that every response object carries.
//!
//! Invariant: all choices of a request run on one lease, so on one generation.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use futures::stream::{SelectAll, Stream, StreamExt, unfold};
use hone_shared::clock::now_ms;
use hone_shared::turn::Generation;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::App;
use super::admit::{Admitted, BACKGROUND, PRIORITY};
use crate::error::ApiError;
use crate::generate::{Run, Step, Waits};
use crate::request::{Job, Limits};
use crate::resident::Lease;
use crate::select::{HEADER, Known, select};

/// Limits that the request parsers need.
pub fn limits(app: &App) -> Limits {
    Limits {
        choices_max: app.config.choices_max.min(app.config.sequences_max),
        tokens_default_max: app.config.tokens_default_max,
        tells_calls: app.fleet().is_ok_and(|fleet| fleet.tells_calls()),
    }
}

/// The facts that every object of one response repeats.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// Id of the response.
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The model as the client wrote it.
    pub model: String,
    /// Who answers.
    pub generation: Generation,
}

impl Envelope {
    /// An object of the given kind with `choices`.
    pub fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": "hone",
            "adapter_generation": match self.generation.is_base() {
                true => Value::Null,
                false => json!(self.generation.as_str()),
            },
            "choices": choices,
        })
    }

    /// The object of a whole answer.
    pub fn whole(&self, kind: &str, choices: Value, usage: Usage) -> Value {
        let mut object = self.object(kind, choices);
        object["usage"] = usage.json();
        object
    }

    /// A chunk of a stream. Where the stream ends with its usage, every other chunk says null.
    pub fn chunk(&self, kind: &str, choice: &Value, with_usage: bool) -> Value {
        let mut object = self.object(kind, json!([choice]));
        if with_usage {
            object["usage"] = Value::Null;
        }
        object
    }

    /// What follows the last choice: the usage, if the client asked for it.
    pub fn last(&self, kind: &str, usage: Usage, with_usage: bool) -> Vec<Value> {
        with_usage.then(|| self.whole(kind, json!([]), usage)).into_iter().collect()
    }

    /// The header that names the generation.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_str(self.generation.as_str())
            .unwrap_or_else(|_| HeaderValue::from_static("base"))
    }
}

/// The bytes of a token in the table that comes with the tokens; none if it is not there.
pub fn bytes_of(table: &[(u32, Vec<u8>)], id: u32) -> &[u8] {
    table.iter().find(|(known, _)| *known == id).map(|(_, bytes)| bytes.as_slice()).unwrap_or(&[])
}

/// Token counts of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompts, each counted once however many choices it has.
    pub prompt: usize,
    /// Tokens of all choices, end tokens included.
    pub reply: usize,
}

impl Usage {
    /// OpenAI's `usage` object.
    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.reply,
            "total_tokens": self.prompt + self.reply,
        })
    }
}

/// A request whose choices are running.
pub struct Running {
    /// What the response objects say.
    pub envelope: Envelope,
    /// One run per choice: prompt 0's choices first.
    pub runs: Vec<Run>,
    /// Choices per prompt.
    pub n: usize,
    /// Held until the response ends.
    pub permit: Admitted,
}

/// Selects, admits and starts.
///
/// # Errors
/// Whatever keeps the request from starting.
pub async fn start(
    app: &App,
    headers: &HeaderMap,
    job: &Job,
    prefix: &str,
) -> Result<Running, ApiError> {
    let fleet = app.fleet()?;
    let pinned = match headers.get(HEADER).map(HeaderValue::to_str) {
        None => None,
        Some(Ok(text)) => Some(text),
        Some(Err(_)) => return Err(ApiError::value(HEADER, "the header is not text")),
    };
    let aliases: Vec<String> =
        fleet.snapshot().aliases().map(|(name, _)| name.to_owned()).collect();
    let known = Known { base: &app.config.model_id, aliases: &aliases };
    let selection = select(pinned, &job.adapter, job.model.as_deref(), &known)?;
    // A stream cannot be taken back, so it is never of the background.
    let background = !job.stream && headers.get(PRIORITY).is_some_and(|p| p == BACKGROUND);
    let permit = match background {
        true => app.admission.enter_quietly(job.choices()).await?,
        false => app.admission.enter(job.choices()).await?,
    };
    // Leased after the wait, so that the request sees the newest flip.
    let lease: Lease = fleet.lease(&selection).await?;
    let waits = Waits {
        turn: Duration::from_millis(app.config.queue_wait_ms_max),
        token: Duration::from_millis(app.config.stall_ms_max),
    };
    let mut runs = Vec::with_capacity(job.choices());
    for prompt in &job.prompts {
        for index in 0..job.n {
            runs.push(Run::start(lease.clone(), job, prompt, index, waits)?);
        }
    }
    let envelope = Envelope {
        id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
        created: now_ms() / 1000,
        model: job.model.clone().unwrap_or_else(|| app.config.model_id.clone()),
        generation: lease.generation.clone(),
    };
    Ok(Running { envelope, runs, n: job.n, permit })
}

/// A step of one choice, with the bytes of its tokens.
pub struct Said {
    /// Which choice.
    pub index: usize,
    /// What it said.
    pub step: Step,
    /// Bytes of the step's tokens and of their alternatives, if log-probabilities were asked for.
    pub bytes: Vec<(u32, Vec<u8>)>,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens of the choice so far.
    pub reply_tokens: usize,
}

/// What one choice says next, and the choice itself.
async fn say(index: usize, mut run: Run) -> Option<(Result<Said, ApiError>, Option<Run>)> {
    match run.next().await {
        Err(error) => Some((Err(error), None)),
        Ok(None) => None,
        Ok(Some(step)) => {
            let ids = step.tokens.iter().flat_map(|token| {
                let others = token.alternatives.iter().map(|(id, _)| *id);
                std::iter::once(token.id).chain(others)
            });
            let bytes = ids.map(|id| (id, run.token_bytes(id))).collect();
            let said = Said {
                index,
                step,
                bytes,
                prompt_tokens: run.prompt_tokens(),
                reply_tokens: run.reply_tokens(),
            };
            Some((Ok(said), Some(run)))
        }
    }
}

/// The steps of all choices, as they come.
pub fn steps(runs: Vec<Run>) -> SelectAll<impl Stream<Item = Result<Said, ApiError>> + Unpin> {
    let streams = runs.into_iter().enumerate().map(|(index, run)| {
        Box::pin(unfold(Some(run), move |run| async move {
            match run {
                Some(run) => say(index, run).await,
                None => None,
            }
        }))
    });
    futures::stream::select_all(streams)
}

/// A choice that has ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// All text.
    pub text: String,
    /// All steps, for tokens and calls.
    pub steps: Vec<Step>,
    /// Bytes of tokens.
    pub bytes: Vec<(u32, Vec<u8>)>,
}

/// Runs all choices to their ends.
///
/// # Errors
/// The first error of any choice; 503 for a request of the background that had to give way.
pub async fn collect(running: Running) -> Result<(Envelope, Vec<Ended>, Usage), ApiError> {
    let Running { envelope, runs, n, mut permit } = running;
    tokio::select! {
        biased;
        displaced = permit.displaced() => Err(displaced),
        ended = to_their_ends(runs, n) => ended.map(|(ended, usage)| (envelope, ended, usage)),
    }
}

async fn to_their_ends(runs: Vec<Run>, n: usize) -> Result<(Vec<Ended>, Usage), ApiError> {
    let mut ended: Vec<Ended> = runs.iter().map(|_| Ended::default()).collect();
    let mut tally = Tally::new(runs.len(), n);
    let mut steps = steps(runs);
    while let Some(said) = steps.next().await {
        let said = said?;
        tally.note(&said);
        if let Some(choice) = ended.get_mut(said.index) {
            choice.text.push_str(&said.step.text);
            choice.bytes.extend(said.bytes);
            choice.steps.push(said.step);
        }
    }
    Ok((ended, tally.usage()))
}

/// Counts tokens while choices run.
pub struct Tally {
    prompts: Vec<usize>,
    replies: Vec<usize>,
    n: usize,
}

impl Tally {
    /// For so many choices, `n` to a prompt.
    pub fn new(choices: usize, n: usize) -> Self {
        Self { prompts: vec![0; choices], replies: vec![0; choices], n: n.max(1) }
    }

    /// Takes note of a step.
    pub fn note(&mut self, said: &Said) {
        if let (Some(prompt), Some(reply)) =
            (self.prompts.get_mut(said.index), self.replies.get_mut(said.index))
        {
            (*prompt, *reply) = (said.prompt_tokens, said.reply_tokens);
        }
    }

    /// The counts so far.
    pub fn usage(&self) -> Usage {
        let prompt = self.prompts.iter().step_by(self.n).sum();
        Usage { prompt, reply: self.replies.iter().sum() }
    }
}

/// A JSON response that names its generation.
pub fn json_response(envelope: &Envelope, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HEADER, envelope.header());
    response
}

/// The state behind a handler, by its short name.
pub type Shared = Arc<App>;
