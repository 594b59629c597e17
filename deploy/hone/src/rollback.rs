//! `hone rollback`: move an alias back, and tell the proxy, so that the very next request is served
//! by it.

use anyhow::Context;
use hone_shared::data_dir::DataDir;
use hone_shared::registry::Registry;
use hone_shared::turn::Generation;
use hone_trainer::publish::ProxyAdmin;
use serde_json::json;

use crate::cli::{RollbackArgs, UsageError};
use crate::serve::{data_dir, runtime};

/// Shortest beginning of a generation that is accepted for the whole.
const PREFIX_CHARS_MIN: usize = 6;

/// Runs `hone rollback`.
pub fn run(args: &RollbackArgs) -> anyhow::Result<()> {
    let data = data_dir(&args.data)?;
    let registry = Registry::open(data.registry_dir())?;
    let before = registry.alias(&args.alias)?;
    let target = target(&registry, args, &before.previous)?;
    let after = registry
        .move_alias(&args.alias, &before.generation, &target, "rollback by the operator")
        .context("the alias was not moved")?;
    let told = runtime()?.block_on(tell_proxy(&data))?;
    if !told {
        eprintln!("note: the proxy was not told; if it runs, it follows within a second");
    }
    if args.json {
        let value = json!({"alias": args.alias, "from": before.generation, "to": after.generation,
            "sequence": after.sequence, "proxy_told": told});
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        println!("{}: {} → {}", args.alias, before.generation.short(), after.generation.short());
    }
    Ok(())
}

fn target(
    registry: &Registry,
    args: &RollbackArgs,
    previous: &[Generation],
) -> anyhow::Result<Generation> {
    match args.to.as_str() {
        "base" => Ok(Generation::base()),
        "previous" => previous.first().cloned().ok_or_else(|| {
            UsageError(format!("alias {} has served nothing else before", args.alias)).into()
        }),
        prefix if prefix.len() < PREFIX_CHARS_MIN => {
            Err(UsageError(format!("{prefix:?} is too short to name a generation")).into())
        }
        prefix => {
            let all = registry.list()?.into_iter().map(|found| found.generation);
            let mut matching: Vec<_> = all.filter(|g| g.as_str().starts_with(prefix)).collect();
            match matching.len() {
                1 => Ok(matching.remove(0)),
                0 => Err(UsageError(format!("no generation begins with {prefix}")).into()),
                n => Err(UsageError(format!("{n} generations begin with {prefix}")).into()),
            }
        }
    }
}

/// Asks the proxy to read the aliases now; returns after the flip. False: the log says why not.
pub async fn tell_proxy(data: &DataDir) -> anyhow::Result<bool> {
    Ok(ProxyAdmin::new(data.clone(), None)?.refresh().await)
}
