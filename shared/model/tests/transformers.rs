//! Our models, adapters, templates and gradients against transformers and PEFT themselves.
//!
//! Needs a Python with torch, transformers and peft: `$HONE_TEST_PYTHON`, or the virtual environment
//! `~/.cache/hone/torch`; without it this says so and passes.

#![allow(clippy::unwrap_used, reason = "a test that fails by panicking, helper included")]

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::Device;
use hone_model::chat::{Asked, ChatTemplate};
use hone_model::config::Family;
use hone_model::lora::Lora;
use hone_model::oracle::{CandleLlama, LoraVars};
use hone_model::testing::{random_lora, tiny_model_of};
use hone_model::tokenizer::Tokenizer;
use serde_json::{Value, json};

const PROMPT: [u32; 6] = [1, 70, 71, 200, 9, 33];
const RESPONSE: [u32; 5] = [45, 263, 100, 17, 2];
const TEXT: &str = "the thing<|im_end|> in there: 2024, é 你好";

/// Changes `config.json` of a model directory.
fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

fn check(python: &Path, family: Family, tied: bool, edit: impl FnOnce(&mut Value)) {
    let dir = tempfile::tempdir().unwrap();
    let (model_dir, adapter_dir) = (dir.path().join("model"), dir.path().join("adapter"));
    tiny_model_of(&model_dir, 21, family, tied).unwrap();
    edit_config(&model_dir, edit);
    let oracle = CandleLlama::load(&model_dir, &Device::Cpu).unwrap();
    let lora = random_lora(oracle.config(), 4, 8.0, 22);
    std::fs::create_dir(&adapter_dir).unwrap();
    lora.to_peft(&adapter_dir, "tiny").unwrap();
    let messages = [
        json!({"role": "system", "content": "Be <brief> & kind."}),
        json!({"role": "user", "content": "What's the capital?"}),
    ];
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transformers/reference.py");
    let output = Command::new(python)
        .arg(script)
        .args([&model_dir, &adapter_dir, &dir.path().to_owned()])
        .args([json!(PROMPT).to_string(), json!(RESPONSE).to_string()])
        .args([json!(messages).to_string(), TEXT.to_owned()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let vars = LoraVars::new(&lora, oracle.config(), &Device::Cpu).unwrap();
    let logits = oracle.logits(&[&PROMPT[..], &RESPONSE[..]].concat(), Some(&vars)).unwrap();
    let theirs =
        candle_core::safetensors::load(dir.path().join("logits.safetensors"), &Device::Cpu);
    let difference = (logits - &theirs.unwrap()["logits"]).unwrap().abs().unwrap();
    let worst = difference.flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    assert!(worst < 1e-3, "{family:?}: logits differ by {worst}");

    let slope = &mut |logprobs: &[f32]| vec![-1.0; logprobs.len()];
    let ours = oracle.gradient(&lora, &PROMPT, &RESPONSE, slope).unwrap().lora;
    let theirs = Lora::from_peft_bytes(
        &lora.peft_config("tiny"),
        &std::fs::read(dir.path().join("gradient.safetensors")).unwrap(),
        oracle.config(),
    )
    .unwrap();
    let mut rest = ours.clone();
    rest.add_scaled(&theirs, -1.0);
    let error = rest.norm() / theirs.norm();
    assert!(error < 1e-4, "{family:?}: gradients differ by {error}");
    println!("{family:?} tied {tied}: logits within {worst:.1e}, gradient within {error:.1e}");

    let tokens = std::fs::read(dir.path().join("tokens.json")).unwrap();
    let tokens: Value = serde_json::from_slice(&tokens).unwrap();
    let template = ChatTemplate::from_dir(&model_dir).unwrap();
    assert_eq!(tokens["rendered"], template.render(&Asked::undated(&messages), true).unwrap());
    let ids = Tokenizer::from_dir(&model_dir).unwrap().encode(TEXT, true).unwrap();
    assert_eq!(tokens["ids"], json!(ids));
}

#[test]
fn transformers_and_peft_compute_the_same() {
    let given = std::env::var_os("HONE_TEST_PYTHON").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let python = given.unwrap_or_else(|| home.join(".cache/hone/torch/bin/python"));
    if !python.exists() {
        eprintln!("SKIPPED: no Python with torch, transformers and peft (set HONE_TEST_PYTHON)");
        return;
    }
    let python = python.as_path();
    check(python, Family::Llama, true, |_| {});
    check(python, Family::Mistral, false, |config| config["sliding_window"] = Value::Null);
    check(python, Family::Qwen2, true, |_| {});
    check(python, Family::Qwen3, false, |_| {});
    check(python, Family::Llama, false, |config| {
        config["rope_theta"] = 500_000.0.into();
        config["rope_scaling"] = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        });
    });
    check(python, Family::Llama, true, |config| {
        config["rope_scaling"] = json!({"rope_type": "linear", "factor": 4.0});
    });
}
