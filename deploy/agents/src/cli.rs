//! What the four examples share: flags, the run, the outcome of each episode, the summary.
//!
//! Invariant: progress goes to standard error, the summary to standard output.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use hone_shared::data_dir::DataDir;

use crate::client::{Client, ClientError};
use crate::environment::{Environment, EnvironmentError};
use crate::episode::{Budget, Episode, Rules, play};
use crate::policy::Policy;
use crate::report::{Admin, Recorded, ReportError};
use crate::summary::{Outcomes, Summary};

/// An agent that works through the proxy.
#[derive(Debug, Clone, Parser)]
#[command(max_term_width = 100)]
pub struct Options {
    /// The proxy, with `/v1`.
    #[arg(long, default_value = "http://127.0.0.1:8080/v1")]
    pub base_url: String,
    /// The model [default: the first that is served].
    #[arg(long)]
    pub model: Option<String>,
    /// Environment variable with the API key; the key names the tenant.
    #[arg(long, default_value = "OPENAI_API_KEY")]
    pub api_key_env: String,
    /// Episodes.
    #[arg(long, default_value_t = 5)]
    pub episodes: u64,
    /// Seed of the tasks and of the sampling.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Who acts.
    #[arg(long, value_enum, default_value_t)]
    pub policy: Policy,
    /// Force no form upon the engine; read its answers leniently.
    #[arg(long)]
    pub free: bool,
    /// Sampling temperature.
    #[arg(long, default_value_t = 0.5)]
    pub temperature: f64,
    /// Steps of an episode [default: the environment's].
    #[arg(long)]
    pub steps_max: Option<usize>,
    /// Tokens of one answer.
    #[arg(long, default_value_t = 64)]
    pub answer_tokens_max: u64,
    /// Tokens of all answers of an episode.
    #[arg(long, default_value_t = 512)]
    pub episode_tokens_max: u64,
    /// Seconds of an episode.
    #[arg(long, default_value_t = 120)]
    pub episode_seconds_max: u64,
    /// Seconds of the whole run; no episode begins after it.
    #[arg(long, default_value_t = 3600)]
    pub seconds_max: u64,
    /// Observations carry a screenshot (gui; needs a model that sees).
    #[arg(long)]
    pub screenshots: bool,
    /// Data directory of the proxy, to show verdicts [default: the one of `hone up`].
    #[arg(long, env = "HONE_DATA")]
    pub data: Option<PathBuf>,
    /// Seconds to wait for verdicts after the last episode.
    #[arg(long, default_value_t = 20)]
    pub judge_seconds_max: u64,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[allow(missing_docs)] // Each variant is the error of one part, as it says itself.
pub enum RunError {
    Client(#[from] ClientError),
    Environment(#[from] EnvironmentError),
}

/// `main` of an example.
pub async fn main<F, E>(make: impl FnOnce(Options) -> F) -> ExitCode
where
    F: Future<Output = Result<E, EnvironmentError>>,
    E: Environment,
{
    let options = Options::parse();
    let ran = async {
        let mut environment = make(options.clone()).await?;
        run(&options, &mut environment).await
    };
    match ran.await {
        Err::<Summary, RunError>(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Ok(summary) => {
            match serde_json::to_string_pretty(&summary) {
                Ok(text) if options.json => println!("{text}"),
                _ => print!("{}", summary.lines()),
            }
            if summary.ended == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
    }
}

/// Plays all episodes, posts their outcomes, and asks what was recorded.
///
/// # Errors
/// The deployment does not answer at all. An episode that fails is part of the summary.
pub async fn run(
    options: &Options,
    environment: &mut dyn Environment,
) -> Result<Summary, RunError> {
    let api_key = std::env::var(&options.api_key_env).unwrap_or_else(|_| "hone-agents".to_owned());
    let client = Client::connect(&options.base_url, &api_key, options.model.clone()).await?;
    let policy = options.policy.to_possible_value();
    let policy = policy.map_or_else(String::new, |value| value.get_name().to_owned());
    let rules = rules(options, environment);
    let since_ms = now_ms();
    let mut episodes = Vec::new();
    let mut outcomes = Outcomes::default();
    for number in 0..options.episodes {
        if now_ms() - since_ms >= i64::try_from(options.seconds_max * 1000).unwrap_or(i64::MAX) {
            break;
        }
        eprintln!("{} {number}", environment.kind());
        let told = &mut |line: &str| eprintln!("{line}");
        let mut episode = play(&client, &rules, environment, number, told).await;
        let error = episode.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
        eprintln!("  {:?}{error}", episode.end);
        post(&client, &mut episode, &mut outcomes).await;
        episodes.push(episode);
    }
    let recorded = match recorded(options, &rules.run, since_ms, &episodes).await {
        Ok(recorded) => Some(recorded),
        Err(error) => {
            eprintln!("verdicts are not shown: {error}");
            None
        }
    };
    let kind = environment.kind();
    let mut summary = Summary::of(kind, &policy, &client.model, options.seed, episodes);
    (summary.outcomes, summary.recorded) = (outcomes, recorded);
    Ok(summary)
}

fn rules(options: &Options, environment: &dyn Environment) -> Rules {
    Rules {
        policy: options.policy,
        free: options.free,
        temperature: options.temperature,
        seed: options.seed,
        run: format!("agents-{}-{}", environment.kind(), uuid::Uuid::new_v4().simple()),
        budget: Budget {
            steps_max: options.steps_max.unwrap_or_else(|| environment.steps_max()),
            answer_tokens_max: options.answer_tokens_max,
            tokens_max: options.episode_tokens_max,
            time_max: Duration::from_secs(options.episode_seconds_max),
        },
    }
}

/// Posts the outcome. A proxy without a feedback API is said so once.
async fn post(client: &Client, episode: &mut Episode, outcomes: &mut Outcomes) {
    let Some(solved) = episode.outcome() else { return };
    let answer = client.outcome(&episode.response_id, solved, &episode.session).await;
    episode.outcome_taken = Some(answer.is_ok());
    match answer {
        Ok(_) => outcomes.taken += 1,
        Err(error) => {
            let absent = matches!(error, ClientError::Refused { status: 404 | 405, .. });
            let why = if absent {
                "this proxy has no feedback API: outcomes are not recorded".to_owned()
            } else {
                error.to_string()
            };
            if outcomes.reason.as_ref() != Some(&why) {
                eprintln!("  {why}");
            }
            outcomes.refused += 1;
            outcomes.reason = Some(why);
        }
    }
}

async fn recorded(
    options: &Options,
    run: &str,
    since_ms: i64,
    episodes: &[Episode],
) -> Result<Recorded, ReportError> {
    let home = || {
        let xdg = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
        xdg.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")))
    };
    let data = options.data.clone().or_else(|| Some(home()?.join("hone"))).unwrap_or_default();
    let admin = Admin::of(&DataDir::new(&data))?;
    let patience = Duration::from_secs(options.judge_seconds_max);
    admin.recorded(run, since_ms, episodes, patience).await
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
