//! The oracle against independent arithmetic: finite differences, fused kernels, merged weights.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::config::Family;
use crate::ops::rotate;
use crate::testing::{random_lora, tiny_model_of};

const PROMPT: [u32; 5] = [1, 70, 71, 200, 9];
const RESPONSE: [u32; 4] = [45, 263, 100, 2];
const FAMILIES: [(Family, bool); 4] = [
    (Family::Llama, true),
    (Family::Mistral, false),
    (Family::Qwen2, true),
    (Family::Qwen3, false),
];

fn model(family: Family, tied: bool) -> CandleLlama {
    let dir = tempfile::tempdir().unwrap();
    tiny_model_of(dir.path(), 11, family, tied).unwrap();
    CandleLlama::load(dir.path(), &Device::Cpu).unwrap()
}

fn trained(config: &ModelConfig) -> Lora {
    random_lora(config, 4, 8.0, 5)
}

fn loss(model: &CandleLlama, lora: &Lora, slopes: &[f32]) -> f64 {
    let vars = LoraVars::new(lora, model.config(), &Device::Cpu).unwrap();
    let logprobs = model.logprobs(&PROMPT, &RESPONSE, Some(&vars)).unwrap();
    let values = logprobs.to_vec1::<f32>().unwrap();
    values.iter().zip(slopes).map(|(v, s)| f64::from(*v) * f64::from(*s)).sum()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn the_gradient_reaches_every_adapter_tensor_in_every_family() {
    for (family, tied) in FAMILIES {
        let model = model(family, tied);
        let lora = trained(model.config());
        let found = model
            .gradient(&lora, &PROMPT, &RESPONSE, &mut |logprobs| vec![-1.0; logprobs.len()])
            .unwrap();
        found.lora.for_each_tensor(|layer, proj, side, values| {
            assert!(values.iter().any(|v| *v != 0.0), "{family:?} {layer} {proj:?} {side:?}");
            assert!(values.iter().all(|v| v.is_finite()), "{family:?} {layer} {proj:?} {side:?}");
        });
    }
}

#[test]
fn the_gradient_is_what_finite_differences_say() {
    let slopes = [0.7f32, -1.0, 0.3, 1.2];
    for (family, tied) in FAMILIES {
        let model = model(family, tied);
        let lora = trained(model.config());
        let gradient =
            model.gradient(&lora, &PROMPT, &RESPONSE, &mut |_| slopes.to_vec()).unwrap().lora;
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        // Along the gradient of one tensor at a time, so that none can hide behind another.
        for tensor in 0..lora.tensors().count() {
            let mut direction = gradient.zeros_like();
            let along = gradient.tensors().nth(tensor).unwrap().to_vec();
            let norm = along.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
            let noise = |value: f32, r: f32| value / norm + 0.1 * r;
            let values = along.iter().map(|v| noise(*v, rng.random_range(-1.0..1.0)));
            *direction.tensors_mut().nth(tensor).unwrap() = values.collect();
            let expected: f64 = gradient
                .tensors()
                .flatten()
                .zip(direction.tensors().flatten())
                .map(|(g, d)| f64::from(*g) * f64::from(*d))
                .sum();
            let step = 1e-2 / direction.norm() as f32;
            let at = |factor: f32| {
                let mut moved = lora.clone();
                moved.add_scaled(&direction, factor);
                loss(&model, &moved, &slopes)
            };
            let measured = (at(step) - at(-step)) / (2.0 * f64::from(step));
            let error = (measured - expected).abs() / expected.abs().max(1e-2);
            assert!(error < 2e-2, "{family:?} tensor {tensor}: {measured} against {expected}");
        }
    }
}

#[test]
fn an_adapter_with_zero_b_changes_nothing() {
    let model = model(Family::Llama, true);
    let fresh = Lora::init(model.config(), 4, 8.0, 1);
    let vars = LoraVars::new(&fresh, model.config(), &Device::Cpu).unwrap();
    let (plain, with) =
        (model.logits(&PROMPT, None).unwrap(), model.logits(&PROMPT, Some(&vars)).unwrap());
    assert_eq!(largest_difference(&plain, &with), 0.0);
}

#[test]
fn an_adapter_equals_the_same_matrices_added_to_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model_of(dir.path(), 11, Family::Qwen2, false).unwrap();
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let lora = trained(&config);
    let plain = CandleLlama::load(dir.path(), &Device::Cpu).unwrap();
    let mut merged = CandleLlama::load(dir.path(), &Device::Cpu).unwrap();
    for (layer, pairs) in merged.0.layers.iter_mut().zip(&lora.layers) {
        for (weight, (proj, pair)) in layer.weights.iter_mut().zip(Proj::ALL.into_iter().zip(pairs))
        {
            let (out, width) = config.proj_shape(proj);
            let a = Tensor::from_slice(&pair.a, (lora.rank, width), &Device::Cpu).unwrap();
            let b = Tensor::from_slice(&pair.b, (out, lora.rank), &Device::Cpu).unwrap();
            let delta = (b.matmul(&a).unwrap() * f64::from(lora.scale())).unwrap();
            *weight = (&*weight + delta).unwrap();
        }
    }
    let vars = LoraVars::new(&lora, &config, &Device::Cpu).unwrap();
    let with = plain.logits(&PROMPT, Some(&vars)).unwrap();
    let base = plain.logits(&PROMPT, None).unwrap();
    assert!(largest_difference(&with, &merged.logits(&PROMPT, None).unwrap()) < 1e-4);
    assert!(largest_difference(&with, &base) > 0.1, "the adapter does something");
}

#[test]
fn norm_and_rope_equal_the_fused_kernels() {
    let shape = (4, 6, 16);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let values: Vec<f32> = (0..4 * 6 * 16).map(|_| rng.random_range(-2.0..2.0)).collect();
    let x = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    let weight = Tensor::arange(0.5f32, 16.5, &Device::Cpu).unwrap();
    let fused = candle_nn::ops::rms_norm(&x, &weight, 1e-5).unwrap();
    assert!(largest_difference(&rms_norm(&x, &weight, 1e-5).unwrap(), &fused) < 1e-4);
    let model = model(Family::Llama, true);
    let (cos, sin) =
        crate::ops::rotation(&model.config().rope_frequencies(), 0, 6, &Device::Cpu).unwrap();
    let fused = candle_nn::rotary_emb::rope(&x.unsqueeze(0).unwrap(), &cos, &sin).unwrap();
    let own = rotate(&x, &cos, &sin).unwrap();
    assert!(largest_difference(&own, &fused.squeeze(0).unwrap()) < 1e-5);
}

#[test]
fn a_position_does_not_see_what_comes_after_it() {
    for (family, tied) in FAMILIES {
        let model = model(family, tied);
        let short = model.logits(&PROMPT, None).unwrap();
        let long = model.logits(&[&PROMPT[..], &RESPONSE[..]].concat(), None).unwrap();
        let same = long.narrow(0, 0, PROMPT.len()).unwrap();
        assert!(largest_difference(&short, &same) < 1e-4, "{family:?}");
    }
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let model = model(Family::Llama, true);
    let found = model.logprobs(&PROMPT, &RESPONSE, None).unwrap().to_vec1::<f32>().unwrap();
    let logits = model.logits(&[&PROMPT[..], &RESPONSE[..]].concat(), None).unwrap();
    let logits = logits.to_vec2::<f32>().unwrap();
    for (index, (token, logprob)) in RESPONSE.iter().zip(found).enumerate() {
        let row = &logits[PROMPT.len() - 1 + index];
        let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
        let expected = f64::from(row[*token as usize]) - sum.ln();
        assert!((f64::from(logprob) - expected).abs() < 1e-4, "{logprob} against {expected}");
    }
}

#[test]
fn greedy_takes_the_most_probable_token_and_stops_at_the_end() {
    let model = model(Family::Llama, true);
    let free = model.greedy(&PROMPT, 6, &[], None).unwrap();
    assert_eq!(free.len(), 6);
    let logits = model.logits(&PROMPT, None).unwrap().to_vec2::<f32>().unwrap();
    let best = logits[PROMPT.len() - 1].iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    assert_eq!(best.map(|(id, _)| id as u32), Some(free[0]));
    let stop = free[2];
    let first = free.iter().position(|t| *t == stop).unwrap();
    assert_eq!(model.greedy(&PROMPT, 6, &[stop], None).unwrap(), free[..=first]);
}

#[test]
fn input_that_makes_no_sense_is_refused() {
    let model = model(Family::Llama, true);
    assert!(model.logits(&[], None).is_err());
    assert!(model.logits(&[264], None).is_err());
    assert!(model.logits(&vec![1; 513], None).is_err());
    assert!(model.logprobs(&PROMPT, &[], None).is_err());
    assert!(model.logprobs(&[], &RESPONSE, None).is_err());
    let lora = trained(model.config());
    assert!(model.gradient(&lora, &PROMPT, &RESPONSE, &mut |_| vec![1.0]).is_err());
    let other = ModelConfig { layers: 3, ..model.config().clone() };
    assert!(LoraVars::new(&Lora::init(&other, 4, 8.0, 1), model.config(), &Device::Cpu).is_err());
}
