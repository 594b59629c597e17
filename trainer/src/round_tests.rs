//! Whole rounds on the tiny model: real store, registry, kernels, and an engine over HTTP.

use super::*;
use crate::testing::lab::{Lab, copy_dir};
use crate::testing::peers::{Engine, nobody};
use crate::testing::policies;
use crate::workshop::Kernels;
use hone_shared::turn::Generation;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The gate's margin must not depend on what a random model makes of a hint.
const EASY: (&str, &str) = ("margin = 0.02", "margin = -9.0");
/// Praise may begin a round by itself.
const PRAISE: (&str, &str) = ("corrections_min = 2", "corrections_min = 0");

struct Run {
    lab: Lab,
    engine: Engine,
    runtime: tokio::runtime::Runtime,
    url: String,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Eight judged turns of eight sessions; `next` is what the user said to each answer.
fn prepared(next: &str) -> Run {
    let (mut lab, engine, runtime) = (Lab::new(), Engine::default(), runtime());
    let url = runtime.block_on(engine.serve());
    for i in 0..8 {
        lab.add(&format!("s{i}"), &format!("What is {i}?"), "the rain in the hills", next);
    }
    runtime.block_on(lab.judge(&policies(&[])));
    Run { lab, engine, runtime, url }
}

impl Run {
    fn workshop(&self) -> Workshop {
        self.lab.workshop(&self.url, self.runtime.handle().clone())
    }

    /// One round over everything that is trainable.
    fn round(&self, edits: &[(&str, &str)]) -> (End, RoundRow) {
        let mut shop = self.workshop();
        let set = policies(edits);
        let pool = shop.store.trainable("chat", POOL_MAX).unwrap();
        let mut row = begin(&mut shop, set.route("chat").unwrap(), &pool, None).unwrap();
        let end = run(&mut shop, &mut row, &set).unwrap();
        (end, shop.store.round(&row.round_id).unwrap().unwrap())
    }

    fn served(&self) -> Generation {
        self.workshop().registry.alias("chat").unwrap().generation
    }
}

const CORRECTION: &str = "Too long. Answer in one short sentence.";

#[test]
fn a_round_goes_from_corrections_to_a_served_generation() {
    let it = prepared(CORRECTION);
    let (end, row) = it.round(&[EASY]);
    assert_eq!(end, End::Finished(RoundState::Promoted), "{row:?}");
    let candidate = row.candidate.clone().unwrap();
    assert_eq!(it.served(), candidate);
    assert_eq!(it.engine.resident(), [candidate.as_str()]);
    let shop = it.workshop();
    let found = shop.registry.verify(&candidate).unwrap().manifest.draft;
    assert_eq!((found.route.as_str(), found.round_id), ("chat", Some(row.round_id.clone())));
    assert_eq!(found.base_model_hash, shop.base_hash);
    assert_eq!(found.gate["passed"], true);
    assert_eq!(found.metrics["updates"].as_array().unwrap().len(), 6);
    let turns = shop.store.round_turns(&row.round_id).unwrap();
    let train = turns.iter().filter(|(_, split)| *split == hone_shared::store::Split::Train);
    assert_eq!((turns.len(), train.count()), (8, found.turns.len()));
    assert!(found.turns.len() < 8, "some turns are held out");
}

#[test]
fn approved_answers_become_more_likely_on_sessions_that_were_held_out() {
    let it = prepared("Thanks, perfect.");
    let (_, row) = it.round(&[]);
    assert!(row.reason.contains("too few usable corrections: 0 of 2"), "{}", row.reason);
    let (end, row) = it.round(&[PRAISE]);
    assert_eq!(end, End::Finished(RoundState::Promoted), "{}", row.reason);
    let gain = row.metrics["gate"]["signal"]["approved_gain"].as_f64().unwrap();
    assert!(gain >= 0.05, "{gain}");
}

#[test]
fn the_next_round_starts_from_the_incumbent_and_knows_its_parent() {
    let mut it = prepared(CORRECTION);
    let (_, first) = it.round(&[EASY]);
    for i in 0..6 {
        it.lab.add(&format!("n{i}"), &format!("Who is {i}?"), "the rain in the hills", CORRECTION);
    }
    it.runtime.block_on(it.lab.judge(&policies(&[])));
    let (end, second) = it.round(&[EASY]);
    assert_eq!(end, End::Finished(RoundState::Promoted), "{}", second.reason);
    assert_eq!(Some(&second.incumbent), first.candidate.as_ref());
    let shop = it.workshop();
    let manifest = shop.registry.get(&second.candidate.unwrap()).unwrap().manifest;
    assert_eq!(manifest.draft.parent, second.incumbent);
}

#[test]
fn a_round_publishes_nothing_once_a_turn_of_it_was_forgotten() {
    let it = prepared(CORRECTION);
    let (mut shop, set) = (it.workshop(), policies(&[EASY]));
    let pool = shop.store.trainable("chat", POOL_MAX).unwrap();
    let mut row = begin(&mut shop, set.route("chat").unwrap(), &pool, None).unwrap();
    let (data, kernels, turn) = (shop.data.clone(), shop.kernels.clone(), pool[0].0.turn_id);
    // The samples are drawn when the kernels are made.
    shop.kernels = std::sync::Arc::new(move |dir, threads, precision, memory| {
        let subject = hone_shared::forget::Subject::Turn(turn);
        hone_shared::forget::run(&data, &subject, &Default::default()).unwrap();
        kernels(dir, threads, precision, memory)
    });
    let end = run(&mut shop, &mut row, &set).unwrap();
    assert_eq!(end, End::Finished(RoundState::Abandoned));
    assert!(row.reason.contains("was forgotten"), "{}", row.reason);
    assert!(it.served().is_base());
    assert_eq!(shop.registry.list().unwrap(), []);
    let files = std::fs::read_dir(shop.data.rounds_dir().join(&row.round_id)).unwrap();
    let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == "metrics.jsonl" || name == "report.svg"), "{names:?}");
}

#[test]
fn a_turn_that_stays_without_its_forgotten_hint_teaches_the_next_round_again() {
    let it = prepared(CORRECTION);
    let (mut shop, set) = (it.workshop(), policies(&[EASY]));
    let pool = shop.store.trainable("chat", POOL_MAX).unwrap();
    let hinted = std::collections::BTreeSet::from([pool[0].0.turn_id]);
    let concerned = hone_shared::store::Concerned { hinted, ..Default::default() };
    let forget = |store: &hone_shared::store::Store| {
        store.begin_forget("text", "cli:test", "", &concerned).unwrap()
    };
    let mut row = begin(&mut shop, set.route("chat").unwrap(), &pool, None).unwrap();
    let job = forget(&shop.store);
    assert_eq!(run(&mut shop, &mut row, &set).unwrap(), End::Finished(RoundState::Abandoned));
    let (end, row) = it.round(&[EASY]);
    assert_eq!(end, End::Finished(RoundState::Abandoned), "not finished: {}", row.reason);
    shop.store.finish_forget(&job, "").unwrap();
    let (end, row) = it.round(&[EASY]);
    assert_eq!(end, End::Finished(RoundState::Promoted), "{}", row.reason);
    let turns = shop.store.round_turns(&row.round_id).unwrap();
    assert!(turns.iter().any(|(turn, _)| concerned.hinted.contains(turn)), "it was drawn");
}

#[test]
fn a_candidate_that_the_gate_refuses_is_recorded_and_not_published() {
    let it = prepared(CORRECTION);
    let (end, row) = it.round(&[("margin = 0.02", "margin = 9.0")]);
    assert_eq!(end, End::Finished(RoundState::Refused));
    assert!(row.reason.contains("gain on held-out hinted turns"), "{}", row.reason);
    assert_eq!(row.metrics["gate"]["passed"], false);
    assert!(it.served().is_base() && it.engine.resident().is_empty());
    assert!(it.workshop().registry.list().unwrap().is_empty());
}

#[test]
fn shadow_mode_publishes_to_the_registry_and_never_moves_the_alias() {
    let it = prepared(CORRECTION);
    let (end, row) = it.round(&[EASY, ("MODE", "shadow")]);
    assert_eq!(end, End::Finished(RoundState::Refused));
    assert!(row.reason.starts_with("shadow"), "{}", row.reason);
    assert_eq!(it.workshop().registry.list().unwrap().len(), 1);
    assert!(it.served().is_base() && it.engine.resident().is_empty());
}

#[test]
fn an_engine_that_is_away_delays_the_promotion_and_loses_nothing() {
    let it = prepared(CORRECTION);
    let mut shop = it.lab.workshop(&nobody(), it.runtime.handle().clone());
    let set = policies(&[EASY]);
    let pool = shop.store.trainable("chat", POOL_MAX).unwrap();
    let mut row = begin(&mut shop, set.route("chat").unwrap(), &pool, None).unwrap();
    assert!(matches!(run(&mut shop, &mut row, &set).unwrap(), End::Later(_)));
    let mut shop = it.workshop();
    let mut row = shop.store.unfinished_rounds().unwrap().remove(0);
    assert_eq!(row.state, RoundState::Publishing);
    assert_eq!(run(&mut shop, &mut row, &set).unwrap(), End::Finished(RoundState::Promoted));
    assert_eq!(Some(it.served()), row.candidate);
}

#[test]
fn an_anomaly_fails_the_round_with_its_reason() {
    let it = prepared(CORRECTION);
    let stop = ("threads = 1", "threads = 1\n[train.stop]\ngrad_norm_max = 0.001");
    let (end, row) = it.round(&[stop]);
    assert_eq!(end, End::Finished(RoundState::Failed));
    assert!(row.reason.contains("gradient norm"), "{}", row.reason);
    assert!(it.served().is_base());
}

#[test]
fn too_few_samples_end_the_round_before_any_training() {
    let mut lab = Lab::new();
    lab.add("s", "What is rain?", "the rain in the hills", CORRECTION);
    let runtime = runtime();
    runtime.block_on(lab.judge(&policies(&[])));
    let it = Run { lab, engine: Engine::default(), runtime, url: nobody() };
    let (end, row) = it.round(&[]);
    assert_eq!(end, End::Finished(RoundState::Abandoned), "{}", row.reason);
    assert_eq!(row.metrics[TURNS_SPENT], true, "its turn alone begins no other round");
}

#[test]
fn a_round_that_kills_the_trainer_again_and_again_is_given_up() {
    let it = prepared(CORRECTION);
    let mut shop = it.workshop();
    let set = policies(&[]);
    let pool = shop.store.trainable("chat", POOL_MAX).unwrap();
    let mut row = begin(&mut shop, set.route("chat").unwrap(), &pool, None).unwrap();
    let work = WorkDir::open(&shop.data.rounds_dir(), &row.round_id).unwrap();
    for _ in 0..STARTS_MAX {
        work.count_start().unwrap();
    }
    assert_eq!(run(&mut shop, &mut row, &set).unwrap(), End::Finished(RoundState::Abandoned));
    assert_eq!(shop.store.trainable("chat", POOL_MAX).unwrap().len(), 8, "its turns are free");
    assert_eq!(row.metrics[TURNS_SPENT], true, "but begin no other round by themselves");
}

#[test]
fn a_finished_round_leaves_only_its_metrics_and_their_plot() {
    let it = prepared(CORRECTION);
    let (_, row) = it.round(&[EASY]);
    let dir = it.lab.data.rounds_dir().join(&row.round_id);
    let names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    let mut names = names;
    names.sort();
    assert_eq!(names, ["metrics.jsonl", "report.svg"]);
}

/// The real kernels, with something done before each draw and each gradient. The numbers are how
/// many kernels were made, from 1, and what is about to be called.
fn watched_kernels<F: Fn(usize, &str) + Send + Sync + 'static>(before: F) -> Kernels {
    use crate::compute::{Compute, ComputeError, Gradient, Rollout, SampleParams};
    use crate::compute::{Look, Sequence, Sight, Slopes};
    use hone_model::lora::Lora;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Watched<F>(Box<dyn Compute>, usize, Arc<F>);
    impl<F: Fn(usize, &str) + Send + Sync> Compute for Watched<F> {
        fn interrupt_by(&mut self, stop: tokio_util::sync::CancellationToken) {
            self.0.interrupt_by(stop);
        }
        fn sample(
            &mut self,
            adapter: Option<&Lora>,
            prompts: &[Vec<u32>],
            replies: usize,
            params: &SampleParams,
        ) -> Result<Vec<Vec<Rollout>>, ComputeError> {
            self.2(self.1, "sample");
            self.0.sample(adapter, prompts, replies, params)
        }
        fn look(
            &mut self,
            adapter: Option<&Lora>,
            sequences: &[Sequence],
            looks: &[Look],
        ) -> Result<Vec<Sight>, ComputeError> {
            self.0.look(adapter, sequences, looks)
        }
        fn differentiate(
            &mut self,
            adapter: &Lora,
            sequences: &[Sequence],
            looks: &[Look],
            loss: &mut dyn FnMut(usize, &Sight) -> Slopes,
        ) -> Result<Gradient, ComputeError> {
            self.2(self.1, "gradient");
            self.0.differentiate(adapter, sequences, looks, loss)
        }
    }
    let (real, before, made) =
        (crate::workshop::cpu_kernels(), Arc::new(before), AtomicUsize::new(0));
    Arc::new(move |dir, threads, precision, memory| {
        let number = made.fetch_add(1, Ordering::Relaxed) + 1;
        let inner = real(dir, threads, precision, memory)?;
        Ok(Box::new(Watched(inner, number, before.clone())) as Box<dyn Compute>)
    })
}

/// Kernels that take their time, so that a process can be killed between two updates.
fn slow_kernels() -> Kernels {
    watched_kernels(|_, call| {
        if call == "gradient" {
            std::thread::sleep(Duration::from_millis(150));
        }
    })
}

#[test]
fn a_round_that_is_stopped_in_training_or_in_its_gate_waits_for_the_next_start() {
    let it = prepared(CORRECTION);
    let set = policies(&[EASY]);
    let pool = it.workshop().store.trainable("chat", POOL_MAX).unwrap();
    let mut row = begin(&mut it.workshop(), set.route("chat").unwrap(), &pool, None).unwrap();
    // Kernels are made once for training and once for the gate. More often than a round that
    // crashes would be started.
    for (stopped_in, call) in
        [(1, "sample"), (1, "gradient")].into_iter().chain([(2, "sample"); STARTS_MAX as usize])
    {
        let mut shop = it.workshop();
        let stop = shop.shutdown.clone();
        shop.kernels = watched_kernels(move |number, now| {
            if (number, now) == (stopped_in, call) {
                stop.cancel();
            }
        });
        let end = run(&mut shop, &mut row, &set).unwrap();
        assert_eq!(end, End::Interrupted, "stopped in kernels {stopped_in} at {call}");
        assert!(it.served().is_base());
    }
    let end = run(&mut it.workshop(), &mut row, &set).unwrap();
    assert_eq!(end, End::Finished(RoundState::Promoted), "{}", row.reason);
}

/// Not a test of its own: the process that `kill_nine…` kills.
#[test]
#[ignore = "started by another test"]
fn resume_what_is_unfinished_in_a_process_of_its_own() {
    let (Ok(dir), Ok(model)) = (std::env::var("HONE_LAB"), std::env::var("HONE_LAB_MODEL")) else {
        return;
    };
    let runtime = runtime();
    let lab = Lab::at(Path::new(&dir), Path::new(&model));
    let mut shop = lab.workshop(&nobody(), runtime.handle().clone());
    shop.kernels = slow_kernels();
    let mut row = shop.store.unfinished_rounds().unwrap().remove(0);
    run(&mut shop, &mut row, &policies(&[EASY])).unwrap();
}

#[test]
fn kill_nine_in_the_middle_of_training_changes_not_one_byte_of_the_adapter() {
    let it = prepared(CORRECTION);
    let set = policies(&[EASY]);
    let mut shop = it.workshop();
    let pool = shop.store.trainable("chat", POOL_MAX).unwrap();
    let mut row = begin(&mut shop, set.route("chat").unwrap(), &pool, None).unwrap();
    shop.store.checkpoint().unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_dir(it.lab.data.path(), copy.path());
    assert_eq!(run(&mut shop, &mut row, &set).unwrap(), End::Finished(RoundState::Promoted));

    for updates_done in [1, 3] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact"])
            .arg("round::tests::resume_what_is_unfinished_in_a_process_of_its_own")
            .env("HONE_LAB", copy.path())
            .env("HONE_LAB_MODEL", &it.lab.model_dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let metrics = copy.path().join("rounds").join(&row.round_id).join("metrics.jsonl");
        let lines = || std::fs::read_to_string(&metrics).unwrap_or_default().lines().count();
        let begun = Instant::now();
        while lines() < updates_done && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!((updates_done..6).contains(&lines()), "killed after {} updates", lines());
    }
    let lab = Lab::at(copy.path(), &it.lab.model_dir);
    let mut shop = lab.workshop(&it.url, it.runtime.handle().clone());
    assert_eq!(shop.store.integrity_check().unwrap(), ["ok"]);
    let mut resumed = shop.store.unfinished_rounds().unwrap().remove(0);
    assert_eq!(run(&mut shop, &mut resumed, &set).unwrap(), End::Finished(RoundState::Promoted));
    assert_eq!(resumed.candidate, row.candidate, "a generation is the hash of its bytes");
}

#[test]
fn issue_5_what_forget_has_ended_stays_ended_and_its_training_is_not_taken_up() {
    let it = prepared(CORRECTION);
    let set = policies(&[EASY]);
    let mut shop = it.workshop();
    let pool = shop.store.trainable("chat", POOL_MAX).unwrap();
    let mut row = begin(&mut shop, set.route("chat").unwrap(), &pool, None).unwrap();
    let (data, turn) = (shop.data.clone(), pool[0].0.turn_id);
    let samples = shop.data.rounds_dir().join(&row.round_id).join("samples.json");
    let there = samples.clone();
    // In the middle of training, with the samples frozen and a checkpoint under way.
    shop.kernels = watched_kernels(move |_, now| {
        if now == "gradient" && there.exists() {
            let subject = hone_shared::forget::Subject::Turn(turn);
            hone_shared::forget::run(&data, &subject, &Default::default()).unwrap();
        }
    });
    let end = run(&mut shop, &mut row, &set).unwrap();
    assert_eq!(end, End::Finished(RoundState::Abandoned));
    assert_eq!(shop.store.round(&row.round_id).unwrap().unwrap().state, RoundState::Abandoned);
    assert!(shop.store.unfinished_rounds().unwrap().is_empty());
    let left = samples.parent().unwrap();
    assert!(!samples.exists() && !left.join("checkpoint.safetensors").exists());
    assert_eq!(shop.registry.list().unwrap(), []);
}

#[test]
fn issue_5_a_round_whose_candidate_serves_is_promoted_whatever_went_wrong_afterwards() {
    let it = prepared(CORRECTION);
    let (_, done) = it.round(&[EASY]);
    let mut shop = it.workshop();
    // As a crash leaves it between the move of the alias and the record of the end.
    let round_id = uuid::Uuid::now_v7().to_string();
    let (state, finished_ms) = (RoundState::Publishing, None);
    let mut row = RoundRow { round_id, state, finished_ms, ..done.clone() };
    shop.store.begin_round(&row).unwrap();
    abandon(&mut shop, &mut row, "a fault".into()).unwrap();
    assert_eq!((row.state, row.candidate), (RoundState::Promoted, done.candidate));
    // An alias that names another generation promotes nothing.
    let (round_id, candidate) = (uuid::Uuid::now_v7().to_string(), Some(Generation::base()));
    let mut other = RoundRow { round_id, state, finished_ms, candidate, ..done };
    shop.store.begin_round(&other).unwrap();
    abandon(&mut shop, &mut other, "a fault".into()).unwrap();
    assert_eq!(other.state, RoundState::Abandoned);
}

#[path = "round_policies_tests.rs"]
mod changing;

#[path = "round_external_tests.rs"]
mod external;
