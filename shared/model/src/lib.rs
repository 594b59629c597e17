//! The model side of hone: configuration, weights, LoRA, tokenizer, chat template and files.
//!
//! Everything that has to agree between the trainer, the engine and the tests about a model is
//! here once: names and shapes of tensors, the text that a chat template renders, the PEFT files
//! of an adapter, and where a model comes from. The trainer's fast kernels live elsewhere; the
//! plain differentiable [`oracle`] is what they are checked against.
//!
//! Invariant: a model directory is an ordinary Hugging Face directory (`config.json`,
//! `tokenizer.json`, `tokenizer_config.json`, safetensors) and is only ever read after it is
//! complete.

pub mod chat;
pub mod config;
pub mod fetch;
pub mod frozen;
pub mod gguf;
pub mod lora;
pub mod ops;
pub mod oracle;
pub mod progress;
pub mod testing;
pub mod tokenizer;
pub mod weights;
