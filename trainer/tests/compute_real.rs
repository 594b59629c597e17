//! The arithmetic on the real model (SmolLM2-135M-Instruct): a vocabulary of many chunks, thirty
//! layers, and an answer that a person can check. Skipped, loudly, where the model is absent.

use std::error::Error;
use std::path::PathBuf;

use candle_core::Device;
use hone_model::chat::{Asked, ChatTemplate};
use hone_model::lora::Lora;
use hone_model::oracle::CandleLlama;
use hone_model::tokenizer::Tokenizer;
use hone_trainer::compute::{Compute, CpuCompute, Limits, Precision, SampleParams, Sequence};
use serde_json::json;

/// `HONE_MODEL_DIR`, or where `hone` puts the model by default.
fn model_dir() -> Option<PathBuf> {
    let given = std::env::var_os("HONE_MODEL_DIR").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let dir = given.unwrap_or_else(|| home.join(".local/share/hone/models/smollm2-135m"));
    if dir.join("config.json").exists() {
        return Some(dir);
    }
    eprintln!("SKIPPED: no model at {} (set HONE_MODEL_DIR)", dir.display());
    None
}

#[test]
fn the_real_model_knows_the_capital_of_france_and_its_scores_are_the_oracles()
-> Result<(), Box<dyn Error>> {
    let Some(dir) = model_dir() else { return Ok(()) };
    let tokenizer = Tokenizer::from_dir(&dir)?;
    let question = json!({"role": "user", "content": "What is the capital of France?"});
    let text = ChatTemplate::from_dir(&dir)?.render(&Asked::undated(&[question]), true)?;
    let prompt = tokenizer.encode(&text, false)?;
    let mut compute = CpuCompute::new(&dir, 2)?;
    let eos = compute.config().eos_ids.clone();
    let params = SampleParams { temperature: 0.0, tokens_max: 24, eos, seed: 1 };
    let drawn = compute.sample(None, std::slice::from_ref(&prompt), 2, &params)?;
    let reply = &drawn[0][0];
    let text = tokenizer.decode(&reply.tokens, true)?;
    println!("reply: {text}");
    assert!(text.contains("The capital of France is Paris."), "the reply was: {text}");
    assert!(reply.ended);
    assert_eq!(&drawn[0][1], reply);

    let mut lora = Lora::init(compute.config(), 16, 32.0, 1);
    let noise = Lora::init(compute.config(), 16, 32.0, 2);
    // B from other tensors' noise, so that all gradients are alive.
    let mut values = noise.tensors().flatten().filter(|v| **v != 0.0).copied().collect::<Vec<_>>();
    values.truncate(100_003);
    let mut source = values.iter().cycle();
    for tensor in lora.tensors_mut().filter(|t| t.iter().all(|v| *v == 0.0)) {
        tensor.iter_mut().zip(&mut source).for_each(|(to, from)| *to = 0.3 * from);
    }
    let sequence = Sequence { prompt, response: reply.tokens.clone() };
    let slopes = |ln_p: &[f32]| ln_p.iter().map(|l| 0.5 - l).collect::<Vec<f32>>();
    let oracle = CandleLlama::load(&dir, &Device::Cpu)?;
    let wanted =
        oracle.gradient(&lora, &sequence.prompt, &sequence.response, &mut |l| slopes(l))?;
    drop(oracle);
    let limits = Limits { precision: Precision::Bf16, ..Limits::default() };
    let rough = CpuCompute::with_limits(&dir, 2, limits)?;
    for (mut compute, most, most_ln_p) in [(compute, 1e-4, 1e-3), (rough, 0.1, 0.5)] {
        let found =
            compute.gradient(&lora, std::slice::from_ref(&sequence), &mut |_, l| slopes(l))?;
        let mut difference = found.lora.clone();
        difference.add_scaled(&wanted.lora, -1.0);
        let error = difference.norm() / wanted.lora.norm();
        let worst = found.logprobs[0].iter().zip(&wanted.logprobs).map(|(a, b)| (a - b).abs());
        let worst = worst.fold(0.0, f32::max);
        println!("{:?}: gradient error {error:.1e}, ln p {worst:.1e}", compute.precision());
        assert!(error < most && worst < most_ln_p);
    }
    Ok(())
}
