//! Training is a function of its seed and its samples: the same bytes from every run, and from a
//! run that was killed at any moment.

use super::*;
use crate::compute::CpuCompute;
use crate::sample::render::Renderer;
use crate::testing::lab::{Lab, sample};
use crate::testing::route_policy;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Deaths of one run, at least.
const KILLS: usize = 20;
const UPDATES: usize = 30;
const SEED: u64 = 20_261_122;

/// Trains in `home` with the model at `model`, as far as it gets.
fn train_in(home: &Path, model: &Path, threads: usize) -> Vec<u8> {
    let renderer = Renderer::from_dir(model).unwrap();
    let mut policy = route_policy().train;
    (policy.updates, policy.replies) = (UPDATES, 2);
    let plan = Plan {
        policy,
        samples: vec![sample(&renderer, "What is rain?", "the rain in the hills")],
        start: None,
        teacher: None,
        servers: BTreeMap::new(),
        model: renderer.model.clone(),
        eos: renderer.eos().to_vec(),
    };
    let mut compute = CpuCompute::new(model, threads).unwrap();
    let files = WorkDir::open(home, "run").unwrap();
    match train(&mut compute, &plan, &files, &|| false).unwrap() {
        TrainEnd::Done(adapter) => adapter.peft_bytes().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Not a test of its own: the process that is killed.
#[test]
#[ignore = "started by another test"]
fn train_in_a_process_of_its_own() {
    let (Ok(home), Ok(model)) = (std::env::var("HONE_KILL_HOME"), std::env::var("HONE_KILL_MODEL"))
    else {
        return;
    };
    train_in(Path::new(&home), Path::new(&model), 2);
}

fn start(home: &Path, model: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "train::kill_tests::train_in_a_process_of_its_own"])
        .env("HONE_KILL_HOME", home)
        .env("HONE_KILL_MODEL", model)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn twenty_kills_at_random_moments_change_not_one_byte_of_the_adapter() {
    let (lab, home) = (Lab::new(), tempfile::tempdir().unwrap());
    let whole = home.path().join("whole");
    std::fs::create_dir(&whole).unwrap();
    let wanted = train_in(&whole, &lab.model_dir, 2);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    println!("seed {SEED}");
    // A run has so many deaths as it takes to be done; then the next one begins.
    let (mut kills, mut runs, mut moments) = (0, 0, Vec::new());
    while kills < KILLS {
        let killed = home.path().join(format!("killed-{runs}"));
        std::fs::create_dir(&killed).unwrap();
        runs += 1;
        loop {
            let mut child = start(&killed, &lab.model_dir);
            std::thread::sleep(Duration::from_millis(rng.random_range(20..250)));
            let ended = child.try_wait().unwrap().is_some();
            child.kill().unwrap();
            child.wait().unwrap();
            if ended || kills >= KILLS {
                break;
            }
            kills += 1;
            let lines = std::fs::read_to_string(killed.join("run/metrics.jsonl"));
            moments.push(lines.unwrap_or_default().lines().count());
        }
        assert!(train_in(&killed, &lab.model_dir, 2) == wanted, "killed after updates {moments:?}");
    }
    println!("{kills} kills in {runs} runs, after updates {moments:?}");
    assert!(moments.iter().any(|update| *update > 0), "no kill hit training: {moments:?}");
}

#[test]
fn five_runs_of_one_seed_give_the_same_bytes_with_any_number_of_threads() {
    let (lab, home) = (Lab::new(), tempfile::tempdir().unwrap());
    let runs = [1, 2, 2, 3, 4].iter().enumerate().map(|(run, threads)| {
        let home = home.path().join(run.to_string());
        std::fs::create_dir(&home).unwrap();
        train_in(&home, &lab.model_dir, *threads)
    });
    let runs: Vec<Vec<u8>> = runs.collect();
    assert!(runs.iter().all(|bytes| *bytes == runs[0]), "one seed, one adapter");
}
