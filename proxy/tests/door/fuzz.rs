//! A smoke run of the fuzz target's oracle in stable Rust: the corpus, mutated with a printed seed.

use crate::oracle::check;
use crate::{accept, reject};

const ROUNDS: u64 = 40_000;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
}

fn mutated(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 => bytes.insert(at, *b"\r\n\0 \t:;,0aFx/\x80"[random.below(14)..].first().unwrap()),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            3 => bytes.truncate(at),
            4 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                bytes.splice(at..at, other[from..].iter().copied());
            }
            _ => bytes.extend_from_slice(&corpus[random.below(corpus.len())]),
        }
    }
    bytes
}

#[test]
fn the_gate_agrees_with_httparse_and_itself_on_mutated_requests() {
    let small = |bytes: Vec<u8>| (bytes.len() < 3000).then_some(bytes);
    let rejected = reject::corpus().into_iter().filter_map(|case| small(case.bytes));
    let accepted = accept::corpus().into_iter().filter_map(|case| small(case.bytes));
    let corpus: Vec<Vec<u8>> = rejected.chain(accepted).collect();
    let seed = std::env::var("HONE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) * 7919 + 1);
    println!("HONE_SEED={seed}");
    for bytes in &corpus {
        check(bytes, seed);
    }
    let mut random = Random(seed);
    for _ in 0..ROUNDS {
        let bytes = mutated(&mut random, &corpus);
        check(&bytes, random.0);
    }
}

/// Writes the seeds of the fuzz target.
#[test]
#[ignore = "run by hand after the corpus has changed"]
fn write_the_seeds() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/gate");
    std::fs::create_dir_all(dir).unwrap();
    let rejected = reject::corpus().into_iter().map(|case| case.bytes).step_by(4);
    let accepted = accept::corpus().into_iter().map(|case| case.bytes).step_by(2);
    for (at, bytes) in rejected.chain(accepted).filter(|bytes| bytes.len() < 1000).enumerate() {
        let seed = (at as u64).to_le_bytes();
        std::fs::write(format!("{dir}/{at:03}"), [&seed[..], &bytes].concat()).unwrap();
    }
}
