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
