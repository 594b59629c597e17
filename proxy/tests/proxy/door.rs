//! What clients cannot do: reach admin endpoints, speak in hone's name, send more than allowed,
//! leave secrets behind.

use crate::client::{Client, ask, chat, chunked, get, post};
use crate::harness::Proxy;
use crate::origin::Origin;

#[tokio::test(flavor = "multi_thread")]
async fn admin_endpoints_of_the_engine_are_out_of_reach() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    for target in [
        "/v1/load_lora_adapter",
        "/v1/%6Coad_lora_adapter",
        "/v1/x/../unload_lora_adapter",
        "/v1//lora_adapters",
        "/pause",
        "http://engine.test/v1/lora_adapters",
    ] {
        for request in
            [post(target, "", b"{}"), post(target, "X-HTTP-Method-Override: GET\r\n", b"")]
        {
            let response = ask(proxy.address, &request).await;
            assert_eq!(response.status, 403, "{target}");
            assert_eq!(response.json()["error"]["code"], "admin_route_blocked");
        }
        assert_eq!(get(proxy.address, target, "").await.status, 403);
    }
    assert!(origin.seen().is_empty());
    let outcomes = proxy.status().await["http"]["outcomes"].clone();
    assert_eq!((&outcomes["refused"], &outcomes["client_abort"]), (&18.into(), &0.into()));
    assert_eq!(proxy.settled(0).await["requests"], 0, "a refused request is no turn");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_paths_that_the_operator_allows_pass() {
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "learn", |cfg| {
        cfg.paths_allowed = vec!["/v1/json/chat/completions".to_owned()];
    })
    .await;
    for (target, status) in [
        ("/v1/json/chat/completions", 200),
        ("/v1/json/completions", 403),
        ("/v1/json/chat/completions/../../new_control", 403),
        ("/v1/load_lora_adapter", 403),
        ("/v1/feedback", 400),
    ] {
        let response = ask(proxy.address, &post(target, "", &chat("a", false))).await;
        assert_eq!(response.status, status, "{target}: {}", response.text());
    }
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hones_own_headers_from_a_client_go_no_further() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let forged = "X-Hone-Generation: forged\r\nx-hone-anything: 1\r\n";
    ask(proxy.address, &post("/v1/json/chat/completions", forged, b"{}")).await;
    let seen = origin.seen().pop().unwrap();
    assert_eq!(seen.headers["x-hone-generation"], "base", "the proxy's own word");
    assert!(!seen.headers.contains_key("x-hone-anything"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_can_opt_out_of_learning() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    ask(
        proxy.address,
        &post("/v1/json/chat/completions", "x-hone-learn: off\r\n", &chat("a", false)),
    )
    .await;
    ask(proxy.address, &post("/v1/json/chat/completions", "", &chat("b", false))).await;
    let seen = origin.seen();
    assert!(seen[0].headers.keys().all(|name| !name.starts_with("x-hone-")));
    assert_eq!(proxy.settled(1).await["stored"], 1);
    assert!(proxy.turns()[0].request.contains("\"b\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn mode_off_passes_everything_and_stores_nothing() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "off").await;
    for target in ["/v1/json/chat/completions", "/v1/burst/chat/completions", "/elsewhere"] {
        assert_eq!(ask(proxy.address, &post(target, "", &chat("a", true))).await.status, 200);
    }
    assert!(origin.seen().iter().all(|s| !s.headers.contains_key("x-hone-generation")));
    assert_eq!(proxy.settled(0).await["stored"], 0);
    assert!(proxy.turns().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_cap_is_refused_by_its_length_or_when_it_gets_there() {
    let origin = Origin::start().await;
    let proxy =
        Proxy::with(origin.address, "observe", |cfg| cfg.limits.request_bytes_max = 100_000).await;
    let response =
        ask(proxy.address, &post("/v1/json/chat/completions", "", &vec![b'x'; 100_001])).await;
    assert_eq!(
        (response.status, &response.json()["error"]["code"]),
        (413, &"request_too_large".into())
    );
    assert_eq!(
        ask(proxy.address, &post("/v1/json/chat/completions", "", &vec![b'x'; 100_000]))
            .await
            .status,
        200
    );

    let mut client = Client::connect(proxy.address).await;
    client.send(&chunked("/v1/json/chat/completions")).await;
    let chunk = [b"8000\r\n".as_slice(), &vec![b'y'; 0x8000], b"\r\n"].concat();
    for _ in 0..4 {
        client.send(&chunk).await;
    }
    let response = client.response().await;
    assert_eq!(
        (response.status, &response.json()["error"]["code"]),
        (413, &"request_too_large".into())
    );
    let counters = proxy.settled(2).await;
    assert_eq!(counters["stored"], 2, "the second was already being recorded: {counters}");
    let outcomes = proxy.status().await["http"]["outcomes"].clone();
    assert_eq!((&outcomes["refused"], &outcomes["client_abort"]), (&2.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_still_sending_when_it_is_refused_reads_the_answer() {
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "off", |cfg| cfg.limits.request_bytes_max = 1000).await;
    let request = post("/v1/json/chat/completions", "", &vec![b'x'; 12 << 20]);
    assert_eq!(ask(proxy.address, &request).await.status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_reach_the_engine_and_are_nowhere_on_disk() {
    let origin = Origin::start().await;
    let mut proxy = Proxy::start(origin.address, "observe").await;
    let secrets = "Authorization: Bearer sk-very-secret\r\nCookie: s=sk-very-secret\r\n\
                   x-api-key: sk-very-secret\r\n";
    for headers in [secrets, "", secrets] {
        ask(
            proxy.address,
            &post("/v1/json/chat/completions?key=sk-very-secret", headers, &chat("hello", false)),
        )
        .await;
    }
    assert_eq!(origin.seen()[0].headers["authorization"], "Bearer sk-very-secret");
    proxy.settled(3).await;
    let tenants: Vec<_> = proxy.turns().into_iter().map(|turn| turn.tenant).collect();
    assert_eq!(tenants[1], "anonymous");
    assert_eq!(tenants[0], tenants[2]);
    assert_eq!(tenants[0].len(), 32);
    proxy.join().await;
    for file in walk(proxy.data.path()) {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes.windows(14).any(|w| w == b"sk-very-secret");
        assert!(!found, "{} holds the secret", file.display());
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
