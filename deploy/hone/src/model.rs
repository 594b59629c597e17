//! `hone model`: obtain a model once, with a progress bar; list what is here.

use std::path::{Path, PathBuf};

use anyhow::Context;
use hone_model::fetch;

use crate::cli::{DataArgs, ModelAction, ModelArgs};
use crate::serve::data_dir;

/// Runs `hone model …`.
pub fn run(args: ModelArgs) -> anyhow::Result<()> {
    match args.action {
        ModelAction::Get { source } => {
            let dir = ensure(&args.data, &source)?;
            println!("{}", dir.display());
            Ok(())
        }
        ModelAction::List { json } => list(&args.data, json),
    }
}

/// The directory of `source`, obtained first if it is not here yet.
pub fn ensure(data: &DataArgs, source: &str) -> anyhow::Result<PathBuf> {
    let models = data_dir(data)?.models_dir();
    std::fs::create_dir_all(&models)
        .with_context(|| format!("cannot create {}", models.display()))?;
    let source = fetch::ModelSource::parse(source).context("which model?")?;
    fetch::get(&source, &models, &hone_model::progress::Bars::default())
        .context("cannot obtain the model")
}

fn list(data: &DataArgs, json: bool) -> anyhow::Result<()> {
    let models = data_dir(data)?.models_dir();
    let mut names: Vec<PathBuf> = match std::fs::read_dir(&models) {
        Ok(entries) => entries.filter_map(|e| e.ok().map(|e| e.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context(format!("cannot read {}", models.display())),
    };
    names.retain(|path| path.join("config.json").is_file());
    names.sort();
    if json {
        let rows: Vec<_> = names
            .iter()
            .map(|path| serde_json::json!({"name": name_of(path), "dir": path}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else if names.is_empty() {
        println!("no models yet; try: hone model get smollm2-135m");
    } else {
        names.iter().for_each(|path| println!("{}\t{}", name_of(path), path.display()));
    }
    Ok(())
}

/// The name under which a model directory is served.
pub fn name_of(dir: &Path) -> String {
    dir.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}
