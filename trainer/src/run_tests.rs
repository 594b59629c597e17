//! The process: it judges, begins rounds, promotes, stops quickly, resumes, and heals aliases.

use super::*;
use crate::publish::register;
use crate::testing::lab::Lab;
use crate::testing::peers::Engine;
use crate::testing::write_policies;
use hone_model::config::ModelConfig;
use hone_model::lora::Lora;
use hone_shared::registry::ManifestDraft;
use hone_shared::store::RoundState;
use std::time::Instant;

const CORRECTION: &str = "Too long. Answer in one short sentence.";
const EASY: (&str, &str) = ("margin = 0.02", "margin = -9.0");

fn config(lab: &Lab, url: &str) -> TrainerConfig {
    TrainerConfig {
        data: lab.data.clone(),
        model_dir: lab.model_dir.clone(),
        engine_url: url.to_owned(),
        proxy_admin: Some(url.to_owned()),
        poll_ms: 20,
        device: "cpu".into(),
    }
}

async fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !true_now() {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn teach(lab: &mut Lab, prefix: &str) {
    for i in 0..6 {
        let session = format!("{prefix}{i}");
        lab.add(&session, &format!("What is {session}?"), "the rain in the hills", CORRECTION);
    }
}

fn served(lab: &Lab) -> Generation {
    Registry::open(lab.data.registry_dir()).unwrap().alias("chat").unwrap().generation
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrections_become_a_served_generation_without_anybody_doing_anything() {
    let (mut lab, engine) = (Lab::new(), Engine::default());
    write_policies(&lab.data, &[EASY]);
    let url = engine.serve().await;
    let stop = CancellationToken::new();
    let trainer = tokio::spawn(run(config(&lab, &url), stop.clone()));
    teach(&mut lab, "a");
    until("the first generation", || !served(&lab).is_base()).await;
    let first = served(&lab);
    teach(&mut lab, "b");
    until("the second generation", || served(&lab) != first).await;
    stop.cancel();
    trainer.await.unwrap().unwrap();
    assert!(lab.store.unfinished_rounds().unwrap().is_empty());
    assert_eq!(lab.store.recent_rounds(10).unwrap().len(), 2, "no round without new turns");
    assert!(engine.resident().contains(&served(&lab).as_str().to_owned()));
    assert!(RunFile::read(&lab.data, "trainer").unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_in_the_middle_of_a_round_is_resumed_by_the_next_start() {
    let (mut lab, engine) = (Lab::new(), Engine::default());
    write_policies(&lab.data, &[EASY, ("updates = 6", "updates = 400")]);
    let url = engine.serve().await;
    teach(&mut lab, "a");
    let stop = CancellationToken::new();
    let trainer = tokio::spawn(run(config(&lab, &url), stop.clone()));
    let metrics = || {
        let unfinished = lab.store.unfinished_rounds().unwrap();
        let dir = lab.data.rounds_dir().join(unfinished.first()?.round_id.as_str());
        Some(std::fs::read_to_string(dir.join("metrics.jsonl")).ok()?.lines().count())
    };
    until("two updates", || metrics().unwrap_or(0) >= 2).await;
    stop.cancel();
    trainer.await.unwrap().unwrap();
    let left = lab.store.unfinished_rounds().unwrap();
    assert_eq!((left.len(), left[0].state), (1, RoundState::Training));
    assert!(served(&lab).is_base());

    // Fewer updates than are done already would end it at once: the checkpoint decides.
    write_policies(&lab.data, &[EASY, ("updates = 6", "updates = 2")]);
    let stop = CancellationToken::new();
    let trainer = tokio::spawn(run(config(&lab, &url), stop.clone()));
    until("the promotion", || !served(&lab).is_base()).await;
    until("the end of the round", || lab.store.unfinished_rounds().unwrap().is_empty()).await;
    stop.cancel();
    trainer.await.unwrap().unwrap();
    let last = lab.store.last_round("chat").unwrap().unwrap();
    assert_eq!((last.round_id, last.state), (left[0].round_id.clone(), RoundState::Promoted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_that_names_a_damaged_generation_goes_back_to_a_whole_one() {
    let (lab, engine) = (Lab::new(), Engine::default());
    let url = engine.serve().await;
    let registry = Registry::open(lab.data.registry_dir()).unwrap();
    let model = ModelConfig::from_dir(&lab.model_dir).unwrap();
    let generations: Vec<Generation> = (1..=2)
        .map(|seed| {
            let adapter = Lora::init(&model, 4, 8.0, seed);
            register(&registry, &adapter, "tiny", ManifestDraft::default()).unwrap()
        })
        .collect();
    let base = Generation::base();
    registry.move_alias("chat", &base, &generations[0], "test").unwrap();
    registry.move_alias("chat", &generations[0], &generations[1], "test").unwrap();
    let weights = registry.get(&generations[1]).unwrap().path.join("adapter_model.safetensors");
    std::fs::write(weights, b"damaged").unwrap();
    let shop = lab.workshop(&url, Handle::current());
    spawn_blocking(move || check_aliases(&shop)).await.unwrap().unwrap();
    assert_eq!(served(&lab), generations[0]);
    assert_eq!(engine.resident(), [generations[0].as_str()], "residents are loaded again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_does_not_pass_ends_the_start_with_its_file_and_line() {
    let lab = Lab::new();
    write_policies(&lab.data, &[("alias =", "alais =")]);
    let stop = CancellationToken::new();
    let error = run(config(&lab, "http://127.0.0.1:1"), stop).await.unwrap_err().to_string();
    assert!(error.contains("routes/chat.toml, line 3"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_from_the_command_line_moves_the_alias_and_tells_the_proxy() {
    let (lab, engine) = (Lab::new(), Engine::default());
    let url = engine.serve().await;
    let registry = Registry::open(lab.data.registry_dir()).unwrap();
    let model = ModelConfig::from_dir(&lab.model_dir).unwrap();
    let adapter = Lora::init(&model, 4, 8.0, 1);
    let generation = register(&registry, &adapter, "tiny", ManifestDraft::default()).unwrap();
    registry.move_alias("chat", &Generation::base(), &generation, "test").unwrap();
    let state = rollback(&config(&lab, &url), "chat", RollbackTo::Base, "by hand").await.unwrap();
    assert!(state.generation.is_base() && served(&lab).is_base());
    assert_eq!(engine.0.lock().unwrap().refreshes.len(), 1);
}
