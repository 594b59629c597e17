//! Engines that fail in every way that a connection can: the client gets a well-formed error or a
//! stream that is visibly cut, the turn says what happened, and the proxy goes on.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::{Response, ask, chat, post};
use crate::harness::{PATIENCE, Proxy};
use crate::origin::{event, stream};

/// What the client must get.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    /// An error of the proxy's own with this status.
    Fault(u16),
    /// The engine's status, and a body that is visibly not whole.
    Cut,
    /// The engine's answer, whole.
    Whole,
}
use Answer::{Cut, Fault, Whole};

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Close,
    Reset,
    /// Nothing more comes, for longer than the proxy waits.
    Hang,
    /// Another request may come.
    Stay,
}
use End::{Close, Hang, Reset, Stay};

/// One way to fail: what is sent, how it ends, and what the client must get.
struct Fail {
    name: &'static str,
    /// Before the request has been read.
    early: bool,
    bytes: Vec<u8>,
    /// Pause between single bytes, ms; 0 sends all at once.
    drip_ms: u64,
    end: End,
    expected: Answer,
}

fn fail(name: &'static str, bytes: impl Into<Vec<u8>>, end: End, expected: Answer) -> Fail {
    Fail { name, early: false, bytes: bytes.into(), drip_ms: 0, end, expected }
}

/// All ways to fail, where a right answer has this head (without framing) and body.
fn fails(kind: &str, body: &str) -> Vec<Fail> {
    let head = |framing: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{framing}\r\n");
    let length = head(&format!("Content-Length: {}\r\n", body.len()));
    let chunked = head("Transfer-Encoding: chunked\r\n");
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let half = &body[..body.len() / 2];
    let huge = format!("HTTP/1.1 200 OK\r\nX-Huge: {}\r\n", "x".repeat(10 << 20));
    let many: String = (0..5000).map(|n| format!("X-{n}: y\r\n")).collect();
    let alert: &[u8] = &[21, 3, 3, 0, 2, 2, 40];
    let mut all = vec![
        Fail { early: true, ..fail("reset before the request was read", "", Reset, Fault(502)) },
        Fail { early: true, ..fail("closed before the request was read", "", Close, Fault(502)) },
        fail("reset before the head", "", Reset, Fault(502)),
        fail("closed before the head", "", Close, Fault(502)),
        fail("hangs before the head", "", Hang, Fault(504)),
        fail("closed amid the status line", "HTTP/1.1 20", Close, Fault(502)),
        fail("closed amid the head", "HTTP/1.1 200 OK\r\nContent-", Close, Fault(502)),
        fail("reset amid the head", "HTTP/1.1 200 OK\r\nContent-", Reset, Fault(502)),
        fail("hangs amid the head", "HTTP/1.1 200 OK\r\nContent-", Hang, Fault(504)),
        fail("head of 10 MB", huge, Close, Fault(502)),
        fail("5000 header fields", head(&many), Close, Fault(502)),
        fail("another protocol", "SSH-2.0-OpenSSH_9.2\r\n", Close, Fault(502)),
        fail("a TLS alert", alert, Close, Fault(502)),
        fail("zeros", vec![0; 4096], Close, Fault(502)),
        fail("a length that is no number", head("Content-Length: many\r\n"), Close, Fault(502)),
        fail("a negative length", head("Content-Length: -1\r\n"), Close, Fault(502)),
        fail(
            "two lengths",
            head("Content-Length: 3\r\nContent-Length: 4\r\n") + "abcd",
            Close,
            Fault(502),
        ),
        fail(
            "101 that nobody asked for",
            "HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n",
            Close,
            Fault(502),
        ),
        fail("100 and then nothing", "HTTP/1.1 100 Continue\r\n\r\n", Close, Fault(502)),
        fail("closed after the head, with a length", length.clone(), Close, Cut),
        fail("reset after the head, with a length", length.clone(), Reset, Cut),
        fail("hangs after the head, with a length", length.clone(), Hang, Cut),
        fail("closed amid a body with a length", format!("{length}{half}"), Close, Cut),
        fail("reset amid a body with a length", format!("{length}{half}"), Reset, Cut),
        fail("closed after the head, in chunks", chunked.clone(), Close, Cut),
        fail("reset after the head, in chunks", chunked.clone(), Reset, Cut),
        fail("closed amid chunks", format!("{chunked}{}", chunk(half)), Close, Cut),
        fail("reset amid chunks", format!("{chunked}{}", chunk(half)), Reset, Cut),
        fail("hangs amid chunks", format!("{chunked}{}", chunk(half)), Hang, Cut),
        fail("closed amid a chunk", format!("{chunked}ffff\r\n{half}"), Close, Cut),
        fail("a chunk size that is no number", format!("{chunked}zz\r\n{half}"), Close, Cut),
        fail("a chunk size of 2^64", format!("{chunked}10000000000000000\r\n{half}"), Close, Cut),
        fail("no last chunk", format!("{chunked}{}", chunk(body)), Close, Cut),
        fail("closed amid the last chunk", format!("{chunked}{}0\r\n", chunk(body)), Close, Cut),
        fail("more than the length says", format!("{length}{body}and more"), Stay, Whole),
        fail(
            "more than the chunks say",
            format!("{chunked}{}0\r\n\r\nmore", chunk(body)),
            Stay,
            Whole,
        ),
        fail("the end of the connection ends the body", head("") + body, Close, Whole),
        fail("a reset ends a body without length", head("") + half, Reset, Cut),
    ];
    all.push(Fail { drip_ms: 3, ..fail("byte by byte", format!("{length}{body}"), Stay, Whole) });
    all
}

/// Serves one connection after the other, each with the failure that is set.
async fn origin() -> (SocketAddr, std::sync::Arc<Mutex<Option<Fail>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let next = std::sync::Arc::new(Mutex::new(None::<Fail>));
    let set = std::sync::Arc::clone(&next);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let how = set.lock().unwrap().take();
            // An error means that the proxy has seen enough.
            tokio::spawn(async move { serve(tcp, how).await });
        }
    });
    (address, next)
}

async fn serve(mut tcp: TcpStream, how: Option<Fail>) -> std::io::Result<()> {
    let Some(how) = how else {
        // A second attempt, or the request afterwards.
        return well(&mut tcp).await;
    };
    if !how.early {
        read_request(&mut tcp).await?;
    }
    if how.drip_ms > 0 {
        tcp.set_nodelay(true)?;
        for byte in &how.bytes {
            tcp.write_all(&[*byte]).await?;
            tokio::time::sleep(Duration::from_millis(how.drip_ms)).await;
        }
    } else {
        tcp.write_all(&how.bytes).await?;
    }
    match how.end {
        End::Close => Ok(()),
        End::Reset => {
            // Give what was sent time to arrive: a reset overtakes it.
            tokio::time::sleep(Duration::from_millis(50)).await;
            tcp.set_zero_linger()
        }
        End::Hang => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(())
        }
        End::Stay => well(&mut tcp).await,
    }
}

/// Answers as an engine should.
async fn well(tcp: &mut TcpStream) -> std::io::Result<()> {
    read_request(tcp).await?;
    tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await
}

async fn read_request(tcp: &mut TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = text.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    tcp.read_exact(&mut body).await.map(|_| ())
}

fn check(name: &str, expected: Answer, response: &Response, body: &str) {
    match expected {
        Fault(status) => {
            assert_eq!(response.status, status, "{name}");
            assert!(response.whole, "{name}: the error itself is whole");
            let error = response.json()["error"].clone();
            assert!(error["message"].is_string() && error["code"].is_string(), "{name}: {error}");
        }
        Cut => {
            assert_eq!(response.status, 200, "{name}");
            assert!(!response.whole, "{name}: the client took a part for the whole");
            assert!(body.starts_with(&response.text()), "{name}: {}", response.text());
        }
        Whole => {
            assert_eq!((response.status, response.whole), (200, true), "{name}");
            assert_eq!(response.text(), body, "{name}");
        }
    }
}

/// Panics of the proxy's threads; tests panic in threads of other names.
fn panics() -> &'static Mutex<Vec<String>> {
    static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name().is_some_and(|name| name.starts_with("hone-")) {
                PANICS.lock().unwrap().push(info.to_string());
            }
            before(info);
        }));
    });
    &PANICS
}

async fn run_all(kind: &str, streamed: bool, body: &str) {
    let panics = panics();
    let (address, next) = origin().await;
    let proxy = Proxy::with(address, "observe", |cfg| cfg.limits.upstream_read_ms = 400).await;
    let mut expected = Vec::new();
    for how in fails(kind, body) {
        let (name, answer) = (how.name, how.expected);
        *next.lock().unwrap() = Some(how);
        let request = post("/v1/chat/completions", "", &chat(name, streamed));
        let response = tokio::time::timeout(PATIENCE, ask(proxy.address, &request)).await;
        check(name, answer, &response.unwrap_or_else(|_| panic!("{name}: no end")), body);
        assert!(next.lock().unwrap().is_none(), "{name}: nobody connected");
        expected.push((name, answer));
    }
    let after = ask(proxy.address, &post("/v1/chat/completions", "", &chat("after", false))).await;
    assert_eq!(after.text(), "ok");
    let count = expected.len() as u64 + 1;
    assert_eq!(proxy.settled(count).await["stored"], count);
    let turns = proxy.turns();
    for (name, answer) in expected {
        let quoted = format!("\"{name}\"");
        let turn = turns.iter().find(|turn| turn.request.contains(&quoted)).unwrap();
        let (outcome, status) = match answer {
            Fault(status) => ("upstream_error", status),
            Cut => ("upstream_error", 200),
            Whole => ("complete", 200),
        };
        assert_eq!((turn.outcome.as_str(), turn.status), (outcome, status), "{name}");
    }
    assert_eq!(*panics.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_of_a_whole_answer_is_told_apart_from_an_answer() {
    let message = "{\"role\":\"assistant\",\"content\":\"one two three four five six\"}";
    let body = format!("{{\"choices\":[{{\"index\":0,\"message\":{message}}}]}}");
    run_all("application/json", false, &body).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_of_a_streamed_answer_is_told_apart_from_its_end() {
    assert!(stream(3).starts_with(&event(0)));
    run_all("text/event-stream", true, &stream(3)).await;
}
