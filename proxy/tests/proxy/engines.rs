//! Several engines behind one proxy: who gets what, and what happens when one is gone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use hone_proxy::Upstream;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::client::{Client, ask, chat, post};
use crate::harness::{Proxy, number};
use crate::origin::{Origin, down, event};

/// A proxy in front of `engines`; probes are off unless `probe_ms` is given.
async fn in_front_of(engines: &[SocketAddr], mode: &str, probe_ms: Option<u64>) -> Proxy {
    let engines = engines.to_vec();
    Proxy::with(engines[0], mode, move |cfg| {
        let url = |address: &SocketAddr| Upstream::parse(&format!("http://{address}")).unwrap();
        cfg.upstreams = engines.iter().map(url).collect();
        cfg.limits.engine_probe_ms = probe_ms.unwrap_or(3_600_000);
        cfg.limits.engine_cooldown_ms = 60_000;
    })
    .await
}

async fn session(proxy: &Proxy, id: &str) -> u16 {
    let headers = format!("X-Session-Id: {id}\r\n");
    ask(proxy.address, &post("/v1/json/chat/completions", &headers, &chat("a", false))).await.status
}

/// How many of the requests that this origin saw were for `path`.
fn seen(origin: &Origin, path: &str) -> usize {
    origin.seen().iter().filter(|seen| seen.target.starts_with(path)).count()
}

fn engine<'a>(status: &'a Value, address: &SocketAddr) -> &'a Value {
    let all = status["engines"].as_array().unwrap();
    all.iter().find(|engine| engine["engine"] == address.to_string()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_spread_over_the_engines_and_each_stays_on_its_own() {
    let (a, b) = (Origin::start().await, Origin::start().await);
    let proxy = in_front_of(&[a.address, b.address], "learn", None).await;
    for _ in 0..3 {
        for id in 0..20 {
            assert_eq!(session(&proxy, &format!("s{id}")).await, 200);
        }
    }
    let sessions = |origin: &Origin| -> BTreeSet<String> {
        origin.seen().iter().map(|seen| seen.headers["x-session-id"].clone()).collect()
    };
    let (of_a, of_b) = (sessions(&a), sessions(&b));
    assert!(of_a.is_disjoint(&of_b), "{of_a:?} {of_b:?}");
    assert_eq!(of_a.len() + of_b.len(), 20);
    assert!(of_a.len() > 2 && of_b.len() > 2, "{} {}", of_a.len(), of_b.len());
    let generation = |origin: &Origin| origin.seen()[0].headers["x-hone-generation"].clone();
    assert_eq!((generation(&a), generation(&b)), ("base".to_owned(), "base".to_owned()));
    let status = proxy.status().await;
    assert_eq!(number(&engine(&status, &a.address)["requests"]), 3 * of_a.len() as u64);
    assert_eq!(status["engines_spilled"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_an_engine_that_is_down_go_to_another_whatever_their_method() {
    let origin = Origin::start().await;
    let (_down, gone) = down();
    let proxy = in_front_of(&[origin.address, gone], "observe", None).await;
    let big = vec![b'x'; 300_000];
    for id in 0..20 {
        let headers = format!("X-Session-Id: s{id}\r\n");
        let request = post("/v1/json/chat/completions", &headers, &big);
        assert_eq!(ask(proxy.address, &request).await.status, 200, "session {id}");
    }
    assert_eq!(origin.seen().len(), 20);
    assert!(origin.seen().iter().all(|seen| seen.body == big), "bodies whole");
    let status = proxy.status().await;
    let gone = engine(&status, &gone);
    assert_eq!(gone["connect_failures"]["refused"], 3, "then it is left alone: {gone}");
    assert_eq!((&gone["usable"], &gone["ejections"]), (&Value::from(false), &Value::from(1)));
    assert!(number(&status["engines_spilled"]) > 3);
    let counters = proxy.settled(20).await;
    assert_eq!(counters["stored"], 20, "a second attempt is no second turn");
    let metrics = proxy.admin_get("/metrics").await.text();
    assert!(metrics.contains("kind=\"refused\"} 3"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_an_engine_may_have_begun_is_not_sent_to_another() {
    let (a, b) = (Origin::start().await, Origin::start().await);
    let proxy = in_front_of(&[a.address, b.address], "observe", None).await;
    for id in 0..10 {
        let headers = format!("X-Session-Id: s{id}\r\n");
        let request = post("/v1/cut/chat/completions", &headers, &chat("a", false));
        assert_eq!(ask(proxy.address, &request).await.status, 502);
    }
    assert_eq!(a.seen().len() + b.seen().len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_engines_down_is_a_502_and_the_first_that_returns_is_found() {
    let ((socket, first), (_other, second)) = (down(), down());
    let proxy = in_front_of(&[first, second], "observe", None).await;
    for id in 0..8 {
        assert_eq!(session(&proxy, &format!("s{id}")).await, 502);
    }
    let origin = Origin::on(socket.listen(64).unwrap());
    for id in 0..8 {
        assert_eq!(session(&proxy, &format!("s{id}")).await, 200, "session {id}");
    }
    assert_eq!(origin.seen().len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_take_an_engine_out_before_a_client_notices_and_bring_it_back() {
    let (sick, well) = (Origin::start().await, Origin::start().await);
    sick.answer_health_with(503);
    let proxy = in_front_of(&[sick.address, well.address], "observe", Some(50)).await;
    let usable = async || engine(&proxy.status().await, &sick.address)["usable"] == true;
    wait_for(async || !usable().await).await;
    for id in 0..12 {
        assert_eq!(session(&proxy, &format!("s{id}")).await, 200);
    }
    assert_eq!(seen(&sick, "/v1/"), 0);
    assert_eq!(seen(&well, "/v1/"), 12);
    sick.answer_health_with(404);
    wait_for(usable).await;
    for id in 0..12 {
        assert_eq!(session(&proxy, &format!("s{id}")).await, 200);
    }
    assert!(seen(&sick, "/v1/") > 0, "an engine without the path is alive all the same");
    assert_eq!(proxy.settled(24).await["stored"], 24, "probes are no turns");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_engine_sees_only_what_clients_send() {
    let origin = Origin::start().await;
    let proxy = in_front_of(&[origin.address], "off", Some(20)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(session(&proxy, "s").await, 200);
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_flight_outlives_its_engines_health() {
    let (a, b) = (Origin::start().await, Origin::start().await);
    let proxy = in_front_of(&[a.address, b.address], "observe", Some(50)).await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/v1/paced/chat/completions?n=60&ms=20", "", &chat("a", true))).await;
    client.until("w1 ").await;
    a.answer_health_with(500);
    b.answer_health_with(500);
    wait_for(async || {
        let status = proxy.status().await;
        status["engines"].as_array().unwrap().iter().all(|engine| engine["usable"] == false)
    })
    .await;
    assert_eq!(session(&proxy, "s").await, 200, "when all look ill, the own engine is tried");
    let response = client.response().await;
    assert!(response.whole && response.text().contains(&event(59)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_several_addresses_is_one_engine() {
    let one = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = one.local_addr().unwrap().port();
    let origin = Origin::on(one);
    // `localhost` is 127.0.0.1, and ::1 where there is IPv6.
    let proxy = Proxy::with(origin.address, "observe", move |cfg| {
        cfg.upstreams = vec![Upstream::parse(&format!("http://localhost:{port}")).unwrap()];
    })
    .await;
    assert_eq!(session(&proxy, "s").await, 200);
    let status = proxy.status().await;
    assert_eq!(status["engines"].as_array().unwrap().len(), 1);
    assert_eq!(status["engines"][0]["addresses"][0]["address"], format!("127.0.0.1:{port}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_that_cannot_be_used_are_said_so_at_the_start() {
    let origin: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let url = || Upstream::parse("http://127.0.0.1:9").unwrap();
    for (upstreams, path, word) in [
        (vec![], "/health", "0 are configured"),
        (vec![url(), url()], "/health", "twice"),
        (vec![url()], "health", "health path"),
        (vec![url(); 65], "/health", "1 to 64"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut cfg = crate::harness::config(dir.path(), origin);
        cfg.upstreams = upstreams;
        cfg.engine_health_path = path.to_owned();
        let token = tokio_util::sync::CancellationToken::new();
        let start = move || hone_proxy::serve(cfg, token, false, |_| panic!("must not start"));
        let error = tokio::task::spawn_blocking(start).await.unwrap().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

async fn wait_for(mut holds: impl AsyncFnMut() -> bool) {
    let since = std::time::Instant::now();
    while !holds().await {
        assert!(since.elapsed() < crate::harness::PATIENCE, "never");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
