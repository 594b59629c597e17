//! Drives one engine for one choice: submits the prompt, reads the tokens along, makes text of it.
//!
//! The engine's own text is not used (it trims, drops a last unfinished character together with the
//! end of the stream, and sends stop strings before it notices them); its chunks only say that the
//! sampler has new tokens. Streaming and not streaming are one path, so they give the same text.
//!
//! Invariant: every run ends, with a finish reason or an error: tokens, context, silence and the
//! life of the engine thread are all bounded or watched.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mistralrs::core::{
    Constraint, NormalRequest, Request, RequestMessage, Response, SamplingParams, ToolChoice,
};
use serde::de::IgnoredAny;
use tokio::sync::mpsc;

use crate::error::{ApiError, Code};
use crate::request::{Job, Prompt};
use crate::resident::Lease;
use crate::sample::{Bounds, Picked, Sampler, Seat};
use crate::text::{Characters, Stops};
use crate::tools::{Call, Scanner};

/// Why a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, a stop string was met, or the JSON is complete.
    Stop,
    /// It has as many tokens as it may have.
    Length,
    /// It calls tools.
    ToolCalls,
}

impl Finish {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// What came since the last step.
#[derive(Debug, Default)]
pub struct Step {
    /// Text to send; may be empty while characters or calls are incomplete.
    pub text: String,
    /// The tokens read in this step, the end token left out.
    pub tokens: Vec<Picked>,
    /// Tool calls, at the end only.
    pub calls: Vec<Call>,
    /// Set at the end.
    pub finish: Option<Finish>,
}

/// How long a run waits, at most.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// For its turn.
    pub turn: Duration,
    /// For a token.
    pub token: Duration,
}

/// One choice being generated. Dropping it frees the engine at its next step.
pub struct Run {
    lease: Lease,
    sampler: Arc<Sampler>,
    replies: mpsc::Receiver<Response>,
    /// The request, until the engine has a turn for it.
    queued: Option<Box<NormalRequest>>,
    waits: Waits,
    read: usize,
    closed: bool,
    done: bool,
    guarded: bool,
    characters: Characters,
    stops: Stops,
    scanner: Scanner,
    json: String,
    show_specials: bool,
}

impl Run {
    /// Prepares choice `index` of `prompt`. It is submitted with the first step.
    ///
    /// # Errors
    /// The prompt is too long or names tokens that do not exist.
    pub fn start(
        lease: Lease,
        job: &Job,
        prompt: &Prompt,
        index: usize,
        waits: Waits,
    ) -> Result<Self, ApiError> {
        let vocabulary = &lease.vocabulary;
        let messages = messages(prompt, &lease)?;
        let tokens_max = job.tokens_max.min(vocabulary.context);
        let mut draw = job.draw.clone();
        draw.seed = draw.seed.wrapping_add(index as u64);
        let guarded = job.schema.is_some();
        let end = vocabulary.ends.first().copied().unwrap_or_default();
        let bounds = Bounds { context: vocabulary.context, tokens_max, end, guarded };
        let sampler = Arc::new(Sampler::new(draw, bounds));
        // Room for every token, so that a slow client never makes the engine wait.
        let (sender, replies) = mpsc::channel(tokens_max + 16);
        let request = NormalRequest {
            messages,
            sampling_params: SamplingParams {
                temperature: Some(0.0),
                max_len: Some(tokens_max),
                ..SamplingParams::neutral()
            },
            response: sender,
            return_logprobs: false,
            is_streaming: true,
            id: next_id(),
            constraint: match &job.schema {
                Some(schema) => Constraint::JsonSchema(schema.clone()),
                None => Constraint::None,
            },
            suffix: None,
            tools: (!job.tools.is_empty()).then(|| job.tools.clone()),
            // The template shows the tools; their calls are found by `tools::Scanner`.
            tool_choice: Some(ToolChoice::None),
            logits_processors: None,
            return_raw_logits: false,
            web_search_options: None,
            model_id: None,
            truncate_sequence: false,
        };
        Ok(Self {
            sampler,
            replies,
            queued: Some(Box::new(request)),
            waits,
            read: 0,
            closed: false,
            done: false,
            guarded,
            characters: Characters::default(),
            stops: Stops::new(job.stops.clone()),
            scanner: Scanner::new(job.callable.clone()),
            json: String::new(),
            show_specials: !job.callable.is_empty(),
            lease,
        })
    }

    /// Tokens of the prompt; 0 before the first step.
    pub fn prompt_tokens(&self) -> usize {
        self.sampler.prompt_tokens().unwrap_or(0)
    }

    /// Tokens of the reply so far, the end token included.
    pub fn reply_tokens(&self) -> usize {
        self.read
    }

    /// The bytes of a token, for log-probabilities.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.lease.vocabulary.trie.tok_trie().decode_ext(&[id], true)
    }

    /// The next step; `None` after the one that had a finish reason.
    ///
    /// # Errors
    /// What the engine says, silence for too long, or a dead engine.
    pub async fn next(&mut self) -> Result<Option<Step>, ApiError> {
        self.submit().await?;
        while !self.done {
            if let Some(step) = self.read_along() {
                return Ok(Some(step));
            }
            if self.closed {
                return Err(self.broken_off());
            }
            match tokio::time::timeout(self.waits.token, self.replies.recv()).await {
                Err(_) => {
                    let message = "The engine gave no token for too long; try again.";
                    return Err(ApiError::new(Code::Timeout, message));
                }
                Ok(None) => self.closed = true,
                Ok(Some(reply)) => self.look_at(reply)?,
            }
        }
        Ok(None)
    }

    /// Hands the request to the engine when its turn comes; does nothing after that.
    async fn submit(&mut self) -> Result<(), ApiError> {
        let Some(mut request) = self.queued.take() else { return Ok(()) };
        let turn = Arc::clone(&self.lease.turns).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(self.waits.turn, turn).await else {
            let message = "The wait for the engine is over; try again.";
            return Err(ApiError::new(Code::Timeout, message));
        };
        let seat = Seat::new(Arc::clone(&self.sampler), turn);
        request.logits_processors = Some(vec![Arc::new(seat)]);
        self.lease.send(Request::Normal(request)).map_err(|_| restarting())
    }

    fn look_at(&self, reply: Response) -> Result<(), ApiError> {
        match reply {
            Response::Chunk(_) | Response::CompletionChunk(_) => Ok(()),
            Response::ValidationError(error) => Err(refused(&error.to_string(), &self.lease)),
            Response::InternalError(error) if self.sampler.prompt_tokens().is_none() => {
                Err(refused(&error.to_string(), &self.lease))
            }
            Response::InternalError(error) => {
                tracing::error!(%error, "the engine failed on a request");
                Err(failed())
            }
            Response::ModelError(error, _) | Response::CompletionModelError(error, _) => {
                tracing::error!(%error, "the model failed on a request");
                Err(failed())
            }
            _ => Err(failed()),
        }
    }

    /// Turns the tokens that the sampler has picked since into a step; `None` if there are none.
    fn read_along(&mut self) -> Option<Step> {
        let picked = self.sampler.picked_since(self.read);
        let limit = self.sampler.tokens_limit();
        if picked.is_empty() && !(self.closed && self.read >= limit) {
            return None;
        }
        let mut step = Step::default();
        for token in picked {
            self.read += 1;
            if self.lease.vocabulary.ends.contains(&token.id) {
                step.finish = Some(Finish::Stop);
                break;
            }
            let trie = self.lease.vocabulary.trie.tok_trie();
            let bytes = trie.decode_ext(&[token.id], self.show_specials);
            let characters = self.characters.push(&bytes);
            step.tokens.push(token);
            self.take(&characters, &mut step.text);
            if self.stops.hit() || self.scanner.complete() || self.json_complete(&characters) {
                step.finish = Some(Finish::Stop);
                break;
            }
        }
        if step.finish.is_none() && self.read >= limit {
            step.finish = Some(Finish::Length);
        }
        if let Some(finish) = step.finish {
            self.end(&mut step, finish);
        }
        Some(step)
    }

    fn take(&mut self, characters: &str, text: &mut String) {
        let safe = self.stops.push(characters);
        text.push_str(&self.scanner.push(&safe));
    }

    fn end(&mut self, step: &mut Step, finish: Finish) {
        let rest = self.characters.finish();
        self.take(&rest, &mut step.text);
        let held = self.stops.finish();
        step.text.push_str(&self.scanner.push(&held));
        let (content, calls) = self.scanner.finish();
        step.text.push_str(&content);
        step.finish = Some(if calls.is_empty() { finish } else { Finish::ToolCalls });
        step.calls = calls;
        self.done = true;
        self.sampler.cancel();
        self.replies.close();
    }

    /// Whether a guarded reply is a whole JSON value. The engine's grammar lets the model add white
    /// space until its tokens run out, so the end is seen here.
    fn json_complete(&mut self, characters: &str) -> bool {
        if !self.guarded {
            return false;
        }
        self.json.push_str(characters);
        let json = self.json.trim();
        json.ends_with(['}', ']', '"']) && serde_json::from_str::<IgnoredAny>(json).is_ok()
    }

    fn broken_off(&self) -> ApiError {
        if self.lease.is_dead() {
            return restarting();
        }
        let broken = self.sampler.is_broken();
        tracing::error!(broken, tokens = self.read, "the engine broke a reply off");
        failed()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.sampler.cancel();
    }
}

fn messages(prompt: &Prompt, lease: &Lease) -> Result<RequestMessage, ApiError> {
    let vocabulary = &lease.vocabulary;
    let ids = match prompt {
        Prompt::Chat(messages) => return Ok(messages.clone()),
        Prompt::Text(text) => (vocabulary.encode)(text).map_err(|error| {
            ApiError::of(Code::PromptRejected, "prompt", format!("The tokenizer refused: {error}."))
        })?,
        Prompt::Tokens(ids) => ids.clone(),
    };
    let size = vocabulary.trie.tok_trie().vocab_size();
    if let Some(id) = ids.iter().find(|id| **id as usize >= size) {
        return Err(ApiError::value("prompt", format!("Token {id} is not in the vocabulary.")));
    }
    if ids.is_empty() {
        return Err(ApiError::value("prompt", "`prompt` has no tokens."));
    }
    if ids.len() > vocabulary.context {
        return Err(too_long(vocabulary.context));
    }
    Ok(RequestMessage::CompletionTokens(ids))
}

/// A refusal before the first token: it is about the prompt, or about the grammar.
fn refused(error: &str, lease: &Lease) -> ApiError {
    if error.starts_with("Prompt sequence length is greater") {
        return too_long(lease.vocabulary.context);
    }
    if let Some(grammar) = error.strip_prefix("Invalid grammar.") {
        let message = format!("The JSON schema is not served:{grammar}");
        return ApiError::of(Code::Unsupported, "response_format", message);
    }
    if error.contains("allocate") {
        tracing::error!(error, "the engine has no memory for a request");
        return failed();
    }
    let reason = error.lines().next().unwrap_or_default();
    let message = format!("The model's chat template refused the messages: {reason}");
    ApiError::of(Code::PromptRejected, "messages", message)
}

fn too_long(context: usize) -> ApiError {
    let message = format!(
        "This model's maximum context length is {context} tokens, and the prompt is longer. \
         Please shorten the prompt."
    );
    ApiError::of(Code::ContextLengthExceeded, "messages", message)
}

fn failed() -> ApiError {
    ApiError::new(Code::EngineFailed, "The engine failed on this request.")
}

/// The answer to a request that met a dead engine.
pub fn restarting() -> ApiError {
    ApiError::new(Code::EngineRestarting, "The engine is being restarted; try again.")
}

fn next_id() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
