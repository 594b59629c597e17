//! `hone bench judging`: the time to a client's first token while a judge asks the same engine in
//! the background, beside that without a judge.
//!
//! One engine serves. A client asks one short question after the other and reads the answer as a
//! stream; the judge asks the built-in rubric's questions with the trainer's own client, and comes
//! back after a second when the engine gave way, as the trainer does. Both take turns with the
//! client alone, and the ratio is the median over the pairs.
//!
//! Invariant: the judge asks during the whole of a "beside" part and never in an "alone" part; how
//! often it was heard is reported, so that a judge that never got through shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use hone_shared::policy::PolicySet;
use hone_trainer::judge::exchange::Exchange;
use hone_trainer::judge::llm::{Answer, LlmClient};
use hone_trainer::judge::prompt;
use serde::Serialize;
use serde_json::{Value, json};

use super::median;
use super::target::{free_port, spawn};
use crate::cli::BenchJudgingArgs;
use crate::demo::client::{assistant, user};
use crate::demo::questions::ASKED;
use crate::model;
use crate::serve::runtime;

const START_MAX: Duration = Duration::from_secs(60);
const ANSWER_TOKENS_MAX: u32 = 16;
const REQUEST_MAX: Duration = Duration::from_secs(120);
/// How long the trainer leaves an engine alone that gave way.
const YIELD: Duration = Duration::from_secs(1);

/// What was measured. Field names are the `--json` contract.
#[derive(Serialize)]
struct Figures {
    /// Milliseconds between a client's requests.
    pause_ms: u64,
    /// Milliseconds to the first token, alone; median over all requests.
    alone_ms: f64,
    /// The same beside the judge.
    beside_judge_ms: f64,
    /// The slowest of each.
    slowest_ms: [f64; 2],
    /// Median, smallest and largest of the pairs' ratios of medians.
    ratio: [f64; 3],
    /// Requests of each kind.
    requests: usize,
    /// Questions that the judge got an answer to, and those that gave way to the client.
    judge: [u64; 2],
}

/// Runs `hone bench judging`.
pub fn run(args: &BenchJudgingArgs) -> anyhow::Result<()> {
    let dir = model::ensure(&args.data, &args.model)?;
    let home = tempfile::tempdir().context("no temporary directory")?;
    let listen = free_port()?.to_string();
    let (data, model_dir) = (home.path().display().to_string(), dir.display().to_string());
    let _engine = spawn(
        &std::env::current_exe()?,
        &["backend", "--data", &data, "--model-dir", &model_dir, "--listen", &listen],
    )?;
    let url = format!("http://{listen}");
    let figures = runtime()?.block_on(measure(args, &url, &model::name_of(&dir)))?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&figures)?),
        false => print(&figures),
    }
    Ok(())
}

async fn measure(args: &BenchJudgingArgs, url: &str, model_id: &str) -> anyhow::Result<Figures> {
    let client = Client {
        http: reqwest::Client::builder().no_proxy().timeout(REQUEST_MAX).build()?,
        url: url.to_owned(),
        model: model_id.to_owned(),
    };
    client.wait().await?;
    client.first_tokens(args).await?;
    let (mut alone, mut beside, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut judge = [0, 0];
    for _ in 0..args.pairs {
        let mut without = client.first_tokens(args).await?;
        let judging = Judging::start(url)?;
        let mut with = client.first_tokens(args).await?;
        let [heard, gave_way] = judging.stop().await?;
        judge = [judge[0] + heard, judge[1] + gave_way];
        ratios.push(median(&mut with) / median(&mut without));
        alone.extend(without);
        beside.extend(with);
    }
    let ratio = median(&mut ratios);
    let (least, most) = ratios.first().zip(ratios.last()).context("--pairs: at least 1")?;
    let slowest = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
    Ok(Figures {
        pause_ms: args.pause_ms,
        slowest_ms: [slowest(&alone), slowest(&beside)],
        requests: alone.len(),
        alone_ms: median(&mut alone),
        beside_judge_ms: median(&mut beside),
        ratio: [ratio, *least, *most],
        judge,
    })
}

/// The client of the engine.
struct Client {
    http: reqwest::Client,
    url: String,
    model: String,
}

impl Client {
    async fn wait(&self) -> anyhow::Result<()> {
        let (started, models) = (Instant::now(), format!("{}/v1/models", self.url));
        loop {
            let answer = self.http.get(&models).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            anyhow::ensure!(started.elapsed() < START_MAX, "the engine does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Milliseconds to the first token of each request, with a pause before each.
    async fn first_tokens(&self, args: &BenchJudgingArgs) -> anyhow::Result<Vec<f64>> {
        let mut found = Vec::new();
        for (seed, question) in ASKED.iter().cycle().take(args.requests as usize).enumerate() {
            tokio::time::sleep(Duration::from_millis(args.pause_ms)).await;
            found.push(self.first_token(question, seed).await?);
        }
        Ok(found)
    }

    async fn first_token(&self, question: &str, seed: usize) -> anyhow::Result<f64> {
        let body = json!({"model": self.model, "messages": [user(question)], "seed": seed,
            "stream": true, "temperature": 0.7, "max_tokens": ANSWER_TOKENS_MAX});
        let started = Instant::now();
        let url = format!("{}/v1/chat/completions", self.url);
        let mut response = self.http.post(&url).json(&body).send().await?.error_for_status()?;
        let (mut text, mut first) = (String::new(), None);
        while let Some(chunk) = response.chunk().await? {
            text.push_str(&String::from_utf8_lossy(&chunk));
            if first.is_none() && has_content(&text) {
                first = Some(started.elapsed().as_secs_f64() * 1e3);
            }
        }
        first.with_context(|| format!("an answer without text: {text}"))
    }
}

/// Whether an event of the stream has text of the answer.
fn has_content(events: &str) -> bool {
    let events = events.lines().filter_map(|line| line.strip_prefix("data: "));
    let mut parsed = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    parsed.any(|event| {
        event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty())
    })
}

/// A judge that asks until it is stopped.
struct Judging {
    stop: Arc<AtomicBool>,
    heard: Arc<[AtomicU64; 2]>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Judging {
    fn start(url: &str) -> anyhow::Result<Self> {
        let client = LlmClient::new(url)?;
        let set = PolicySet::builtin()?;
        let policy = set.judges.get("chat").context("no judge of chats")?.llm.clone();
        let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::<[AtomicU64; 2]>::default());
        let (asked, counts) = (stop.clone(), heard.clone());
        let task = tokio::spawn(async move {
            let mut at = 0;
            while !asked.load(Ordering::Relaxed) {
                let messages = prompt::messages(&policy, &exchange(at));
                let model = client.model(&policy).await.map_err(anyhow::Error::msg)?;
                let question = client.question(&policy, &model, &messages);
                match client.ask(&policy, &question).await.answer {
                    Answer::Votes { .. } => counts[0].fetch_add(1, Ordering::Relaxed),
                    Answer::Yielded => {
                        tokio::time::sleep(YIELD).await;
                        counts[1].fetch_add(1, Ordering::Relaxed)
                    }
                    Answer::Down(why) | Answer::Refused(why) => anyhow::bail!("the judge: {why}"),
                };
                at += 1;
            }
            Ok(())
        });
        Ok(Self { stop, heard, task })
    }

    /// Questions that were answered, and those that gave way.
    async fn stop(self) -> anyhow::Result<[u64; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        // What it asks now is of no interest, and would run into the next part.
        self.task.abort();
        match self.task.await {
            Ok(ended) => ended?,
            Err(error) if error.is_cancelled() => {}
            Err(error) => return Err(error.into()),
        }
        Ok([0, 1].map(|at| self.heard[at].load(Ordering::Relaxed)))
    }
}

/// A conversation that no rule judges.
fn exchange(at: usize) -> Exchange {
    let [question, next] = [at, at + 1].map(|at| ASKED[at % ASKED.len()]);
    let answer = "That depends on where you look, and on what you compare it with. ".repeat(8);
    Exchange {
        messages: vec![user(question)],
        answer: assistant(&answer),
        finish_reason: Some("stop".to_owned()),
        next_state: vec![user(next)],
    }
}

fn print(figures: &Figures) {
    let [middle, least, most] = figures.ratio;
    let [slow_alone, slow_beside] = figures.slowest_ms;
    println!(
        "a client every {} ms; to its first token, alone: {:.0} ms (slowest {slow_alone:.0})\n\
         beside a judge: {:.0} ms (slowest {slow_beside:.0}), ratio {middle:.2} \
         ({least:.2}–{most:.2}), {} requests each\n\
         the judge: {} answers, {} times it gave way",
        figures.pause_ms,
        figures.alone_ms,
        figures.beside_judge_ms,
        figures.requests,
        figures.judge[0],
        figures.judge[1],
    );
}
