//! One episode: ask, read, act, observe, until the task is done or the budget is used up; then a
//! closing turn, so that the last step has a next state too; then the outcome.
//!
//! Invariant: an episode ends within its budget of steps, tokens and time, whatever the model says,
//! and an episode that the engine or the environment broke off has no outcome.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::client::{Answer, Client, ClientError};
use crate::environment::{Environment, EnvironmentError, Seen, message, result};
use crate::form::{Form, Wish};
use crate::policy::Policy;

/// Tokens of the closing turn, which says nothing that matters.
const CLOSING_TOKENS_MAX: u64 = 4;

/// What an episode may use.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Answers that act.
    pub steps_max: usize,
    /// Tokens of one answer.
    pub answer_tokens_max: u64,
    /// Tokens of all answers together.
    pub tokens_max: u64,
    /// Wall clock, environment included.
    pub time_max: Duration,
}

/// How to play.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Who acts.
    pub policy: Policy,
    /// Nothing is forced upon the engine.
    pub free: bool,
    /// Sampling temperature.
    pub temperature: f64,
    /// Seed of tasks, of chance and of the engine's sampling.
    pub seed: u64,
    /// Names this run; sessions and feedback keys begin with it.
    pub run: String,
    /// What an episode may use.
    pub budget: Budget,
}

/// How an episode ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The task was solved.
    Solved,
    /// The task was ended by a wrong answer.
    Wrong,
    /// No steps were left.
    Steps,
    /// No tokens were left.
    Tokens,
    /// No time was left.
    Time,
    /// The engine, the proxy or the environment failed: no outcome.
    Broken,
}

/// One step, as the environment knows it.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// What was asked for.
    pub action: String,
    /// The first line of what came of it.
    pub seen: String,
    /// Whether it brought the task forward.
    pub progress: bool,
}

/// What became of an episode.
#[derive(Debug, Clone, Serialize)]
pub struct Episode {
    /// Its number within the run.
    pub number: u64,
    /// Its session, as the client named it.
    pub session: String,
    /// How it ended.
    pub end: End,
    /// Its steps.
    pub steps: Vec<Step>,
    /// Requests answered, the closing one included.
    pub requests: usize,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// Id of the last response.
    pub response_id: String,
    /// Whether the proxy took its outcome; `None` where there was none to report.
    pub outcome_taken: Option<bool>,
    /// Milliseconds.
    pub duration_ms: u64,
    /// Why it broke.
    pub error: Option<String>,
}

impl Episode {
    /// What is reported; `None` when nobody knows.
    pub fn outcome(&self) -> Option<bool> {
        match self.end {
            End::Solved => Some(true),
            End::Broken => None,
            _ => Some(false),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
}

struct Play<'a> {
    client: &'a Client,
    rules: &'a Rules,
    rng: ChaCha8Rng,
    messages: Vec<Value>,
    started: Instant,
    episode: Episode,
}

/// Plays one episode. `told` gets a line for every step.
pub async fn play(
    client: &Client,
    rules: &Rules,
    environment: &mut dyn Environment,
    number: u64,
    told: &mut (dyn FnMut(&str) + Send),
) -> Episode {
    let mut rng = ChaCha8Rng::seed_from_u64(rules.seed);
    rng.set_stream(number);
    let episode = Episode {
        number,
        session: format!("{}-{number}", rules.run),
        end: End::Broken,
        steps: Vec::new(),
        requests: 0,
        completion_tokens: 0,
        response_id: String::new(),
        outcome_taken: None,
        duration_ms: 0,
        error: None,
    };
    let started = Instant::now();
    let mut play = Play { client, rules, rng, messages: vec![], started, episode };
    let ended = play.run(environment, told).await;
    let cleared = environment.end().await;
    let mut episode = play.episode;
    match (ended, cleared) {
        (Ok(end), Ok(())) => episode.end = end,
        (Err(error), _) => episode.error = Some(error.to_string()),
        (_, Err(error)) => episode.error = Some(error.to_string()),
    }
    episode.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    episode
}

impl Play<'_> {
    async fn run(
        &mut self,
        environment: &mut dyn Environment,
        told: &mut (dyn FnMut(&str) + Send),
    ) -> Result<End, Broken> {
        // Chance draws from a stream of its own, so that every policy gets the same tasks.
        let mut tasks = self.rng.clone();
        self.rng.set_stream(self.episode.number + (1 << 32));
        self.messages = environment.begin(&mut tasks).await?;
        loop {
            let form = environment.form();
            let fields = self.constraint(environment, &form);
            let answer = self.ask(fields, self.rules.budget.answer_tokens_max).await?;
            self.messages.push(answer.message.clone());
            let wishes = form.read(&answer.message);
            let results = self.act(environment, wishes, told).await?;
            let end = self.end(environment);
            let closing = end.map(closing_words);
            self.observe(environment, results, closing);
            if let Some(end) = end {
                let mut fields = Map::new();
                fields.insert("temperature".into(), json!(0));
                self.ask(fields, CLOSING_TOKENS_MAX).await?;
                return Ok(end);
            }
        }
    }

    /// What the request says about the answer.
    fn constraint(&mut self, environment: &dyn Environment, form: &Form) -> Map<String, Value> {
        let mut fields = Map::new();
        match self.rules.policy.choose(environment, form, &mut self.rng) {
            Some(action) => form.constrain_to(&action, &mut fields),
            None => form.constrain(&mut fields, self.rules.free),
        }
        fields.insert("temperature".into(), json!(self.rules.temperature));
        let seed = self.rules.seed * 1_000_003 + self.episode.number * 1_009;
        fields.insert("seed".into(), json!(seed + self.episode.requests as u64));
        fields
    }

    async fn ask(
        &mut self,
        mut fields: Map<String, Value>,
        tokens_max: u64,
    ) -> Result<Answer, Broken> {
        fields.insert("max_tokens".into(), json!(tokens_max));
        // The closing turn comes after the end of the time; it is short.
        let left = self.rules.budget.time_max.saturating_sub(self.started.elapsed());
        let deadline = left.max(Duration::from_secs(20));
        let episode = &mut self.episode;
        let answer = self.client.ask(&episode.session, &self.messages, fields, deadline).await?;
        episode.requests += 1;
        episode.completion_tokens += answer.completion_tokens;
        episode.response_id.clone_from(&answer.id);
        Ok(answer)
    }

    /// Carries the wishes of one answer out, in order; one observation for each.
    async fn act(
        &mut self,
        environment: &mut dyn Environment,
        wishes: Vec<Wish>,
        told: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Vec<(Option<String>, Seen)>, Broken> {
        let mut results = Vec::new();
        let mut step = Step { action: String::new(), seen: String::new(), progress: false };
        for wish in wishes {
            let (said, seen) = match wish.action {
                Err(why) => ("(unreadable)".to_owned(), Seen { text: why, ..Seen::default() }),
                Ok(_) if environment.done().is_some() => {
                    let text = "not run: the task is over".to_owned();
                    ("(too late)".to_owned(), Seen { text, ..Seen::default() })
                }
                Ok(action) => (action.line(), environment.act(&action).await?),
            };
            let gap = if step.action.is_empty() { "" } else { " & " };
            step.action = format!("{}{gap}{said}", step.action);
            step.seen = seen.text.lines().next().unwrap_or_default().to_owned();
            step.progress |= seen.progress;
            results.push((wish.call, seen));
        }
        let at = self.episode.steps.len() + 1;
        let mark = if step.progress { "+" } else { " " };
        told(&format!("  {at:>2} {mark} {:<60} {}", step.action, step.seen));
        self.episode.steps.push(step);
        Ok(results)
    }

    fn end(&self, environment: &dyn Environment) -> Option<End> {
        let (budget, episode) = (&self.rules.budget, &self.episode);
        match environment.done() {
            Some(true) => Some(End::Solved),
            Some(false) => Some(End::Wrong),
            None if episode.steps.len() >= budget.steps_max => Some(End::Steps),
            None if episode.completion_tokens >= budget.tokens_max => Some(End::Tokens),
            None if self.started.elapsed() >= budget.time_max => Some(End::Time),
            None => None,
        }
    }

    /// Puts the observations into the conversation: each call's result by itself, the rest, and
    /// what is wanted next, as the user's message.
    fn observe(
        &mut self,
        environment: &dyn Environment,
        results: Vec<(Option<String>, Seen)>,
        closing: Option<&str>,
    ) {
        let mut said = Vec::new();
        let mut images = Vec::new();
        for (call, seen) in results {
            match call {
                Some(id) => self.messages.push(result(&id, seen.text)),
                None => said.push(seen.text),
            }
            images.extend(seen.image);
        }
        said.push(environment.prompt());
        said.extend(closing.map(str::to_owned));
        said.retain(|text| !text.is_empty());
        let text = said.join("\n");
        if !images.is_empty() {
            let image = |url| json!({ "type": "image_url", "image_url": { "url": url } });
            let mut parts = vec![json!({ "type": "text", "text": text })];
            parts.extend(images.into_iter().map(image));
            self.messages.push(json!({ "role": "user", "content": parts }));
        } else if !text.is_empty() {
            self.messages.push(message("user", text));
        }
    }
}

fn closing_words(end: End) -> &'static str {
    match end {
        End::Solved => "The task is done. Say: done.",
        // Neutral: what a step was worth is not decided by its being the last.
        _ => "No steps are left. Say: over.",
    }
}
