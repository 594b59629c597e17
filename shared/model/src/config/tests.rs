//! What is read from `config.json`, and what is refused.

use super::*;

fn parse(edit: impl FnOnce(&mut Value)) -> Result<ModelConfig, ConfigError> {
    let mut value = serde_json::json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160,
        "vocab_size": 264, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
        "eos_token_id": [2, 0], "tie_word_embeddings": true,
    });
    edit(&mut value);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), value.to_string()).unwrap();
    ModelConfig::from_dir(dir.path())
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = parse(|_| {}).unwrap();
    assert_eq!((config.head_dim, config.rope_theta), (16, 10_000.0));
    assert_eq!((config.eos_ids, config.bos_id), (vec![0, 2], None));
    assert_eq!(config.rope_scaling, RopeScaling::None);
    let own_heads = parse(|v| v["num_key_value_heads"] = Value::Null).unwrap();
    assert_eq!(own_heads.kv_heads, 4);
}

#[test]
fn families_differ_in_bias_and_head_norms() {
    let family = |name: &str| parse(|v| v["model_type"] = name.into()).unwrap();
    assert!(family("qwen2").qkv_bias && !family("qwen2").qk_norm);
    assert!(family("qwen3").qk_norm && !family("qwen3").qkv_bias);
    assert!(!family("mistral").qk_norm && !family("mistral").qkv_bias);
}

#[test]
fn the_sliding_window_caps_the_length_where_it_is_in_use() {
    let windowed = |family: &str, used: Option<bool>| {
        let config = parse(|v| {
            v["model_type"] = family.into();
            v["sliding_window"] = 128.into();
            v["use_sliding_window"] = used.map_or(Value::Null, Value::Bool);
        });
        config.unwrap().max_positions
    };
    assert_eq!(windowed("mistral", None), 128);
    assert_eq!(windowed("qwen2", Some(true)), 128);
    assert_eq!(windowed("qwen2", Some(false)), 512);
    assert_eq!(windowed("qwen2", None), 512);
}

#[test]
fn rope_settings_are_read_from_either_place() {
    let new = parse(|v| {
        v["rope_parameters"] = serde_json::json!({"rope_type": "default", "rope_theta": 5e5});
    });
    assert_eq!(new.unwrap().rope_theta, 5e5);
    let linear = parse(|v| v["rope_scaling"] = serde_json::json!({"type": "linear", "factor": 4}));
    let frequencies = linear.unwrap().rope_frequencies();
    assert_eq!((frequencies.len(), frequencies[0]), (8, 0.25));
}

#[test]
fn llama3_scaling_keeps_high_frequencies_and_divides_low_ones() {
    let stretched = parse(|v| {
        v["head_dim"] = 128.into();
        v["rope_theta"] = 5e5.into();
        v["rope_scaling"] = serde_json::json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        });
    })
    .unwrap();
    let mut plain = stretched.clone();
    plain.rope_scaling = RopeScaling::None;
    let (new, old) = (stretched.rope_frequencies(), plain.rope_frequencies());
    assert_eq!(new[0], old[0]);
    assert!((new[63] * 8.0 / old[63] - 1.0).abs() < 1e-6);
    assert!(new.windows(2).all(|w| w[0] > w[1]));
    let ratios: Vec<f32> = new.iter().zip(&old).map(|(n, o)| n / o).collect();
    assert!(ratios.iter().any(|r| *r > 0.2 && *r < 0.9), "there is a ramp between");
}

#[test]
fn what_would_change_the_arithmetic_is_refused_by_name() {
    let cases: [(&str, Value, &str); 8] = [
        ("model_type", "gemma2".into(), "gemma2"),
        ("attention_bias", true.into(), "attention_bias"),
        ("mlp_bias", true.into(), "mlp_bias"),
        ("hidden_act", "gelu".into(), "gelu"),
        ("rope_scaling", serde_json::json!({"type": "yarn", "factor": 4}), "yarn"),
        ("rope_scaling", serde_json::json!({"type": "linear"}), "factor"),
        ("quantization_config", serde_json::json!({"quant_method": "gptq"}), "quantised"),
        ("num_key_value_heads", 3.into(), "3"),
    ];
    for (key, value, says) in cases {
        let error = parse(|v| v[key] = value).unwrap_err().to_string();
        assert!(error.contains(says), "{key}: {error}");
    }
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(matches!(ModelConfig::from_dir(dir.path()), Err(ConfigError::Json { .. })));
}
