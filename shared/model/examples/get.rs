//! Obtains a model: `cargo run --release -p hone-model --example get -- SOURCE MODELS_DIR`.

use std::path::Path;

use hone_model::fetch::{ModelSource, get};
use hone_model::progress::Bars;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, dir] = arguments.as_slice() else {
        return Err("usage: get SOURCE MODELS_DIR".into());
    };
    let made = get(&ModelSource::parse(source)?, Path::new(dir), &Bars::default())?;
    println!("{}", made.display());
    Ok(())
}
