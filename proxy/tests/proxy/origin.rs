//! An engine for tests: raw HTTP/1.1 over TCP, so that a test decides every byte and every close.
//!
//! The path says how to behave: `/v1/<kind>/chat/completions?n=<count>&ms=<pause>`. Every request
//! is kept for inspection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// One request as the engine saw it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub target: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    pub connection: u64,
}

/// The engine.
#[derive(Clone)]
pub struct Origin {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Seen>>,
    stray: Mutex<Vec<u8>>,
    closed_early: AtomicU64,
    connections: AtomicU64,
    health: AtomicU16,
}

impl Origin {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener)
    }

    pub fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let id = shared.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(tcp, id, Arc::clone(&shared)));
            }
        });
        Self { address, state }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Answers `/health` with this status from now on.
    pub fn answer_health_with(&self, status: u16) {
        self.state.health.store(status, Ordering::SeqCst);
    }

    /// Bytes that came after a request was complete and are no request.
    pub fn stray(&self) -> Vec<u8> {
        self.state.stray.lock().unwrap().clone()
    }

    /// How often a response could not be written because the other side had closed.
    pub fn closed_early(&self) -> u64 {
        self.state.closed_early.load(Ordering::SeqCst)
    }
}

/// An engine that is down: its port is taken, so that nobody else gets it, and refuses connections
/// until the socket listens.
pub fn down() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

struct Reader {
    tcp: TcpStream,
    buf: Vec<u8>,
}

impl Reader {
    async fn fill(&mut self) -> Option<()> {
        let mut chunk = [0u8; 65536];
        let n = self.tcp.read(&mut chunk).await.ok()?;
        self.buf.extend_from_slice(&chunk[..n]);
        (n > 0).then_some(())
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buf.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buf[..at]).into_owned();
                self.buf.drain(..at + 2);
                return Some(line);
            }
            self.fill().await?;
        }
    }

    async fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.buf.len() < n {
            self.fill().await?;
        }
        Some(self.buf.drain(..n).collect())
    }

    /// The head; `None` at the end of the connection or when no request follows.
    async fn head(&mut self, state: &State) -> Option<Seen> {
        let first = self.line().await?;
        if !first.ends_with("HTTP/1.1") {
            state.stray.lock().unwrap().extend_from_slice(first.as_bytes());
            state.stray.lock().unwrap().extend_from_slice(b"\r\n");
            return None;
        }
        let target = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        Some(Seen { target, headers, ..Seen::default() })
    }

    async fn body(&mut self, headers: &BTreeMap<String, String>) -> Option<Vec<u8>> {
        if let Some(length) = headers.get("content-length") {
            return self.take(length.parse().unwrap()).await;
        }
        let mut body = Vec::new();
        if headers.get("transfer-encoding").is_some_and(|v| v == "chunked") {
            loop {
                let size = usize::from_str_radix(self.line().await?.trim(), 16).unwrap();
                body.extend(self.take(size).await?);
                self.line().await?;
                if size == 0 {
                    break;
                }
            }
        }
        Some(body)
    }
}

async fn serve(tcp: TcpStream, connection: u64, state: Arc<State>) {
    let mut reader = Reader { tcp, buf: Vec::new() };
    let mut served = 0;
    while let Some(mut seen) = reader.head(&state).await {
        seen.connection = connection;
        let (kind, n, ms) = behaviour(&seen.target);
        if kind == "once" && served == 1 {
            // Closes without an answer, as an engine does whose keep-alive has just run out.
            return;
        }
        if seen.target == "/health" {
            let status = state.health.load(Ordering::SeqCst);
            state.seen.lock().unwrap().push(seen);
            let _ = reader.tcp.write_all(&json(status.max(200), "{}", "base")).await;
            continue;
        }
        if kind == "continue" {
            reader.tcp.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        }
        if kind == "early" {
            let _ = reader.tcp.write_all(&json(401, "{\"error\":\"no\"}", "base")).await;
            return;
        }
        let Some(body) = reader.body(&seen.headers).await else { return };
        seen.body = body;
        let generation =
            seen.headers.get("x-hone-generation").cloned().unwrap_or("none".to_owned());
        state.seen.lock().unwrap().push(seen.clone());
        if kind == "cut" {
            // Has read the request and closes without a word.
            return;
        }
        if answer(&mut reader, &kind, n, ms, &generation, &seen).await.is_err() {
            state.closed_early.fetch_add(1, Ordering::SeqCst);
            return;
        }
        served += 1;
    }
}

fn behaviour(target: &str) -> (String, u64, u64) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let number = |name: &str, default| {
        let found = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
        found.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    (path.split('/').nth(2).unwrap_or_default().to_owned(), number("n", 5), number("ms", 5))
}

/// A response with a length.
pub fn json(status: u16, body: &str, generation: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         x-hone-generation: {generation}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// One SSE event, in the shape of a streamed chat completion.
pub fn event(at: u64) -> String {
    let delta = format!("{{\"role\":\"assistant\",\"content\":\"w{at} \"}}");
    format!("data: {{\"id\":\"c\",\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}\n\n")
}

/// The body of a streamed answer of `n` events.
pub fn stream(n: u64) -> String {
    (0..n).map(event).chain(["data: [DONE]\n\n".to_owned()]).collect()
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

async fn answer(
    reader: &mut Reader,
    kind: &str,
    n: u64,
    ms: u64,
    generation: &str,
    seen: &Seen,
) -> std::io::Result<()> {
    let pause = || tokio::time::sleep(Duration::from_millis(ms));
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Hone-Generation: {generation}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    let tcp = &mut reader.tcp;
    match kind {
        "ids" => {
            let body = format!(
                "{{\"id\":\"chatcmpl-{n}\",\"choices\":[{{\"index\":0,\"finish_reason\":\"stop\",\
                 \"message\":{{\"role\":\"assistant\",\"content\":\"answer {n}\"}}}}]}}"
            );
            tcp.write_all(&json(200, &body, generation)).await
        }
        "burst" => {
            let mut all = head;
            (0..n).for_each(|at| all.push_str(&chunk(&event(at))));
            all.push_str(&chunk("data: [DONE]\n\n"));
            tcp.write_all((all + "0\r\n\r\n").as_bytes()).await
        }
        "paced" => {
            tcp.write_all(head.as_bytes()).await?;
            for at in 0..n {
                tcp.write_all(chunk(&event(at)).as_bytes()).await?;
                pause().await;
            }
            tcp.write_all(format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")).as_bytes()).await
        }
        "die" => {
            tcp.write_all(head.as_bytes()).await?;
            tcp.write_all(chunk(&event(0)).as_bytes()).await?;
            tcp.write_all(b"ff\r\ndata: half of").await?;
            pause().await;
            Err(std::io::ErrorKind::Other.into())
        }
        "slow" => {
            pause().await;
            tcp.write_all(&json(200, "{\"slow\":true}", generation)).await
        }
        "hang" => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            Ok(())
        }
        "flood" => {
            tcp.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n").as_bytes())
                .await?;
            let block = vec![b'x'; 65536];
            for _ in 0..n / 65536 {
                tcp.write_all(&block).await?;
            }
            Ok(())
        }
        "error" => {
            tcp.write_all(&json(500, "{\"error\":{\"message\":\"boom\"}}", generation)).await
        }
        _ => {
            let content = format!("got {} bytes", seen.body.len());
            let body = format!(
                "{{\"id\":\"x\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\
                 \"content\":\"{content}\"}},\"finish_reason\":\"stop\"}}]}}"
            );
            tcp.write_all(&json(200, &body, generation)).await
        }
    }
}
