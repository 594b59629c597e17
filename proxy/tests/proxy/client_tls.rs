//! TLS between client and proxy: protocols, the certificate and its replacement, clients that do
//! not shake hands, and the framing gate underneath.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hone_proxy::{KeyFiles, ListenTls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certificates::{Authority, write_file};
use crate::client::{ask, chat, post};
use crate::harness::{Proxy, eventually};
use crate::origin::{Origin, stream};
use crate::websocket;

/// A proxy that listens with TLS too, with a certificate for `localhost`.
struct Secure {
    proxy: Proxy,
    address: SocketAddr,
    authority: Authority,
    files: KeyFiles,
    origin: Origin,
}

async fn secure(watch_ms: u64) -> Secure {
    let origin = Origin::start().await;
    let upstream = origin.address;
    secure_before(upstream, origin, watch_ms).await
}

async fn secure_before(upstream: SocketAddr, origin: Origin, watch_ms: u64) -> Secure {
    let authority = Authority::new();
    let files = authority.files(&authority.issue(&["localhost"]));
    let listen = ListenTls { address: "127.0.0.1:0".parse().unwrap(), files: files.clone() };
    let proxy = Proxy::with(upstream, "observe", move |cfg| {
        cfg.listen_tls = Some(listen);
        cfg.limits.tls_handshake_ms = 500;
        cfg.limits.watch_ms = watch_ms;
    })
    .await;
    let address = proxy.tls_address.unwrap();
    Secure { proxy, address, authority, files, origin }
}

const NEVER_MS: u64 = 3_600_000;

impl Secure {
    /// Sends a request that closes its connection; everything that comes back.
    async fn send(&self, request: &[u8]) -> String {
        let mut tls =
            self.authority.connect(self.address, "localhost", &["http/1.1"]).await.unwrap();
        tls.write_all(request).await.unwrap();
        let mut back = Vec::new();
        // The proxy may close without TLS's own farewell; what matters is what came before.
        let _ = tls.read_to_end(&mut back).await;
        String::from_utf8_lossy(&back).into_owned()
    }

    /// The certificate that a new connection sees.
    async fn leaf(&self) -> Vec<u8> {
        let tls = self.authority.connect(self.address, "localhost", &[]).await.unwrap();
        tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
}

fn closing(target: &str, body: &[u8]) -> Vec<u8> {
    post(target, "Connection: close\r\n", body)
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_and_2_are_spoken_over_tls_beside_the_plain_listener() {
    let secure = secure(NEVER_MS).await;
    let answer = secure.send(&closing("/v1/json/chat/completions", &chat("hello", false))).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("choices"), "{answer}");
    let plain =
        ask(secure.proxy.address, &post("/v1/burst/chat/completions", "", &chat("a", true))).await;
    assert_eq!(plain.text(), stream(5));

    let tls = secure.authority.connect(secure.address, "localhost", &["h2", "http/1.1"]).await;
    let tls = tls.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut send, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let uri = "https://localhost/v1/paced/chat/completions?n=5&ms=5";
    let (response, mut body) =
        send.send_request(http::Request::post(uri).body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::from(chat("hello", true)), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    let (mut body, mut text) = (response.into_body(), Vec::new());
    while let Some(chunk) = body.data().await {
        text.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(String::from_utf8(text).unwrap(), stream(5));
    assert_eq!(secure.proxy.settled(3).await["stored"], 3);
    assert_eq!(secure.proxy.status().await["tls"]["handshakes"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_shake_hands_are_cut_and_counted() {
    let secure = secure(NEVER_MS).await;
    let since = Instant::now();
    let mut silent = TcpStream::connect(secure.address).await.unwrap();
    let mut slow = TcpStream::connect(secure.address).await.unwrap();
    slow.write_all(&[22, 3, 1]).await.unwrap();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest).await;
    let _ = slow.read_to_end(&mut rest).await;
    let took = since.elapsed();
    assert!(took > Duration::from_millis(400) && took < Duration::from_secs(5), "{took:?}");
    // Plain HTTP, and TLS 1.1.
    let plain = ask_bytes(secure.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!plain.starts_with(b"HTTP"), "{plain:?}");
    let old = ask_bytes(secure.address, &hello_of_tls_1_1()).await;
    assert_eq!((old[0], old[5]), (21, 2), "a fatal alert");
    // A client that trusts another authority.
    let other = Authority::new();
    assert!(other.connect(secure.address, "localhost", &[]).await.is_err());
    assert!(secure.authority.connect(secure.address, "other.test", &[]).await.is_err());
    let tls = secure.proxy.status().await["tls"].clone();
    assert_eq!((&tls["timed_out"], &tls["handshakes"]), (&2.into(), &0.into()), "{tls}");
    assert!(tls["failed"].as_u64().unwrap() >= 3, "{tls}");
    let answer = secure.send(&closing("/v1/json/chat/completions", b"{}")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

async fn ask_bytes(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    let mut back = Vec::new();
    let _ = tcp.read_to_end(&mut back).await;
    back
}

/// The first message of a client that knows nothing newer than TLS 1.1.
fn hello_of_tls_1_1() -> Vec<u8> {
    let mut body = vec![3, 2];
    body.extend([7; 32]); // Random.
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]); // No session, one suite, no compression.
    let mut message = vec![1, 0, 0, body.len() as u8];
    message.extend(body);
    [vec![22, 3, 1, 0, message.len() as u8], message].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_certificate_is_shown_and_a_bad_one_changes_nothing() {
    let secure = secure(NEVER_MS).await;
    let mut open = secure.authority.connect(secure.address, "localhost", &[]).await.unwrap();
    let second = secure.authority.issue(&["localhost"]);
    second.write(&secure.files);
    assert_ne!(secure.leaf().await, second.leaf().to_vec(), "nobody has looked yet");
    let refreshed = secure.proxy.refresh().await;
    assert_eq!(refreshed["problems"], serde_json::json!([]), "{refreshed}");
    assert_eq!(secure.leaf().await, second.leaf().to_vec());

    write_file(&secure.files.key, "no key at all");
    let refreshed = secure.proxy.refresh().await;
    let problem = refreshed["problems"][0].as_str().unwrap();
    assert!(problem.contains("leaf.key"), "{problem}");
    assert_eq!(secure.leaf().await, second.leaf().to_vec(), "the last good one");
    let tls = secure.proxy.status().await["tls"].clone();
    assert_eq!((&tls["loads"], tls["problem"].is_string()), (&2.into(), true), "{tls}");
    let metrics = secure.proxy.admin_get("/metrics").await.text();
    assert!(metrics.contains("hone_tls_certificate_problem 1"), "{metrics}");

    second.write(&secure.files);
    secure.proxy.refresh().await;
    assert!(secure.proxy.status().await["tls"]["problem"].is_null());
    // The connection from before the first change still works.
    open.write_all(&closing("/v1/json/chat/completions", b"{}")).await.unwrap();
    let mut back = Vec::new();
    let _ = open.read_to_end(&mut back).await;
    assert!(back.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_files_are_noticed_by_themselves() {
    let secure = secure(50).await;
    let next = secure.authority.issue(&["localhost"]);
    next.write(&secure.files);
    let since = Instant::now();
    while secure.leaf().await != next.leaf().to_vec() {
        assert!(since.elapsed() < crate::harness::PATIENCE, "not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_framing_is_refused_under_tls_too() {
    let secure = secure(NEVER_MS).await;
    let smuggled = "POST /v1/json/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\
                    Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /pause HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = secure.send(smuggled.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer = secure.send(&closing("/v1/load_lora_adapter", b"{}")).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(secure.origin.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_over_tls_ends_the_generation() {
    let secure = secure(NEVER_MS).await;
    let mut tls = secure.authority.connect(secure.address, "localhost", &[]).await.unwrap();
    let request = post("/v1/paced/chat/completions?n=5000&ms=10", "", &chat("a", true));
    tls.write_all(&request).await.unwrap();
    let mut first = [0; 16];
    tls.read_exact(&mut first).await.unwrap();
    drop(tls);
    eventually("the engine's stream is cut", || secure.origin.closed_early() == 1).await;
    secure.proxy.settled(1).await;
    assert_eq!(secure.proxy.turns()[0].outcome, "client_abort");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_tls_passes_untouched_both_ways() {
    let engine = websocket::engine(websocket::Kind::Echo).await;
    let secure = secure_before(engine, Origin::start().await, NEVER_MS).await;
    let mut tls =
        secure.authority.connect(secure.address, "localhost", &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "so a client must ask for less");
    drop(tls);
    tls = secure.authority.connect(secure.address, "localhost", &["http/1.1"]).await.unwrap();
    tls.write_all(websocket::ASK.as_bytes()).await.unwrap();
    let agreed = websocket::head(&mut tls).await.unwrap();
    assert!(agreed.starts_with("HTTP/1.1 101 "), "{agreed}");
    let sent: Vec<u8> = (0..1 << 20).map(|n: u32| (n * 31 + n / 251) as u8).collect();
    let mut back = vec![0; sent.len()];
    let (mut read, mut write) = tokio::io::split(tls);
    let both = async { tokio::try_join!(write.write_all(&sent), read.read_exact(&mut back)) };
    tokio::time::timeout(crate::harness::PATIENCE, both).await.unwrap().unwrap();
    assert!(back == sent, "bytes changed on their way");
    drop((read, write));
    let open = async || secure.proxy.status().await["tunnels"].clone();
    let since = Instant::now();
    while open().await["open"] != 0 {
        assert!(since.elapsed() < crate::harness::PATIENCE, "the tunnel stays open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let tunnels = open().await;
    assert_eq!(
        (&tunnels["sent_bytes"], &tunnels["received_bytes"]),
        (&(1 << 20).into(), &(1 << 20).into())
    );
    assert_eq!(secure.proxy.settled(0).await["requests"], 0, "and is no turn");
}
