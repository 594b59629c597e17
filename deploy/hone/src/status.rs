//! `hone status`: what each stage has done, what each route serves, the last round, and how far
//! behind anything is.
//!
//! It reads the store, the registry and the proxy's status page, so that it works while parts are
//! down, and says so.

use std::time::Duration;

use hone_shared::clock::now_ms;
use hone_shared::data_dir::{DataDir, RunFile};
use hone_shared::policy::{Overrides, PolicySet};
use hone_shared::registry::Registry;
use hone_shared::store::{Counts, Store};
use serde_json::{Value, json};

use crate::cli::StatusArgs;
use crate::os;
use crate::serve::{data_dir, runtime};

/// Runs `hone status`.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let data = data_dir(&args.data)?;
    let status = collect(&data)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
    }
    Ok(())
}

fn collect(data: &DataDir) -> anyhow::Result<Value> {
    let store = data.store_path().exists().then(|| Store::open_read_only(&data.store_path()));
    let store = store.transpose()?;
    let counts = store.as_ref().map(Store::counts).transpose()?;
    Ok(json!({
        "data": data.path(),
        "processes": processes(data)?,
        "proxy": runtime()?.block_on(proxy_status(data)),
        "stages": counts.as_ref().map(serde_json::to_value).transpose()?,
        "pending": counts.as_ref().map(pending),
        "routes": routes(data, store.as_ref())?,
    }))
}

/// Work that waits: turns that have a next state but no verdict, and samples that no round has
/// used.
fn pending(counts: &Counts) -> Value {
    json!({"to_judge": counts.to_judge, "to_train": counts.trainable})
}

fn processes(data: &DataDir) -> anyhow::Result<Value> {
    let mut all = serde_json::Map::new();
    for name in ["backend", "proxy", "trainer"] {
        let run = RunFile::read(data, name)?;
        let alive = run.as_ref().is_some_and(|run| os::is_alive(run.pid));
        let row = json!({"alive": alive, "pid": run.as_ref().map(|r| r.pid),
            "address": run.as_ref().map(|r| r.address.clone())});
        all.insert(name.into(), row);
    }
    Ok(Value::Object(all))
}

async fn proxy_status(data: &DataDir) -> Value {
    let ask = async {
        let admin = RunFile::read(data, "proxy").ok()??.admin_address?;
        let reply = reqwest::Client::new()
            .get(format!("http://{admin}/v1/status"))
            .bearer_auth(data.admin_token().ok()?)
            .timeout(Duration::from_secs(2))
            .send()
            .await
            .ok()?;
        reply.json::<Value>().await.ok()
    };
    ask.await.unwrap_or(Value::Null)
}

fn routes(data: &DataDir, store: Option<&Store>) -> anyhow::Result<Value> {
    let registry = Registry::open(data.registry_dir())?;
    let overrides = match Overrides::read(&data.overrides_path()) {
        Ok(overrides) => overrides,
        Err(error) => return Ok(json!({"error": error.to_string()})),
    };
    let policies = match PolicySet::load(&data.policies_dir()) {
        Ok(set) => set.with_overrides(&overrides, now_ms()),
        Err(error) => return Ok(json!({"error": error.to_string()})),
    };
    let mut rows = Vec::new();
    for route in &policies.routes {
        let alias = registry.alias(&route.alias)?;
        let round = store.map(|store| store.last_round(&route.name)).transpose()?.flatten();
        let held = policies.overridden.get(&route.name);
        rows.push(json!({"route": route.name, "mode": route.mode, "alias": route.alias,
            "file_mode": held.map_or(route.mode, |over| over.file_mode),
            "override": held.map(|over| &over.by),
            "generation": alias.generation, "moved_ms": alias.moved_ms, "reason": alias.reason,
            "last_round": round.map(serde_json::to_value).transpose()?}));
    }
    Ok(Value::Array(rows))
}

fn print(status: &Value) {
    println!("data       {}", text(&status["data"]));
    for (name, process) in status["processes"].as_object().into_iter().flatten() {
        let state = if process["alive"] == true { "running" } else { "not running" };
        println!("{name:<10} {state}  {}", text(&process["address"]));
    }
    match &status["stages"] {
        Value::Null => println!("stages     nothing stored yet"),
        stages => print_object("stages", stages),
    }
    print_object("pending", &status["pending"]);
    let proxy = &status["proxy"];
    print_object("this proxy", &proxy["counters"]);
    if !proxy.is_null() {
        let (lag, spool) = (text(&proxy["ingest_lag_ms"]), text(&proxy["spool_bytes"]));
        println!("lag        store {lag} ms behind the traffic  spool {spool} bytes");
    }
    for reason in proxy["reasons"].as_array().into_iter().flatten() {
        println!("attention  {}: {}", text(&reason["code"]), text(&reason["detail"]));
    }
    for route in status["routes"].as_array().into_iter().flatten() {
        print_route(route);
    }
    if let Some(error) = status["routes"]["error"].as_str() {
        println!("policies   {error}");
    }
}

fn print_route(route: &Value) {
    let generation = route["generation"].as_str().unwrap_or("base");
    let served = if route["mode"] == "learn" { generation } else { "base" };
    println!(
        "route      {:<12} {:<8} serves {}",
        text(&route["route"]),
        text(&route["mode"]),
        &served[..served.len().min(12)]
    );
    let held = &route["override"];
    if !held.is_null() {
        let (file, who) = (text(&route["file_mode"]), text(&held["who"]));
        println!("           set by {who}, file: {file}  {}", text(&held["reason"]));
    }
    let round = &route["last_round"];
    if !round.is_null() {
        println!("           last round: {} {}", text(&round["state"]), text(&round["reason"]));
    }
}

/// One line of `key value` pairs; nested objects become `key.inner value`.
fn print_object(title: &str, object: &Value) {
    let mut parts = Vec::new();
    flatten("", object, &mut parts);
    if !parts.is_empty() {
        println!("{title:<10} {}", parts.join("  "));
    }
}

fn flatten(prefix: &str, value: &Value, parts: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&name, inner, parts);
            }
        }
        Value::Null | Value::Array(_) => {}
        other => parts.push(format!("{prefix} {}", text(other))),
    }
}

/// A value without quotes; nothing for null.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
