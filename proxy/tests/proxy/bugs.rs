//! Defects of pingora 0.9.1 that the proxy works round; each test fails without its fix.

use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::net::TcpStream;

use crate::client::{ask, chat, chunked, post};
use crate::harness::{Proxy, eventually};
use crate::origin::{Origin, down};

#[tokio::test(flavor = "multi_thread")]
async fn issue_935_an_empty_end_stream_frame_leaves_no_stray_bytes() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let tcp = TcpStream::connect(proxy.address).await.unwrap();
    let (mut send, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        std::future::poll_fn(|cx| send.poll_ready(cx)).await.unwrap();
        let request =
            Request::post("http://engine.test/v1/json/chat/completions").body(()).unwrap();
        let (response, mut body) = send.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(origin.seen().len(), 3);
    assert!(origin.seen().iter().all(|seen| seen.body == b"hello"));
    assert_eq!(String::from_utf8_lossy(&origin.stray()), "", "bytes after the end of a request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_on_a_pooled_connection_that_the_engine_just_closed_is_sent_again() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    for size in [2, 60_000] {
        for at in 0..6 {
            let body = vec![b'a' + at; size];
            let response = ask(proxy.address, &post("/v1/once/chat/completions", "", &body)).await;
            assert_eq!(response.status, 200, "size {size}, request {at}");
            assert_eq!(origin.seen().pop().unwrap().body, body, "the whole body, again");
        }
    }
    let status = proxy.status().await;
    assert!(status["http"]["retries"].as_u64().unwrap() >= 6, "{status}");
    assert_eq!(origin.seen().len(), 12, "no request reached the engine twice");
    let counters = proxy.settled(12).await;
    assert_eq!(counters["stored"], 12, "a retry is not a turn: {counters}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_replayed_get_a_connection_of_their_own() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    for _ in 0..3 {
        assert_eq!(
            ask(proxy.address, &post("/v1/once/chat/completions", "", b"small")).await.status,
            200
        );
        assert_eq!(
            ask(proxy.address, &post("/v1/once/chat/completions", "", &vec![b'x'; 200_000]))
                .await
                .status,
            200
        );
        let head = chunked("/v1/once/chat/completions");
        let request = [head.as_slice(), b"3\r\nabc\r\n0\r\n\r\n"].concat();
        assert_eq!(ask(proxy.address, &request).await.status, 200);
    }
    let mut connections: Vec<u64> = origin.seen().iter().map(|seen| seen.connection).collect();
    connections.sort_unstable();
    connections.dedup();
    assert_eq!(connections.len(), 9, "one request each, as the engine closes after one");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_engine_connections_are_given_up_well_before_the_engine_does() {
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "off", |cfg| cfg.limits.upstream_idle_ms = 200).await;
    for _ in 0..2 {
        ask(proxy.address, &post("/v1/json/chat/completions", "", b"{}")).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    let seen = origin.seen();
    assert_ne!(seen[0].connection, seen[1].connection);
}

/// Collects everything that is logged in this process.
struct Collector;

fn logged() -> &'static Mutex<String> {
    static LOGGED: OnceLock<Mutex<String>> = OnceLock::new();
    LOGGED.get_or_init(Mutex::default)
}

impl log::Log for Collector {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        logged().lock().unwrap().push_str(&format!("{}\n", record.args()));
    }

    fn flush(&self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn no_query_and_no_credential_is_ever_logged() {
    log::set_logger(&Collector).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let (_down, address) = down();
    let proxy = Proxy::start(address, "observe").await;
    let headers = "Authorization: Bearer hush-hush\r\nCookie: hush-hush\r\n";
    let request =
        post("/v1/logged/chat/completions?key=hush-hush", headers, &chat("hush-hush", false));
    assert_eq!(ask(proxy.address, &request).await.status, 502);
    // Pingora logs the failure after it has answered.
    let failure = || logged().lock().unwrap().contains("/v1/logged/chat/completions");
    eventually("the failure is logged", failure).await;
    let logged = logged().lock().unwrap().clone();
    assert!(!logged.contains("hush-hush"), "{logged}");
}
