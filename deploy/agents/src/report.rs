//! What became of a run in the proxy and the trainer: asked of the admin API.
//!
//! Invariant: only turns whose session this run named are counted; asking is bounded in pages,
//! requests and time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hone_shared::data_dir::{DataDir, RunFile};
use serde::Serialize;
use serde_json::Value;

use crate::episode::Episode;

/// Pages of turns that are read at most, of [`PAGE`] turns each.
const PAGES_MAX: usize = 20;
const PAGE: usize = 500;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
const DEADLINE: Duration = Duration::from_secs(10);

/// Why the admin API could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No proxy has said where its admin listener is.
    #[error("no proxy has run in {0}")]
    NoProxy(String),
    /// The data directory cannot be read.
    #[error("{0}")]
    Data(String),
    /// It did not answer.
    #[error("admin API: {0}")]
    Http(#[from] reqwest::Error),
}

/// The admin listener of one proxy.
#[derive(Debug, Clone)]
pub struct Admin {
    http: reqwest::Client,
    url: String,
    token: String,
}

/// One judged or unjudged step, as recorded.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Judged {
    /// The turn.
    pub turn_id: String,
    /// How it was found to belong to its parent.
    pub link: Option<String>,
    /// +1, 0, −1; `None` while unjudged.
    pub verdict: Option<i64>,
    /// Who said so.
    pub source: Option<String>,
    /// Kind of the next state.
    pub kind: Option<String>,
    /// In words.
    pub reason: Option<String>,
}

/// What was recorded of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Recorded {
    /// Turns.
    pub turns: usize,
    /// Of those, with a parent in the same session.
    pub linked: usize,
    /// By the evidence of their link.
    pub links: BTreeMap<String, usize>,
    /// Verdicts by value, `none` for turns without.
    pub verdicts: BTreeMap<String, usize>,
    /// Verdicts by source.
    pub sources: BTreeMap<String, usize>,
    /// Verdicts by the kind of the next state.
    pub kinds: BTreeMap<String, usize>,
    /// Steps that brought the task forward, by verdict.
    pub forward: BTreeMap<String, usize>,
    /// Steps that did not.
    pub idle: BTreeMap<String, usize>,
    /// Per episode, in order.
    pub sessions: Vec<Vec<Judged>>,
}

impl Admin {
    /// The admin listener of the proxy that runs in a data directory.
    ///
    /// # Errors
    /// There is none.
    pub fn of(data: &DataDir) -> Result<Self, ReportError> {
        let wrong = |error: &dyn std::fmt::Display| ReportError::Data(error.to_string());
        let file = RunFile::read(data, "proxy").map_err(|error| wrong(&error))?;
        let address = file.and_then(|file| file.admin_address);
        let none = || ReportError::NoProxy(data.path().display().to_string());
        let url = format!("http://{}", address.ok_or_else(none)?);
        let token = data.admin_token().map_err(|error| wrong(&error))?;
        Ok(Self { http: reqwest::Client::new(), url, token })
    }

    async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, ReportError> {
        let request = self.http.get(format!("{}{path}", self.url)).timeout(DEADLINE);
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut request = request.bearer_auth(&self.token).build()?;
        request.url_mut().set_query(Some(&query.join("&")));
        Ok(self.http.execute(request).await?.error_for_status()?.json().await?)
    }

    /// Turns of the run since a time, oldest first.
    async fn turns(&self, run: &str, since_ms: i64) -> Result<Vec<Value>, ReportError> {
        let mut found = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut query = vec![("since_ms", since_ms.to_string()), ("limit", PAGE.to_string())];
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let page = self.get("/v1/turns", &query).await?;
            let of_run = |turn: &&Value| episode_of(turn, run).is_some();
            found.extend(page["data"].as_array().into_iter().flatten().filter(of_run).cloned());
            match page["next"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => break,
            }
        }
        found.sort_by_key(|turn| turn["started_ms"].as_i64());
        Ok(found)
    }

    /// Waits until every turn of the run is stored and every step judged, at most `patience`; then
    /// reads them.
    ///
    /// # Errors
    /// The admin API does not answer.
    pub async fn recorded(
        &self,
        run: &str,
        since_ms: i64,
        episodes: &[Episode],
        patience: Duration,
    ) -> Result<Recorded, ReportError> {
        let requests: usize = episodes.iter().map(|episode| episode.requests).sum();
        let steps: usize = episodes.iter().map(|episode| episode.requests.saturating_sub(1)).sum();
        let started = Instant::now();
        let turns = loop {
            let turns = self.turns(run, since_ms).await?;
            let judged = turns.iter().filter(|turn| !turn["verdict"].is_null()).count();
            let all = turns.len() >= requests && judged >= steps;
            if all || started.elapsed() >= patience {
                break turns;
            }
            tokio::time::sleep(LOOK).await;
        };
        let mut recorded = Recorded { turns: turns.len(), ..Recorded::default() };
        for episode in episodes {
            let mut session = Vec::new();
            let own = |turn: &&Value| episode_of(turn, run) == Some(episode.number);
            let own = in_order_of_links(turns.iter().filter(own).collect());
            for turn in &own {
                recorded.linked += usize::from(parent_of(turn, &own).is_some());
                session.push(self.judged(turn).await?);
            }
            recorded.add(session, episode);
        }
        Ok(recorded)
    }

    async fn judged(&self, turn: &Value) -> Result<Judged, ReportError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let id = turn["turn_id"].as_str().unwrap_or_default();
        let whole = self.get(&format!("/v1/turns/{id}"), &[]).await?;
        let verdict = &whole["verdict"];
        Ok(Judged {
            turn_id: id.to_owned(),
            link: text(&turn["link"]),
            verdict: verdict["verdict"].as_i64(),
            source: text(&verdict["source"]),
            kind: text(&verdict["kind"]),
            reason: text(&verdict["reason"]),
        })
    }
}

/// The episode of a turn, by the end of its session's id.
fn episode_of(turn: &Value, run: &str) -> Option<u64> {
    // Stored as `tenant/header:name`.
    let (_, number) = turn["session_id"].as_str()?.split_once(run)?;
    number.strip_prefix('-')?.parse().ok()
}

fn parent_of<'t>(turn: &Value, session: &[&'t Value]) -> Option<&'t Value> {
    session.iter().find(|other| other["turn_id"] == turn["parent"]).copied()
}

/// A session's turns, each after its parent: steps of a scripted policy start within the same
/// millisecond, so their times do not say which came first.
fn in_order_of_links(mut session: Vec<&Value>) -> Vec<&Value> {
    let unordered = session.clone();
    session.sort_by_key(|turn| {
        let up = std::iter::successors(Some(*turn), |turn| parent_of(turn, &unordered));
        up.take(unordered.len()).count()
    });
    session
}

impl Recorded {
    fn add(&mut self, session: Vec<Judged>, episode: &Episode) {
        let count =
            |map: &mut BTreeMap<String, usize>, key: String| *map.entry(key).or_default() += 1;
        for (at, turn) in session.iter().enumerate() {
            let verdict = turn.verdict.map_or_else(|| "none".to_owned(), |v| format!("{v:+}"));
            if let Some(link) = &turn.link {
                count(&mut self.links, link.clone());
            }
            if let Some(source) = &turn.source {
                count(&mut self.sources, source.clone());
            }
            if let Some(kind) = &turn.kind {
                count(&mut self.kinds, kind.clone());
            }
            if let Some(step) = episode.steps.get(at) {
                let of = if step.progress { &mut self.forward } else { &mut self.idle };
                count(of, verdict.clone());
            }
            count(&mut self.verdicts, verdict);
        }
        self.sessions.push(session);
    }

    /// For people.
    pub fn lines(&self, requests: usize, episodes: usize) -> String {
        let shown = |map: &BTreeMap<String, usize>| {
            let all: Vec<String> = map.iter().map(|(key, n)| format!("{key}: {n}")).collect();
            if all.is_empty() { "none".to_owned() } else { all.join(", ") }
        };
        format!(
            "recorded: {} of {requests} turns, {} of {} linked ({})\n\
             verdicts: {} (sources: {}; kinds: {})\n\
             steps that helped: {}; that did not: {}\n",
            self.turns,
            self.linked,
            requests.saturating_sub(episodes),
            shown(&self.links),
            shown(&self.verdicts),
            shown(&self.sources),
            shown(&self.kinds),
            shown(&self.forward),
            shown(&self.idle)
        )
    }
}
