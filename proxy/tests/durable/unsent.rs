//! Requests that no engine ever got keep their prompt.

use std::time::Duration;

use crate::client::{Client, ask, chat, post};
use crate::harness::Proxy;
use crate::origin::down;

#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_of_a_request_is_kept_when_the_engine_cannot_be_reached() {
    let (_down, address) = down();
    let proxy = Proxy::start(address, "observe").await;
    let long = "x".repeat(300_000);
    for text in ["a short prompt", long.as_str()] {
        let request = post("/v1/json/chat/completions", "", &chat(text, false));
        assert_eq!(ask(proxy.address, &request).await.status, 502);
    }
    assert_eq!(proxy.settled(2).await["stored"], 2);
    let turns = proxy.turns();
    for (turn, text) in turns.iter().zip(["a short prompt", long.as_str()]) {
        assert_eq!((turn.status, turn.outcome.as_str()), (502, "upstream_error"));
        assert!(turn.request.contains(text), "{}", turn.request.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_comes_delays_the_error_only_so_long() {
    let (_down, address) = down();
    let proxy = Proxy::with(address, "observe", |cfg| cfg.limits.rest_read_ms = 300).await;
    let mut client = Client::connect(proxy.address).await;
    client
        .send(
            b"POST /v1/json/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{",
        )
        .await;
    let answered = tokio::time::timeout(Duration::from_secs(10), client.response()).await;
    assert_eq!(answered.unwrap().status, 502);
    assert_eq!(proxy.settled(1).await["stored"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_to_be_asked_for_its_body_is_answered_at_once() {
    let (_down, address) = down();
    let proxy = Proxy::with(address, "observe", |cfg| cfg.limits.rest_read_ms = 60_000).await;
    let mut client = Client::connect(proxy.address).await;
    client
        .send(
            b"POST /v1/json/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\
              Expect: 100-continue\r\n\r\n",
        )
        .await;
    let answered = tokio::time::timeout(Duration::from_secs(20), client.response()).await;
    assert_eq!(answered.unwrap().status, 502);
}
