//! The head by itself, with a vocabulary of several chunks, against sums in f64.

use hone_model::config::ModelConfig;
use hone_model::testing::tiny_model_dir;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::kernels::{Linear, Precision};
use super::super::look::Direction;
use super::*;

const SEED: u64 = 20_261_122;
const HIDDEN: usize = 16;
const VOCAB: usize = 2 * VOCAB_CHUNK + 37;

struct Fixture {
    model: Model,
    /// `(vocab, hidden)`.
    head: Vec<f32>,
    rng: ChaCha8Rng,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny_model_dir(&dir.path().join("tiny"), SEED).unwrap();
    let mut config = ModelConfig::from_dir(&path).unwrap();
    (config.hidden, config.vocab) = (HIDDEN, VOCAB);
    let mut model = Model::load(&path, Precision::F32, 0).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut draw = |n: usize, scale: f32| -> Vec<f32> {
        (0..n).map(|_| scale * rng.random_range(-1.0f32..1.0)).collect()
    };
    let head = draw(VOCAB * HIDDEN, 1.5);
    model.norm = draw(HIDDEN, 0.2).iter().map(|v| 1.0 + v).collect();
    model.head = head
        .chunks(VOCAB_CHUNK * HIDDEN)
        .map(|part| Linear::pack(part, part.len() / HIDDEN, HIDDEN, 1.0, Precision::F32))
        .collect();
    (model.config, model.layers) = (config, Vec::new());
    Fixture { model, head, rng }
}

impl Fixture {
    fn states(&mut self, rows: usize) -> Vec<f32> {
        (0..rows * HIDDEN).map(|_| self.rng.random_range(-1.0f32..1.0)).collect()
    }

    /// ln p over the vocabulary of one hidden state, in f64.
    fn exact(&self, state: &[f32]) -> Vec<f64> {
        let square: f64 = state.iter().map(|v| f64::from(*v).powi(2)).sum();
        let factor = 1.0 / (square / HIDDEN as f64 + f64::from(self.model.eps)).sqrt();
        let normed: Vec<f64> = state
            .iter()
            .zip(&self.model.norm)
            .map(|(x, w)| f64::from(*x) * factor * f64::from(*w))
            .collect();
        let dot = |w: &[f32]| w.iter().zip(&normed).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
        let logits: Vec<f64> = self.head.chunks_exact(HIDDEN).map(dot).collect();
        let most = logits.iter().copied().fold(f64::MIN, f64::max);
        let lse = most + logits.iter().map(|z| (z - most).exp()).sum::<f64>().ln();
        logits.iter().map(|z| z - lse).collect()
    }

    fn kl(&self, state: &[f32], other: &[f32], direction: Direction) -> f64 {
        let (p, q) = match direction {
            Direction::Reverse => (self.exact(state), self.exact(other)),
            Direction::Forward => (self.exact(other), self.exact(state)),
        };
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    }
}

/// Rows that ask for everything: tokens of every chunk, one of them twice over, both directions.
fn questions<'a>(at: &'a [Vec<u32>], other: &'a [f32]) -> Vec<Row<'a>> {
    let against = |i: usize| match i {
        0 => None,
        1 | 3 => Some((&other[i * HIDDEN..(i + 1) * HIDDEN], Direction::Reverse)),
        _ => Some((&other[i * HIDDEN..(i + 1) * HIDDEN], Direction::Forward)),
    };
    at.iter()
        .enumerate()
        .map(|(i, at)| Row {
            // Rows 0 and 4 are the same row of the batch, as the first tokens of two replies are.
            target: Target { row: i % 4, token: (i * 2000) as u32 },
            at,
            top: i,
            against: against(i),
        })
        .collect()
}

fn ids() -> Vec<Vec<u32>> {
    let last = VOCAB as u32 - 1;
    vec![vec![], vec![0, 4095, 4096, last], vec![5], vec![8192, 2000 * 3], vec![1, 2, 3]]
}

#[test]
fn tokens_likeliest_tokens_and_divergences_are_those_of_exact_sums() {
    let mut it = fixture();
    let (x, other, at) = (it.states(4), it.states(5), ids());
    let rows = questions(&at, &other);
    let scored = score(&it.model, &x, &rows, Vec::new());
    for (row, seen) in rows.iter().zip(&scored.seen) {
        let state = &x[row.target.row * HIDDEN..(row.target.row + 1) * HIDDEN];
        let exact = it.exact(state);
        let close = |found: f32, token: u32| {
            let want = exact[token as usize];
            assert!((f64::from(found) - want).abs() < 1e-4, "{token}: {found} against {want}");
        };
        close(seen.own, row.target.token);
        assert_eq!(seen.at.len(), row.at.len());
        seen.at.iter().zip(row.at).for_each(|(found, token)| close(*found, *token));
        let mut order: Vec<u32> = (0..VOCAB as u32).collect();
        order.sort_by(|a, b| exact[*b as usize].total_cmp(&exact[*a as usize]));
        let best: Vec<u32> = seen.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(best, order[..row.top]);
        seen.top.iter().for_each(|(token, found)| close(*found, *token));
        if let Some((other, direction)) = row.against {
            let want = it.kl(state, other, direction);
            assert!((f64::from(seen.kl) - want).abs() < 1e-4, "{direction:?}: {} {want}", seen.kl);
        }
    }
}

#[test]
fn the_gradient_of_everything_agrees_with_finite_differences() {
    let mut it = fixture();
    let (x, other, at) = (it.states(4), it.states(5), ids());
    let rows = questions(&at, &other);
    let weigh = |i: usize| 0.3 + 0.1 * i as f32;
    let given: Vec<Slope> = rows
        .iter()
        .enumerate()
        .map(|(i, row)| Slope {
            own: weigh(i),
            at: (0..row.at.len()).map(|j| weigh(j) - 0.5).collect(),
            kl: if i == 3 { 0.0 } else { 1.0 - weigh(i) },
        })
        .collect();
    let loss = |x: &[f32]| -> f64 {
        let of = |(row, slope): (&Row<'_>, &Slope)| {
            let state = &x[row.target.row * HIDDEN..(row.target.row + 1) * HIDDEN];
            let exact = it.exact(state);
            let p = |token: &u32| exact[*token as usize];
            let at = row.at.iter().zip(&slope.at).map(|(t, s)| f64::from(*s) * p(t)).sum::<f64>();
            let kl = row.against.map_or(0.0, |(other, way)| it.kl(state, other, way));
            f64::from(slope.own) * p(&row.target.token) + at + f64::from(slope.kl) * kl
        };
        rows.iter().zip(&given).map(of).sum()
    };
    let mut dx = vec![0.0; x.len()];
    score(&it.model, &x, &rows, Vec::new()).back(&it.model, &rows, &given, &mut dx);
    let norm = dx.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    for i in (0..x.len()).step_by(7) {
        let (mut up, mut down, h) = (x.clone(), x.clone(), 1e-3f32);
        up[i] += h;
        down[i] -= h;
        let slope = (loss(&up) - loss(&down)) / f64::from(up[i] - down[i]);
        let error = (slope - f64::from(dx[i])).abs() / norm;
        assert!(error < 1e-4, "{i}: {slope} measured, {} computed", dx[i]);
    }
}
