//! What an adapter promises: determinism, an honest round trip, and clear refusals.

use super::*;
use crate::config::{Family, RopeScaling};

fn small() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        hidden: 8,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 2,
        ffn: 12,
        vocab: 16,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rms_eps: 1e-5,
        tied: true,
        qkv_bias: false,
        qk_norm: false,
        eos_ids: vec![2],
        bos_id: None,
        max_positions: 64,
    }
}

fn read_back(config: &[u8], weights: &[u8]) -> Result<Lora, LoraError> {
    Lora::from_peft_bytes(config, weights, &small())
}

fn edited(key: &str, value: serde_json::Value) -> Vec<u8> {
    let bytes = Lora::init(&small(), 4, 8.0, 1).peft_config("base");
    let mut config: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    config[key] = value;
    config.to_string().into_bytes()
}

#[test]
fn a_fresh_adapter_has_random_a_within_the_kaiming_bound_and_zero_b() {
    let lora = Lora::init(&small(), 4, 8.0, 1);
    assert!(lora.fits(&small()));
    assert_eq!(lora.scale(), 2.0);
    lora.for_each_tensor(|_, proj, side, values| match side {
        Side::A => {
            let bound = 1.0 / (small().proj_shape(proj).1 as f32).sqrt();
            assert!(values.iter().all(|v| v.abs() <= bound) && values.iter().any(|v| *v != 0.0));
        }
        Side::B => assert!(values.iter().all(|v| *v == 0.0)),
    });
}

#[test]
fn the_same_seed_gives_byte_identical_files_and_another_seed_does_not() {
    let bytes = |seed| Lora::init(&small(), 4, 8.0, seed).peft_bytes().unwrap();
    assert_eq!(bytes(7), bytes(7));
    assert_ne!(bytes(7), bytes(8));
}

#[test]
fn an_adapter_survives_the_round_trip_through_a_peft_directory() {
    let mut lora = Lora::init(&small(), 3, 4.5, 3);
    lora.for_each_tensor_mut(|layer, _, side, values| {
        if side == Side::B {
            values.iter_mut().enumerate().for_each(|(i, v)| *v = (i + layer) as f32 * 0.25);
        }
    });
    let dir = tempfile::tempdir().unwrap();
    lora.to_peft(dir.path(), "org/base").unwrap();
    assert_eq!(Lora::from_peft(dir.path(), &small()).unwrap(), lora);
}

#[test]
fn the_configuration_is_what_peft_expects() {
    let bytes = Lora::init(&small(), 16, 32.0, 1).peft_config("org/base");
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(value["r"], 16);
    assert_eq!(value["lora_alpha"].as_i64(), Some(32));
    assert_eq!(value["base_model_name_or_path"], "org/base");
    assert_eq!(value["target_modules"].as_array().unwrap().len(), 7);
    assert_eq!((&value["bias"], &value["task_type"]), (&"none".into(), &"CAUSAL_LM".into()));
}

#[test]
fn tensor_names_are_those_of_peft() {
    let bytes = Lora::init(&small(), 4, 8.0, 1).peft_bytes().unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 2 * 7 * 2);
    let q = tensors.tensor("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight");
    assert_eq!(q.unwrap().shape(), [4, 8]);
    let down = tensors.tensor("base_model.model.model.layers.0.mlp.down_proj.lora_B.weight");
    assert_eq!(down.unwrap().shape(), [8, 4]);
}

#[test]
fn options_that_change_the_arithmetic_are_refused_by_name() {
    let weights = Lora::init(&small(), 4, 8.0, 1).peft_bytes().unwrap();
    let cases = [
        ("use_dora", serde_json::json!(true)),
        ("use_rslora", serde_json::json!(true)),
        ("rank_pattern", serde_json::json!({"q_proj": 8})),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("bias", serde_json::json!("all")),
        ("r", serde_json::json!(0)),
        ("lora_alpha", serde_json::json!(-1)),
        ("peft_type", serde_json::json!("LOHA")),
    ];
    for (key, value) in cases {
        let error = read_back(&edited(key, value), &weights).unwrap_err();
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
}

#[test]
fn an_adapter_of_another_shape_is_refused_with_the_tensor_and_both_shapes() {
    let weights = Lora::init(&small(), 4, 8.0, 1).peft_bytes().unwrap();
    let error = read_back(&edited("r", 8.into()), &weights).unwrap_err().to_string();
    assert!(error.contains("layers.0.self_attn.q_proj.lora_A") && error.contains("[8, 8]"));
    let deeper = ModelConfig { layers: 3, ..small() };
    let bytes = Lora::init(&deeper, 4, 8.0, 1).peft_bytes().unwrap();
    let error = read_back(&edited("r", 4.into()), &bytes).unwrap_err();
    assert!(matches!(error, LoraError::Unexpected(name) if name.contains("layers.2")));
    let shallow = ModelConfig { layers: 1, ..small() };
    let bytes = Lora::init(&shallow, 4, 8.0, 1).peft_bytes().unwrap();
    let error = read_back(&edited("r", 4.into()), &bytes).unwrap_err();
    assert!(matches!(error, LoraError::Missing(name) if name.contains("layers.1")));
}

#[test]
fn values_that_are_not_finite_and_truncated_files_are_refused() {
    let mut lora = Lora::init(&small(), 4, 8.0, 1);
    lora.layers[1][2].b[0] = f32::NAN;
    assert!(!lora.is_finite());
    let config = lora.peft_config("base");
    let bytes = lora.peft_bytes().unwrap();
    assert!(matches!(read_back(&config, &bytes), Err(LoraError::NotFinite(_))));
    assert!(matches!(read_back(&config, &bytes[..100]), Err(LoraError::Weights(_))));
}

#[test]
fn adding_a_scaled_adapter_moves_every_tensor() {
    let mut sum = Lora::init(&small(), 4, 8.0, 1);
    let other = sum.clone();
    sum.add_scaled(&other, -1.0);
    assert_eq!(sum, other.zeros_like());
    assert_eq!(sum.norm(), 0.0);
    assert!(other.norm() > 0.0);
    assert_eq!(other.parameters(), other.tensors().map(<[f32]>::len).sum::<usize>());
}
