//! What a run came to, for people and as JSON.
//!
//! Invariant: a score counts episodes that the engine and the environment carried to their end;
//! those that broke are counted beside it.

use serde::Serialize;

use crate::episode::{End, Episode};
use crate::report::{Judged, Recorded};

/// How many outcomes the proxy took.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcomes {
    /// Taken.
    pub taken: usize,
    /// Refused, with the last reason.
    pub refused: usize,
    /// Why.
    pub reason: Option<String>,
}

/// A run.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Name of the environment.
    pub environment: String,
    /// Who acted.
    pub policy: String,
    /// The model.
    pub model: String,
    /// The seed.
    pub seed: u64,
    /// Episodes that ended.
    pub ended: usize,
    /// Episodes that broke.
    pub broken: usize,
    /// Episodes that were solved.
    pub solved: usize,
    /// Solved by ended; 0 when none ended.
    pub score: f64,
    /// Steps of all episodes.
    pub steps: usize,
    /// Steps that brought their task forward.
    pub progress: usize,
    /// Requests that were answered.
    pub requests: usize,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// Seconds.
    pub seconds: f64,
    /// What became of the outcomes.
    pub outcomes: Outcomes,
    /// What the proxy recorded and the trainer judged; `None` when nobody could be asked.
    pub recorded: Option<Recorded>,
    /// Each episode.
    pub episodes: Vec<Episode>,
}

impl Summary {
    /// Counts.
    pub fn of(environment: &str, policy: &str, model: &str, seed: u64, all: Vec<Episode>) -> Self {
        let ended = all.iter().filter(|episode| episode.end != End::Broken).count();
        let solved = all.iter().filter(|episode| episode.end == End::Solved).count();
        let steps = all.iter().flat_map(|episode| &episode.steps);
        Self {
            environment: environment.to_owned(),
            policy: policy.to_owned(),
            model: model.to_owned(),
            seed,
            ended,
            broken: all.len() - ended,
            solved,
            score: solved as f64 / ended.max(1) as f64,
            steps: steps.clone().count(),
            progress: steps.filter(|step| step.progress).count(),
            requests: all.iter().map(|episode| episode.requests).sum(),
            completion_tokens: all.iter().map(|episode| episode.completion_tokens).sum(),
            seconds: all.iter().map(|episode| episode.duration_ms as f64 / 1000.0).sum(),
            outcomes: Outcomes::default(),
            recorded: None,
            episodes: all,
        }
    }

    /// For people.
    pub fn lines(&self) -> String {
        let Self { environment, policy, solved, ended, steps, progress, requests, .. } = self;
        let mut lines = format!(
            "{environment}, {policy} ({}), seed {}: solved {solved} of {ended} ({:.0} %), {} \
             broken\n\
             steps {steps}, of which {progress} brought the task forward; {requests} requests, \
             {} tokens, {:.0} s\n",
            self.model,
            self.seed,
            self.score * 100.0,
            self.broken,
            self.completion_tokens,
            self.seconds
        );
        let Outcomes { taken, refused, reason } = &self.outcomes;
        let why = reason.as_ref().map_or(String::new(), |why| format!(" ({why})"));
        lines.push_str(&format!("outcomes: {taken} taken, {refused} refused{why}\n"));
        for (at, episode) in self.episodes.iter().enumerate() {
            let session = self.recorded.as_ref().and_then(|recorded| recorded.sessions.get(at));
            lines.push_str(&of_episode(episode, session.map_or(&[][..], Vec::as_slice)));
        }
        match &self.recorded {
            None => lines.push_str("recorded: unknown (no admin listener; see --data)\n"),
            Some(recorded) => lines.push_str(&recorded.lines(self.requests, self.episodes.len())),
        }
        lines
    }
}

/// One episode: its outcome, and the verdict of each of its steps with who gave it.
fn of_episode(episode: &Episode, session: &[Judged]) -> String {
    let outcome = match (episode.outcome(), episode.outcome_taken) {
        (None, _) => "no outcome".to_owned(),
        (Some(solved), taken) => {
            let how = if taken == Some(true) { "taken" } else { "not taken" };
            format!("outcome {} {how}", u8::from(solved))
        }
    };
    let verdict = |turn: &Judged| {
        let source = turn.source.as_deref().unwrap_or_default();
        turn.verdict.map(|verdict| format!("{verdict:+} {source}"))
    };
    let steps: Vec<String> = session.iter().filter_map(verdict).collect();
    format!(
        "  episode {} {:?}: {outcome}; steps: {}\n",
        episode.number,
        episode.end,
        steps.join(", ")
    )
}
