//! `hone turns`: what was recorded, newest first, and one turn in full.
//!
//! Reads the store itself, so that it works with or without a running proxy.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use hone_proxy::admin::turns::WholeTurn;
use hone_shared::store::{Store, TurnFilter};
use hone_shared::turn::TurnId;
use serde_json::json;

use crate::audit::ago;
use crate::cli::{TurnsAction, TurnsArgs, TurnsListArgs, UsageError};
use crate::serve::data_dir;

/// Runs `hone turns`.
pub fn run(args: &TurnsArgs) -> anyhow::Result<()> {
    let data = data_dir(&args.data)?;
    if !data.store_path().exists() {
        return Err(UsageError("nothing was recorded in this data directory".to_owned()).into());
    }
    let store = Store::open_read_only(&data.store_path())?;
    match &args.action {
        TurnsAction::List(list_args) => list(&store, list_args),
        TurnsAction::Show { id, json } => show(&store, id, *json),
    }
}

fn read<T: std::str::FromStr<Err: std::fmt::Display>>(
    flag: &str,
    text: Option<&String>,
) -> Result<Option<T>, UsageError> {
    let parsed = text.map(|text| text.parse()).transpose();
    parsed.map_err(|error: T::Err| UsageError(format!("--{flag}: {error}")))
}

fn list(store: &Store, args: &TurnsListArgs) -> anyhow::Result<()> {
    let filter = TurnFilter {
        route: args.route.clone(),
        tenant: args.tenant.clone(),
        session: args.session.clone(),
        outcome: read("outcome", args.outcome.as_ref())?,
        model: args.model.clone(),
        verdict: read("verdict", args.verdict.as_ref())?,
        since_ms: None,
        until_ms: None,
    };
    let page = store.list_turns(&filter, read("cursor", args.cursor.as_ref())?, args.limit)?;
    let next = page.next.map(|cursor| cursor.to_string());
    if args.json {
        let text = json!({"data": page.turns, "next": next});
        println!("{}", serde_json::to_string_pretty(&text)?);
        return Ok(());
    }
    let mut table = Table::new();
    let header = ["turn", "when", "route", "status", "outcome", "model", "ms", "verdict"];
    table.load_preset(NOTHING).set_header(header);
    for turn in &page.turns {
        table.add_row([
            turn.turn_id.to_string(),
            ago(turn.started_ms),
            turn.route.clone(),
            turn.status.to_string(),
            turn.outcome.to_string(),
            turn.model.clone().unwrap_or_default(),
            turn.duration_ms.map_or_else(String::new, |ms| ms.to_string()),
            turn.verdict.map_or_else(String::new, |verdict| format!("{verdict:+}")),
        ]);
    }
    println!("{table}");
    if let Some(next) = next {
        println!("more: --cursor {next}");
    }
    Ok(())
}

fn show(store: &Store, id: &str, json: bool) -> anyhow::Result<()> {
    let wrong = |problem: String| UsageError(format!("turn {id}: {problem}"));
    let turn_id: TurnId = id.parse().map_err(|error| wrong(format!("{error}")))?;
    let whole = WholeTurn::of(store, turn_id)?.ok_or_else(|| wrong("there is none".to_owned()))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(());
    }
    let WholeTurn { turn, verdict, feedback, .. } = whole;
    let text_of = |message: &serde_json::Value| match &message["content"] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    println!("{}  {}  {}  status {}", turn.turn_id, ago(turn.started_ms), turn.route, turn.status);
    println!("session {}  {}", turn.session_id, turn.outcome);
    for message in &turn.messages {
        println!("{:>10}  {}", message["role"].as_str().unwrap_or_default(), text_of(message));
    }
    for choice in &turn.choices {
        println!("{:>10}  {}", "answer", text_of(&choice.message));
    }
    for said in &feedback {
        let words = said.text.clone().or_else(|| said.message.as_ref().map(text_of));
        let value = said.value.map_or_else(String::new, |value| format!("{value:+.2} "));
        let (kind, weight) = (said.kind.as_str(), said.weight);
        println!("{kind:>10}  {value}{} (weight {weight})", words.unwrap_or_default());
    }
    if let Some(verdict) = verdict {
        println!(
            "{:>10}  {:+} by {}: {}",
            "verdict", verdict.verdict, verdict.source, verdict.reason
        );
    }
    Ok(())
}
