//! An engine thread that dies: running requests fail at once, and the engine comes back.

#![allow(clippy::unwrap_used, clippy::panic)]

mod bed;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hone_backend::BackendConfig;
use hone_backend::error::Code;
use hone_backend::fleet::Fleet;
use hone_backend::generate::{Run, Waits};
use hone_backend::request::{Limits, chat, object};
use hone_backend::select::Selection;
use hone_shared::turn::Generation;
use mistralrs::core::Request;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_engine_fails_its_requests_at_once_and_is_rebuilt() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let fleet = Fleet::start(BackendConfig::new(bed::model_dir(), "smol", any)).await.unwrap();
    let base = Selection::Generation(Generation::base());
    let body = bed::ask("Tell me a long story.", 500).to_string();
    let limits = Limits { choices_max: 1, tokens_default_max: 500, tells_calls: true };
    let job = chat::parse(&object(body.as_bytes()).unwrap(), &limits).unwrap();
    let waits = Waits { turn: Duration::from_secs(60), token: Duration::from_secs(60) };
    let lease = fleet.lease(&base).await.unwrap();
    let mut running = Run::start(lease.clone(), &job, &job.prompts[0], 0, waits).unwrap();
    let mut queued = Run::start(lease.clone(), &job, &job.prompts[0], 0, waits).unwrap();
    assert!(running.next().await.unwrap().is_some());

    // The engine leaves its loop as it would in a panic: sequences and inbox are dropped.
    lease.send(Request::Terminate).unwrap();
    let error = loop {
        if let Err(error) = running.next().await {
            break error;
        }
    };
    assert_eq!(error.code, Code::EngineRestarting);
    assert_eq!(queued.next().await.unwrap_err().code, Code::EngineRestarting);
    assert!(!fleet.is_healthy());
    assert_eq!(fleet.lease(&base).await.err().map(|e| e.code), Some(Code::EngineRestarting));

    let stop = CancellationToken::new();
    tokio::spawn(Arc::clone(&fleet).supervise(stop.clone()));
    let _stop = stop.drop_guard();
    for _ in 0..1200 {
        if fleet.is_healthy() {
            let lease = fleet.lease(&base).await.unwrap();
            let mut again = Run::start(lease, &job, &job.prompts[0], 0, waits).unwrap();
            assert!(again.next().await.unwrap().is_some());
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the engine was not rebuilt within a minute");
}
