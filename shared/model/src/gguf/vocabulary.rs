//! The vocabulary of a GGUF file as `tokenizer.json` and `tokenizer_config.json`.
//!
//! Byte-level BPE only. What `tokenizer.ggml.pre` names is a rule for cutting text before merging;
//! each rule known here is the one that the model's own `tokenizer.json` states.

use serde_json::{Map, Value, json};

use super::{GgufError, Source};

/// llama.cpp's numbers for kinds of tokens.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// How Llama 3 cuts text into words: digits by up to three.
const WORDS_LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// How Qwen 2 does: digits one by one.
const WORDS_QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// A token's id and how `tokenizer.json` describes it.
type AddedToken = (usize, Map<String, Value>);

/// The content of `tokenizer.json`.
pub(super) fn tokenizer(source: &Source) -> Result<Value, GgufError> {
    let model = source.text("tokenizer.ggml.model").unwrap_or("");
    if model != "gpt2" {
        return Err(GgufError::Unsupported(format!(
            "GGUF vocabulary `{model}` is not byte-level BPE (gpt2)"
        )));
    }
    let pre = source.text("tokenizer.ggml.pre").unwrap_or("default");
    let tokens = source.strings("tokenizer.ggml.tokens")?;
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    if vocab.len() != tokens.len() {
        return Err(GgufError::Metadata("tokenizer.ggml.tokens (duplicates)".to_owned()));
    }
    let added: Vec<Value> = added_tokens(source, &tokens)?
        .into_iter()
        .map(|(id, token)| {
            let mut entry = token;
            entry.insert("id".to_owned(), id.into());
            Value::Object(entry)
        })
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": if pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer(pre, &byte_level)?,
        "post_processor": post_processor(source, pre, &tokens),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre == "llama-bpe",
            "vocab": vocab,
            "merges": merges(source)?,
        },
    }))
}

/// The content of `tokenizer_config.json`, with the chat template.
pub(super) fn tokenizer_config(source: &Source) -> Result<Value, GgufError> {
    let tokens = source.strings("tokenizer.ggml.tokens")?;
    let special = |key: &str| {
        source
            .number(&format!("tokenizer.ggml.{key}_token_id"))
            .and_then(|id| tokens.get(usize::try_from(id).ok()?).map(|token| Value::from(*token)))
    };
    let decoder: Map<String, Value> = added_tokens(source, &tokens)?
        .into_iter()
        .map(|(id, token)| (id.to_string(), Value::Object(token)))
        .collect();
    let template = source
        .text("tokenizer.chat_template")
        .ok_or_else(|| GgufError::Metadata("tokenizer.chat_template".to_owned()))?;
    Ok(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": source.size("context_length")?,
        "added_tokens_decoder": decoder,
        "bos_token": special("bos"),
        "eos_token": special("eos"),
        "unk_token": special("unknown"),
        "pad_token": special("padding"),
        "chat_template": template,
    }))
}

/// Control and user-defined tokens with their ids, ascending.
fn added_tokens(source: &Source, tokens: &[&str]) -> Result<Vec<AddedToken>, GgufError> {
    let key = "tokenizer.ggml.token_type";
    let kinds = source.array(key)?;
    if kinds.len() != tokens.len() {
        return Err(GgufError::Metadata(format!("{key} (another length than the tokens)")));
    }
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        let kind = kind.to_i32().map(|k| k as u64).or_else(|_| kind.to_u64()).unwrap_or(0);
        if kind != CONTROL && kind != USER_DEFINED {
            continue;
        }
        let mut entry = Map::new();
        entry.insert("content".to_owned(), (*token).into());
        for flag in ["single_word", "lstrip", "rstrip", "normalized"] {
            entry.insert(flag.to_owned(), false.into());
        }
        entry.insert("special".to_owned(), (kind == CONTROL).into());
        added.push((id, entry));
    }
    Ok(added)
}

fn pre_tokenizer(pre: &str, byte_level: &Value) -> Result<Value, GgufError> {
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
             "use_regex": false},
        ]})
    };
    match pre {
        "smollm" => Ok(json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, byte_level,
        ]})),
        "gpt-2" | "default" => Ok(byte_level.clone()),
        "llama-bpe" => Ok(split(WORDS_LLAMA3)),
        "qwen2" => Ok(split(WORDS_QWEN2)),
        other => Err(GgufError::Unsupported(format!(
            "GGUF pre-tokenizer `{other}` is not one of smollm, gpt-2, llama-bpe, qwen2"
        ))),
    }
}

/// Puts the first token of a text in front, where the model was trained so.
fn post_processor(source: &Source, pre: &str, tokens: &[&str]) -> Value {
    let wanted = source.flag("tokenizer.ggml.add_bos_token").unwrap_or(pre == "llama-bpe");
    let bos = source.number("tokenizer.ggml.bos_token_id").filter(|_| wanted);
    let Some((id, token)) = bos.and_then(|id| Some((id, *tokens.get(id as usize)?))) else {
        return Value::Null;
    };
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, text("A")],
        "pair": [special, text("A"), special, text("B")],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

fn merges(source: &Source) -> Result<Vec<Value>, GgufError> {
    let key = "tokenizer.ggml.merges";
    let pair = |merge: &str| {
        let (left, right) = merge.split_once(' ')?;
        Some(json!([left, right]))
    };
    source
        .strings(key)?
        .into_iter()
        .map(|merge| pair(merge).ok_or_else(|| GgufError::Metadata(key.to_owned())))
        .collect()
}
