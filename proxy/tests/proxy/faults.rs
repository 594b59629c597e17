//! What clients and the store see when something breaks: engine down, dying, hanging; client gone
//! or not reading.

use std::time::Duration;

use crate::client::{Client, ask, chat, post};
use crate::harness::{Proxy, eventually};
use crate::origin::{Origin, down, event};

#[tokio::test(flavor = "multi_thread")]
async fn a_reserve_elsewhere_is_noted_for_erasures() {
    let origin = Origin::start().await;
    let disk = tempfile::tempdir().unwrap();
    let reserve = disk.path().join("reserve");
    let proxy =
        Proxy::with(origin.address, "observe", |cfg| cfg.reserve = Some(reserve.clone())).await;
    assert_eq!(proxy.data.reserves().unwrap(), [proxy.data.reserve_dir(), reserve]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_down_is_a_502_that_says_what_to_do_and_serving_goes_on() {
    let (down, address) = down();
    let proxy = Proxy::start(address, "observe").await;
    let request = post("/v1/json/chat/completions", "", &chat("hello", false));
    let response = ask(proxy.address, &request).await;
    assert_eq!(response.status, 502);
    assert_eq!(response.headers["content-type"], "application/json");
    assert_eq!(response.headers["retry-after"], "1");
    let error = response.json()["error"].clone();
    assert_eq!(error["code"], "engine_unavailable");
    assert_eq!(error["type"], "server_error");
    assert!(error["message"].as_str().unwrap().contains("hone status"));
    assert!(!response.text().contains(&address.port().to_string()), "no internal address");

    let origin = Origin::on(down.listen(64).unwrap());
    assert_eq!(ask(proxy.address, &request).await.status, 200);
    assert_eq!(origin.seen().len(), 1);
    let counters = proxy.settled(2).await;
    let turns = proxy.turns();
    let failed = turns.iter().find(|turn| turn.status == 502);
    let dropped = counters["dropped"].as_object().unwrap().len();
    assert!(
        failed.is_some_and(|turn| turn.outcome == "upstream_error") || dropped == 1,
        "{counters}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_is_a_504() {
    let origin = Origin::start().await;
    let proxy =
        Proxy::with(origin.address, "observe", |cfg| cfg.limits.upstream_read_ms = 200).await;
    let response =
        ask(proxy.address, &post("/v1/hang/chat/completions", "", &chat("hello", false))).await;
    assert_eq!(response.status, 504);
    assert_eq!(response.json()["error"]["code"], "engine_timeout");
    proxy.settled(1).await;
    let turn = proxy.turns().remove(0);
    assert_eq!((turn.status, turn.outcome.as_str()), (504, "upstream_error"));
    assert!(turn.request.contains("hello"), "the prompt is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_first_token_is_waited_for() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let response =
        ask(proxy.address, &post("/v1/slow/chat/completions?ms=1500", "", &chat("a", false))).await;
    assert_eq!((response.status, response.text().as_str()), (200, "{\"slow\":true}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_mid_stream_ends_the_stream_visibly_and_the_partial_text_is_kept() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let response =
        ask(proxy.address, &post("/v1/die/chat/completions", "", &chat("a", true))).await;
    assert_eq!(response.status, 200);
    assert!(!response.whole, "the client must see that the stream is not complete");
    assert!(response.text().starts_with(&event(0)));
    assert_eq!(proxy.settled(1).await["stored"], 1);
    let turn = proxy.turns().remove(0);
    assert_eq!(turn.outcome, "upstream_error");
    assert!(turn.response.contains("w0"), "{turn:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_the_generation_and_its_turn() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/v1/paced/chat/completions?n=5000&ms=10", "", &chat("a", true))).await;
    client.until("w3 ").await;
    drop(client);
    eventually("the engine's stream is cut", || origin.closed_early() == 1).await;
    assert_eq!(proxy.settled(1).await["stored"], 1);
    let turn = proxy.turns().remove(0);
    assert_eq!(turn.outcome, "client_abort");
    assert!(turn.response.contains("w0 w1 w2 w3"), "{turn:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_does_not_hold_the_engine_for_ever() {
    let origin = Origin::start().await;
    let proxy =
        Proxy::with(origin.address, "observe", |cfg| cfg.limits.client_write_ms = 300).await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/v1/flood/chat/completions?n=67108864", "", &chat("a", false))).await;
    client.until("HTTP/1.1 200").await;
    eventually("the engine's stream is cut", || origin.closed_early() == 1).await;
    proxy.settled(1).await;
    assert_eq!(proxy.status().await["http"]["outcomes"]["client_abort"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_of_the_engine_is_relayed_before_the_body_is_read() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let mut client = Client::connect(proxy.address).await;
    let head =
        "POST /v1/early/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
    client.send(head.as_bytes()).await;
    let response = tokio::time::timeout(Duration::from_secs(10), client.response()).await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (401, "{\"error\":\"no\"}"));
    drop(client);
    proxy.settled(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_and_leave_nothing() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    for bytes in [
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        "NOT HTTP AT ALL, NOT EVEN NEARLY\r\n\r\n",
    ] {
        let response = ask(proxy.address, bytes.as_bytes()).await;
        assert!(matches!(response.status, 0 | 400), "{}", response.status);
    }
    assert!(origin.seen().is_empty());
    assert_eq!(ask(proxy.address, &post("/v1/json/chat/completions", "", b"{}")).await.status, 200);
}
