//! Clients that leave: at every phase the engine is told at once, and the turn is stored with what
//! had been said.
//!
//! A client that closes only its sending side is taken for one that left, as uvicorn does it: the
//! proxy cannot tell the two apart until it writes, and a generation that nobody reads is the more
//! common case.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::{Client, chat, post};
use crate::harness::{Proxy, Row, eventually};
use crate::origin::event;

/// An engine that answers each request with the same bytes, and then only listens: it knows when
/// the other side goes.
struct Listener {
    address: SocketAddr,
    asked: Arc<AtomicU64>,
    left: Arc<AtomicU64>,
}

impl Listener {
    /// `answer`: head and chunks, without an end.
    async fn start(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, left) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counts = (Arc::clone(&asked), Arc::clone(&left));
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let (answer, (asked, left)) = (answer.clone(), counts.clone());
                tokio::spawn(async move {
                    let mut seen = vec![0; 65536];
                    if tcp.read(&mut seen).await.unwrap_or(0) > 0 {
                        asked.fetch_add(1, Ordering::SeqCst);
                        let _ = tcp.write_all(answer.as_bytes()).await;
                    }
                    while tcp.read(&mut seen).await.is_ok_and(|n| n > 0) {}
                    left.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, asked, left }
    }

    async fn asked(&self) {
        eventually("the engine is asked", || self.asked.load(Ordering::SeqCst) == 1).await;
    }

    async fn left(&self) {
        eventually("the engine is told", || self.left.load(Ordering::SeqCst) == 1).await;
    }
}

/// The beginning of a stream: its head and two events.
fn beginning() -> String {
    let chunk = |text: String| format!("{:x}\r\n{text}\r\n", text.len());
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    [head.to_owned(), chunk(event(0)), chunk(event(1))].concat()
}

fn end() -> String {
    "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n".to_owned()
}

fn request() -> Vec<u8> {
    post("/v1/chat/completions", "", &chat("who reads this?", true))
}

/// The one turn of the proxy, when it is stored.
async fn turn(proxy: &Proxy) -> Row {
    assert_eq!(proxy.settled(1).await["stored"], 1);
    proxy.turns().remove(0)
}

/// How a client leaves.
#[derive(Debug, Clone, Copy)]
enum Farewell {
    Close,
    Reset,
    HalfClose,
}

const FAREWELLS: [Farewell; 3] = [Farewell::Close, Farewell::Reset, Farewell::HalfClose];

/// Leaves; the connection, where it is still half open.
async fn leave(mut client: Client, how: Farewell) -> Option<Client> {
    match how {
        Farewell::Close => None,
        Farewell::Reset => {
            client.tcp.set_zero_linger().unwrap();
            None
        }
        Farewell::HalfClose => {
            client.tcp.shutdown().await.unwrap();
            Some(client)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_the_answer_ends_the_request_and_its_prompt_is_kept() {
    for how in FAREWELLS {
        let engine = Listener::start(String::new()).await;
        let proxy = Proxy::start(engine.address, "observe").await;
        let mut client = Client::connect(proxy.address).await;
        client.send(&request()).await;
        engine.asked().await;
        let half_open = leave(client, how).await;
        engine.left().await;
        let turn = turn(&proxy).await;
        assert_eq!((turn.status, turn.outcome.as_str()), (0, "client_abort"), "{how:?}");
        assert!(turn.request.contains("who reads this?"), "{how:?} {turn:?}");
        if let Some(mut client) = half_open {
            assert!(client.end().await, "a half-closed client gets the end, and no answer");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_it_sends_ends_the_request_and_is_on_record() {
    for how in [Farewell::Close, Farewell::Reset] {
        let engine = Listener::start(String::new()).await;
        let proxy = Proxy::start(engine.address, "observe").await;
        let mut client = Client::connect(proxy.address).await;
        let request = request();
        client.send(&request[..request.len() - 10]).await;
        engine.asked().await;
        leave(client, how).await;
        engine.left().await;
        let turn = turn(&proxy).await;
        assert_eq!((turn.status, turn.outcome.as_str()), (0, "client_abort"), "{how:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_stream_ends_the_generation_and_the_partial_answer_is_kept() {
    for how in FAREWELLS {
        let engine = Listener::start(beginning()).await;
        let proxy = Proxy::start(engine.address, "observe").await;
        let mut client = Client::connect(proxy.address).await;
        client.send(&request()).await;
        client.until("w1 ").await;
        let _half_open = leave(client, how).await;
        engine.left().await;
        let turn = turn(&proxy).await;
        assert_eq!((turn.status, turn.outcome.as_str()), (200, "client_abort"), "{how:?}");
        assert_eq!(turn.response, "w0 w1 ", "{how:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_after_the_last_byte_has_a_complete_turn() {
    for how in FAREWELLS {
        let engine = Listener::start(beginning() + &end()).await;
        let proxy = Proxy::start(engine.address, "observe").await;
        let mut client = Client::connect(proxy.address).await;
        client.send(&request()).await;
        client.until("\r\n0\r\n\r\n").await;
        let _half_open = leave(client, how).await;
        let turn = turn(&proxy).await;
        assert_eq!((turn.status, turn.outcome.as_str()), (200, "complete"), "{how:?}");
        assert_eq!(turn.response, "w0 w1 ", "{how:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_http2_stream_ends_its_generation_and_no_other() {
    let engine = Listener::start(beginning()).await;
    let proxy = Proxy::start(engine.address, "observe").await;
    let tcp = TcpStream::connect(proxy.address).await.unwrap();
    let (mut send, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let mut streams = Vec::new();
    for _ in 0..2 {
        std::future::poll_fn(|cx| send.poll_ready(cx)).await.unwrap();
        let request = Request::post("http://engine.test/v1/chat/completions").body(()).unwrap();
        let (response, mut upload) = send.send_request(request, false).unwrap();
        upload.send_data(Bytes::from(chat("who reads this?", true)), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains("w1 ") {
            seen.extend_from_slice(&body.data().await.unwrap().unwrap());
        }
        streams.push((upload, body));
    }
    let (mut upload, body) = streams.pop().unwrap();
    upload.send_reset(h2::Reason::CANCEL);
    drop(body);
    engine.left().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(engine.left.load(Ordering::SeqCst), 1, "the other stream goes on");
    eventually("the cancelled turn is stored", || proxy.turns().len() == 1).await;
    let turn = proxy.turns().remove(0);
    assert_eq!((turn.outcome.as_str(), turn.response.as_str()), ("client_abort", "w0 w1 "));
    drop(streams);
    drop(send);
    eventually("the other one ends with its client", || engine.left.load(Ordering::SeqCst) == 2)
        .await;
    proxy.settled(2).await;
}
