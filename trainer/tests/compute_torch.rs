//! The hand-written arithmetic against PyTorch + PEFT: logits by their log-probabilities, and the
//! adapter's gradient, on tiny models of every family and on the real one.
//!
//! Needs a Python with torch, transformers and peft: `$HONE_TEST_PYTHON`, or the virtual environment
//! that `deploy/README.md` names; without one this says so and passes. The script is the one that
//! holds the candle oracle to the same figures.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::Device;
use hone_model::config::{Family, ModelConfig};
use hone_model::lora::Lora;
use hone_model::testing::{random_lora, tiny_model_of};
use hone_trainer::compute::{Compute, CpuCompute, Limits, Precision, Sequence};

type Outcome = Result<(), Box<dyn Error>>;

/// Token ids that every tokenizer of these models has.
const PROMPT: [u32; 7] = [1, 70, 71, 200, 9, 33, 64];
const RESPONSE: [u32; 45] = [
    45, 263, 100, 17, 2, 8, 250, 90, 31, 77, 78, 5, 140, 141, 142, 66, 3, 19, 20, 21, 101, 88, 260,
    4, 9, 31, 63, 127, 128, 255, 256, 11, 12, 13, 57, 58, 59, 60, 61, 62, 6, 7, 199, 198, 197,
];

fn python() -> Option<PathBuf> {
    let given = std::env::var_os("HONE_TEST_PYTHON").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let found = given.or_else(|| Some(home.join(".cache/hone/torch/bin/python")));
    let found = found.filter(|python| python.exists());
    if found.is_none() {
        eprintln!("SKIPPED: no Python with torch, transformers and peft (set HONE_TEST_PYTHON)");
    }
    found
}

/// What one model's check found: worst ln p, relative error of the gradient.
struct Errors {
    logprob: f64,
    gradient: f64,
}

fn compare(python: &Path, model: &Path, precision: Precision) -> Result<Errors, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let config = ModelConfig::from_dir(model)?;
    let lora = random_lora(&config, 16, 32.0, 22);
    lora.to_peft(dir.path(), "base")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/model/tests/transformers/reference.py");
    let message = serde_json::json!([{"role": "user", "content": "Hello"}]).to_string();
    let output = Command::new(python)
        .arg(script)
        .args([model, dir.path(), dir.path()])
        .args([serde_json::json!(PROMPT).to_string(), serde_json::json!(&RESPONSE[..]).to_string()])
        .args([message, "text".to_owned()])
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let limits = Limits { precision, ..Limits::default() };
    let mut compute = CpuCompute::with_limits(model, 2, limits)?;
    let sequence = Sequence { prompt: PROMPT.to_vec(), response: RESPONSE.to_vec() };
    let ours = compute.gradient(&lora, &[sequence], &mut |_, ln_p| vec![-1.0; ln_p.len()])?;

    let gradient = std::fs::read(dir.path().join("gradient.safetensors"))?;
    let theirs = Lora::from_peft_bytes(&lora.peft_config("base"), &gradient, &config)?;
    let mut rest = ours.lora.clone();
    rest.add_scaled(&theirs, -1.0);
    let logits =
        candle_core::safetensors::load(dir.path().join("logits.safetensors"), &Device::Cpu)?;
    let logits = logits["logits"].to_vec2::<f32>()?;
    let rows = logits[PROMPT.len() - 1..].iter().zip(RESPONSE).zip(&ours.logprobs[0]);
    let errors = rows.map(|((row, token), found)| {
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        (f64::from(row[token as usize]) - sum.ln() - f64::from(*found)).abs()
    });
    Ok(Errors { logprob: errors.fold(0.0, f64::max), gradient: rest.norm() / theirs.norm() })
}

#[test]
fn tiny_models_of_every_family_agree_with_pytorch_and_peft() -> Outcome {
    let Some(python) = python() else { return Ok(()) };
    let families = [(Family::Llama, true), (Family::Qwen2, true), (Family::Qwen3, false)];
    for (family, tied) in families {
        let dir = tempfile::tempdir()?;
        let model = tiny_model_of(&dir.path().join("model"), 21, family, tied)?;
        let Errors { logprob, gradient } = compare(&python, &model, Precision::F32)?;
        println!("{family:?}: ln p within {logprob:.1e}, gradient within {gradient:.1e}");
        assert!(logprob < 1e-3 && gradient < 1e-4, "{family:?}: {logprob} and {gradient}");
    }
    Ok(())
}

#[test]
fn the_real_model_agrees_with_pytorch_and_peft() -> Outcome {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let given = std::env::var_os("HONE_MODEL_DIR").map(PathBuf::from);
    let model = given.unwrap_or_else(|| home.join(".local/share/hone/models/smollm2-135m"));
    let (Some(python), true) = (python(), model.join("config.json").exists()) else {
        eprintln!("SKIPPED: no model at {} or no Python", model.display());
        return Ok(());
    };
    for (precision, most, most_ln_p) in [(Precision::F32, 1e-4, 1e-3), (Precision::Bf16, 0.1, 0.5)]
    {
        let Errors { logprob, gradient } = compare(&python, &model, precision)?;
        println!("{precision:?}: ln p within {logprob:.1e}, gradient within {gradient:.1e}");
        assert!(logprob < most_ln_p && gradient < most, "{logprob} and {gradient}");
    }
    Ok(())
}
