//! Promotion and rollback against a real registry and an engine over HTTP.

use super::*;
use crate::driver::HoneDriver;
use crate::testing::lab::Lab;
use crate::testing::peers::{Engine, nobody};
use hone_model::config::ModelConfig;

struct Stage {
    lab: Lab,
    engine: Engine,
    registry: Registry,
    driver: HoneDriver,
    proxy: ProxyAdmin,
}

async fn stage() -> Stage {
    let (lab, engine) = (Lab::new(), Engine::default());
    let url = engine.serve().await;
    let registry = Registry::open(lab.data.registry_dir()).unwrap();
    let driver = HoneDriver::new(&url).unwrap();
    let proxy = ProxyAdmin::new(lab.data.clone(), Some(url)).unwrap();
    Stage { lab, engine, registry, driver, proxy }
}

impl Stage {
    fn publisher(&self) -> Publisher<'_> {
        Publisher { registry: &self.registry, driver: &self.driver, proxy: &self.proxy }
    }

    fn generation(&self, seed: u64) -> Generation {
        let model = ModelConfig::from_dir(&self.lab.model_dir).unwrap();
        let adapter = Lora::init(&model, 4, 8.0, seed);
        register(&self.registry, &adapter, "tiny", ManifestDraft::default()).unwrap()
    }

    fn step(&self) -> Move {
        let now = self.registry.alias("chat").unwrap();
        Move {
            alias: "chat".into(),
            incumbent: now.generation,
            sequence: now.sequence,
            reason: "test".into(),
        }
    }

    async fn promote(&self, seed: u64) -> Generation {
        let generation = self.generation(seed);
        promote(&self.publisher(), &generation, &self.step()).await.unwrap();
        generation
    }

    fn served(&self) -> Generation {
        self.registry.alias("chat").unwrap().generation
    }
}

#[tokio::test]
async fn a_promotion_loads_then_moves_then_tells_the_proxy() {
    let stage = stage().await;
    let generation = stage.promote(1).await;
    assert_eq!(stage.served(), generation);
    assert_eq!(stage.engine.resident(), [generation.as_str()]);
    let token = stage.lab.data.admin_token().unwrap();
    assert_eq!(stage.engine.0.lock().unwrap().refreshes, [format!("Bearer {token}")]);
}

#[tokio::test]
async fn promoting_again_changes_nothing() {
    let stage = stage().await;
    let (generation, step) = (stage.generation(1), stage.step());
    for _ in 0..3 {
        promote(&stage.publisher(), &generation, &step).await.unwrap();
    }
    assert_eq!(stage.registry.alias("chat").unwrap().sequence, 1);
}

#[tokio::test]
async fn an_alias_that_somebody_moved_meanwhile_is_left_alone() {
    let stage = stage().await;
    let (candidate, step) = (stage.generation(2), stage.step());
    let other = stage.promote(1).await;
    let error = promote(&stage.publisher(), &candidate, &step).await.unwrap_err();
    assert!(matches!(error, PublishError::MovedMeanwhile { .. }) && !error.is_temporary());
    assert_eq!(stage.served(), other);
    // Even when it was moved back to where the round began.
    rollback(&stage.publisher(), "chat", RollbackTo::Base, "test").await.unwrap();
    assert!(promote(&stage.publisher(), &candidate, &step).await.is_err());
    assert!(stage.served().is_base());
}

#[tokio::test]
async fn an_engine_that_is_away_moves_nothing_and_is_worth_another_try() {
    let stage = stage().await;
    let generation = stage.generation(1);
    let driver = HoneDriver::new(&nobody()).unwrap();
    let to = Publisher { driver: &driver, ..stage.publisher() };
    let error = promote(&to, &generation, &stage.step()).await.unwrap_err();
    assert!(error.is_temporary(), "{error}");
    assert!(stage.served().is_base());
}

#[tokio::test]
async fn a_proxy_that_is_away_does_not_hinder_a_promotion() {
    let stage = stage().await;
    let proxy = ProxyAdmin::new(stage.lab.data.clone(), Some(nobody())).unwrap();
    let to = Publisher { proxy: &proxy, ..stage.publisher() };
    let generation = stage.generation(1);
    promote(&to, &generation, &stage.step()).await.unwrap();
    assert_eq!(stage.served(), generation);
}

#[tokio::test]
async fn the_engine_keeps_the_serving_generation_and_the_one_before() {
    let stage = stage().await;
    stage.engine.0.lock().unwrap().residents_max = 3;
    let mut all = Vec::new();
    for seed in 1..=5 {
        all.push(stage.promote(seed).await);
    }
    let mut kept: Vec<&str> = all[3..].iter().map(Generation::as_str).collect();
    kept.sort_unstable();
    assert_eq!(stage.engine.resident(), kept);
}

#[tokio::test]
async fn a_full_engine_makes_room_by_dropping_what_no_alias_needs() {
    let stage = stage().await;
    let stray = stage.generation(9);
    load(&stage.publisher(), &stray).await.unwrap();
    stage.engine.0.lock().unwrap().residents_max = 1;
    let generation = stage.promote(1).await;
    assert_eq!(stage.engine.resident(), [generation.as_str()]);
}

#[tokio::test]
async fn rollback_goes_to_the_previous_to_a_named_one_and_to_the_base() {
    let stage = stage().await;
    let (first, second) = (stage.promote(1).await, stage.promote(2).await);
    let to = stage.publisher();
    rollback(&to, "chat", RollbackTo::Previous, "test").await.unwrap();
    assert_eq!(stage.served(), first);
    rollback(&to, "chat", RollbackTo::Generation(second.clone()), "test").await.unwrap();
    assert_eq!(stage.served(), second);
    rollback(&to, "chat", RollbackTo::Base, "test").await.unwrap();
    assert!(stage.served().is_base());
}

#[tokio::test]
async fn there_is_no_way_back_from_a_beginning_or_to_something_unknown() {
    let stage = stage().await;
    let to = stage.publisher();
    let error = rollback(&to, "chat", RollbackTo::Previous, "test").await.unwrap_err();
    assert!(matches!(error, PublishError::NoPrevious(_)));
    let unknown = Generation::parse(&"a".repeat(64)).unwrap();
    assert!(rollback(&to, "chat", RollbackTo::Generation(unknown), "test").await.is_err());
    assert!(stage.served().is_base());
}
