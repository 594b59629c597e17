//! Faults of the store: locked, its owner killed, its file gone or replaced.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Proxy, eventually};
use crate::origin::Origin;
use crate::{balanced, complete, lock, traffic};

/// How long the store stays locked, seconds; `HONE_LOCK_S=30` for the long form.
fn lock_s() -> u64 {
    std::env::var("HONE_LOCK_S").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stays_locked_costs_no_request_and_no_turn() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    assert_eq!(traffic(&proxy, 0, 1, 10).await, [200]);
    proxy.settled(1).await;
    let held = lock(&proxy);
    let statuses = traffic(&proxy, 1, 200, 2_000).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    tokio::time::sleep(Duration::from_secs(lock_s())).await;
    assert_eq!(traffic(&proxy, 201, 1, 10).await, [200]);
    let counters = proxy.status().await["counters"].clone();
    assert_eq!((counters["stored"].as_u64(), counters["pending"].as_u64()), (Some(1), Some(201)));
    drop(held);
    let counters = balanced(&proxy, 202).await;
    assert_eq!(counters["stored"], 202);
    assert_eq!(complete(&proxy), 202);
}

const CHILD_STORE: &str = "HONE_DURABLE_TEST_STORE";

/// Not a test: the trainer of the test below, which runs this binary again.
#[test]
fn trainer_process() {
    let Ok(path) = std::env::var(CHILD_STORE) else { return };
    let store = rusqlite::Connection::open(path).unwrap();
    store.busy_timeout(Duration::from_secs(10)).unwrap();
    store.execute_batch("BEGIN IMMEDIATE; UPDATE turns SET judged = judged").unwrap();
    println!("\nin a transaction");
    std::thread::sleep(Duration::from_secs(600));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_killed_in_a_transaction_holds_nothing_up() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    traffic(&proxy, 0, 20, 100).await;
    proxy.settled(20).await;
    let mut trainer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::trainer_process", "--nocapture"])
        .env(CHILD_STORE, proxy.data.store_path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(trainer.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "in a transaction"));
    assert!(traffic(&proxy, 20, 50, 100).await.iter().all(|status| *status == 200));
    assert_eq!(proxy.status().await["counters"]["stored"], 20);
    trainer.kill().unwrap();
    trainer.wait().unwrap();
    assert_eq!(balanced(&proxy, 70).await["stored"], 70);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_replaced_is_noticed_and_no_turn_goes_into_the_old_file() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    traffic(&proxy, 0, 10, 100).await;
    proxy.settled(10).await;
    let path = proxy.data.store_path();
    for end in ["", "-wal", "-shm"] {
        let from = format!("{}{end}", path.display());
        let _ = std::fs::rename(&from, format!("{}.old{end}", path.display()));
    }
    // Nothing can be opened here for a while.
    std::fs::create_dir(&path).unwrap();
    assert!(traffic(&proxy, 10, 40, 100).await.iter().all(|status| *status == 200));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(proxy.status().await["counters"]["stored"], 10);
    std::fs::remove_dir(&path).unwrap();
    assert_eq!(proxy.settled(50).await["stored"], 50);
    let found: Vec<String> = proxy.turns().into_iter().map(|turn| turn.request).collect();
    assert_eq!(found.len(), 40, "the new file holds what came after");
    eventually("all of them", || {
        (10..50).all(|at| found.iter().any(|text| text.contains(&format!("turn {at} end"))))
    })
    .await;
}
