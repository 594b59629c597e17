//! HTTP/2 by hand: what is refused before it becomes HTTP/1, and floods.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{ask, post};
use crate::frames::*;
use crate::harness::Proxy;
use crate::process::Process;
use crate::recorder::Recorder;

/// What a flood may cost.
const FLOOD_KIB_MAX: u64 = 8 << 10;
/// What 200 requests in flight may cost.
const STALL_KIB_MAX: u64 = 20 << 10;
const SECOND: Duration = Duration::from_secs(1);

/// What the other side sent until it closed or fell silent: frames by type, and whether it closed.
async fn answer(tcp: &mut TcpStream, patience: Duration) -> (Vec<(u8, Vec<u8>)>, bool) {
    let mut bytes = Vec::new();
    let mut packet = [0u8; 65536];
    let closed = loop {
        match tokio::time::timeout(patience, tcp.read(&mut packet)).await {
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(n)) => bytes.extend_from_slice(&packet[..n]),
            Err(_) => break false,
        }
    };
    let (mut frames, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((head, tail)) = rest.split_at_checked(9) {
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some((payload, tail)) = tail.split_at_checked(length) else { break };
        frames.push((head[3], payload.to_vec()));
        rest = tail;
    }
    (frames, closed)
}

/// Sends until it fails or all is sent; whether all was.
async fn pour(tcp: &mut TcpStream, bytes: &[u8]) -> bool {
    let writing = tokio::time::timeout(10 * SECOND, tcp.write_all(bytes));
    matches!(writing.await, Ok(Ok(())))
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_requests_that_would_be_ambiguous_as_h1_reach_nobody() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(recorder.address, "observe").await;
    let full = |fields: &[(&str, &str)]| block(fields);
    let pseudo = [(":method", "POST"), (":scheme", "http"), (":path", "/v1/x")];
    let with = |more: &[(&str, &str)]| full(&[&pseudo[..], &[(":authority", "a")], more].concat());
    let path = |path: &str| request("GET", path, &[]);
    let many: Vec<(String, String)> = (0..120).map(|n| (format!("x-{n}"), "y".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("connection", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "1")])),
        ("proxy-connection", with(&[("proxy-connection", "close")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("te", with(&[("te", "chunked")])),
        ("two lengths", with(&[("content-length", "5"), ("content-length", "6")])),
        ("equal lengths", with(&[("content-length", "0"), ("content-length", "0")])),
        ("a list as length", with(&[("content-length", "0,0")])),
        ("a signed length", with(&[("content-length", "+0")])),
        ("a length without a body", with(&[("content-length", "5")])),
        ("another host", with(&[("host", "b")])),
        ("two hosts", with(&[("host", "a"), ("host", "a")])),
        ("two keys", with(&[("authorization", "a"), ("authorization", "b")])),
        ("an imitation", with(&[("content_length", "5")])),
        ("another expectation", with(&[("expect", "x")])),
        ("a name in upper case", with(&[("X-Upper", "1")])),
        ("a name with a blank", with(&[("x y", "1")])),
        ("a name with a colon", with(&[("x:y", "1")])),
        ("a line end in a value", with(&[("x", "a\r\nhost: b")])),
        ("NUL in a value", with(&[("x", "a\0b")])),
        ("too many fields", with(&many)),
        ("no authority", full(&pseudo)),
        ("a wrong authority", full(&[&pseudo[..], &[(":authority", "u@a")]].concat())),
        ("an empty authority", full(&[&pseudo[..], &[(":authority", "")]].concat())),
        ("a path of nothing", path("")),
        ("an asterisk", path("*")),
        ("an absolute path", path("http://a/v1/x")),
        ("a blank in the path", path("/a b")),
        ("a line end in the path", path("/a\r\nHost: b")),
        ("a request in the path", path("/a HTTP/1.1\r\nHost: a\r\n\r\nGET /smuggled")),
        ("CONNECT", full(&[(":method", "CONNECT"), (":authority", "a:80")])),
        ("TRACE", request("TRACE", "/", &[])),
        ("a method with a blank", request("GET /x", "/", &[])),
        ("an unknown pseudo field", full(&[&pseudo[..], &[(":x", "y")]].concat())),
        ("a pseudo field after others", full(&[&[("x", "y")], &pseudo[..]].concat())),
    ];
    let mut answered = 0;
    for (name, block) in &cases {
        let mut tcp = TcpStream::connect(proxy.address).await.unwrap();
        let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, block);
        pour(&mut tcp, &[hello(&[]), head].concat()).await;
        let (frames, _) = answer(&mut tcp, Duration::from_millis(150)).await;
        let status = frames.iter().find(|(kind, _)| *kind == HEADERS);
        // 0x88 is the indexed field `:status: 200`.
        assert!(status.is_none_or(|(_, block)| block.first() != Some(&0x88)), "{name}: {frames:?}");
        answered += usize::from(status.is_some());
    }
    tokio::time::sleep(SECOND / 10).await;
    let arrived = recorder.arrived();
    assert!(arrived.is_empty(), "{arrived:?}");
    println!("{} cases, 0 forwarded, {answered} with a status, others reset", cases.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_bodies_that_disagree_with_their_length_never_become_a_request() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(recorder.address, "observe").await;
    for (length, body) in [("5", &b"hell"[..]), ("5", b"hello!")] {
        let mut tcp = TcpStream::connect(proxy.address).await.unwrap();
        let head = request("POST", "/v1/x", &[("content-length", length)]);
        let frames =
            [hello(&[]), frame(HEADERS, END_HEADERS, 1, &head), frame(DATA, END_STREAM, 1, body)];
        pour(&mut tcp, &frames.concat()).await;
        answer(&mut tcp, Duration::from_millis(200)).await;
    }
    assert!(recorder.arrived().is_empty(), "{:?}", recorder.arrived());
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_cookies_in_crumbs_arrive_as_one_field() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(recorder.address, "observe").await;
    let mut tcp = TcpStream::connect(proxy.address).await.unwrap();
    let head = request("GET", "/v1/x", &[("cookie", "a=b"), ("cookie", "c=d"), ("x", "y")]);
    let frames = [hello(&[]), frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)];
    pour(&mut tcp, &frames.concat()).await;
    answer(&mut tcp, Duration::from_millis(300)).await;
    let fields = recorder.arrived()[0].fields();
    let cookies: Vec<_> = fields.iter().filter(|(name, _)| name == "cookie").collect();
    assert_eq!(cookies.len(), 1, "{fields:?}");
    assert_eq!(cookies[0].1, "a=b; c=d");
    assert!(fields.contains(&("host".to_owned(), "a".to_owned())), "{fields:?}");
}

/// Runs a flood, keeps asking meanwhile, and checks the memory.
async fn flooded(
    (name, grown_kib_max): (&str, u64),
    process: &Process,
    flood: impl Future<Output = (u64, bool)>,
) -> (u64, bool) {
    assert_eq!(ask(process.address, &post("/v1/ok", "", b"{}")).await.status, 200);
    let before = process.rss_kib();
    let (since, address) = (Instant::now(), process.address);
    let honest = tokio::spawn(async move {
        let mut worst = Duration::ZERO;
        loop {
            let since = Instant::now();
            assert_eq!(ask(address, &post("/v1/ok", "", b"{}")).await.status, 200);
            worst = worst.max(since.elapsed());
            if worst > 3 * SECOND {
                return worst;
            }
            tokio::time::sleep(SECOND / 50).await;
        }
    });
    let (sent, ended) = flood.await;
    let starved = honest.is_finished();
    honest.abort();
    let grown = process.rss_kib().saturating_sub(before);
    println!("{name}: {sent} sent, ended {ended}, {grown} KiB, {:?}", since.elapsed());
    assert!(!starved, "{name}: an honest request had to wait");
    assert!(grown <= grown_kib_max, "{name}: {grown} KiB");
    (sent, ended)
}

async fn connect(address: SocketAddr, settings: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    assert!(pour(&mut tcp, &hello(settings)).await);
    tcp
}

/// Sends the same frames until the other side ends the connection; how many times it could.
async fn repeat(process: &Process, first: &[u8], next: impl Fn(u32) -> Vec<u8>) -> (u64, bool) {
    let mut tcp = connect(process.address, &[]).await;
    pour(&mut tcp, first).await;
    let (mut reader, mut writer) = tcp.into_split();
    let reading = tokio::spawn(async move {
        let mut packet = vec![0u8; 65536];
        while let Ok(1..) = reader.read(&mut packet).await {}
    });
    let mut sent = 0;
    for at in 0..1000u32 {
        let bytes: Vec<u8> = (0..100).flat_map(|n| next(at * 100 + n)).collect();
        let writing = tokio::time::timeout(5 * SECOND, writer.write_all(&bytes)).await;
        if !matches!(writing, Ok(Ok(()))) || reading.is_finished() {
            break;
        }
        sent += 100;
    }
    let ended = tokio::time::timeout(SECOND, reading).await.is_ok();
    (sent, ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_floods_are_ended_and_cost_no_memory_and_nobody_else_waits() {
    let recorder = Recorder::start().await;
    let process = Process::start(recorder.address).await;
    // Warm: buffers that stay.
    for _ in 0..20 {
        ask(process.address, &post("/v1/ok", "", &[b'x'; 100_000])).await;
    }

    let head = request("GET", "/v1/reset", &[]);
    let reset = |at: u32| {
        let stream = at * 2 + 1;
        let cancel = frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
        [frame(HEADERS, END_HEADERS | END_STREAM, stream, &head), cancel].concat()
    };
    let (_, ended) =
        flooded(("rapid reset", FLOOD_KIB_MAX), &process, repeat(&process, &[], reset)).await;
    assert!(ended);
    let resets = recorder.arrived().iter().filter(|a| a.target() == "/v1/reset").count();
    println!("rapid reset: {resets} of its requests reached the engine");
    assert!(resets <= 300, "{resets}");

    let open = frame(HEADERS, END_STREAM, 1, &head);
    let more = |_| frame(CONTINUATION, 0, 1, &block(&[("x", "yyyyyyyyyyyyyyyy")]));
    let (_, ended) =
        flooded(("continuation", FLOOD_KIB_MAX), &process, repeat(&process, &open, more)).await;
    assert!(ended);
    let ping = |_| frame(PING, 0, 0, b"12345678");
    let (_, ended) = flooded(("ping", FLOOD_KIB_MAX), &process, repeat(&process, &[], ping)).await;
    assert!(ended);
    let settings = |at: u32| frame(SETTINGS, 0, 0, &[&[0, 3], &at.to_be_bytes()[..]].concat());
    let (_, ended) =
        flooded(("settings", FLOOD_KIB_MAX), &process, repeat(&process, &[], settings)).await;
    assert!(ended);
    let post = frame(HEADERS, END_HEADERS, 1, &request("POST", "/v1/empty", &[]));
    let empty = |_| frame(DATA, 0, 1, b"");
    let (_, ended) =
        flooded(("empty data", FLOOD_KIB_MAX), &process, repeat(&process, &post, empty)).await;
    assert!(ended);

    let silent = async {
        // The initial window of streams is 0: no byte of an answer may be sent.
        let mut stalled = Vec::new();
        for _ in 0..2 {
            let mut tcp = connect(process.address, &[0, 4, 0, 0, 0, 0]).await;
            for stream in 0..100 {
                let head = request("GET", "/v1/stall", &[]);
                let frame = frame(HEADERS, END_HEADERS | END_STREAM, stream * 2 + 1, &head);
                assert!(pour(&mut tcp, &frame).await);
            }
            stalled.push(tcp);
        }
        tokio::time::sleep(4 * SECOND).await;
        let mut reset = 0;
        for tcp in &mut stalled {
            let (frames, _) = answer(tcp, SECOND / 2).await;
            reset += frames.iter().filter(|(kind, _)| *kind == RST_STREAM).count();
        }
        (200, reset >= 190)
    };
    let (_, ended) = flooded(("zero window", STALL_KIB_MAX), &process, silent).await;
    assert!(ended, "streams that nobody reads are reset");
}
