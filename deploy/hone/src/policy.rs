//! `hone policy`: validate a policy directory as the proxy and the trainer will, and show what it
//! means.

use anyhow::Context;
use hone_shared::policy::PolicySet;

use crate::cli::PolicyArgs;
use crate::serve::data_dir;

/// Runs `hone policy [DIR]`.
pub fn run(args: &PolicyArgs) -> anyhow::Result<()> {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => data_dir(&args.data)?.policies_dir(),
    };
    let set = PolicySet::load(&dir)
        .with_context(|| format!("the policies in {} are not valid", dir.display()))?;
    println!("{}: valid, version {:016x}", dir.display(), set.version);
    for route in &set.routes {
        println!(
            "  route {:<14} mode {:<8} alias {:<10} paths {}",
            route.name,
            format!("{:?}", route.mode).to_lowercase(),
            route.alias,
            route.matches.paths.join(" ")
        );
    }
    Ok(())
}

/// Writes the built-in policies into a data directory that has none yet. Files that are there stay
/// as they are.
pub fn install_builtin(dir: &std::path::Path) -> anyhow::Result<()> {
    if dir.join("routes").is_dir() {
        return Ok(());
    }
    for (name, text) in hone_shared::policy::builtin_files() {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
