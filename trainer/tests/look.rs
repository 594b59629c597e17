//! Several tokens, likeliest tokens and whole distributions per position, against candle's autograd
//! and against themselves, on tiny models.

use std::error::Error;
use std::path::PathBuf;

use candle_core::{D, Device, Tensor};
use hone_model::config::{Family, ModelConfig};
use hone_model::lora::Lora;
use hone_model::oracle::{CandleLlama, LoraVars};
use hone_model::testing::{random_lora, tiny_model_of};
use hone_trainer::compute::{
    Against, Compute, ComputeError, CpuCompute, Direction, Limits, Look, Sequence, Sight, Slopes,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Outcome = Result<(), Box<dyn Error>>;

const SEED: u64 = 20_261_123;

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
    lora: Lora,
    /// The same replies after the student's prompts and after the teacher's.
    plain: Vec<Sequence>,
    hinted: Vec<Sequence>,
}

fn fixture(family: Family, tied: bool) -> Result<Fixture, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let path = tiny_model_of(&dir.path().join("tiny"), SEED, family, tied)?;
    let config = ModelConfig::from_dir(&path)?;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let lora = random_lora(&config, 5, 10.0, SEED);
    let mut tokens =
        |count: usize| -> Vec<u32> { (0..count).map(|_| rng.random_range(0..264)).collect() };
    let (shared, other) = (tokens(11), tokens(23));
    let (mut plain, mut hinted) = (Vec::new(), Vec::new());
    for (prompt, count) in [(&shared, 9), (&other, 21), (&shared, 1)] {
        let response = tokens(count);
        let hint = [prompt.clone(), tokens(5)].concat();
        plain.push(Sequence { prompt: prompt.clone(), response: response.clone() });
        hinted.push(Sequence { prompt: hint, response });
    }
    Ok(Fixture { _dir: dir, path, lora, plain, hinted })
}

/// ln p over the vocabulary, `(tokens, vocab)`, differentiable.
fn rows(
    oracle: &CandleLlama,
    s: &Sequence,
    vars: Option<&LoraVars>,
) -> Result<Tensor, Box<dyn Error>> {
    let all = [s.prompt.as_slice(), &s.response].concat();
    let logits = oracle.logits(&all, vars)?;
    let logits = logits.narrow(0, s.prompt.len() - 1, s.response.len())?;
    Ok(logits.broadcast_sub(&logits.log_sum_exp(D::Minus1)?.unsqueeze(1)?)?)
}

fn distance(a: &Lora, b: &Lora) -> f64 {
    let mut difference = a.clone();
    difference.add_scaled(b, -1.0);
    difference.norm() / b.norm()
}

/// Looks with both directions, some tokens, and one sequence that asks for nothing.
fn looks(it: &Fixture, compute: &mut CpuCompute) -> Result<Vec<Look>, ComputeError> {
    let state = Look { state: true, ..Look::default() };
    let teacher = compute.look(None, &it.hinted, &vec![state; it.hinted.len()])?;
    let at = |i: u32| (0..i % 4).map(|j| (i * 31 + j * 57) % 264).collect::<Vec<u32>>();
    let tokens = it.plain[0].response.len() as u32;
    let against =
        |i: usize, direction| Some(Against { state: teacher[i].state.clone(), direction });
    Ok(vec![
        Look {
            at: (0..tokens).map(at).collect(),
            against: against(0, Direction::Reverse),
            ..Look::default()
        },
        Look { against: against(1, Direction::Forward), ..Look::default() },
        Look::default(),
    ])
}

fn weight(t: usize) -> f32 {
    0.3 + 0.1 * (t % 5) as f32
}

/// Slopes of Σ weight · (own + 2 Σ at + 3 kl).
fn slopes(seen: &Sight) -> Slopes {
    let of = |factor: f32, n: usize| (0..n).map(|t| factor * weight(t)).collect::<Vec<f32>>();
    let at = seen.at.iter().enumerate().map(|(t, at)| vec![2.0 * weight(t); at.len()]);
    Slopes { own: of(1.0, seen.own.len()), at: at.collect(), kl: of(3.0, seen.kl.len()) }
}

/// The same loss in candle.
fn oracle_loss(
    it: &Fixture,
    oracle: &CandleLlama,
    looks: &[Look],
    vars: &LoraVars,
) -> Result<Tensor, Box<dyn Error>> {
    let mut total = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?;
    for ((s, hinted), look) in it.plain.iter().zip(&it.hinted).zip(looks) {
        let (p, q) = (rows(oracle, s, Some(vars))?, rows(oracle, hinted, None)?);
        for (t, token) in s.response.iter().enumerate() {
            let (p, q) = (p.get(t)?, q.get(t)?);
            let own = p.get(*token as usize)?;
            let mut term = own;
            for token in look.at.get(t).into_iter().flatten() {
                term = (term + (p.get(*token as usize)? * 2.0)?)?;
            }
            if let Some(against) = &look.against {
                let kl = match against.direction {
                    Direction::Reverse => (p.exp()? * (&p - &q)?)?.sum_all()?,
                    Direction::Forward => (q.exp()? * (&q - &p)?)?.sum_all()?,
                };
                term = (term + (kl * 3.0)?)?;
            }
            total = (total + (term * f64::from(weight(t)))?)?;
        }
    }
    Ok(total)
}

#[test]
fn gradients_of_several_tokens_and_of_divergences_are_those_of_autograd() -> Outcome {
    for (family, tied) in [(Family::Llama, true), (Family::Qwen3, false)] {
        let it = fixture(family, tied)?;
        let mut compute = CpuCompute::new(&it.path, 2)?;
        let looks = looks(&it, &mut compute)?;
        let oracle = CandleLlama::load(&it.path, &Device::Cpu)?;
        let vars = LoraVars::new(&it.lora, oracle.config(), &Device::Cpu)?;
        let wanted = vars.gradient(&oracle_loss(&it, &oracle, &looks, &vars)?.backward()?)?;
        let found =
            compute.differentiate(&it.lora, &it.plain, &looks, &mut |_, seen| slopes(seen))?;
        let error = distance(&found.lora, &wanted);
        println!("{family:?}: {error:.1e}");
        assert!(error < 1e-4, "{family:?}: relative gradient error {error}");
        // A few rows of logits at a time: long replies go through the head twice.
        let limits = Limits { activation_bytes_max: 1, logits_bytes_max: 1, ..Limits::default() };
        let mut small = CpuCompute::with_limits(&it.path, 2, limits)?;
        let again = small.differentiate(&it.lora, &it.plain, &looks, &mut |_, s| slopes(s))?;
        assert!(distance(&again.lora, &found.lora) < 1e-5);
    }
    Ok(())
}

#[test]
fn what_is_seen_is_what_the_oracles_distributions_say() -> Outcome {
    let it = fixture(Family::Llama, true)?;
    let mut compute = CpuCompute::new(&it.path, 2)?;
    let mut asked = looks(&it, &mut compute)?;
    asked.iter_mut().for_each(|look| look.top = 5);
    let seen = compute.look(Some(&it.lora), &it.plain, &asked)?;
    let oracle = CandleLlama::load(&it.path, &Device::Cpu)?;
    let vars = LoraVars::new(&it.lora, oracle.config(), &Device::Cpu)?;
    for (i, seen) in seen.iter().enumerate() {
        let p = rows(&oracle, &it.plain[i], Some(&vars))?.to_vec2::<f32>()?;
        let q = rows(&oracle, &it.hinted[i], None)?.to_vec2::<f32>()?;
        for (t, p) in p.iter().enumerate() {
            let mut order: Vec<u32> = (0..p.len() as u32).collect();
            order.sort_by(|a, b| p[*b as usize].total_cmp(&p[*a as usize]));
            let best: Vec<u32> = seen.top[t].iter().map(|(token, _)| *token).collect();
            assert_eq!(best, order[..5]);
            let close = |found: f32, token: u32| (found - p[token as usize]).abs() < 1e-3;
            assert!(close(seen.own[t], it.plain[i].response[t]));
            assert!(seen.top[t].iter().all(|(token, found)| close(*found, *token)));
            for (token, found) in
                asked[i].at.get(t).into_iter().flatten().zip(seen.at.get(t).into_iter().flatten())
            {
                assert!(close(*found, *token));
            }
            let Some(against) = &asked[i].against else { continue };
            let (a, b) = match against.direction {
                Direction::Reverse => (p, &q[t]),
                Direction::Forward => (&q[t], p),
            };
            let kl: f32 = a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum();
            assert!((kl - seen.kl[t]).abs() < 1e-3, "{i} {t}: {kl} {}", seen.kl[t]);
        }
    }
    Ok(())
}

#[test]
fn a_model_does_not_differ_from_itself() -> Outcome {
    let it = fixture(Family::Mistral, true)?;
    let mut compute = CpuCompute::new(&it.path, 2)?;
    let state = Look { state: true, ..Look::default() };
    let own = compute.look(Some(&it.lora), &it.plain, &vec![state; 3])?;
    for direction in [Direction::Forward, Direction::Reverse] {
        let against = |s: &Sight| Some(Against { state: s.state.clone(), direction });
        let looks: Vec<Look> =
            own.iter().map(|s| Look { against: against(s), ..Look::default() }).collect();
        let seen = compute.look(Some(&it.lora), &it.plain, &looks)?;
        assert!(seen.iter().flat_map(|s| &s.kl).all(|kl| kl.abs() < 1e-5), "{seen:?}");
        let found = compute.differentiate(&it.lora, &it.plain, &looks, &mut |_, seen| Slopes {
            kl: vec![1.0; seen.kl.len()],
            ..Slopes::default()
        })?;
        assert!(found.lora.norm() < 1e-4, "{}", found.lora.norm());
    }
    Ok(())
}

#[test]
fn questions_that_do_not_fit_are_refused() -> Outcome {
    let it = fixture(Family::Llama, true)?;
    let mut compute = CpuCompute::new(&it.path, 1)?;
    let one = &it.plain[..1];
    let mut refused = |look: Look| compute.look(None, one, &[look]);
    let short = Look { at: vec![vec![1]], ..Look::default() };
    assert!(matches!(refused(short), Err(ComputeError::LookShape(0))));
    let foreign = Look { at: vec![vec![5000]; 9], ..Look::default() };
    assert!(matches!(refused(foreign), Err(ComputeError::UnknownToken { token: 5000, .. })));
    let against = Some(Against { state: vec![0.0; 3], direction: Direction::Forward });
    let cut = Look { against, ..Look::default() };
    assert!(matches!(refused(cut), Err(ComputeError::LookShape(0))));
    let many = compute.look(None, one, &[Look::default(), Look::default()]);
    assert!(matches!(many, Err(ComputeError::LookShape(_))));
    Ok(())
}
