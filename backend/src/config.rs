//! What the backend is started with: the model, where to listen, and every limit with its default.
//!
//! Invariant: every queue, pool and wait of this crate is capped by a field of [`BackendConfig`].

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::BackendError;

/// Settings of one backend process. [`BackendConfig::new`] fills every limit with its default.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// Hugging Face model directory: config, tokenizer, chat template and safetensors.
    pub model_dir: PathBuf,
    /// The name by which clients ask for the base model.
    pub model_id: String,
    /// Where to listen. Only trusted callers may reach it: it serves the adapter API.
    pub listen: SocketAddr,
    /// Registry directory that holds generation directories; `None` turns adapters off.
    pub registry: Option<PathBuf>,
    /// Engines held in memory at once, the base and those that drain included. At least 1.
    pub residents_max: usize,
    /// Estimated bytes of all engines held in memory at once.
    pub resident_bytes_max: u64,
    /// Replies that are under way at once, over all generations. Within one engine on the CPU they
    /// take turns, see [`crate::resident::SEQUENCES_IN_CPU_ENGINE`].
    pub sequences_max: usize,
    /// Reply tokens when the request names no limit; 0 means up to the model's context.
    pub tokens_default_max: usize,
    /// Requests that may wait for a sequence; more are refused with 429.
    pub queue_max: usize,
    /// Longest wait for a sequence before 503, in milliseconds.
    pub queue_wait_ms_max: u64,
    /// Requests of the background start after nobody else was here for so long, in milliseconds.
    pub background_quiet_ms: u64,
    /// Longest wait of the background for such a moment before 503, in milliseconds.
    pub background_wait_ms_max: u64,
    /// Longest silence of an engine before its request fails with 503, in milliseconds.
    pub stall_ms_max: u64,
    /// Largest request body, in bytes.
    pub body_bytes_max: usize,
    /// Choices per request.
    pub choices_max: usize,
    /// Loads that may wait for the one that runs.
    pub loads_waiting_max: usize,
    /// How often dead engines are looked for, in milliseconds.
    pub supervise_ms: u64,
    /// After a shutdown signal, how long running requests may still take, in milliseconds.
    pub grace_ms: u64,
}

impl BackendConfig {
    /// Settings with every limit at its default.
    pub fn new(
        model_dir: impl Into<PathBuf>,
        model_id: impl Into<String>,
        listen: SocketAddr,
    ) -> Self {
        Self {
            model_dir: model_dir.into(),
            model_id: model_id.into(),
            listen,
            registry: None,
            residents_max: 4,
            resident_bytes_max: 8 << 30,
            sequences_max: 16,
            tokens_default_max: 1024,
            queue_max: 256,
            queue_wait_ms_max: 300_000,
            background_quiet_ms: 5_000,
            background_wait_ms_max: 10_000,
            stall_ms_max: 600_000,
            body_bytes_max: 16 << 20,
            choices_max: 8,
            loads_waiting_max: 16,
            supervise_ms: 250,
            grace_ms: 30_000,
        }
    }

    /// Refuses settings that cannot work.
    ///
    /// # Errors
    /// [`BackendError::Config`] names the field and what it must be.
    pub fn check(&self) -> Result<(), BackendError> {
        let rules = [
            (!self.model_id.is_empty(), "model_id must not be empty"),
            (!self.model_id.contains("::"), "model_id must not contain `::`"),
            (self.residents_max >= 1, "residents_max must be at least 1"),
            (self.sequences_max >= 1, "sequences_max must be at least 1"),
            (self.choices_max >= 1, "choices_max must be at least 1"),
            (self.body_bytes_max >= 1024, "body_bytes_max must be at least 1024"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(BackendError::Config((*rule).to_owned())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BackendConfig {
        BackendConfig::new("model", "m", SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    #[test]
    fn the_defaults_are_valid() {
        assert!(config().check().is_ok());
    }

    #[test]
    fn a_model_id_that_looks_like_an_alias_is_refused() {
        let wrong = BackendConfig { model_id: "a::b".into(), ..config() };
        assert!(wrong.check().unwrap_err().to_string().contains("model_id"));
    }
}
