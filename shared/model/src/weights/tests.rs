//! Reading safetensors: dtypes, shards, and files that were cut short.

use std::collections::HashMap;

use safetensors::tensor::TensorView;

use super::*;
use crate::testing::tiny_model_dir;

fn file(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn f32_f16_and_bf16_are_read_as_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let numbers = [1.0f32, -0.5, 0.0, 2.0];
    let half_bits = |v: &f32| half::f16::from_f32(*v).to_le_bytes();
    let brain_bits = |v: &f32| half::bf16::from_f32(*v).to_le_bytes();
    file(
        &dir.path().join("model.safetensors"),
        &[
            ("a", Dtype::F32, &[2, 2], numbers.iter().flat_map(|v| v.to_le_bytes()).collect()),
            ("b", Dtype::F16, &[4], numbers.iter().flat_map(half_bits).collect()),
            ("c", Dtype::BF16, &[4], numbers.iter().flat_map(brain_bits).collect()),
        ],
    );
    let mut weights = Weights::load(dir.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(weights.shape("a"), Some([2, 2].as_slice()));
    for name in ["a", "b", "c"] {
        assert_eq!(weights.take(name).unwrap(), numbers);
    }
    assert!(matches!(weights.take("a"), Err(WeightsError::Missing(_))));
}

#[test]
fn another_dtype_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir.path().join("model.safetensors"), &[("q", Dtype::I8, &[2], vec![0, 1])]);
    let error = Weights::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("`q`") && error.contains("I8"), "{error}");
}

#[test]
fn a_wrong_shape_is_refused_and_the_tensor_stays() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model_dir(dir.path(), 1).unwrap();
    let mut weights = Weights::load(dir.path()).unwrap();
    let error = weights.take_shaped("model.norm.weight", &[63]).unwrap_err().to_string();
    assert!(error.contains("[64]") && error.contains("[63]"), "{error}");
    assert_eq!(weights.get("model.norm.weight").map(<[f32]>::len), Some(64));
    assert_eq!(weights.take_shaped("model.norm.weight", &[64]).unwrap().len(), 64);
}

#[test]
fn shards_are_read_as_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let one = |v: f32| v.to_le_bytes().to_vec();
    file(&dir.path().join("m-1.safetensors"), &[("x", Dtype::F32, &[1], one(1.0))]);
    file(&dir.path().join("m-2.safetensors"), &[("y", Dtype::F32, &[1], one(2.0))]);
    let index = |second: &str| {
        let map = HashMap::from([("x", "m-1.safetensors"), ("y", second)]);
        let text = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index("m-2.safetensors");
    let weights = Weights::load(dir.path()).unwrap();
    assert_eq!((weights.get("x"), weights.get("y")), (Some(&[1.0][..]), Some(&[2.0][..])));
    index("../m-2.safetensors");
    let error = Weights::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("plain file name"), "{error}");
}

#[test]
fn a_file_that_was_cut_short_is_refused_before_any_tensor_is_read() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model_dir(dir.path(), 1).unwrap();
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    check_files(dir.path()).unwrap();
    for length in [whole.len() - 1, whole.len() / 2, 100, 8, 3, 0] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(check_files(dir.path()).is_err(), "{length} bytes");
        assert!(Weights::load(dir.path()).is_err(), "{length} bytes");
    }
}

#[test]
fn the_hash_of_a_model_is_stable_and_notices_one_changed_byte() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model_dir(&dir.path().join("a"), 1).unwrap();
    tiny_model_dir(&dir.path().join("b"), 1).unwrap();
    let hash = |name: &str| model_hash(&dir.path().join(name)).unwrap();
    assert_eq!(hash("a"), hash("b"));
    assert_eq!(hash("a").len(), 64);
    let path = dir.path().join("b/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
    assert_ne!(hash("a"), hash("b"));
}
