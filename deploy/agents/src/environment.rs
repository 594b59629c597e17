//! What an environment is to the loop.
//!
//! Invariant: an error of an environment is a fault of the place (no shell, no browser); whatever
//! an action does wrong is an observation.

use async_trait::async_trait;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::form::{Action, Form};

/// Why an environment cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// Something that must be installed is not.
    #[error("{0}")]
    Missing(String),
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database failed.
    #[error("database: {0}")]
    Database(#[from] rusqlite::Error),
    /// The browser failed.
    #[error("browser: {0}")]
    Browser(String),
}

/// `map_err` for what the system refused.
pub fn io(what: &'static str) -> impl Fn(std::io::Error) -> EnvironmentError {
    move |source| EnvironmentError::Io { what, source }
}

/// What an action led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The observation.
    pub text: String,
    /// A screenshot, as a `data:` URL.
    pub image: Option<String>,
    /// Whether it brought the task forward, by the environment's own knowledge; the judge does not
    /// see it.
    pub progress: bool,
}

/// A task in a real environment, one at a time.
#[async_trait]
pub trait Environment: Send {
    /// Kind of the environment, as judges name it.
    fn kind(&self) -> &'static str;

    /// Steps after which an episode ends, unless the caller says otherwise.
    fn steps_max(&self) -> usize {
        6
    }

    /// Sets a new task up; the messages that open the conversation.
    async fn begin(&mut self, rng: &mut ChaCha8Rng) -> Result<Vec<Value>, EnvironmentError>;

    /// What may be answered now.
    fn form(&self) -> Form;

    /// The right answer now.
    fn oracle(&self) -> Action;

    /// Does it.
    async fn act(&mut self, action: &Action) -> Result<Seen, EnvironmentError>;

    /// What is added to the observations: the state and what is wanted next.
    fn prompt(&self) -> String;

    /// Whether the task is done: `Some(success)` ends the episode.
    fn done(&self) -> Option<bool>;

    /// Destroys what the task left.
    async fn end(&mut self) -> Result<(), EnvironmentError>;
}

/// A message of a role.
pub fn message(role: &str, text: impl Into<String>) -> Value {
    json!({ "role": role, "content": text.into() })
}

/// An assistant message that calls one tool, for examples in prompts.
pub fn call(id: &str, tool: &str, arguments: &Value) -> Value {
    let function = json!({ "name": tool, "arguments": arguments.to_string() });
    json!({ "role": "assistant", "content": null,
        "tool_calls": [{ "id": id, "type": "function", "function": function }] })
}

/// A tool's result.
pub fn result(id: &str, text: impl Into<String>) -> Value {
    json!({ "role": "tool", "tool_call_id": id, "content": text.into() })
}
