//! `hone judge`: how well a judge agrees with labels, and what a changed one would say of the past.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use hone_shared::policy::{AUTO, PolicySet, RoutePolicy};
use hone_shared::store::Store;
use hone_trainer::judge::eval::{self, Agreement, EvalError, Model, Report};
use hone_trainer::judge::replay;
use std::sync::Arc;

use crate::cli::{DataArgs, JudgeAction, JudgeArgs, JudgeEvalArgs, JudgeReplayArgs, UsageError};
use crate::serve::{data_dir, runtime};

/// Runs `hone judge`.
pub fn run(args: &JudgeArgs) -> anyhow::Result<()> {
    match &args.action {
        JudgeAction::Eval(eval_args) => evaluate(&args.data, eval_args),
        JudgeAction::Replay(replay_args) => again(&args.data, replay_args),
    }
}

/// The policies of a directory, of the data directory, or the built-in ones where there are none.
fn policies(data: &DataArgs, dir: Option<&std::path::PathBuf>) -> anyhow::Result<PolicySet> {
    if let Some(dir) = dir {
        return Ok(PolicySet::load(dir)?);
    }
    let dir = data_dir(data)?.policies_dir();
    Ok(if dir.exists() { PolicySet::load(&dir)? } else { PolicySet::builtin()? })
}

/// A route that is judged by `judge`; the first of the set where none is named.
fn route(set: &PolicySet, judge: &str) -> anyhow::Result<RoutePolicy> {
    if judge != AUTO && !set.judges.contains_key(judge) {
        let known: Vec<&str> = set.judges.keys().map(String::as_str).collect();
        let known = known.join(", ");
        return Err(UsageError(format!("no judge `{judge}`; there are auto, {known}")).into());
    }
    let first = set.routes.first().ok_or_else(|| UsageError("no route".to_owned()))?;
    Ok(RoutePolicy { judge: judge.to_owned(), ..RoutePolicy::clone(first) })
}

fn evaluate(data: &DataArgs, args: &JudgeEvalArgs) -> anyhow::Result<()> {
    let cases = eval::read(&args.file).map_err(|error| match error {
        EvalError::File { .. } | EvalError::Line { .. } => UsageError(error.to_string()).into(),
        other => anyhow::Error::from(other),
    })?;
    let cases = match args.sample {
        Some(count) => eval::sample(cases, usize::try_from(count)?, args.seed),
        None => cases,
    };
    let set = policies(data, args.policies.as_ref())?;
    let route = route(&set, &args.judge)?;
    let model = args.llm.then(|| eval::LlmModel::new(&args.engine)).transpose()?;
    let model = model.as_ref().map(|model| model as &dyn Model);
    let judged = runtime()?.block_on(eval::judge(&cases, &set, &route, model, !args.no_rules))?;
    let report = Report::of(&judged);
    if args.json {
        let text = serde_json::json!({"report": report, "cases": judged});
        println!("{}", serde_json::to_string_pretty(&text)?);
    } else {
        show(&report);
        if args.wrong {
            for one in judged.iter().filter(|one| one.verdict.is_some_and(|v| v != one.label)) {
                let said = one.verdict.unwrap_or(0);
                println!("{:<24} is {:+}, judged {said:+} by {}", one.id, one.label, one.source);
            }
        }
    }
    let below = |what: &str, found: f64, wanted: Option<f64>| match wanted {
        Some(wanted) if found < wanted => {
            Err(anyhow::anyhow!("{what} {found:.3} is below {wanted}"))
        }
        _ => Ok(()),
    };
    below("precision", report.all.precision.unwrap_or(0.0), args.precision_min)?;
    below("coverage", report.all.coverage, args.coverage_min)
}

fn show(report: &Report) {
    let mut table = Table::new();
    let header = [
        "kind",
        "n",
        "coverage",
        "precision",
        "accuracy",
        "kappa",
        "detected",
        "flips",
        "tokens",
        "p50 us",
        "p99 us",
    ];
    table.load_preset(NOTHING).set_header(header);
    let kinds = report.kinds.iter().map(|(kind, found)| (kind.as_str(), found));
    for (kind, found) in kinds.chain([("all", &report.all)]) {
        table.add_row(row(kind, found));
    }
    println!("{table}");
    println!("\nlabel \\ verdict    -1     0    +1");
    for (label, row) in ["-1", "0", "+1"].iter().zip(report.all.confusion) {
        println!("{label:>15} {:>5} {:>5} {:>5}", row[0], row[1], row[2]);
    }
    println!();
    for (source, (spoke, right)) in &report.sources {
        println!("{source:<24} {right} of {spoke} right");
    }
}

fn row(kind: &str, found: &Agreement) -> Vec<String> {
    let optional = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |s| format!("{s:.3}"));
    vec![
        kind.to_owned(),
        found.n.to_string(),
        format!("{:.3}", found.coverage),
        optional(found.precision),
        format!("{:.3}", found.accuracy),
        optional(found.kappa),
        format!("{:.2}", found.kind_detected),
        match found.attacks {
            0 => "-".to_owned(),
            attacks => format!("{}/{attacks}", found.flips),
        },
        found.tokens.to_string(),
        found.took_us_p50.to_string(),
        found.took_us_p99.to_string(),
    ]
}

fn again(data: &DataArgs, args: &JudgeReplayArgs) -> anyhow::Result<()> {
    let path = data_dir(data)?.store_path();
    if !path.exists() {
        return Err(UsageError("nothing was recorded in this data directory".to_owned()).into());
    }
    let store = Store::open_read_only(&path)?;
    let mut set = policies(data, args.policies.as_ref())?;
    if let Some(judge) = &args.judge {
        route(&set, judge)?;
        for route in &mut set.routes {
            *route = Arc::new(RoutePolicy { judge: judge.clone(), ..RoutePolicy::clone(route) });
        }
    }
    let model = args.llm.then(|| eval::LlmModel::new(&args.engine)).transpose()?;
    let model = model.as_ref().map(|model| model as &dyn Model);
    let asked = replay::replay(&store, &set, args.route.as_deref(), args.limit, model);
    let found = runtime()?.block_on(asked)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    println!("{} turns judged again, {} skipped", found.turns, found.skipped);
    println!("\nstands \\ now       -1     0    +1");
    for (label, row) in ["-1", "0", "+1"].iter().zip(found.changes) {
        println!("{label:>15} {:>5} {:>5} {:>5}", row[0], row[1], row[2]);
    }
    for one in &found.differing {
        let now = one.now.map_or_else(|| "silent".to_owned(), |now| format!("{now:+}"));
        println!(
            "{}  {:+} by {} → {now} by {}  {}",
            one.turn, one.stands, one.stands_by, one.now_by, one.reason
        );
    }
    Ok(())
}
