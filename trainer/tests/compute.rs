//! The hand-written arithmetic against candle's autograd, against finite differences and against
//! itself, on tiny models of every family.

use std::error::Error;
use std::path::PathBuf;

use candle_core::{DType, Device};
use hone_model::config::{Family, ModelConfig};
use hone_model::frozen::Frozen;
use hone_model::lora::Lora;
use hone_model::oracle::CandleLlama;
use hone_model::testing::{random_lora, tiny_model_of};
use hone_trainer::compute::{
    Compute, ComputeError, CpuCompute, Limits, Precision, Rollout, SampleParams, Sequence,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio_util::sync::CancellationToken;

type Outcome = Result<(), Box<dyn Error>>;

const SEED: u64 = 20_261_122;

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
    config: ModelConfig,
    lora: Lora,
}

/// A tiny model and an adapter whose B is not zero, so that every gradient is.
fn fixture(family: Family, tied: bool) -> Result<Fixture, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let path = tiny_model_of(&dir.path().join("tiny"), SEED, family, tied)?;
    let config = ModelConfig::from_dir(&path)?;
    let lora = random_lora(&config, 5, 10.0, SEED);
    Ok(Fixture { _dir: dir, path, config, lora })
}

fn tokens(rng: &mut ChaCha8Rng, count: usize) -> Vec<u32> {
    (0..count).map(|_| rng.random_range(0..264)).collect()
}

/// Sequences of uneven lengths; the first, third and last have the same prompt.
fn sequences() -> Vec<Sequence> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED + 1);
    let (shared, other) = (tokens(&mut rng, 13), tokens(&mut rng, 70));
    [(&shared, 9), (&other, 81), (&shared, 1), (&other, 2), (&shared, 67)]
        .map(|(prompt, count)| Sequence {
            prompt: prompt.clone(),
            response: tokens(&mut rng, count),
        })
        .to_vec()
}

/// A loss that weighs every token differently: L = Σ_t (0.3 + 0.1 (t mod 5)) · sin(ln p_t).
fn weight(t: usize) -> f32 {
    0.3 + 0.1 * (t % 5) as f32
}

fn slopes(_: usize, ln_p: &[f32]) -> Vec<f32> {
    ln_p.iter().enumerate().map(|(t, l)| weight(t) * l.cos()).collect()
}

fn loss(ln_p: &[Vec<f32>]) -> f64 {
    let terms = ln_p.iter().flat_map(|s| s.iter().enumerate());
    terms.map(|(t, l)| f64::from(weight(t)) * f64::from(*l).sin()).sum()
}

/// |a − b| / |b|, over all tensors.
fn distance(a: &Lora, b: &Lora) -> f64 {
    let mut difference = a.clone();
    difference.add_scaled(b, -1.0);
    difference.norm() / b.norm()
}

fn worst(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// Segments over several blocks of the kernels, with ragged ends: a prompt longer than a block that
/// three replies share, one that ends with a block, and one of a single token.
fn long_sequences() -> Vec<Sequence> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED + 3);
    let (shared, other) = (tokens(&mut rng, 200), tokens(&mut rng, 128));
    [(&shared, 290), (&other, 129), (&shared, 33), (&shared, 1), (&vec![7], 260)]
        .map(|(prompt, count)| Sequence {
            prompt: prompt.clone(),
            response: tokens(&mut rng, count),
        })
        .to_vec()
}

/// Compares scores and gradients with those of candle's autograd.
fn agrees_with_autograd(fixture: &Fixture, sequences: &[Sequence]) -> Outcome {
    let oracle = CandleLlama::load(&fixture.path, &Device::Cpu)?;
    let (mut wanted, mut ln_p) = (fixture.lora.zeros_like(), Vec::new());
    for (index, s) in sequences.iter().enumerate() {
        let one = oracle
            .gradient(&fixture.lora, &s.prompt, &s.response, &mut |values| slopes(index, values))?;
        wanted.add_scaled(&one.lora, 1.0);
        ln_p.push(one.logprobs);
    }
    let mut compute = CpuCompute::new(&fixture.path, 2)?;
    let found = compute.gradient(&fixture.lora, sequences, &mut slopes)?;
    let (error, worst_ln_p) = (distance(&found.lora, &wanted), worst(&found.logprobs, &ln_p));
    println!("gradient {error:.1e}, ln p {worst_ln_p:.1e}");
    assert!(error < 1e-4, "relative gradient error {error}");
    assert!(worst_ln_p < 1e-3, "ln p differs by {worst_ln_p}");
    let scored = compute.score(Some(&fixture.lora), sequences)?;
    assert!(worst(&scored, &ln_p) < 1e-3);
    let lengths: Vec<usize> = scored.iter().map(Vec::len).collect();
    assert_eq!(lengths, sequences.iter().map(|s| s.response.len()).collect::<Vec<_>>());
    found.lora.for_each_tensor(|layer, proj, side, values| {
        assert!(values.iter().any(|v| *v != 0.0), "{layer} {proj:?} {side:?} has no gradient");
    });
    Ok(())
}

#[test]
fn scores_and_gradients_agree_with_autograd_for_every_family() -> Outcome {
    let families = [
        (Family::Llama, true),
        (Family::Mistral, false),
        (Family::Qwen2, true),
        (Family::Qwen3, false),
    ];
    for (family, tied) in families {
        println!("{family:?}");
        agrees_with_autograd(&fixture(family, tied)?, &sequences())?;
    }
    Ok(())
}

#[test]
fn issue_5_gradients_over_several_blocks_of_queries_and_keys_agree_with_autograd() -> Outcome {
    agrees_with_autograd(&fixture(Family::Llama, true)?, &long_sequences())
}

#[test]
fn without_an_adapter_the_base_model_is_scored() -> Outcome {
    let fixture = fixture(Family::Llama, true)?;
    let oracle = CandleLlama::load(&fixture.path, &Device::Cpu)?;
    let sequences = sequences();
    let found = CpuCompute::new(&fixture.path, 2)?.score(None, &sequences)?;
    for (s, found) in sequences.iter().zip(found) {
        let wanted = oracle.logprobs(&s.prompt, &s.response, None)?.to_vec1::<f32>()?;
        assert!(worst(&[found], &[wanted]) < 1e-3);
    }
    Ok(())
}

#[test]
fn gradients_agree_with_finite_differences() -> Outcome {
    let fixture = fixture(Family::Qwen3, true)?;
    let sequences = sequences();
    let mut compute = CpuCompute::new(&fixture.path, 2)?;
    let gradient = compute.gradient(&fixture.lora, &sequences, &mut slopes)?.lora;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED + 2);
    for attempt in 0..6 {
        let mut direction = fixture.lora.zeros_like();
        for tensor in direction.tensors_mut() {
            tensor.iter_mut().for_each(|value| *value = rng.random_range(-1.0f32..1.0));
        }
        let slope: f64 = gradient
            .tensors()
            .zip(direction.tensors())
            .flat_map(|(g, d)| g.iter().zip(d))
            .map(|(g, d)| f64::from(*g) * f64::from(*d))
            .sum();
        let mut at = |step: f32| -> Result<f64, ComputeError> {
            let mut moved = fixture.lora.clone();
            moved.add_scaled(&direction, step);
            Ok(loss(&compute.score(Some(&moved), &sequences)?))
        };
        // Central differences of fourth order.
        let h = 2e-3;
        let measured =
            (8.0 * (at(h)? - at(-h)?) - (at(2.0 * h)? - at(-2.0 * h)?)) / (12.0 * f64::from(h));
        let error = (measured - slope).abs() / slope.abs().max(gradient.norm());
        assert!(error < 1e-3, "{attempt}: {measured} measured, {slope} computed");
    }
    Ok(())
}

#[test]
fn a_shared_prompt_gives_what_repeated_prompts_give() -> Outcome {
    let fixture = fixture(Family::Llama, true)?;
    let sequences = sequences();
    let mut shared = CpuCompute::new(&fixture.path, 2)?;
    let limits = Limits { share_prompts: false, ..Limits::default() };
    let mut repeated = CpuCompute::with_limits(&fixture.path, 2, limits)?;
    let a = shared.gradient(&fixture.lora, &sequences, &mut slopes)?;
    let b = repeated.gradient(&fixture.lora, &sequences, &mut slopes)?;
    assert!(distance(&a.lora, &b.lora) < 1e-5);
    assert!(worst(&a.logprobs, &b.logprobs) < 1e-4);
    Ok(())
}

#[test]
fn small_batches_give_what_one_batch_gives() -> Outcome {
    let fixture = fixture(Family::Llama, true)?;
    let sequences = sequences();
    // A few rows of logits at a time: longer replies go through the head twice.
    let limits = Limits { activation_bytes_max: 1, logits_bytes_max: 1, ..Limits::default() };
    let mut small = CpuCompute::with_limits(&fixture.path, 2, limits)?;
    let a = small.gradient(&fixture.lora, &sequences, &mut slopes)?;
    let b = CpuCompute::new(&fixture.path, 2)?.gradient(&fixture.lora, &sequences, &mut slopes)?;
    assert!(distance(&a.lora, &b.lora) < 1e-5);
    assert!(worst(&a.logprobs, &b.logprobs) < 1e-4);
    Ok(())
}

#[test]
fn layers_that_are_computed_again_give_the_same_bytes_as_those_kept() -> Outcome {
    let fixture = fixture(Family::Qwen3, true)?;
    let one = &sequences()[1..2];
    let wanted = CpuCompute::new(&fixture.path, 2)?.gradient(&fixture.lora, one, &mut slopes)?;
    // From no layer's state to all of them.
    for power in 0..24 {
        let limits = Limits { activation_bytes_max: 1 << power, ..Limits::default() };
        let mut tight = CpuCompute::with_limits(&fixture.path, 2, limits)?;
        let found = tight.gradient(&fixture.lora, one, &mut slopes)?;
        assert!(found == wanted, "with 2^{power} bytes");
        // In memory that another batch left behind, too.
        tight.gradient(&fixture.lora, &sequences(), &mut slopes)?;
        assert!(tight.gradient(&fixture.lora, one, &mut slopes)? == wanted, "2^{power} again");
    }
    Ok(())
}

#[test]
fn bf16_products_agree_with_f32_to_their_precision_and_with_themselves() -> Outcome {
    for (family, tied) in [(Family::Llama, true), (Family::Qwen3, false)] {
        let fixture = fixture(family, tied)?;
        let sequences = [sequences(), long_sequences()].concat();
        let limits = Limits { precision: Precision::Bf16, ..Limits::default() };
        let mut bf16 = CpuCompute::with_limits(&fixture.path, 2, limits.clone())?;
        if bf16.precision() == Precision::F32 {
            eprintln!("SKIPPED: this processor has no AVX-512 BF16");
            return Ok(());
        }
        let found = bf16.gradient(&fixture.lora, &sequences, &mut slopes)?;
        // A smooth loss: slopes that depend on ln p would mix its error into the gradient's.
        let mut steady = |_: usize, ln_p: &[f32]| (0..ln_p.len()).map(weight).collect::<Vec<_>>();
        let rough = bf16.gradient(&fixture.lora, &sequences, &mut steady)?;
        let mut f32 = CpuCompute::new(&fixture.path, 2)?;
        let exact = f32.gradient(&fixture.lora, &sequences, &mut steady)?;
        let error = distance(&rough.lora, &exact.lora);
        let worst_ln_p = worst(&rough.logprobs, &exact.logprobs);
        println!("{family:?}: bf16 gradient {error:.1e}, ln p {worst_ln_p:.1e}");
        assert!(error < 3e-2 && worst_ln_p < 0.2, "{family:?}: {error} and {worst_ln_p}");
        let one = CpuCompute::with_limits(&fixture.path, 1, limits)?.gradient(
            &fixture.lora,
            &sequences,
            &mut slopes,
        )?;
        assert!(one == found, "bit for bit the same with one thread");
        let prompt = vec![sequences[0].prompt.clone()];
        let drawn = bf16.sample(Some(&fixture.lora), &prompt, 3, &params(0.7, 5))?;
        let again: Vec<Sequence> = drawn[0]
            .iter()
            .map(|r| Sequence { prompt: prompt[0].clone(), response: r.tokens.clone() })
            .collect();
        let ln_p: Vec<Vec<f32>> = drawn[0].iter().map(|r| r.logprobs.clone()).collect();
        assert!(worst(&bf16.score(Some(&fixture.lora), &again)?, &ln_p) < 0.1);
    }
    Ok(())
}

#[test]
fn results_do_not_depend_on_threads_repetition_or_order() -> Outcome {
    let fixture = fixture(Family::Qwen2, false)?;
    let sequences = sequences();
    let mut two = CpuCompute::new(&fixture.path, 2)?;
    let first = two.gradient(&fixture.lora, &sequences, &mut slopes)?;
    let again = two.gradient(&fixture.lora, &sequences, &mut slopes)?;
    let three =
        CpuCompute::new(&fixture.path, 3)?.gradient(&fixture.lora, &sequences, &mut slopes)?;
    assert!(first == again && first == three, "bit for bit the same");
    let reversed: Vec<Sequence> = sequences.iter().rev().cloned().collect();
    let backwards = two.gradient(&fixture.lora, &reversed, &mut slopes)?;
    assert!(distance(&backwards.lora, &first.lora) < 1e-5);
    let turned: Vec<Vec<f32>> = backwards.logprobs.into_iter().rev().collect();
    assert!(worst(&turned, &first.logprobs) < 1e-4);
    Ok(())
}

fn params(temperature: f32, seed: u64) -> SampleParams {
    SampleParams { temperature, tokens_max: 40, eos: vec![2, 17, 40, 99], seed }
}

#[test]
fn sampled_logprobs_are_what_score_says_about_the_tokens() -> Outcome {
    let fixture = fixture(Family::Qwen3, true)?;
    let mut compute = CpuCompute::new(&fixture.path, 2)?;
    let prompts: Vec<Vec<u32>> = sequences().iter().map(|s| s.prompt.clone()).take(2).collect();
    let drawn = compute.sample(Some(&fixture.lora), &prompts, 6, &params(0.7, 1))?;
    let (mut sequences, mut ln_p) = (Vec::new(), Vec::new());
    for (prompt, rollouts) in prompts.iter().zip(&drawn) {
        assert_eq!(rollouts.len(), 6);
        for rollout in rollouts {
            assert_eq!(rollout.tokens.len(), rollout.logprobs.len());
            let ending = |t: &u32| params(0.7, 1).eos.contains(t);
            assert_eq!(rollout.ended, rollout.tokens.last().is_some_and(ending));
            assert!(rollout.ended || rollout.tokens.len() == 40);
            assert!(!rollout.tokens.iter().rev().skip(1).any(ending));
            sequences.push(Sequence { prompt: prompt.clone(), response: rollout.tokens.clone() });
            ln_p.push(rollout.logprobs.clone());
        }
    }
    let scored = compute.score(Some(&fixture.lora), &sequences)?;
    assert!(worst(&scored, &ln_p) < 1e-3);
    Ok(())
}

#[test]
fn replies_are_reproducible_and_independent_of_company() -> Outcome {
    let fixture = fixture(Family::Llama, true)?;
    let mut compute = CpuCompute::new(&fixture.path, 2)?;
    let prompts: Vec<Vec<u32>> = sequences().iter().map(|s| s.prompt.clone()).take(2).collect();
    let all = compute.sample(None, &prompts, 5, &params(1.0, 3))?;
    let tokens = |drawn: &[Vec<Rollout>]| -> Vec<Vec<u32>> {
        drawn.iter().flatten().map(|rollout| rollout.tokens.clone()).collect()
    };
    let one_thread =
        CpuCompute::new(&fixture.path, 1)?.sample(None, &prompts, 5, &params(1.0, 3))?;
    assert!(all == one_thread, "bit for bit the same");
    assert!(tokens(&all) != tokens(&compute.sample(None, &prompts, 5, &params(1.0, 4))?));
    let cramped = [
        Limits { replies_max: 3, ..Limits::default() },
        Limits { activation_bytes_max: 1, ..Limits::default() },
        Limits { cache_bytes_max: 1, ..Limits::default() },
    ];
    for limits in cramped {
        let mut waves = CpuCompute::with_limits(&fixture.path, 2, limits)?;
        assert_eq!(tokens(&all), tokens(&waves.sample(None, &prompts, 5, &params(1.0, 3))?));
    }
    let alone = compute.sample(None, &prompts[..1], 2, &params(1.0, 3))?;
    assert_eq!(tokens(&alone), tokens(&all)[..2]);
    let replies = tokens(&all);
    assert!(replies[0] != replies[1], "replies of one prompt differ");
    Ok(())
}

#[test]
fn greedy_replies_are_the_oracles() -> Outcome {
    let fixture = fixture(Family::Mistral, true)?;
    let oracle = CandleLlama::load(&fixture.path, &Device::Cpu)?;
    let prompt = sequences()[0].prompt.clone();
    let params = params(0.0, 1);
    let wanted = oracle.greedy(&prompt, params.tokens_max, &params.eos, None)?;
    let found = CpuCompute::new(&fixture.path, 2)?.sample(None, &[prompt], 1, &params)?;
    assert_eq!(found[0][0].tokens, wanted);
    Ok(())
}

#[test]
fn a_reply_stops_at_the_models_last_position() -> Outcome {
    let fixture = fixture(Family::Llama, true)?;
    let prompt = tokens(&mut ChaCha8Rng::seed_from_u64(1), fixture.config.max_positions - 3);
    let params = SampleParams { eos: Vec::new(), ..params(1.0, 1) };
    let mut compute = CpuCompute::new(&fixture.path, 2)?;
    let drawn = compute.sample(None, &[prompt], 1, &params)?;
    assert_eq!(drawn[0][0].tokens.len(), 3);
    assert!(!drawn[0][0].ended);
    Ok(())
}

#[test]
fn unusable_input_is_an_error_and_nothing_is_computed() -> Outcome {
    let fixture = fixture(Family::Llama, true)?;
    let mut compute = CpuCompute::new(&fixture.path, 2)?;
    let one = |prompt: &[u32], response: &[u32]| {
        [Sequence { prompt: prompt.to_vec(), response: response.to_vec() }]
    };
    let empty = compute.score(None, &one(&[], &[1]));
    assert!(matches!(empty, Err(ComputeError::EmptyPrompt(0))));
    let foreign = compute.score(None, &one(&[1], &[5000]));
    assert!(matches!(foreign, Err(ComputeError::UnknownToken { token: 5000, .. })));
    let long = compute.score(None, &one(&[1; 500], &[1; 13]));
    assert!(matches!(long, Err(ComputeError::TooLong { tokens: 513, .. })));
    let mut cut = fixture.lora.clone();
    cut.layers.pop();
    assert!(matches!(compute.score(Some(&cut), &one(&[1], &[2])), Err(ComputeError::AdapterShape)));
    let wrong = compute.gradient(&fixture.lora, &one(&[1], &[2, 3]), &mut |_, _| vec![1.0]);
    assert!(matches!(wrong, Err(ComputeError::LossLength { wanted: 2, found: 1, .. })));
    let infinite = compute.gradient(&fixture.lora, &one(&[1], &[2]), &mut |_, _| vec![f32::NAN]);
    assert!(matches!(infinite, Err(ComputeError::NotFinite(_))));
    assert_eq!(compute.score(None, &one(&[1], &[]))?, [Vec::<f32>::new()]);
    assert!(compute.score(None, &[])?.is_empty());
    assert_eq!(compute.sample(None, &[vec![1]], 0, &params(1.0, 1))?, [Vec::<Rollout>::new()]);
    Ok(())
}

#[test]
fn a_call_that_is_interrupted_has_no_result() -> Outcome {
    let fixture = fixture(Family::Llama, true)?;
    let mut compute = CpuCompute::new(&fixture.path, 2)?;
    let stop = CancellationToken::new();
    compute.interrupt_by(stop.clone());
    let (asked, lora) = (sequences(), &fixture.lora);
    compute.gradient(lora, &asked, &mut slopes)?;
    // In the middle of the call: between the forward and the backward pass.
    let cut = compute.gradient(lora, &asked, &mut |i, ln_p| {
        stop.cancel();
        slopes(i, ln_p)
    });
    assert!(matches!(cut, Err(ComputeError::Interrupted)));
    assert!(matches!(compute.score(Some(lora), &asked), Err(ComputeError::Interrupted)));
    let prompts = [asked[0].prompt.clone()];
    let drawn = compute.sample(None, &prompts, 1, &params(1.0, 1));
    assert!(matches!(drawn, Err(ComputeError::Interrupted)));
    Ok(())
}

#[test]
fn a_model_whose_own_output_head_is_missing_is_refused_as_on_other_devices() -> Outcome {
    let fixture = fixture(Family::Qwen2, true)?;
    let path = fixture.path.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["tie_word_embeddings"] = false.into();
    std::fs::write(&path, config.to_string())?;
    let here = CpuCompute::new(&fixture.path, 1).err().ok_or("computed with another head")?;
    let there = Frozen::load(&fixture.path, Device::Cpu, DType::F32).err().ok_or("loaded")?;
    assert_eq!(here.to_string(), there.to_string());
    assert!(here.to_string().contains("lm_head.weight"), "{here}");
    Ok(())
}
