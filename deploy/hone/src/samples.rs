//! `hone samples` and `hone export`: what a route's next round would learn from, to look at or to
//! take along.
//!
//! Both read the store itself and change nothing in the data directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use hone_shared::data_dir::DataDir;
use hone_shared::policy::PolicySet;
use hone_shared::registry::Registry;
use hone_shared::store::Store;
use hone_trainer::export::{self, Exporter};
use hone_trainer::sample::preview::Source;
use hone_trainer::sample::render::Renderer;
use hone_trainer::sample::{Drawn, Fate};
use serde_json::json;

use crate::cli::{DrawArgs, ExportArgs, SamplesArgs, UsageError};
use crate::serve::data_dir;

/// What a batch is drawn with.
struct Desk {
    policies: PolicySet,
    store: Store,
    registry: Registry,
    renderer: Renderer,
    secret: [u8; 32],
}

impl Desk {
    fn open(args: &DrawArgs) -> anyhow::Result<Self> {
        let data = data_dir(&args.data)?;
        if !data.store_path().exists() {
            let none = "nothing was recorded in this data directory";
            return Err(UsageError(none.to_owned()).into());
        }
        let policies = PolicySet::load(&data.policies_dir())?;
        if policies.route(&args.route).is_none() {
            return Err(UsageError(format!("there is no route `{}`", args.route)).into());
        }
        let model = model_dir(&data, &args.model)?;
        Ok(Self {
            policies,
            store: Store::open_read_only(&data.store_path())?,
            registry: Registry::open(data.registry_dir())?,
            renderer: Renderer::from_dir(&model).context("cannot use the model")?,
            secret: data.secret()?,
        })
    }

    fn draw(&self, route: &str) -> anyhow::Result<Drawn> {
        let (store, registry) = (&self.store, &self.registry);
        let source = Source { store, registry, renderer: &self.renderer, secret: &self.secret };
        Ok(source.preview(&self.policies, route)?)
    }
}

/// A model that is here; nothing is fetched.
fn model_dir(data: &DataDir, model: &str) -> Result<PathBuf, UsageError> {
    let here = |dir: &Path| dir.join("config.json").is_file();
    let (known, path) = (data.models_dir().join(model), PathBuf::from(model));
    match (here(&known), here(&path)) {
        (true, _) => Ok(known),
        (false, true) => Ok(path),
        (false, false) => Err(UsageError(format!(
            "model `{model}` is not here: name the one that the engine serves with --model"
        ))),
    }
}

/// Runs `hone samples`.
pub fn show(args: &SamplesArgs) -> anyhow::Result<()> {
    let drawn = Desk::open(&args.from)?.draw(&args.from.route)?;
    let (train, holdout) = (drawn.batch.train.len(), drawn.batch.holdout.len());
    if args.json {
        let text = json!({
            "route": args.from.route,
            "train": train,
            "holdout": holdout,
            "muted": drawn.batch.muted,
            "dropped": drawn.batch.dropped,
            "turns": drawn.fates,
        });
        println!("{}", serde_json::to_string_pretty(&text)?);
        return Ok(());
    }
    let mut table = Table::new();
    let header = ["turn", "session", "verdict", "by", "reward", "hints", "task", "part"];
    table.load_preset(NOTHING).set_header(header);
    drawn.fates.iter().for_each(|fate| {
        table.add_row(row(fate));
    });
    println!("{table}");
    println!(
        "the next round of `{}`: {train} to learn from, {holdout} to test on",
        args.from.route
    );
    let mut dropped: BTreeMap<&str, u64> = BTreeMap::new();
    drawn.batch.dropped.iter().for_each(|(why, n)| *dropped.entry(why).or_default() += n);
    for (why, count) in dropped {
        println!("left out, {why}: {count}");
    }
    if drawn.batch.muted > 0 {
        println!("rewards muted for the balance of signs: {}", drawn.batch.muted);
    }
    Ok(())
}

fn row(fate: &Fate) -> [String; 8] {
    let short: String = fate.session_id.chars().take(12).collect();
    let hints = format!("{}{}", fate.hints, if fate.demonstration { " + answer" } else { "" });
    let part = match (fate.split, fate.dropped) {
        (Some(split), _) => split.as_str().to_owned(),
        (None, Some(why)) => format!("- ({why})"),
        (None, None) => "-".to_owned(),
    };
    [
        fate.turn_id.to_string(),
        short,
        format!("{:+}", fate.verdict),
        fate.source.clone(),
        format!("{:+.2}", fate.reward),
        hints,
        fate.task.clone().unwrap_or_default(),
        part,
    ]
}

/// Runs `hone export`.
pub fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let desk = Desk::open(&args.from)?;
    let batch = desk.draw(&args.from.route)?.batch;
    let route = desk.policies.route(&args.from.route);
    let judge = route.and_then(|route| desk.policies.judge_of(route));
    let hint_label = judge.map_or("", |judge| judge.hint.label.as_str());
    let exporter = Exporter { store: &desk.store, renderer: &desk.renderer, hint_label };
    export::make_dir(&args.out)?;
    for (name, samples) in [("train", &batch.train), ("holdout", &batch.holdout)] {
        let rows = exporter.rows(samples, name)?;
        export::write(&args.out, name, &rows)?;
        println!("{}: {} samples", args.out.join(name).display(), rows.len());
    }
    Ok(())
}
