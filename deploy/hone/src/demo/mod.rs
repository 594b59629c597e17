//! `hone demo`: a scripted user corrects a model in words; the model learns; held-out questions
//! prove it.
//!
//! The story runs on the real system: this file only talks to the proxy as any client would,
//! watches which generation the alias names, and counts. Nothing here trains, and the held-out
//! questions are never corrected.

pub mod client;
mod measure;
pub mod questions;
mod report;
pub mod user;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use hone_shared::data_dir::{DataDir, RunFile};
use hone_shared::registry::Registry;
use hone_shared::store::Store;
use hone_shared::turn::Generation;

use crate::cli::{DemoArgs, UpArgs};
use crate::serve::{data_dir, runtime};
use crate::up::System;
use client::{Client, Reply, assistant, user as says};
use measure::{Measure, ask_all};
use report::{AfterRollback, Base, Report, Served};

/// The alias that the built-in chat route serves.
const ALIAS: &str = "chat";
/// Corrections after which the user waits for the model to learn.
const CORRECTIONS_PER_WAVE: usize = 6;
/// Generations that the demo asks for at most.
const GENERATIONS_MAX: usize = 3;
/// Times that each held-out question is asked, with different seeds.
const TIMES_HELD_OUT: u64 = 1;
/// Conversations that the user holds at the same time.
const CONCURRENCY: usize = 3;

/// Runs `hone demo` on the running system, or on one that it starts and stops.
pub fn run(args: DemoArgs) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let running = running_system(&data_dir(&args.data)?).await;
        let report = match running {
            Some((data, base_url)) => {
                say(&format!("using the system that runs at {base_url}"));
                Story::new(&args, data, &base_url)?.tell().await?
            }
            None => on_a_fresh_system(&args).await?,
        };
        if args.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            report.print();
        }
        anyhow::ensure!(
            !report.generations.is_empty(),
            "no generation was promoted: nothing learned"
        );
        Ok(())
    })
}

/// Starts a system in a directory of its own, so that the demo neither needs nor touches what a
/// real one learned.
async fn on_a_fresh_system(args: &DemoArgs) -> anyhow::Result<Report> {
    let model_dir = crate::model::ensure(&args.data, &args.model)?;
    let home = fresh_directory(data_dir(&args.data)?.path())?;
    say(&format!("starting engine, proxy and trainer in {}", home.display()));
    let up = UpArgs {
        data: crate::cli::DataArgs { data: Some(home.clone()) },
        model: args.model.clone(),
        listen: ([127, 0, 0, 1], 0).into(),
        admin: ([127, 0, 0, 1], 0).into(),
        engine: None,
        grace_ms: 10_000,
    };
    let system = System::start(&up, model_dir).await?;
    let told = tokio::select! {
        told = async { Story::new(args, DataDir::new(&home), &system.base_url)?.tell().await } => told,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let stopped = system.stop(Duration::from_secs(10)).await;
    let report = told?;
    stopped?;
    Ok(report)
}

/// `<data>/demo`, emptied if an earlier demo left it.
fn fresh_directory(data: &Path) -> anyhow::Result<PathBuf> {
    let home = data.join("demo");
    if home.exists() {
        let ours = home.join("store.sqlite").exists() || home.join("run").exists();
        anyhow::ensure!(ours, "{} is not an earlier demo: move it away", home.display());
        std::fs::remove_dir_all(&home)
            .with_context(|| format!("cannot empty {}", home.display()))?;
    }
    DataDir::new(&home).create()?;
    Ok(home)
}

/// The data directory and base URL of a system that answers now.
async fn running_system(data: &DataDir) -> Option<(DataDir, String)> {
    let run = RunFile::read(data, "proxy").ok().flatten()?;
    let base_url = format!("http://{}", run.address);
    let models = reqwest::Client::new()
        .get(format!("{base_url}/v1/models"))
        .timeout(Duration::from_secs(2))
        .send()
        .await
        .ok()?;
    models.status().is_success().then(|| (data.clone(), base_url))
}

fn say(line: &str) {
    eprintln!("demo: {line}");
}

/// The demo in progress.
struct Story<'a> {
    args: &'a DemoArgs,
    data: DataDir,
    client: Client,
    registry: Registry,
    corrections: usize,
    /// Questions asked so far, from the start of [`questions::ASKED`].
    asked: usize,
    /// First answers to the corrected questions of the first wave.
    first_wave: Vec<(&'static str, Reply)>,
}

impl<'a> Story<'a> {
    fn new(args: &'a DemoArgs, data: DataDir, base_url: &str) -> anyhow::Result<Story<'a>> {
        let registry = Registry::open(data.registry_dir())?;
        let client = Client::new(base_url, &args.model_name())?;
        Ok(Story { args, data, client, registry, corrections: 0, asked: 0, first_wave: Vec::new() })
    }

    async fn tell(mut self) -> anyhow::Result<Report> {
        let serving = self.registry.alias(ALIAS)?.generation;
        anyhow::ensure!(
            serving.is_base(),
            "alias {ALIAS} already serves {}: run `hone rollback --to base` first",
            serving.short()
        );
        say("asking held-out questions of the base model");
        let before = ask_all(&self.client, &questions::HELD_OUT, TIMES_HELD_OUT).await?;
        let mut generations = Vec::new();
        let mut after = before.clone();
        while generations.len() < GENERATIONS_MAX && self.corrections < self.args.corrections_max {
            let incumbent = self.registry.alias(ALIAS)?.generation;
            let corrected_now = self.correct_some().await?;
            if corrected_now < hone_trainer::sample::split::SPLIT_MIN {
                say("too few answers needed a correction for another round: the user is content");
                break;
            }
            let corrected = Instant::now();
            let Some(generation) = self.next_generation(&incumbent).await? else { continue };
            let seconds_to_served = corrected.elapsed().as_secs_f64();
            say(&format!("serving {} after {seconds_to_served:.0} s", generation.short()));
            after = ask_all(&self.client, &questions::HELD_OUT, TIMES_HELD_OUT).await?;
            generations.push(Served {
                generation: generation.as_str().into(),
                corrections: self.corrections,
                seconds_to_served,
                held_out: Measure::of(&after),
                trained_on: self.measure_trained_on().await?,
            });
        }
        self.close(before, after, generations).await
    }

    /// The user asks on until enough answers were corrected; returns how many were.
    async fn correct_some(&mut self) -> anyhow::Result<usize> {
        let left = self.args.corrections_max - self.corrections;
        let wanted = left.min(CORRECTIONS_PER_WAVE);
        let first_wave = self.asked == 0;
        let mut done = 0;
        while done < wanted && self.asked < questions::ASKED.len() {
            let count = CONCURRENCY.min(wanted - done).min(questions::ASKED.len() - self.asked);
            let turns = self.asked..self.asked + count;
            self.asked += count;
            let talks = turns.map(|turn| talk(&self.client, turn));
            let talked: Vec<_> = futures::stream::iter(talks).buffered(CONCURRENCY).collect().await;
            for talk in talked {
                let (question, first, corrected) = talk?;
                done += usize::from(corrected);
                if first_wave {
                    self.first_wave.push((question, first));
                }
            }
        }
        self.corrections += done;
        say(&format!("the user corrected {done} answers ({} so far)", self.corrections));
        Ok(done)
    }

    /// Waits until the alias names another generation; `None` when the gate refused the round.
    async fn next_generation(&self, incumbent: &Generation) -> anyhow::Result<Option<Generation>> {
        let started = Instant::now();
        let limit = Duration::from_secs(self.args.round_seconds_max);
        let store = Store::open_read_only(&self.data.store_path())?;
        let rounds_before = store.counts()?.rounds_finished();
        say("the trainer judges, trains and tests …");
        while started.elapsed() < limit {
            let serving = self.registry.alias(ALIAS)?.generation;
            if serving != *incumbent {
                return Ok(Some(serving));
            }
            if store.counts()?.rounds_finished() > rounds_before {
                let why = store.last_round("chat")?.map(|round| round.reason).unwrap_or_default();
                say(&format!("the round ended without a promotion: {why}"));
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("no round ended within {limit:?}: see `hone status` and the trainer's log")
    }

    async fn measure_trained_on(&self) -> anyhow::Result<Measure> {
        let questions: Vec<&str> = self.first_wave.iter().map(|(question, _)| *question).collect();
        Ok(Measure::of(&ask_all(&self.client, &questions, 1).await?))
    }

    /// Rolls back to base, measures that the effect is gone, and puts the last generation back.
    async fn close(
        self,
        before: Vec<Reply>,
        after: Vec<Reply>,
        generations: Vec<Served>,
    ) -> anyhow::Result<Report> {
        let last = self.registry.alias(ALIAS)?.generation;
        say("rolling back to base, to see the effect vanish");
        self.move_alias(&last, &Generation::base(), "demo: rollback").await?;
        let again = ask_all(&self.client, &questions::HELD_OUT, TIMES_HELD_OUT).await?;
        self.move_alias(&Generation::base(), &last, "demo: forward again").await?;
        let strayed = again.iter().filter(|reply| reply.generation != "base").count();
        anyhow::ensure!(strayed == 0, "{strayed} replies after the rollback were not base's");
        let firsts: Vec<Reply> = self.first_wave.iter().map(|(_, reply)| reply.clone()).collect();
        let pairs = typical_pairs(&before, &after);
        Ok(Report {
            base: Base { held_out: Measure::of(&before), trained_on: Measure::of(&firsts) },
            generations,
            after_rollback: AfterRollback { held_out: Measure::of(&again) },
            requests: self.client.requests(),
            pairs,
        })
    }

    async fn move_alias(
        &self,
        from: &Generation,
        to: &Generation,
        why: &str,
    ) -> anyhow::Result<()> {
        if from != to {
            self.registry.move_alias(ALIAS, from, to, why)?;
            let told = crate::rollback::tell_proxy(&self.data).await?;
            anyhow::ensure!(told, "the proxy could not be told that {ALIAS} moved");
        }
        Ok(())
    }
}

/// The two held-out questions whose answers have the middle lengths after learning: neither the
/// best nor the worst.
fn typical_pairs(before: &[Reply], after: &[Reply]) -> Vec<(String, Reply, Reply)> {
    let mut all: Vec<_> = questions::HELD_OUT.iter().zip(before.iter().zip(after)).collect();
    all.sort_by_key(|(_, (_, new))| new.tokens);
    let middle = all.len().saturating_sub(2) / 2;
    let pairs = all.into_iter().skip(middle).take(2);
    pairs.map(|(asked, (old, new))| (asked.to_string(), old.clone(), new.clone())).collect()
}

/// One conversation: a question, and a correction if the answer breaks the user's rule.
async fn talk(client: &Client, turn: usize) -> anyhow::Result<(&'static str, Reply, bool)> {
    let question = questions::ASKED[turn];
    let first = client.chat(&[says(question)], turn as u64).await?;
    if user::is_content(&first) {
        return Ok((question, first, false));
    }
    let conversation =
        [says(question), assistant(&first.text), says(&user::correction(turn, &first))];
    client.chat(&conversation, turn as u64).await?;
    Ok((question, first, true))
}

impl DemoArgs {
    /// The name under which the engine serves the model.
    fn model_name(&self) -> String {
        crate::model::name_of(Path::new(&self.model))
    }
}
