//! Bytes in = bytes out, over HTTP/1.1 and h2c, for every shape of body.

use bytes::Bytes;
use http::Request;
use tokio::net::TcpStream;

use crate::client::{Client, ask, chat, chunked, post};
use crate::harness::Proxy;
use crate::origin::{Origin, stream};

#[tokio::test(flavor = "multi_thread")]
async fn response_bodies_are_the_engines_own_bytes() {
    let origin = Origin::start().await;
    for mode in ["off", "observe", "learn"] {
        let proxy = Proxy::start(origin.address, mode).await;
        for target in [
            "/v1/json/chat/completions",
            "/v1/burst/chat/completions?n=200",
            "/v1/paced/chat/completions?n=5&ms=10",
            "/v1/error/chat/completions",
        ] {
            let request = post(target, "", &chat("hello", true));
            let direct = ask(origin.address, &request).await;
            let through = ask(proxy.address, &request).await;
            assert!(through.whole, "{mode} {target}");
            assert_eq!(
                (through.status, &through.body),
                (direct.status, &direct.body),
                "{mode} {target}"
            );
            assert_eq!(through.headers["content-type"], direct.headers["content-type"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_bodies_arrive_as_they_were_sent() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let bodies = [
        b"{\"not\": json".to_vec(),
        vec![0u8, 255, 13, 10, 0],
        Vec::new(),
        (0..300_000u32).map(|n| (n * 31 % 251) as u8).collect(),
    ];
    for body in &bodies {
        ask(
            proxy.address,
            &post("/v1/json/chat/completions?x=%2F&y=1", "X-Custom: kept\r\n", body),
        )
        .await;
        let seen = origin.seen().pop().unwrap();
        assert_eq!(&seen.body, body);
        assert_eq!(seen.target, "/v1/json/chat/completions?x=%2F&y=1");
        assert_eq!(seen.headers["x-custom"], "kept");
        assert_eq!(seen.headers["host"], "engine.test");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_upload_passes_and_keeps_its_bytes() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&chunked("/v1/json/chat/completions")).await;
    for _ in 0..3 {
        client.send(b"5\r\nhello\r\n").await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    client.send(b"0\r\n\r\n").await;
    assert!(client.response().await.text().contains("got 15 bytes"));
    assert_eq!(origin.seen()[0].body, b"hellohellohello");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expected_100_continue_is_relayed_before_the_body() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let mut client = Client::connect(proxy.address).await;
    let head = "POST /v1/continue/chat/completions HTTP/1.1\r\nHost: a\r\n\
                Expect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    client.send(head.as_bytes()).await;
    assert_eq!(client.any_response().await.status, 100);
    client.send(b"body").await;
    assert!(client.response().await.text().contains("got 4 bytes"));
    let stored = proxy.settled(1).await;
    assert_eq!(stored["stored"], 1, "the informational response is not taken for the answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_many_requests() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "off").await;
    let mut client = Client::connect(proxy.address).await;
    for at in 0..20 {
        let target =
            if at % 2 == 0 { "/v1/json/chat/completions" } else { "/v1/burst/chat/completions" };
        client.send(&post(target, "", b"{}")).await;
        assert!(client.response().await.whole);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_shorter_than_the_h2_preface_is_answered() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "off").await;
    let mut client = Client::connect(proxy.address).await;
    client.send(b"GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_clients_get_the_same_bytes_and_share_a_connection() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let (send, connection) =
        h2::client::handshake(TcpStream::connect(proxy.address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let asks = (0..4).map(|at| {
        let mut send = send.clone();
        async move {
            let n = 20 + at;
            let uri = format!("http://engine.test/v1/paced/chat/completions?n={n}&ms=2");
            let request = Request::post(uri).body(()).unwrap();
            std::future::poll_fn(|cx| send.poll_ready(cx)).await.unwrap();
            let (response, mut body) = send.send_request(request, false).unwrap();
            body.send_data(Bytes::from(chat("hi", true)), true).unwrap();
            let mut response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            let mut got = Vec::new();
            while let Some(data) = response.body_mut().data().await {
                let data = data.unwrap();
                response.body_mut().flow_control().release_capacity(data.len()).unwrap();
                got.extend_from_slice(&data);
            }
            assert_eq!(String::from_utf8(got).unwrap(), stream(n));
        }
    });
    futures::future::join_all(asks).await;
    assert!(origin.seen().iter().all(|seen| seen.body == chat("hi", true)));
    assert_eq!(proxy.settled(4).await["stored"], 4);
}
