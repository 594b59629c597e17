//! The real SmolLM2-135M-Instruct, where it has been fetched (`hone model get smollm2-135m`).
//!
//! The model is looked for in `$HONE_TEST_MODEL` or in the default data directory. Without it these
//! tests say so and pass: fetching needs a network, which a test must not.

use std::path::PathBuf;

use candle_core::Device;
use hone_model::chat::{Asked, ChatTemplate};
use hone_model::config::{Family, ModelConfig};
use hone_model::fetch;
use hone_model::oracle::CandleLlama;
use hone_model::tokenizer::Tokenizer;
use serde_json::json;

fn model() -> Option<PathBuf> {
    let named = std::env::var_os("HONE_TEST_MODEL").map(PathBuf::from);
    let usual = std::env::var_os("HOME")
        .map(|home| PathBuf::from(home).join(".local/share/hone/models/smollm2-135m"));
    let found = named.or(usual).filter(|dir| dir.join("model.safetensors").exists());
    if found.is_none() {
        eprintln!("skipped: no model (run `hone model get smollm2-135m`)");
    }
    found
}

const PROMPT: &str = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by \
     Hugging Face<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n\
     <|im_start|>assistant\n";

#[test]
fn its_directory_says_what_the_model_is() {
    let Some(dir) = model() else { return };
    fetch::validate(&dir).unwrap();
    let config = ModelConfig::from_dir(&dir).unwrap();
    assert_eq!(config.family, Family::Llama);
    assert_eq!((config.hidden, config.layers, config.ffn, config.vocab), (576, 30, 1536, 49152));
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (9, 3, 64));
    assert_eq!((config.rope_theta, config.rms_eps, config.tied), (1e5, 1e-5, true));
    assert_eq!((config.eos_ids, config.max_positions), (vec![2], 8192));
}

#[test]
fn its_template_and_tokenizer_give_the_known_prompt() {
    let Some(dir) = model() else { return };
    let template = ChatTemplate::from_dir(&dir).unwrap();
    let messages = [json!({"role": "user", "content": "What is the capital of France?"})];
    assert_eq!(template.render(&Asked::undated(&messages), true).unwrap(), PROMPT);
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    assert_eq!(tokenizer.eos_ids(), [2]);
    let ids = tokenizer.encode(PROMPT, true).unwrap();
    assert_eq!(ids[..3], [1, 9690, 198]); // <|im_start|>system\n
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), PROMPT);
}

#[test]
fn its_digits_are_cut_one_by_one() {
    let Some(dir) = model() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let ids = tokenizer.encode("2024", false).unwrap();
    assert_eq!(ids.len(), 4);
    for text in ["12 + 345 = 357", "naïve café 你好 🙂", "  tabs\tand\n\nlines "] {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn it_knows_the_capital_of_france() {
    let Some(dir) = model() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let oracle = CandleLlama::load(&dir, &Device::Cpu).unwrap();
    let prompt = tokenizer.encode(PROMPT, true).unwrap();
    let answer = oracle.greedy(&prompt, 16, tokenizer.eos_ids(), None).unwrap();
    let text = tokenizer.decode(&answer, false).unwrap();
    assert_eq!(text, "The capital of France is Paris.<|im_end|>");
}
