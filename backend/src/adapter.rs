//! A generation directory as the engine sees it: checked before an engine is built for it.
//!
//! Why so strict: mistral.rs merges what its config names and silently skips the rest, so an
//! adapter that fits only in part would be served as if it were whole.
//!
//! Invariant: the identity of a generation is the SHA-256 of `adapter_config.json` followed by
//! `adapter_model.safetensors`; a directory that carries another hash as its name is refused.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use hone_shared::turn::Generation;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{ApiError, Code};
use crate::model::{Shapes, shapes_of};

/// The projections that every supported engine can adapt.
const PROJECTIONS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
/// Largest rank that is accepted.
const RANK_MAX: u64 = 256;

/// A generation that is ready to be loaded.
#[derive(Debug, Clone)]
pub struct AdapterFiles {
    /// The content hash.
    pub generation: Generation,
    /// The directory.
    pub dir: PathBuf,
    /// Rank of the low-rank pairs.
    pub rank: usize,
    /// The numerator of the scale alpha / rank.
    pub alpha: f64,
    /// The projections that are adapted.
    pub targets: HashSet<String>,
    /// Size of both files, in bytes.
    pub bytes: u64,
}

impl AdapterFiles {
    /// The weights.
    pub fn weights(&self) -> PathBuf {
        self.dir.join("adapter_model.safetensors")
    }

    /// Reads, hashes and checks a generation directory against the base model's shapes. Blocks.
    ///
    /// # Errors
    /// [`Code::AdapterUnusable`] with what is wrong.
    pub fn read(dir: &Path, base: &Shapes) -> Result<Self, ApiError> {
        let fail = |what: String| ApiError::of(Code::AdapterUnusable, "lora_path", what);
        let read = |name: &str| {
            std::fs::read(dir.join(name)).map_err(|e| fail(format!("cannot read `{name}`: {e}")))
        };
        let config_bytes = read("adapter_config.json")?;
        let weight_bytes = read("adapter_model.safetensors")?;
        let mut hash = Sha256::new();
        hash.update(&config_bytes);
        hash.update(&weight_bytes);
        let hash = hex::encode(hash.finalize());
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let named = Generation::parse(&name).is_ok_and(|g| !g.is_base());
        if named && name != hash {
            return Err(fail(format!("the directory is named {name} but holds {hash}: corrupt")));
        }
        let generation = Generation::parse(&hash).map_err(|e| fail(e.to_string()))?;
        let config: Value = serde_json::from_slice(&config_bytes)
            .map_err(|e| fail(format!("`adapter_config.json` is not JSON: {e}")))?;
        let (rank, alpha, targets) = check_config(&config).map_err(&fail)?;
        let tensors = shapes_of(&dir.join("adapter_model.safetensors")).map_err(&fail)?;
        check_tensors(&tensors, base, rank, &targets).map_err(&fail)?;
        let bytes = (config_bytes.len() + weight_bytes.len()) as u64;
        Ok(Self { generation, dir: dir.to_owned(), rank, alpha, targets, bytes })
    }
}

fn check_config(config: &Value) -> Result<(usize, f64, HashSet<String>), String> {
    let absent = |key: &str| match &config[key] {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(word) => key == "bias" && word == "none",
        _ => false,
    };
    if config["peft_type"].as_str().is_some_and(|kind| kind != "LORA") {
        return Err(format!("`peft_type` is {}, only LORA is served", config["peft_type"]));
    }
    for key in [
        "bias",
        "use_dora",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "fan_in_fan_out",
    ] {
        if !absent(key) {
            return Err(format!("`{key}` = {} is not served; leave it out", config[key]));
        }
    }
    let rank = config["r"].as_u64().filter(|r| (1..=RANK_MAX).contains(r));
    let rank = rank.ok_or(format!("`r` must be an integer from 1 to {RANK_MAX}"))?;
    let alpha = config["lora_alpha"].as_f64().filter(|a| a.is_finite());
    let alpha = alpha.ok_or("`lora_alpha` must be a number")?;
    let targets = config["target_modules"].as_array().filter(|list| !list.is_empty());
    let targets = targets.ok_or("`target_modules` must be a list of projections")?;
    let mut names = HashSet::new();
    for target in targets {
        match target.as_str().filter(|name| PROJECTIONS.contains(name)) {
            Some(name) => names.insert(name.to_owned()),
            None => {
                return Err(format!("`target_modules` may name {PROJECTIONS:?}, not {target}"));
            }
        };
    }
    Ok((rank as usize, alpha, names))
}

fn check_tensors(
    tensors: &Shapes,
    base: &Shapes,
    rank: usize,
    targets: &HashSet<String>,
) -> Result<(), String> {
    let mut found = HashSet::new();
    for (name, shape) in tensors {
        let plain = name.strip_prefix("base_model.model.").unwrap_or(name);
        let (module, is_a) = plain
            .strip_suffix(".lora_A.weight")
            .map(|module| (module, true))
            .or_else(|| plain.strip_suffix(".lora_B.weight").map(|module| (module, false)))
            .ok_or_else(|| format!("tensor `{name}` is neither a LoRA A nor a LoRA B"))?;
        let weight = base
            .get(&format!("{module}.weight"))
            .filter(|shape| shape.len() == 2)
            .ok_or_else(|| format!("tensor `{name}`: the base model has no `{module}`"))?;
        if !targets.contains(module.rsplit('.').next().unwrap_or_default()) {
            return Err(format!("tensor `{name}` is for no module in `target_modules`"));
        }
        let wanted = if is_a { vec![rank, weight[1]] } else { vec![weight[0], rank] };
        if *shape != wanted {
            return Err(format!("tensor `{name}` has shape {shape:?}, the model needs {wanted:?}"));
        }
        found.insert((module.to_owned(), is_a));
    }
    for weight in base.keys() {
        let Some(module) = weight.strip_suffix(".weight") else { continue };
        if !targets.contains(module.rsplit('.').next().unwrap_or_default()) {
            continue;
        }
        for is_a in [true, false] {
            if !found.contains(&(module.to_owned(), is_a)) {
                let half = if is_a { "A" } else { "B" };
                return Err(format!("there is no LoRA {half} for `{module}`"));
            }
        }
    }
    Ok(())
}

/// Finds the directory that `lora_path` means, which must lie under the registry `root`. Blocks.
///
/// # Errors
/// [`Code::AdapterPathForbidden`] for anything outside, links resolved;
/// [`Code::AdapterUnusable`] when there is no such directory inside.
pub fn locate(root: &Path, lora_path: &str) -> Result<PathBuf, ApiError> {
    let forbidden = || {
        let message = "`lora_path` must be a generation directory of the registry";
        ApiError::of(Code::AdapterPathForbidden, "lora_path", message)
    };
    let given = root.join(lora_path);
    let root = root.canonicalize().map_err(|_| forbidden())?;
    match given.canonicalize() {
        Ok(dir) if dir.starts_with(&root) && dir != root => Ok(dir),
        Ok(_) => Err(forbidden()),
        Err(_) => {
            let climbs = given.components().any(|part| part == Component::ParentDir);
            let relative = Path::new(lora_path).is_relative();
            if climbs || !(relative || given.starts_with(&root)) {
                return Err(forbidden());
            }
            let message = format!("there is no generation directory `{lora_path}`");
            Err(ApiError::of(Code::AdapterUnusable, "lora_path", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Shapes {
        let module = "model.layers.0.self_attn";
        Shapes::from([
            (format!("{module}.q_proj.weight"), vec![6, 4]),
            (format!("{module}.k_proj.weight"), vec![2, 4]),
            ("model.norm.weight".to_owned(), vec![4]),
        ])
    }

    fn write(dir: &Path, config: &Value, tensors: &[(&str, [usize; 2])]) {
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in tensors {
            let begin = end;
            end += 4 * shape[0] * shape[1];
            let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
            header.insert((*name).to_owned(), entry);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.resize(bytes.len() + end, 0);
        std::fs::write(dir.join("adapter_model.safetensors"), bytes).unwrap();
        std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    }

    fn config() -> Value {
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "target_modules": ["q_proj"],
               "bias": "none"})
    }

    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

    fn refused(config: &Value, tensors: &[(&str, [usize; 2])]) -> String {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), config, tensors);
        let error = AdapterFiles::read(dir.path(), &base()).unwrap_err();
        assert_eq!(error.code, Code::AdapterUnusable);
        error.message
    }

    #[test]
    fn a_fitting_adapter_is_named_by_the_hash_of_its_two_files() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &config(), &[(A, [2, 4]), (B, [6, 2])]);
        let adapter = AdapterFiles::read(dir.path(), &base()).unwrap();
        let mut both = std::fs::read(dir.path().join("adapter_config.json")).unwrap();
        both.extend(std::fs::read(adapter.weights()).unwrap());
        assert_eq!(adapter.generation.as_str(), hex::encode(Sha256::digest(&both)));
        assert_eq!((adapter.rank, adapter.alpha), (2, 4.0));
    }

    #[test]
    fn a_directory_with_another_generations_name_is_corrupt() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a".repeat(64));
        std::fs::create_dir(&dir).unwrap();
        write(&dir, &config(), &[(A, [2, 4]), (B, [6, 2])]);
        let error = AdapterFiles::read(&dir, &base()).unwrap_err();
        assert!(error.message.contains("corrupt"), "{}", error.message);
    }

    #[test]
    fn an_adapter_that_fits_only_in_part_is_refused() {
        assert!(refused(&config(), &[(A, [2, 4])]).contains("no LoRA B"));
        assert!(refused(&config(), &[(A, [2, 5]), (B, [6, 2])]).contains("has shape"));
        let other = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight";
        let extra = refused(&config(), &[(A, [2, 4]), (B, [6, 2]), (other, [2, 4])]);
        assert!(extra.contains("target_modules"), "{extra}");
    }

    #[test]
    fn settings_that_the_engine_would_ignore_are_refused() {
        let tensors = [(A, [2, 4]), (B, [6, 2])];
        for (key, value) in [
            ("use_rslora", json!(true)),
            ("bias", json!("all")),
            ("target_modules", json!("all-linear")),
            ("r", json!(0)),
            ("rank_pattern", json!({"q_proj": 8})),
        ] {
            let mut wrong = config();
            wrong[key] = value;
            assert!(refused(&wrong, &tensors).contains(key), "{key}");
        }
    }

    #[test]
    fn a_path_outside_the_registry_is_forbidden_even_through_a_link() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("inside")).unwrap();
        assert!(locate(root.path(), "inside").is_ok());
        let absolute = root.path().canonicalize().unwrap().join("inside");
        assert!(locate(root.path(), &absolute.to_string_lossy()).is_ok());
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        for path in ["link", "..", ".", "/etc", "/nowhere/at/all", "inside/../../x"] {
            let error = locate(root.path(), path).unwrap_err();
            assert_eq!(error.code, Code::AdapterPathForbidden, "{path}");
        }
        assert_eq!(locate(root.path(), "missing").unwrap_err().code, Code::AdapterUnusable);
    }
}
