//! Connections that stop being HTTP: their bytes pass untouched, are counted, and are nobody's
//! turn.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::{ask, chat, post};
use crate::harness::{Proxy, number};
use crate::origin::Origin;

pub const ASK: &str = "GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// How the engine behaves.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// Agrees, then sends back whatever comes.
    Echo,
    /// Has agreed before it has read the request.
    Hasty,
    /// Agrees, then sends a byte now and then and reads nothing.
    Talk,
    /// Agrees, then only reads.
    Listen,
    /// Agrees and closes.
    Close,
    /// Does not agree.
    Refuse,
}

pub async fn head(tcp: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(tcp.read_u8().await.ok()?);
    }
    Some(String::from_utf8(bytes).unwrap())
}

async fn serve(mut tcp: TcpStream, kind: Kind) -> Option<()> {
    if kind == Kind::Hasty {
        tcp.write_all(AGREE.as_bytes()).await.ok()?;
    }
    let asked = head(&mut tcp).await?;
    assert!(asked.to_ascii_lowercase().contains("upgrade: websocket"), "{asked}");
    match kind {
        Kind::Refuse => {
            let refusal = "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno";
            return tcp.write_all(refusal.as_bytes()).await.ok();
        }
        Kind::Hasty => {}
        _ => tcp.write_all(AGREE.as_bytes()).await.ok()?,
    }
    match kind {
        Kind::Talk => loop {
            tcp.write_all(b"x").await.ok()?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        },
        Kind::Listen => {
            tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await.ok()?;
        }
        Kind::Echo | Kind::Hasty => {
            let (mut read, mut write) = tcp.split();
            tokio::io::copy(&mut read, &mut write).await.ok()?;
        }
        Kind::Close | Kind::Refuse => {}
    }
    Some(())
}

pub async fn engine(kind: Kind) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(tcp, kind));
        }
    });
    address
}

/// Opens a tunnel; panics unless the engine's agreement arrives.
async fn tunnel(proxy: &Proxy) -> TcpStream {
    let mut tcp = TcpStream::connect(proxy.address).await.unwrap();
    tcp.write_all(ASK.as_bytes()).await.unwrap();
    let agreed = head(&mut tcp).await.unwrap();
    assert!(agreed.starts_with("HTTP/1.1 101 "), "{agreed}");
    assert!(agreed.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{agreed}");
    tcp
}

async fn echoed(tcp: &mut TcpStream, bytes: &[u8]) {
    let (mut read, mut write) = tcp.split();
    let mut back = vec![0; bytes.len()];
    let both = async { tokio::try_join!(write.write_all(bytes), read.read_exact(&mut back)) };
    tokio::time::timeout(Duration::from_secs(20), both).await.unwrap().unwrap();
    assert!(back == bytes, "bytes changed on their way");
}

async fn tunnels(proxy: &Proxy, name: &str) -> u64 {
    number(&proxy.status().await["tunnels"][name])
}

async fn until_none_is_open(proxy: &Proxy) {
    let since = Instant::now();
    while tunnels(proxy, "open").await > 0 {
        assert!(since.elapsed() < crate::harness::PATIENCE, "a tunnel stays open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_untouched_both_ways_and_are_counted_but_are_no_turn() {
    let proxy = Proxy::start(engine(Kind::Echo).await, "observe").await;
    let mut tcp = tunnel(&proxy).await;
    let mut sent = 0;
    for size in [1, 2, 125, 65_536, 1 << 20] {
        let bytes: Vec<u8> = (0..size).map(|n| (n * 31 + n / 251) as u8).collect();
        echoed(&mut tcp, &bytes).await;
        sent += size as u64;
    }
    // What looks like HTTP is just bytes, too.
    echoed(&mut tcp, b"GET /pause HTTP/1.1\r\n\r\n0\r\n\r\n").await;
    sent += 28;
    assert_eq!(tunnels(&proxy, "open").await, 1);
    drop(tcp);
    until_none_is_open(&proxy).await;
    let bytes = (tunnels(&proxy, "sent_bytes").await, tunnels(&proxy, "received_bytes").await);
    assert_eq!(bytes, (sent, sent));
    assert_eq!(proxy.settled(0).await["requests"], 0);
    let metrics = proxy.admin_get("/metrics").await.text();
    assert!(metrics.contains(&format!("hone_tunnel_bytes_total{{to=\"client\"}} {sent}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn issue_946_an_engine_that_agrees_at_once_keeps_its_tunnel() {
    let proxy = Proxy::start(engine(Kind::Hasty).await, "observe").await;
    for at in 0..40 {
        let mut tcp = tunnel(&proxy).await;
        echoed(&mut tcp, format!("hello {at}").as_bytes()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_either_side_ends_the_other() {
    let proxy = Proxy::start(engine(Kind::Close).await, "observe").await;
    let mut tcp = tunnel(&proxy).await;
    let rest = tokio::time::timeout(Duration::from_secs(10), tcp.read_u8()).await.unwrap();
    assert!(rest.is_err(), "the engine has closed");
    until_none_is_open(&proxy).await;
    let outcomes = proxy.status().await["http"]["outcomes"].clone();
    assert_eq!(outcomes["complete"], 1, "{outcomes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_silence_in_both_directions_ends_a_tunnel() {
    for (kind, ends) in [(Kind::Echo, true), (Kind::Talk, false), (Kind::Listen, false)] {
        let proxy = Proxy::with(engine(kind).await, "observe", |cfg| {
            cfg.limits.tunnel_idle_ms = 600;
            cfg.limits.client_read_ms = 300;
            cfg.limits.upstream_read_ms = 300;
        })
        .await;
        let mut tcp = tunnel(&proxy).await;
        let since = Instant::now();
        if kind == Kind::Listen {
            while since.elapsed() < Duration::from_millis(1500) {
                tcp.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        } else if kind == Kind::Talk {
            tokio::time::sleep(Duration::from_millis(1500)).await;
        } else {
            let end = tokio::time::timeout(Duration::from_secs(10), tcp.read_u8()).await.unwrap();
            assert!(end.is_err());
            assert!(since.elapsed() >= Duration::from_millis(500), "{:?}", since.elapsed());
        }
        if ends {
            until_none_is_open(&proxy).await;
        }
        assert_eq!(tunnels(&proxy, "open").await, u64::from(!ends));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_closes_tunnels_after_its_grace() {
    let address = engine(Kind::Echo).await;
    let mut proxy = Proxy::with(address, "observe", |cfg| cfg.grace_ms = 700).await;
    let mut tcp = tunnel(&proxy).await;
    proxy.stop();
    tokio::time::sleep(Duration::from_millis(200)).await;
    echoed(&mut tcp, b"still here").await;
    let took = proxy.join().await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(tcp.read_u8().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let proxy = Proxy::start(engine(Kind::Refuse).await, "observe").await;
    let response = ask(proxy.address, ASK.as_bytes()).await;
    assert_eq!((response.status, response.text().as_str()), (426, "no"));
    assert_eq!(tunnels(&proxy, "opened").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_upgrades_are_taken_off_and_their_requests_are_turns() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    // As Java's HTTP client sends it with every request.
    let offer =
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    let request = post("/v1/json/chat/completions", offer, &chat("hello", false));
    assert_eq!(ask(proxy.address, &request).await.status, 200);
    let seen = origin.seen().pop().unwrap();
    assert!(!seen.headers.contains_key("upgrade"), "{seen:?}");
    assert_eq!(proxy.settled(1).await["stored"], 1);
    assert!(proxy.turns()[0].request.contains("hello"));
}
