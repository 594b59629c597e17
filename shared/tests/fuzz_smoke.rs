//! The fuzz targets on stable: their entry points over seeded mutations of their seeds, so that CI
//! needs no nightly. `shared/fuzz` has the real thing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

#[path = "../fuzz/src/lib.rs"]
mod entries;

use std::path::PathBuf;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Mutated inputs per target.
const ROUNDS: usize = 2_000;
/// A segment is a file, and a file takes longer.
const ROUNDS_OF_FILES: usize = 300;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> = dir.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// A few of what fuzzers do: flips, cuts, repeats, splices and words of the formats.
fn mutate(random: &mut ChaCha8Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    const WORDS: [&[u8]; 12] = [
        b"\n\n",
        b"data: ",
        b"null",
        b"{}",
        b"[]",
        b"\"",
        b"\\ud83d",
        b"\xff",
        b"1e999",
        b"event: ",
        b"\x00\x00\x00\x00",
        b"18446744073709551616",
    ];
    let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(1..8) {
        let at = random.random_range(0..=bytes.len());
        let to = random.random_range(at..=bytes.len()).min(at + 64);
        match random.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..to)),
            2 => {
                let part = bytes[at..to].to_vec();
                bytes.splice(at..at, part);
            }
            3 => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                bytes.splice(at..to, word.iter().copied());
            }
            4 => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..=other.len());
                bytes.splice(at..at, other[from..].iter().copied().take(256));
            }
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= random.random::<u8>()),
        }
    }
    bytes
}

#[test]
fn no_mutation_of_a_seed_breaks_a_parser() {
    let number: u64 = rand::rng().random();
    println!("seed {number}");
    for (name, target) in entries::TARGETS {
        let seeds = seeds(name);
        seeds.iter().for_each(|seed| target(seed));
        let mut random = ChaCha8Rng::seed_from_u64(number);
        let rounds = if name == "spool_segment" { ROUNDS_OF_FILES } else { ROUNDS };
        (0..rounds).for_each(|_| target(&mutate(&mut random, &seeds)));
    }
}
