//! The corpus against the door, and against a plain pingora to show that it has teeth.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::{Client, Response, post};
use crate::harness::Proxy;
use crate::recorder::{Arrived, Recorder, find};
use crate::{accept, plain, reject};

/// How a request is cut into packets.
#[derive(Debug, Clone, Copy)]
enum Packets {
    One,
    HeadAndBody,
    Bytes,
}

/// Sends a request; what came back until the other side closed or said nothing for a while.
async fn send(
    address: SocketAddr,
    request: &[u8],
    packets: Packets,
    patience: Duration,
) -> Vec<u8> {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let head = find(request, b"\r\n\r\n").map_or(request.len(), |at| at + 4);
    let pieces: Vec<&[u8]> = match packets {
        Packets::One => vec![request],
        Packets::HeadAndBody => vec![&request[..head], &request[head..]],
        Packets::Bytes => request.chunks(1).collect(),
    };
    for (at, piece) in pieces.iter().enumerate() {
        // A refusal may come, and the connection end, before everything is sent.
        if tcp.write_all(piece).await.is_err() {
            break;
        }
        if at == 0 && matches!(packets, Packets::HeadAndBody) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let mut answer = Vec::new();
    let mut packet = [0u8; 4096];
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(patience, tcp.read(&mut packet)).await {
        answer.extend_from_slice(&packet[..n]);
    }
    answer
}

fn status(answer: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(answer.get(9..12)?).ok()?;
    text.parse().ok().filter(|_| answer.starts_with(b"HTTP/1."))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_malformed_or_ambiguous_request_reaches_the_engine() {
    let corpus = reject::corpus();
    assert!(corpus.len() >= 150, "{} cases", corpus.len());
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(recorder.address, "observe").await;
    for packets in [Packets::One, Packets::HeadAndBody, Packets::Bytes] {
        for case in &corpus {
            let size = case.bytes.len();
            let head = find(&case.bytes, b"\r\n\r\n").unwrap_or(size);
            // What is wrong with a long body comes after its head has passed.
            let later = matches!(packets, Packets::One) && size > 4000 && head < 4000;
            if later || matches!(packets, Packets::Bytes) && size > 1000 {
                continue;
            }
            let answer = send(proxy.address, &case.bytes, packets, Duration::from_secs(5)).await;
            let (name, text) = (&case.name, String::from_utf8_lossy(&answer));
            let refused = status(&answer).is_some_and(|s| (400..600).contains(&s) && s != 502);
            assert!(refused, "{name} ({packets:?}): {text}");
            assert!(text.contains("\"error\":{\"message\":"), "{name} ({packets:?}): {text}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let arrived = recorder.arrived();
        assert!(arrived.is_empty(), "{packets:?}: {arrived:?}");
        if matches!(packets, Packets::One) {
            let bytes = recorder.bytes();
            assert!(bytes.is_empty(), "not a byte: {}", String::from_utf8_lossy(&bytes));
        }
    }
    println!("{} cases, 0 forwarded", corpus.len());
    let metrics = proxy.admin_get("/metrics").await.text();
    let counted =
        metrics.lines().filter(|l| l.starts_with("hone_refused_total") && !l.ends_with(" 0"));
    assert!(counted.count() >= 20, "{metrics}");
    let status = proxy.status().await;
    assert!(status["http"]["faults"]["malformed_request"].as_u64().unwrap() > 300, "{status}");
}

/// What the proxy itself does to the fields of a request.
fn end_to_end(fields: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut nominated: Vec<String> = Vec::new();
    for (_, value) in fields.iter().filter(|(name, _)| name == "connection") {
        nominated.extend(value.split(',').map(|name| name.trim().to_ascii_lowercase()));
    }
    let hop = ["connection", "keep-alive", "te", "upgrade", "transfer-encoding", "content-length"];
    let own = |name: &str| name.starts_with("x-hone-") || hop.contains(&name);
    let mut kept: Vec<_> = fields
        .into_iter()
        .filter(|(name, _)| !own(name) && !nominated.contains(name) && name != "host")
        .collect();
    kept.sort();
    kept
}

fn as_sent(case: &accept::Case) -> Arrived {
    let start = if case.bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let end = find(&case.bytes[start..], b"\r\n\r\n").unwrap() + start;
    let head = String::from_utf8_lossy(&case.bytes[start..end]).into_owned();
    Arrived { head, body: case.body.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_but_legal_requests_arrive_once_and_unchanged() {
    let corpus = accept::corpus();
    assert!(corpus.len() >= 40, "{} cases", corpus.len());
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(recorder.address, "observe").await;
    for packets in [Packets::One, Packets::HeadAndBody, Packets::Bytes] {
        for case in &corpus {
            if matches!(packets, Packets::Bytes) && case.bytes.len() > 2000 {
                continue;
            }
            recorder.clear();
            let mut client = Client::connect(proxy.address).await;
            let head = find(&case.bytes, b"\r\n\r\n").unwrap() + 4;
            match packets {
                Packets::One => client.send(&case.bytes).await,
                Packets::HeadAndBody => {
                    client.send(&case.bytes[..head]).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    client.send(&case.bytes[head..]).await;
                }
                Packets::Bytes => {
                    for byte in &case.bytes {
                        client.send(&[*byte]).await;
                    }
                }
            }
            let response = client.response().await;
            let name = format!("{} ({packets:?})", case.name);
            assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{name}");
            let arrived = recorder.arrived();
            assert_eq!(arrived.len(), 1, "{name}: {arrived:?}");
            let (sent, seen) = (as_sent(case), &arrived[0]);
            assert_eq!(seen.target(), case.target, "{name}");
            assert_eq!(seen.body, case.body, "{name}");
            assert_eq!(end_to_end(seen.fields()), end_to_end(sent.fields()), "{name}");
            let method = |head: &str| head.split(' ').next().unwrap().to_owned();
            assert_eq!(method(&seen.head), method(&sent.head), "{name}");
        }
    }
    println!("{} odd cases, all unchanged", corpus.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order_and_never_mixed() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(recorder.address, "observe").await;
    let requests: Vec<Vec<u8>> =
        (0..20).map(|at| post(&format!("/v1/p{at}"), "", &vec![b'x'; at * 700])).collect();
    for packet in [usize::MAX, 900, 77] {
        recorder.clear();
        let mut client = Client::connect(proxy.address).await;
        for bytes in requests.concat().chunks(packet) {
            client.send(bytes).await;
        }
        for _ in 0..requests.len() {
            assert_eq!(client.response().await.status, 200);
        }
        let targets: Vec<_> = recorder.arrived().iter().map(|a| a.target().to_owned()).collect();
        let expected: Vec<_> = (0..20).map(|at| format!("/v1/p{at}")).collect();
        assert_eq!(targets, expected, "packets of {packet}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_request_is_the_next_one_or_refused() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(recorder.address, "observe").await;
    let mut client = Client::connect(proxy.address).await;
    let request = post("/v1/first", "", b"hello");
    client.send(&[request.as_slice(), b"garbage after the end\r\n\r\n"].concat()).await;
    assert_eq!(client.response().await.status, 200);
    let Response { status, headers, .. } = client.response().await;
    assert_eq!((status, headers["connection"].as_str()), (400, "close"));
    assert!(client.end().await);
    assert_eq!(recorder.arrived().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_both_ways_after_its_handshake() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(recorder.address, "observe").await;
    let mut client = Client::connect(proxy.address).await;
    let ask = "GET /v1/realtime HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
               Connection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n";
    client.send(ask.as_bytes()).await;
    assert_eq!(client.any_response().await.status, 101);
    client.until("hi").await;
    client.send(b"\x81\x00 no \r\n http \0").await;
    let all = || find(&recorder.bytes(), b"\x81\x00 no \r\n http \0").is_some();
    crate::harness::eventually("the frames arrive", all).await;
}

/// How many of the must-reject cases another proxy lets through, and which.
async fn lets_through(proxy: SocketAddr, recorder: &Recorder) -> Vec<String> {
    let mut through = Vec::new();
    for case in reject::corpus() {
        recorder.clear();
        let answer = send(proxy, &case.bytes, Packets::One, Duration::from_millis(300)).await;
        if !recorder.arrived().is_empty() {
            through.push(format!("{} -> {:?}", case.name, status(&answer)));
        }
    }
    through
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a comparison, run by hand"]
async fn others_let_through() {
    let address = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let origin: Option<SocketAddr> = address("HONE_CORPUS_ORIGIN");
    let listener = TcpListener::bind(origin.unwrap_or("127.0.0.1:0".parse().unwrap())).await;
    let recorder = Recorder::on(listener.unwrap());
    let proxy = match address("HONE_CORPUS_PROXY") {
        Some(proxy) => proxy,
        None => plain::start(recorder.address).await,
    };
    let through = lets_through(proxy, &recorder).await;
    println!("{}", through.join("\n"));
    println!("{} of {} let through", through.len(), reject::corpus().len());
    let mut odd = 0;
    for case in accept::corpus() {
        let answer = send(proxy, &case.bytes, Packets::One, Duration::from_millis(300)).await;
        if status(&answer) != Some(200) {
            println!("refuses: {} -> {:?}", case.name, status(&answer));
            odd += 1;
        }
    }
    println!("{odd} of {} odd but legal ones refused", accept::corpus().len());
}
