//! candle's device path against the hand-written kernels, number by number, on tiny models of every
//! family. On the processor, or on the device that `HONE_DEVICE` names (`cuda`, `metal`).

use std::error::Error;
use std::path::PathBuf;

use hone_model::config::{Family, ModelConfig};
use hone_model::lora::Lora;
use hone_model::testing::{random_lora, tiny_model_of};
use hone_trainer::compute::{
    Against, Compute, ComputeError, CpuCompute, DeviceCompute, Direction, Limits, Look, Precision,
    SampleParams, Sequence, Sight, Slopes, open_device,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio_util::sync::CancellationToken;

type Outcome = Result<(), Box<dyn Error>>;

const SEED: u64 = 20_261_124;
const FAMILIES: [(Family, bool); 5] = [
    (Family::Llama, true),
    (Family::Llama, false),
    (Family::Mistral, false),
    (Family::Qwen2, true),
    (Family::Qwen3, true),
];

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
    lora: Lora,
    cpu: CpuCompute,
    device: DeviceCompute,
}

fn fixture(family: Family, tied: bool) -> Result<Fixture, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let path = tiny_model_of(&dir.path().join("tiny"), SEED, family, tied)?;
    let config = ModelConfig::from_dir(&path)?;
    let lora = random_lora(&config, 5, 10.0, SEED);
    let name = std::env::var("HONE_DEVICE").unwrap_or_else(|_| "candle-cpu".into());
    let device = open_device(&name)?.ok_or("HONE_DEVICE names the hand-written kernels")?;
    // Few rows of logits at a time, so that every reply goes through the head in parts.
    let logits_bytes_max = 4 * 4 * config.vocab;
    let device = DeviceCompute::new(&path, device, Precision::F32, logits_bytes_max)?;
    let cpu = CpuCompute::with_limits(&path, 1, Limits::default())?;
    Ok(Fixture { _dir: dir, path, lora, cpu, device })
}

fn tokens(rng: &mut ChaCha8Rng, count: usize) -> Vec<u32> {
    (0..count).map(|_| rng.random_range(0..264)).collect()
}

/// Replies of uneven lengths, one of them empty, after the student's prompts; with `hint` after longer
/// ones.
fn sequences(hint: bool) -> Vec<Sequence> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED + 1);
    let one = |count: usize| {
        let (mut prompt, response) = (tokens(&mut rng, 11), tokens(&mut rng, count));
        if hint {
            prompt.extend([7, 8, 9]);
        }
        Sequence { prompt, response }
    };
    [9, 21, 0, 1].map(one).to_vec()
}

/// Everything that can be asked, one thing or two per sequence.
fn looks(it: &mut Fixture) -> Result<Vec<Look>, ComputeError> {
    let state = Look { state: true, ..Look::default() };
    let hinted = sequences(true);
    let teacher = it.cpu.look(None, &hinted, &vec![state; hinted.len()])?;
    let against =
        |i: usize, direction| Some(Against { state: teacher[i].state.clone(), direction });
    let at = (0..9_u32).map(|i| (0..i % 4).map(|j| (i * 31 + j * 57) % 264).collect()).collect();
    Ok(vec![
        Look { top: 3, at, against: against(0, Direction::Forward), ..Look::default() },
        Look { against: against(1, Direction::Reverse), state: true, ..Look::default() },
        Look::default(),
        Look { top: 1, ..Look::default() },
    ])
}

fn near(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 2e-4 * (1.0 + b.abs()), "{what}: {a} and {b}");
    }
}

fn same(got: &Sight, want: &Sight) {
    near(&got.own, &want.own, "ln p of its own tokens");
    near(&got.state, &want.state, "hidden states");
    near(&got.kl, &want.kl, "divergence");
    assert_eq!(got.at.len(), want.at.len());
    got.at.iter().zip(&want.at).for_each(|(a, b)| near(a, b, "ln p of other tokens"));
    assert_eq!(got.top.len(), want.top.len());
    for (a, b) in got.top.iter().flatten().zip(want.top.iter().flatten()) {
        assert_eq!(a.0, b.0, "likeliest tokens");
        near(&[a.1], &[b.1], "ln p of the likeliest");
    }
}

#[test]
fn what_is_seen_is_what_the_kernels_see() -> Outcome {
    for (family, tied) in FAMILIES {
        let mut it = fixture(family, tied)?;
        let (looks, plain) = (looks(&mut it)?, sequences(false));
        for adapter in [None, Some(&it.lora)] {
            let want = it.cpu.look(adapter, &plain, &looks)?;
            let got = it.device.look(adapter, &plain, &looks)?;
            assert_eq!(got.len(), want.len());
            got.iter().zip(&want).for_each(|(got, want)| same(got, want));
        }
    }
    Ok(())
}

#[test]
fn gradients_of_every_kind_of_loss_are_the_kernels() -> Outcome {
    for (family, tied) in FAMILIES {
        let mut it = fixture(family, tied)?;
        let (looks, plain) = (looks(&mut it)?, sequences(false));
        let mut loss = |i: usize, seen: &Sight| Slopes {
            own: if i == 1 { Vec::new() } else { seen.own.iter().map(|p| p.cos()).collect() },
            at: seen.at.iter().map(|row| row.iter().map(|p| 0.1 * p.sin()).collect()).collect(),
            kl: seen.kl.iter().map(|kl| 1.0 + 0.1 * kl).collect(),
        };
        let want = it.cpu.differentiate(&it.lora, &plain, &looks, &mut loss)?;
        let got = it.device.differentiate(&it.lora, &plain, &looks, &mut loss)?;
        let mut difference = got.lora.clone();
        difference.add_scaled(&want.lora, -1.0);
        let distance = difference.norm() / want.lora.norm();
        assert!(distance < 1e-4, "{family:?}: {distance}");
        for (got, want) in got.logprobs.iter().zip(&want.logprobs) {
            near(got, want, "ln p");
        }
    }
    Ok(())
}

#[test]
fn replies_are_the_ones_that_the_kernels_draw() -> Outcome {
    for (family, tied) in FAMILIES {
        let mut it = fixture(family, tied)?;
        let prompts: Vec<Vec<u32>> = sequences(false).into_iter().map(|s| s.prompt).collect();
        for temperature in [0.0, 0.9] {
            let params =
                SampleParams { temperature, tokens_max: 17, eos: vec![3, 90, 200], seed: 41 };
            let want = it.cpu.sample(Some(&it.lora), &prompts, 3, &params)?;
            let got = it.device.sample(Some(&it.lora), &prompts, 3, &params)?;
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                assert_eq!((&got.tokens, got.ended), (&want.tokens, want.ended), "{family:?}");
                near(&got.logprobs, &want.logprobs, "ln p of drawn tokens");
            }
        }
        assert!(
            it.device.sample(None, &prompts, 0, &params_of_nothing())?.iter().all(Vec::is_empty)
        );
    }
    Ok(())
}

fn params_of_nothing() -> SampleParams {
    SampleParams { temperature: 1.0, tokens_max: 0, eos: Vec::new(), seed: 0 }
}

#[test]
fn mistakes_are_refused_before_any_work_and_a_stop_is_heeded() -> Outcome {
    let mut it = fixture(Family::Llama, true)?;
    let bad = [
        Sequence { prompt: Vec::new(), response: vec![1] },
        Sequence { prompt: vec![1], response: vec![9_999_999] },
    ];
    assert!(matches!(it.device.score(None, &bad[..1]), Err(ComputeError::EmptyPrompt(0))));
    let foreign = it.device.score(None, &bad[1..]);
    assert!(matches!(foreign, Err(ComputeError::UnknownToken { index: 0, .. })), "{foreign:?}");
    let wide = Lora { layers: it.lora.layers[..1].to_vec(), ..it.lora.clone() };
    let good = sequences(false);
    assert!(matches!(it.device.score(Some(&wide), &good), Err(ComputeError::AdapterShape)));
    let short = it.device.differentiate(&it.lora, &good, &[], &mut |_, _| vec![1.0].into());
    assert!(matches!(short, Err(ComputeError::LossLength { .. })), "{short:?}");
    let stop = CancellationToken::new();
    it.device.interrupt_by(stop.clone());
    stop.cancel();
    assert!(matches!(it.device.score(None, &good), Err(ComputeError::Interrupted)));
    let params = SampleParams { tokens_max: 4, ..params_of_nothing() };
    let drawn = it.device.sample(None, &[vec![1, 2]], 1, &params);
    assert!(matches!(drawn, Err(ComputeError::Interrupted)), "{drawn:?}");
    assert!(it.path.exists());
    Ok(())
}

#[test]
fn a_device_that_this_build_or_machine_lacks_is_named_in_the_error() {
    let error = |name: &str| open_device(name).map(drop).unwrap_err().to_string();
    assert!(error("tpu").contains("tpu"), "{}", error("tpu"));
    assert!(open_device("cpu").unwrap().is_none(), "the hand-written kernels");
    if cfg!(not(feature = "cuda")) {
        assert!(error("cuda").contains("features cuda"), "{}", error("cuda"));
    }
    if cfg!(not(feature = "metal")) {
        assert!(error("metal:1").contains("features metal"), "{}", error("metal:1"));
    }
}
