//! `kill -9` of any of the three processes at random moments, with traffic and a round running:
//! nothing that a client was answered is lost, nothing is there twice, and everything is whole
//! afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hone_shared::registry::Registry;
use hone_shared::store::Store;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use support::{Up, chat_body, post, signal, wait_for};

const KILLS: usize = 20;
const CLIENTS: usize = 3;

/// What a client asked and got: the marker in its question, and the status of the whole answer.
type Answered = Arc<Mutex<HashMap<String, u16>>>;

#[test]
fn after_twenty_kills_every_answered_turn_is_stored_exactly_once() {
    let seed = std::env::var("HONE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_122);
    eprintln!("HONE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let up = Up::start(small_rounds);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Answered::default());
    let clients: Vec<_> =
        (0..CLIENTS).map(|client| start_client(client, &up.base_url, &stop, &answered)).collect();

    for _ in 0..KILLS {
        std::thread::sleep(Duration::from_millis(random.random_range(200..2500)));
        let victim = ["backend", "proxy", "trainer"][random.random_range(0..3)];
        let pid = up.run_file(victim).pid;
        signal("KILL", pid);
        wait_for(Duration::from_secs(120), victim, || {
            (up.run_file(victim).pid != pid).then_some(())
        });
    }
    // The last one killed may still be loading: traffic must flow again before it ends.
    let before = answered.lock().unwrap().values().filter(|status| **status == 200).count();
    wait_for(Duration::from_secs(120), "answers after the last kill", || {
        let now = answered.lock().unwrap().values().filter(|status| **status == 200).count();
        (now > before + CLIENTS).then_some(())
    });
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());

    let data = up.data();
    let answered = answered.lock().unwrap().clone();
    let _home = up.stop_and_keep_data();
    check_store(&data, &answered);
    let registry = Registry::open(data.registry_dir()).unwrap();
    for alias in registry.aliases().unwrap().into_values() {
        if !alias.generation.is_base() {
            registry.verify(&alias.generation).expect("the alias names a complete generation");
        }
    }
}

/// Rounds small enough that several begin, and are killed, while the test runs.
fn small_rounds(policies: &std::path::Path) {
    let route = policies.join("routes/chat.toml");
    let text = std::fs::read_to_string(&route).unwrap();
    let matches = text.split("\n[round]").next().unwrap_or_default();
    let small = "\n[round]\nsamples_min = 3\nage_ms_max = 5000\n\n\
                 [train]\nupdates = 2\nreplies = 1\nreply_tokens_max = 12\n";
    std::fs::write(&route, format!("{matches}{small}")).unwrap();
}

fn start_client(
    client: usize,
    base_url: &str,
    stop: &Arc<AtomicBool>,
    answered: &Answered,
) -> std::thread::JoinHandle<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let (url, stop) = (format!("{base_url}/v1/chat/completions"), stop.clone());
    let answered = answered.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        while !stop.load(Ordering::Relaxed) {
            let marker = format!("marker-{client}-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
            let question = format!("Say something nice about {marker}.");
            runtime.block_on(one_conversation(&url, &marker, &question, &answered));
        }
    })
}

/// A question, and a correction of its answer, so that rounds have something to learn from.
async fn one_conversation(url: &str, marker: &str, question: &str, answered: &Answered) {
    let first = chat_body(&[("user", question)], 8);
    let Ok((status, body)) = post(url, &first).await else {
        tokio::time::sleep(Duration::from_millis(50)).await;
        return; // cut by a kill: the client was not answered
    };
    answered.lock().unwrap().insert(marker.into(), status);
    let reply: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some(text) = reply["choices"][0]["message"]["content"].as_str() else {
        tokio::time::sleep(Duration::from_millis(100)).await;
        return; // an error answer, which is a stored turn as well
    };
    let correction = format!("That is too long, {marker}-again. Answer in one short sentence.");
    let mut second = first;
    second["messages"] = json!([
        {"role": "user", "content": question},
        {"role": "assistant", "content": text},
        {"role": "user", "content": correction},
    ]);
    if let Ok((status, _)) = post(url, &second).await {
        answered.lock().unwrap().insert(format!("{marker}-again"), status);
    }
}

fn check_store(data: &hone_shared::data_dir::DataDir, answered: &HashMap<String, u16>) {
    let raw = rusqlite::Connection::open(data.store_path()).unwrap();
    let whole: String = raw.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(whole, "ok");
    let store = Store::open_read_only(&data.store_path()).unwrap();
    let ids: Vec<String> = raw
        .prepare("SELECT turn_id FROM turns")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let mut stored: HashMap<String, usize> = HashMap::new();
    for id in &ids {
        let turn = store.turn(id.parse().unwrap()).unwrap().expect("a listed turn exists");
        let asked = turn.messages.last().and_then(|message| message["content"].as_str());
        let marker =
            asked.and_then(|text| text.split([' ', '.', ',']).find(|w| w.starts_with("marker-")));
        if let Some(marker) = marker {
            *stored.entry(marker.to_string()).or_default() += 1;
        }
    }
    let dropped: u64 = store.counts().unwrap().dropped.values().sum();
    let whole = answered.iter().filter(|(_, status)| **status == 200).map(|(marker, _)| marker);
    let lost: Vec<_> = whole.filter(|marker| !stored.contains_key(*marker)).collect();
    let twice: Vec<_> = stored.iter().filter(|(_, count)| **count > 1).take(5).collect();
    eprintln!("{} answered, {} stored, {dropped} dropped with a reason", answered.len(), ids.len());
    assert!(lost.len() as u64 <= dropped, "{} are lost without a reason: {lost:?}", lost.len());
    assert!(twice.is_empty(), "stored twice: {twice:?}");
    // While the engine is away nobody reads the request, so those turns carry no marker: they are
    // counted instead.
    assert!(ids.len() as u64 + dropped >= answered.len() as u64, "fewer turns than answers");
    assert!(answered.values().any(|status| *status == 200));
}
