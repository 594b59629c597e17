//! An engine that records every byte and answers every request that it can make out, leniently.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A complete request, as it was on the wire.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub head: String,
    /// Decoded from its framing.
    pub body: Vec<u8>,
}

impl Arrived {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// All fields, names in lower case, in their order.
    pub fn fields(&self) -> Vec<(String, String)> {
        let fields = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        fields.map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect()
    }
}

#[derive(Clone)]
pub struct Recorder {
    pub address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    arrived: Vec<Arrived>,
    bytes: Vec<u8>,
}

impl Recorder {
    pub async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn on(listener: TcpListener) -> Self {
        let (address, log) = (listener.local_addr().unwrap(), Arc::default());
        let shared = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp, Arc::clone(&shared)));
            }
        });
        Self { address, log }
    }

    /// All complete requests.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.log.lock().unwrap().arrived.clone()
    }

    /// Every byte that ever came, complete or not.
    pub fn bytes(&self) -> Vec<u8> {
        self.log.lock().unwrap().bytes.clone()
    }

    pub fn clear(&self) {
        *self.log.lock().unwrap() = Log::default();
    }
}

async fn serve(mut tcp: TcpStream, log: Arc<Mutex<Log>>) {
    let mut held = Vec::new();
    loop {
        let mut packet = [0u8; 65536];
        let n = tcp.read(&mut packet).await.unwrap_or(0);
        if n == 0 {
            return;
        }
        held.extend_from_slice(&packet[..n]);
        log.lock().unwrap().bytes.extend_from_slice(&packet[..n]);
        while let Some((request, end)) = complete(&held) {
            held.drain(..end);
            let switch = request.head.to_ascii_lowercase().contains("upgrade: websocket");
            log.lock().unwrap().arrived.push(request);
            let answer: &[u8] = match switch {
                true => b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi",
                false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            if tcp.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

/// The first request in `bytes` and where it ends.
fn complete(bytes: &[u8]) -> Option<(Arrived, usize)> {
    let head_end = find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_end - 4]).into_owned();
    let lower = head.to_ascii_lowercase();
    let value = |name: &str| {
        let line = lower.split("\r\n").find(|line| line.starts_with(name))?;
        Some(line[name.len()..].trim().to_owned())
    };
    let rest = &bytes[head_end..];
    if value("transfer-encoding:").is_some_and(|v| v.contains("chunked")) {
        let (body, n) = chunks(rest)?;
        return Some((Arrived { head, body }, head_end + n));
    }
    let length = value("content-length:").and_then(|v| v.parse().ok()).unwrap_or(0);
    let body = rest.get(..length)?.to_vec();
    Some((Arrived { head, body }, head_end + length))
}

fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line_end = at + find(bytes.get(at..)?, b"\r\n")?;
        let line = String::from_utf8_lossy(&bytes[at..line_end]).into_owned();
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        at = line_end + 2;
        if size == 0 {
            let end = at + find(bytes.get(at..)?, b"\r\n")? + 2;
            return Some((body, end));
        }
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size + 2;
    }
}

pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}
