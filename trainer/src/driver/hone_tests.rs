//! The driver against an engine that is busy, full, forgetful or away.

use super::*;
use crate::testing::peers::{Engine, nobody};

fn generation(digit: char) -> Generation {
    Generation::parse(&digit.to_string().repeat(64)).unwrap()
}

/// A directory that looks like a generation's.
fn adapter_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("adapter_model.safetensors"), b"x").unwrap();
    dir
}

async fn connect(engine: &Engine) -> HoneDriver {
    HoneDriver::new(&engine.serve().await).unwrap()
}

#[tokio::test]
async fn loading_twice_is_loading_once() {
    let (engine, dir) = (Engine::default(), adapter_dir());
    let driver = connect(&engine).await;
    driver.load(&generation('a'), dir.path()).await.unwrap();
    driver.load(&generation('a'), dir.path()).await.unwrap();
    assert_eq!(driver.list().await.unwrap(), [generation('a')]);
    let calls = engine.0.lock().unwrap().calls.clone();
    assert_eq!(calls.iter().filter(|c| *c == "load").count(), 1);
}

#[tokio::test]
async fn a_busy_engine_is_asked_again() {
    let (engine, dir) = (Engine::default(), adapter_dir());
    engine.0.lock().unwrap().busy = 3;
    let driver = connect(&engine).await;
    driver.load(&generation('a'), dir.path()).await.unwrap();
    assert_eq!(engine.resident(), [generation('a').as_str()]);
}

#[tokio::test]
async fn an_engine_that_says_yes_and_does_nothing_is_found_out() {
    let (engine, dir) = (Engine::default(), adapter_dir());
    engine.0.lock().unwrap().forgetful = true;
    let driver = connect(&engine).await;
    let error = driver.load(&generation('a'), dir.path()).await.unwrap_err();
    assert_eq!(error, DriverError::Unconfirmed(generation('a')));
}

#[tokio::test]
async fn a_full_engine_says_so() {
    let (engine, dir) = (Engine::default(), adapter_dir());
    engine.0.lock().unwrap().residents_max = 1;
    let driver = connect(&engine).await;
    driver.load(&generation('a'), dir.path()).await.unwrap();
    let error = driver.load(&generation('b'), dir.path()).await.unwrap_err();
    assert!(matches!(error, DriverError::Full(_)), "{error}");
}

#[tokio::test]
async fn unloading_what_is_not_there_is_fine() {
    let engine = Engine::default();
    connect(&engine).await.unload(&generation('a')).await.unwrap();
}

#[tokio::test]
async fn an_engine_that_is_away_is_unavailable_and_not_refusing() {
    let driver = HoneDriver::new(&nobody()).unwrap();
    let error = driver.once("/v1/lora_adapters", None).await.unwrap_err();
    assert!(matches!(error, DriverError::Unavailable(_)), "{error}");
}
