//! Feedback survives what turns survive: a locked store and `kill -9`, exactly once.

use std::collections::BTreeSet;

use hone_shared::data_dir::DataDir;
use hone_shared::store::Store;
use serde_json::json;

use crate::client::{ask, post};
use crate::death::start;
use crate::harness::{eventually, write_policies};
use crate::origin::Origin;

const PIECES: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_is_stored_once_though_the_store_is_locked_and_the_proxy_killed() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    data.create().unwrap();
    write_policies(&data, "learn");
    drop(Store::open(&data.store_path()).unwrap());
    let origin = Origin::start().await;
    let mut accepted = BTreeSet::new();
    for life in 0..3 {
        let (mut child, address) = start(&data, origin.address).await;
        let locked = rusqlite::Connection::open(data.store_path()).unwrap();
        locked.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        locked.execute_batch("BEGIN IMMEDIATE").unwrap();
        for n in 0..PIECES {
            // Some of them are sent again by the next life, under the same id.
            let key = format!("piece-{}", life * PIECES / 2 + n);
            let body = json!({"session_id": format!("s{n}"), "outcome": 1, "id": key}).to_string();
            let response = ask(address, &post("/v1/feedback", "", body.as_bytes())).await;
            assert_eq!(response.status, 202, "{}", response.text());
            accepted.insert(response.json()["feedback_id"].as_str().unwrap().to_owned());
        }
        // The spool's thread writes at once, and not before the answer.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        locked.execute_batch("ROLLBACK").unwrap();
    }
    let (mut child, _) = start(&data, origin.address).await;
    let stored = || {
        let conn = rusqlite::Connection::open(data.store_path()).unwrap();
        let mut ids = conn.prepare("SELECT feedback_id FROM feedback").unwrap();
        let ids = ids.query_map([], |row| row.get::<_, String>(0)).unwrap();
        ids.collect::<Result<Vec<_>, _>>().unwrap()
    };
    eventually("everything is stored", || stored().len() >= accepted.len()).await;
    assert_eq!(accepted.len(), PIECES * 2, "half of each life's was sent before");
    let stored = stored();
    assert_eq!(stored.len(), accepted.len(), "each once");
    assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), accepted);
    child.kill().unwrap();
    child.wait().unwrap();
}
