//! No turn is lost unseen: real faults of store, spool and disk under real traffic, and sudden
//! death.
//!
//! After each fault: every request was answered, `requests = stored + dropped{reason}` is exact, and
//! the database holds as many rows as the proxy says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "the parts shared with the other binary are used in part")]

#[path = "../proxy/client.rs"]
mod client;
#[path = "../proxy/harness.rs"]
mod harness;
#[path = "../proxy/origin.rs"]
mod origin;
#[path = "../proxy/rows.rs"]
mod rows;

mod death;
mod disk;
mod feedback;
mod late;
mod store;
mod unsent;

use std::io::Write;

use hone_proxy::ProxyConfig;
use hone_shared::turn::Outcome;
use serde_json::Value;

use crate::client::{Client, chat, post};
use crate::harness::{Proxy, number};

/// Sends `n` requests, one after the other on one connection as long as it stays open; their
/// statuses.
async fn traffic(proxy: &Proxy, from: usize, n: usize, padding: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    let mut client = Client::connect(proxy.address).await;
    for at in from..from + n {
        let text = format!("turn {at} end {}", noise(at, padding));
        client.send(&post("/v1/json/chat/completions", "", &chat(&text, false))).await;
        let mut response = client.response().await;
        if response.status == 0 {
            client = Client::connect(proxy.address).await;
            client.send(&post("/v1/json/chat/completions", "", &chat(&text, false))).await;
            response = client.response().await;
        }
        if response.headers.get("connection").is_some_and(|value| value == "close") {
            client = Client::connect(proxy.address).await;
        }
        if response.status == 503 {
            assert_eq!(response.json()["error"]["code"], "capture_full");
            assert!(response.headers.contains_key("retry-after"));
        }
        statuses.push(response.status);
    }
    statuses
}

/// Text that does not compress.
fn noise(seed: usize, bytes: usize) -> String {
    let mut state = seed as u64 + 1;
    let step = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'a' + (state >> 33) as u8 % 26)
    };
    std::iter::repeat_with(step).take(bytes).collect()
}

fn dropped(counters: &Value) -> u64 {
    counters["dropped"].as_object().unwrap().values().map(number).sum()
}

/// The books against the rows in the file, once all is at rest.
async fn balanced(proxy: &Proxy, requests: u64) -> Value {
    let counters = proxy.settled(requests).await;
    assert_eq!(number(&counters["stored"]) + dropped(&counters), requests, "{counters}");
    assert_eq!(proxy.turns().len() as u64, number(&counters["stored"]), "{counters}");
    let store = hone_shared::store::Store::open_read_only(&proxy.data.store_path()).unwrap();
    assert_eq!(store.integrity_check().unwrap(), ["ok"]);
    counters
}

/// Makes the test route refuse what it cannot record.
fn shed(cfg: &ProxyConfig) {
    let path = cfg.data.policies_dir().join("routes/test.toml");
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(b"\n[capture]\nwhen_full = \"shed\"\n").unwrap();
}

/// Holds the write lock of the store, as a trainer in the middle of a transaction does.
fn lock(proxy: &Proxy) -> rusqlite::Connection {
    let other = rusqlite::Connection::open(proxy.data.store_path()).unwrap();
    other.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    other
}

fn complete(proxy: &Proxy) -> usize {
    let complete = Outcome::Complete.as_str();
    proxy.turns().iter().filter(|turn| turn.outcome == complete).count()
}
