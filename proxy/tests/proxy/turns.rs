//! What is on record after a request: once, whole, with the generation that was pinned at
//! admission.

use hone_shared::registry::{AdapterConfig, ManifestDraft, Registry, Weights};
use hone_shared::turn::Generation;
use rusqlite::Connection;

use crate::client::{Client, ask, chat, post};
use crate::harness::{Proxy, number};
use crate::origin::Origin;

/// A generation in the registry of `proxy`, and `main` moved to it.
fn promote(proxy: &Proxy, seed: u8) -> Generation {
    let registry = Registry::open(proxy.data.registry_dir()).unwrap();
    let config = AdapterConfig::new("test-model", 1, 1.0).unwrap();
    let generation = registry
        .publish(&config, Weights::from(weights(seed).as_slice()), ManifestDraft::default())
        .unwrap();
    let now = registry.alias("main").unwrap().generation;
    registry.move_alias("main", &now, &generation, "test").unwrap();
    generation
}

/// The smallest safetensors file that differs by `seed`.
fn weights(seed: u8) -> Vec<u8> {
    let tensor = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let header = serde_json::json!({
        tensor: {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
    });
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    [length.as_slice(), header.as_bytes(), &[seed, 0, 0, 0]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_stored_once_with_its_request_and_its_answer() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "shadow").await;
    let json = ask(
        proxy.address,
        &post("/v1/json/chat/completions", "x-session-id: s1\r\n", &chat("one", false)),
    )
    .await;
    let sse =
        ask(proxy.address, &post("/v1/burst/chat/completions?n=3", "", &chat("two", true))).await;
    assert_eq!(
        json.headers["x-hone-generation"], "base",
        "what the engine reports reaches the client"
    );
    assert!(sse.whole);
    let counters = proxy.settled(2).await;
    assert_eq!(number(&counters["stored"]), 2);
    let turns = proxy.turns();
    assert_eq!(turns.len(), 2);
    assert!(turns[0].request.contains("one") && turns[1].request.contains("two"));
    assert!(turns[1].response.contains("w0 w1 w2"));
    for turn in &turns {
        assert_eq!((turn.status, turn.outcome.as_str()), (200, "complete"));
        assert_eq!((turn.route.as_str(), turn.mode.as_str()), ("test", "shadow"));
        assert_eq!(turn.generation, "base");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_mode_learn_serves_what_the_alias_names() {
    let origin = Origin::start().await;
    for mode in ["observe", "shadow", "learn"] {
        let proxy = Proxy::start(origin.address, mode).await;
        let generation = promote(&proxy, 1);
        proxy.refresh().await;
        ask(proxy.address, &post("/v1/json/chat/completions", "", &chat("a", false))).await;
        let asked = origin.seen().pop().unwrap().headers["x-hone-generation"].clone();
        let expected = if mode == "learn" { generation.as_str() } else { "base" };
        assert_eq!(asked, expected, "{mode}");
        proxy.settled(1).await;
        assert_eq!(proxy.turns()[0].generation, expected);
        let status = proxy.status().await;
        assert_eq!(status["routes"][0]["generation"], expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_keeps_its_generation_while_the_alias_moves() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let first = promote(&proxy, 1);
    proxy.refresh().await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/v1/paced/chat/completions?n=60&ms=10", "", &chat("during", true))).await;
    client.until("w2 ").await;
    let second = promote(&proxy, 2);
    proxy.refresh().await;
    let after =
        ask(proxy.address, &post("/v1/json/chat/completions", "", &chat("after", false))).await;
    assert_eq!(
        after.headers["x-hone-generation"],
        second.as_str(),
        "the next request is the new one"
    );
    let during = client.response().await;
    assert!(during.whole);
    assert_eq!(during.headers["x-hone-generation"], first.as_str());
    proxy.settled(2).await;
    let of = |word: &str| {
        let turn = proxy.turns().into_iter().find(|turn| turn.request.contains(word)).unwrap();
        turn.generation
    };
    assert_eq!(of("during"), first.as_str());
    assert_eq!(of("after"), second.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_capture_limit_pass_whole_and_the_books_still_balance() {
    let origin = Origin::start().await;
    let proxy =
        Proxy::with(origin.address, "observe", |cfg| cfg.limits.capture_bytes_max = 40_000).await;
    let long = "x".repeat(200_000);
    let request = post("/v1/burst/chat/completions?n=2000", "", &chat(&long, true));
    let through = ask(proxy.address, &request).await;
    assert_eq!(through.body, ask(origin.address, &request).await.body);
    let counters = proxy.settled(1).await;
    let dropped: u64 = counters["dropped"].as_object().unwrap().values().map(number).sum();
    assert_eq!(number(&counters["stored"]) + dropped, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn issue_3_conversations_of_16_mib_are_stored_whole_and_linked() {
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "observe", |cfg| {
        let route = cfg.data.policies_dir().join("routes/test.toml");
        let whole =
            std::fs::read_to_string(&route).unwrap() + "[capture]\nrequest_bytes_max = 33554432\n";
        std::fs::write(route, whole).unwrap();
    })
    .await;
    // A log that somebody pasted: 16 MiB of lines that differ.
    let lines: String =
        (0..).map(|n| format!("{n} \u{e9}t\u{e9} \"{}\"\n", n * 7919)).take(700_000).collect();
    assert!(lines.len() > 16 << 20, "{}", lines.len());
    let says = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let mut messages = vec![says("user", &lines)];
    for next in ["and line 12?", "and line 13?", ""] {
        let body = serde_json::json!({"model": "test", "messages": messages}).to_string();
        let asked = post("/v1/json/chat/completions", "", body.as_bytes());
        let answer = ask(proxy.address, &asked).await.json();
        messages.push(answer["choices"][0]["message"].clone());
        messages.push(says("user", next));
    }
    let counters = proxy.settled(3).await;
    assert_eq!(counters["stored"], 3, "{counters}");
    let turns = proxy.turns();
    assert!(turns.iter().all(|turn| turn.request.contains("699999 ")), "whole, not cut");
    let parents: Vec<_> = turns.iter().map(|turn| turn.parent.clone()).collect();
    let ids = |at: usize| Some(turns[at].turn_id.clone());
    assert_eq!(parents, [None, ids(0), ids(1)]);
    let store = Connection::open(proxy.data.store_path()).unwrap();
    let long = "SELECT count(*) FROM bodies WHERE length(bytes) > 65536";
    let copies: i64 = store.query_row(long, [], |row| row.get(0)).unwrap();
    assert_eq!(copies, 1, "what is sent again is stored once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_balance_under_load_and_aborts() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let asks = (0..40u64).map(|at| {
        let address = proxy.address;
        async move {
            let mut client = Client::connect(address).await;
            let target = [
                "/v1/json/chat/completions",
                "/v1/burst/chat/completions",
                "/v1/paced/chat/completions?n=30&ms=5",
                "/v1/die/chat/completions",
            ][at as usize % 4];
            client.send(&post(target, "", &chat(&format!("turn {at}"), true))).await;
            if at % 4 == 2 {
                client.until("w1 ").await;
            } else {
                client.response().await;
            }
        }
    });
    futures::future::join_all(asks).await;
    let counters = proxy.settled(40).await;
    assert_eq!(counters["stored"], 40, "{counters}");
    let turns = proxy.turns();
    assert_eq!(turns.len(), 40);
    let count = |outcome: &str| turns.iter().filter(|turn| turn.outcome == outcome).count();
    assert_eq!((count("complete"), count("client_abort"), count("upstream_error")), (20, 10, 10));
}
