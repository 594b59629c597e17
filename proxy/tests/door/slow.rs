//! Clients that keep others waiting: slow heads, slow bodies, slow readers, and many of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::client::{Client, ask, chunked, get, post};
use crate::harness::{Proxy, eventually};
use crate::recorder::Recorder;

const SECOND: Duration = Duration::from_secs(1);

/// An engine that streams without end and counts what it could write.
async fn firehose() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, written) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&written);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut head = [0u8; 4096];
                let _ = tcp.read(&mut head).await;
                let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
                tcp.write_all(head).await.unwrap();
                while tcp.write_all(chunk.as_bytes()).await.is_ok() {
                    count.fetch_add(4096, Ordering::Relaxed);
                }
            });
        }
    });
    (address, written)
}

/// A client with as small a receive buffer as the kernel gives, which asks and never reads.
async fn never_reads(address: SocketAddr, request: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut tcp = socket.connect(address).await.unwrap();
    tcp.write_all(request).await.unwrap();
    tcp
}

/// Sends one byte a time until the other side ends the connection; how long that took, and what it
/// said.
async fn drip(mut client: Client, bytes: Vec<u8>, every: Duration) -> (Duration, u16) {
    let since = Instant::now();
    for byte in bytes {
        let sent = client.tcp.write_all(&[byte]).await.is_ok();
        if !sent || tokio::time::timeout(every, client.tcp.readable()).await.is_ok() {
            break;
        }
    }
    let took = since.elapsed();
    (took, client.response().await.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_drips_is_cut_within_eleven_seconds() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(recorder.address, "observe").await;
    let first = Client::connect(proxy.address).await;
    let head = || b"GET /v1/slow HTTP/1.1\r\nHost: a\r\nx: yyyyyyyyyyyyyyyyyyy\r\n\r\n".to_vec();
    // The same on a connection that was kept alive, and with a whole line each second.
    let mut second = Client::connect(proxy.address).await;
    second.send(&post("/v1/first", "", b"{}")).await;
    assert_eq!(second.response().await.status, 200);
    let lines = async {
        let mut client = Client::connect(proxy.address).await;
        client.send(b"GET /v1/lines HTTP/1.1\r\nHost: a\r\n").await;
        let since = Instant::now();
        while tokio::time::timeout(SECOND, client.tcp.readable()).await.is_err() {
            client.send(b"x: y\r\n").await;
        }
        (since.elapsed(), client.response().await.status)
    };
    let (a, b, c) = tokio::join!(drip(first, head(), SECOND), drip(second, head(), SECOND), lines);
    for (took, status) in [a, b, c] {
        assert_eq!(status, 408);
        assert!(took >= 9 * SECOND && took <= 11 * SECOND, "{took:?}");
    }
    assert_eq!(recorder.arrived().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_drips_is_cut_and_one_that_is_only_slow_is_not() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::with(recorder.address, "observe", |cfg| {
        cfg.limits.client_body_grace_ms = 1000;
        cfg.limits.client_body_bytes_per_s_min = 1000;
    })
    .await;
    let mut slow = Client::connect(proxy.address).await;
    slow.send(&chunked("/v1/slow")).await;
    let steady = async {
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            slow.send(&[b"200\r\n", "x".repeat(512).as_bytes(), b"\r\n"].concat()).await;
        }
        slow.send(b"0\r\n\r\n").await;
        slow.response().await.status
    };
    let dripping = async {
        let mut client = Client::connect(proxy.address).await;
        let head = "POST /v1/drip HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
        client.send(head.as_bytes()).await;
        drip(client, vec![b'x'; 1000], Duration::from_millis(50)).await
    };
    let (steady, (took, status)) = tokio::join!(steady, dripping);
    assert_eq!(steady, 200);
    assert_eq!(status, 408, "{took:?}");
    assert!(took < 4 * SECOND, "{took:?}");
    assert!(recorder.arrived().iter().all(|a| a.target() == "/v1/slow"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_waits_for_100_continue_is_not_hurried() {
    let recorder = Recorder::start().await;
    let proxy =
        Proxy::with(recorder.address, "off", |cfg| cfg.limits.client_body_grace_ms = 300).await;
    let mut client = Client::connect(proxy.address).await;
    let head =
        "POST /v1/x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    client.send(head.as_bytes()).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    client.send(b"{}").await;
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_stops_the_engine_and_is_cut() {
    let (address, written) = firehose().await;
    let proxy = Proxy::with(address, "observe", |cfg| cfg.limits.client_write_ms = 3000).await;
    let mut client = never_reads(proxy.address, &post("/v1/x", "", b"{}")).await;
    let mut before = 0;
    eventually("the engine is paused", || {
        let now = written.load(Ordering::Relaxed);
        std::mem::replace(&mut before, now) == now && now > 0
    })
    .await;
    let paused = written.load(Ordering::Relaxed);
    assert!(paused < 32 << 20, "{paused} bytes were taken for a client that reads nothing");
    let metrics = async |name: &str| {
        let text = proxy.admin_get("/metrics").await.text();
        text.lines().any(|line| line == name)
    };
    let since = Instant::now();
    while !metrics("hone_readers_cut_total 1").await {
        assert!(since.elapsed() < 10 * SECOND, "never cut");
        tokio::time::sleep(SECOND / 10).await;
    }
    let mut rest = Vec::new();
    let end = tokio::time::timeout(5 * SECOND, client.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the connection ended");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "and not as if the answer were whole");
    proxy.settled(1).await;
    assert_eq!(proxy.turns()[0].outcome, "client_abort");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_also_after_its_first_request() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::with(recorder.address, "off", |cfg| {
        cfg.limits.client_idle_ms = 500;
        cfg.limits.client_first_byte_ms = 500;
    })
    .await;
    let mut used = Client::connect(proxy.address).await;
    used.send(&post("/v1/x", "", b"{}")).await;
    assert_eq!(used.response().await.status, 200);
    let mut fresh = Client::connect(proxy.address).await;
    let both = async { (used.end().await, fresh.end().await) };
    assert_eq!(tokio::time::timeout(5 * SECOND, both).await, Ok((true, true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_connections() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::with(recorder.address, "off", |cfg| {
        cfg.limits.connections_per_address_max = 5;
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post("/v1/x", "", b"{}")).await;
        assert_eq!(client.response().await.status, 200);
        held.push(client);
    }
    assert!(Client::connect(proxy.address).await.end().await);
    held.pop();
    let since = Instant::now();
    while get(proxy.address, "/v1/x", "").await.status != 200 {
        assert!(since.elapsed() < 5 * SECOND, "the place was never given back");
        tokio::time::sleep(SECOND / 10).await;
    }
    let metrics = proxy.admin_get("/metrics").await.text();
    assert!(!metrics.contains("hone_refused_total{rule=\"address_full\"} 0"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_800_slow_connections_everybody_else_is_served_and_the_slow_are_cut() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(recorder.address, "observe").await;
    let slow = (0..800).map(|at| {
        let address = proxy.address;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(at)).await;
            let head: &[u8] = match at % 3 {
                0 => b"GET /v1/head HTTP/1.1\r\nHost: a\r\n",
                1 => b"POST /v1/body HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n",
                _ => b"POST /v1/body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            };
            let drip: &[u8] = [b"x: y\r\n".as_slice(), b"z", b"1\r\nz\r\n"][at as usize % 3];
            let mut tcp = TcpStream::connect(address).await.unwrap();
            let since = Instant::now();
            let mut sent = tcp.write_all(head).await;
            let mut end = [0u8; 1024];
            while sent.is_ok() {
                if tokio::time::timeout(3 * SECOND, tcp.read(&mut end)).await.is_ok() {
                    break;
                }
                sent = tcp.write_all(drip).await;
            }
            since.elapsed()
        })
    });
    let slow: Vec<_> = slow.collect();
    let normal = async {
        let mut worst = Duration::ZERO;
        for _ in 0..100 {
            let since = Instant::now();
            assert_eq!(ask(proxy.address, &post("/v1/ok", "", b"{}")).await.status, 200);
            worst = worst.max(since.elapsed());
            tokio::time::sleep(SECOND / 10).await;
        }
        worst
    };
    let worst = normal.await;
    assert!(worst < 3 * SECOND, "an honest request took {worst:?}");
    let mut longest = Duration::ZERO;
    for client in slow {
        longest = longest.max(client.await.unwrap());
    }
    println!("honest requests took up to {worst:?}; slow ones were cut within {longest:?}");
    assert!(longest <= 15 * SECOND, "{longest:?}");
    assert!(recorder.arrived().iter().all(|a| a.target() == "/v1/ok"));
}
