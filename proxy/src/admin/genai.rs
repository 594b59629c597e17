//! Latencies and token counts by model, under the names of OpenTelemetry's conventions for
//! generative AI.
//!
//! Only the ingest reads bodies, so these figures are of recorded turns and appear when a turn is
//! stored; `hone_request_seconds` covers every request at once.
//!
//! Invariant: clients choose the name of a model, but at most [`SERIES_MAX`] are told apart.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hone_shared::store::IngestTurn;
use hone_shared::turn::Outcome;

use super::counters::Histogram;

/// Most combinations of operation, model and failure; further models are counted as `other`.
pub const SERIES_MAX: usize = 64;
/// Longest name of a model that is shown, characters.
const MODEL_CHARS_MAX: usize = 80;
/// Upper limits of the token buckets, as the conventions advise.
pub const TOKEN_BUCKETS: [u64; 11] =
    [1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576];

/// What tells series apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// `gen_ai_operation_name`.
    pub operation: &'static str,
    /// `gen_ai_request_model`.
    pub model: String,
    /// `error_type`; empty: none.
    pub error: &'static str,
}

/// Token counts of one kind.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    buckets: [u64; TOKEN_BUCKETS.len()],
    /// Turns that were counted.
    pub count: u64,
    /// Their tokens.
    pub sum: u64,
}

impl Tokens {
    fn observe(&mut self, tokens: u64) {
        if let Some(at) = TOKEN_BUCKETS.iter().position(|limit| tokens <= *limit) {
            self.buckets[at] += 1;
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(tokens);
    }

    /// `(upper limit, turns up to it)`, cumulatively.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        TOKEN_BUCKETS.iter().zip(&self.buckets).scan(0, |below, (limit, count)| {
            *below += count;
            Some((*limit, *below))
        })
    }
}

/// The figures of one combination of labels.
#[derive(Debug, Default)]
pub struct Series {
    /// From arrival to the end.
    pub duration: Histogram,
    /// From arrival to the first byte, of streams.
    pub first_token: Histogram,
    /// Tokens of prompts.
    pub input: Tokens,
    /// Tokens of answers.
    pub output: Tokens,
}

/// All figures.
#[derive(Debug, Default)]
pub struct GenAi(Mutex<BTreeMap<Labels, Series>>);

impl GenAi {
    /// Counts a turn that was stored.
    pub fn see(&self, turn: &IngestTurn) {
        let model = turn.request.as_ref().and_then(|request| request.model.as_deref());
        let labels = Labels {
            operation: operation(&turn.begin.path),
            model: model.unwrap_or("none").chars().take(MODEL_CHARS_MAX).collect(),
            error: if turn.outcome == Outcome::Complete { "" } else { turn.outcome.as_str() },
        };
        let stream = turn.request.as_ref().is_some_and(|request| request.stream);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = match all.len() < SERIES_MAX || all.contains_key(&labels) {
            true => labels,
            false => Labels { model: "other".to_owned(), ..labels },
        };
        let series = all.entry(labels).or_default();
        if let Some(done) = &turn.done {
            series.duration.observe(Duration::from_millis(done.duration_ms));
            if let Some(ms) = done.first_byte_ms.filter(|_| stream) {
                series.first_token.observe(Duration::from_millis(ms));
            }
        }
        if let Some(usage) = turn.response.as_ref().and_then(|response| response.usage) {
            series.input.observe(usage.prompt_tokens);
            series.output.observe(usage.completion_tokens);
        }
    }

    /// Shows every series, in order.
    pub fn each(&self, mut show: impl FnMut(&Labels, &Series)) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().for_each(|(labels, series)| show(labels, series));
    }
}

/// The operation behind a path.
fn operation(path: &str) -> &'static str {
    let ends = |end: &str| path.trim_end_matches('/').ends_with(end);
    if ends("/chat/completions") || ends("/messages") || ends("/responses") {
        "chat"
    } else if ends("/completions") {
        "text_completion"
    } else if ends("/embeddings") {
        "embeddings"
    } else {
        "other"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operation_follows_from_the_path() {
        for (path, wanted) in [
            ("/v1/chat/completions", "chat"),
            ("/v1/messages", "chat"),
            ("/v1/responses/", "chat"),
            ("/v1/completions", "text_completion"),
            ("/v1/embeddings", "embeddings"),
            ("/x", "other"),
        ] {
            assert_eq!(operation(path), wanted);
        }
    }

    #[test]
    fn token_buckets_are_cumulative() {
        let mut tokens = Tokens::default();
        [1, 5, 5_000_000].into_iter().for_each(|count| tokens.observe(count));
        let below: Vec<_> = tokens.cumulative().collect();
        assert_eq!((below[0], below[1], below[2]), ((1, 1), (4, 1), (16, 2)));
        assert_eq!((below[10], tokens.count, tokens.sum), ((1_048_576, 2), 3, 5_000_006));
    }
}
