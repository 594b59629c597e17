//! `hone policy check`: read a policy directory as the proxy and the trainer will, say everything
//! that is wrong with it, and show what it means.

use hone_shared::policy::{PolicyError, PolicySet};
use serde_json::json;

use crate::cli::{PolicyAction, PolicyArgs, UsageError};
use crate::serve::data_dir;

/// Runs `hone policy`.
pub fn run(args: &PolicyArgs) -> anyhow::Result<()> {
    let PolicyAction::Check { dir, json } = &args.action;
    let dir = match dir {
        Some(dir) => dir.clone(),
        None => data_dir(&args.data)?.policies_dir(),
    };
    let set = match PolicySet::load(&dir) {
        Ok(set) => set,
        Err(error) => {
            let problems = error.each();
            if *json {
                let rows: Vec<_> = problems.iter().map(row).collect();
                let text = json!({"valid": false, "problems": rows});
                println!("{}", serde_json::to_string_pretty(&text)?);
            } else {
                problems.iter().for_each(|problem| eprintln!("{problem}"));
            }
            let (count, dir) = (problems.len(), dir.display());
            let s = if count == 1 { "" } else { "s" };
            return Err(UsageError(format!("{count} problem{s} in {dir}; nothing changed")).into());
        }
    };
    if *json {
        let routes: Vec<_> = set.routes.iter().map(|route| route.name.as_str()).collect();
        let text = json!({"valid": true, "version": set.version, "routes": routes});
        println!("{}", serde_json::to_string_pretty(&text)?);
        return Ok(());
    }
    println!("{}: valid, version {:016x}", dir.display(), set.version);
    for route in &set.routes {
        println!(
            "  route {:<14} mode {:<8} alias {:<10} paths {}",
            route.name,
            route.mode.as_str(),
            route.alias,
            route.matches.paths.join(" ")
        );
    }
    Ok(())
}

fn row(error: &PolicyError) -> serde_json::Value {
    let message = error.to_string();
    match error {
        PolicyError::Syntax { file, line, .. } => {
            json!({"file": file, "line": line, "message": message})
        }
        PolicyError::Invalid { file, line, key, found, allowed } => {
            json!({"file": file, "line": line, "key": key, "found": found, "allowed": allowed,
                "message": message})
        }
        PolicyError::Io { file, .. } => json!({"file": file, "message": message}),
        _ => json!({"message": message}),
    }
}
