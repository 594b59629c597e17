//! `hone bench learning`: how many sessions a scripted user needs until the model answers as the
//! user likes it, for every way of learning, beside no learning and beside remembering the
//! corrections in the prompt.
//!
//! The trainer's own sampler answers, so no engine and no proxy is in between: what is compared is
//! the learning. One life is one method and one seed; each finished life is a line of the results
//! file, and a life that is in the file is not lived again, so that a long comparison can be cut
//! short and taken up. With `METHOD+gate` rounds are as a deployment's, and the gate's verdicts on
//! honest rounds are counted.

mod gated;
mod life;
mod method;
mod report;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::Context;

use crate::cli::BenchLearningArgs;
use crate::model;
use life::{Life, Nursery};

/// Runs `hone bench learning`.
pub fn run(args: &BenchLearningArgs) -> anyhow::Result<()> {
    let methods = method::chosen(&args.methods)?;
    let mut lives = match &args.out {
        Some(path) => read(path)?,
        None => Vec::new(),
    };
    let lived: BTreeSet<(String, u64)> =
        lives.iter().map(|life| (life.method.clone(), life.seed)).collect();
    let dir = model::ensure(&args.data, &args.model)?;
    let mut nursery = Nursery::open(&dir, args.threads, args.sessions)?;
    // Seed by seed, so that a comparison that is cut short still compares.
    for seed in 1..=args.seeds {
        for method in &methods {
            if lived.contains(&(method.name.clone(), seed)) {
                continue;
            }
            tracing::info!(method = %method.name, seed, "a life begins");
            let life = nursery.live(method, seed)?;
            if let Some(path) = &args.out {
                append(path, &life)?;
            }
            lives.push(life);
        }
    }
    let rows = report::rows(&lives);
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&rows)?),
        false => println!("{}", report::table(&rows)),
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<Life>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("cannot read {}", path.display())),
    };
    let lines = text.lines().enumerate();
    lines
        .map(|(at, line)| {
            let place = || format!("{}, line {}: not a life", path.display(), at + 1);
            serde_json::from_str(line).with_context(place)
        })
        .collect()
}

fn append(path: &Path, life: &Life) -> anyhow::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(file, "{}", serde_json::to_string(life)?)?;
    Ok(file.sync_all()?)
}
