//! `[traffic]` of a route: what a tenant gets beyond its limits, and that everything is given back.

use crate::client::{Client, Response, ask, chat, post};
use crate::harness::{Proxy, eventually, number, write_policies};
use crate::origin::Origin;

async fn limited(origin: &Origin, mode: &str, traffic: &str) -> Proxy {
    let traffic = format!("\n[traffic]\n{traffic}\n");
    let mode = mode.to_owned();
    Proxy::with(origin.address, "observe", move |cfg| {
        write_policies(&cfg.data, &mode);
        let route = cfg.data.policies_dir().join("routes/test.toml");
        let text = std::fs::read_to_string(&route).unwrap() + &traffic;
        std::fs::write(route, text).unwrap();
    })
    .await
}

fn from(tenant: &str, target: &str) -> Vec<u8> {
    post(target, &format!("Authorization: Bearer {tenant}\r\n"), &chat("hello", true))
}

async fn send(proxy: &Proxy, tenant: &str) -> Response {
    ask(proxy.address, &from(tenant, "/v1/json/chat/completions")).await
}

fn refused(response: &Response, code: &str) -> u64 {
    assert_eq!(response.status, 429, "{}", response.text());
    let error = response.json()["error"].clone();
    assert_eq!(error["code"], code);
    assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
    response.headers["retry-after"].parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_over_its_rate_is_told_when_to_come_back_and_others_are_not_touched() {
    let origin = Origin::start().await;
    let proxy = limited(&origin, "observe", "requests_per_minute_max = 6\nburst = 2").await;
    assert_eq!(send(&proxy, "a").await.status, 200);
    assert_eq!(send(&proxy, "a").await.status, 200);
    let wait_s = refused(&send(&proxy, "a").await, "rate_limit_exceeded");
    assert!((1..=10).contains(&wait_s), "{wait_s}");
    assert_eq!(send(&proxy, "b").await.status, 200);
    assert_eq!(origin.seen().len(), 3, "a refused request does not reach the engine");
    assert_eq!(proxy.settled(3).await["stored"], 3, "and is no turn");
    let status = proxy.status().await;
    assert_eq!(status["traffic"]["refused"]["test"]["rate"], 1, "{status}");
    assert_eq!(status["http"]["faults"]["rate_limit_exceeded"], 1);
    let metrics = proxy.admin_get("/metrics").await.text();
    let line = "hone_traffic_refused_total{route=\"test\",limit=\"rate\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_where_nothing_is_learned_or_stored() {
    let origin = Origin::start().await;
    let proxy = limited(&origin, "off", "requests_per_minute_max = 1").await;
    assert_eq!(send(&proxy, "a").await.status, 200);
    refused(&send(&proxy, "a").await, "rate_limit_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn places_come_back_after_every_kind_of_end() {
    let origin = Origin::start().await;
    let proxy = limited(&origin, "observe", "concurrent_max = 2").await;
    // A stream that ends, an engine that dies, an error answer, a client that goes away.
    for kind in ["burst", "die", "error", "json"] {
        for _ in 0..3 {
            let target = format!("/v1/{kind}/chat/completions");
            assert_ne!(ask(proxy.address, &from("a", &target)).await.status, 429, "{kind}");
        }
    }
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(proxy.address).await;
        client.send(&from("a", "/v1/paced/chat/completions?n=5000&ms=20")).await;
        client.until("w1 ").await;
        held.push(client);
    }
    let wait_s = refused(&send(&proxy, "a").await, "concurrency_limit_exceeded");
    assert_eq!(wait_s, 1);
    assert_eq!(send(&proxy, "b").await.status, 200, "another tenant");
    drop(held);
    eventually("the engine's streams are cut", || origin.closed_early() >= 2).await;
    let mut answer = send(&proxy, "a").await;
    for _ in 0..100 {
        if answer.status == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        answer = send(&proxy, "a").await;
    }
    assert_eq!(answer.status, 200, "aborts give their places back");
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_limits_hold_at_once() {
    let origin = Origin::start().await;
    let proxy = limited(&origin, "observe", "requests_per_minute_max = 1").await;
    assert_eq!(send(&proxy, "a").await.status, 200);
    refused(&send(&proxy, "a").await, "rate_limit_exceeded");
    write_policies(&proxy.data, "observe");
    proxy.refresh().await;
    assert_eq!(send(&proxy, "a").await.status, 200);
    assert_eq!(number(&proxy.status().await["http"]["faults"]["rate_limit_exceeded"]), 1);
}
