//! The load of `hone bench proxy`: keep-alive connections that ask, read the whole answer, and ask
//! again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What one measurement saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Seconds from sending a request to its last byte.
    pub latencies: Vec<f64>,
    /// Requests that ended in any other way than a whole 200 answer.
    pub failed: u64,
    pub elapsed: f64,
}

/// Loads `target` for `seconds` with `concurrency` connections.
pub async fn run(target: SocketAddr, streamed: bool, concurrency: usize, seconds: f64) -> Seen {
    let started = Instant::now();
    let until = started + Duration::from_secs_f64(seconds);
    let workers: Vec<_> = (0..concurrency)
        .map(|worker| tokio::spawn(ask_until(target, request(streamed, worker), streamed, until)))
        .collect();
    let mut seen = Seen::default();
    for worker in workers {
        match worker.await {
            Ok(one) => {
                seen.latencies.extend(one.latencies);
                seen.failed += one.failed;
            }
            Err(_) => seen.failed += 1,
        }
    }
    seen.elapsed = started.elapsed().as_secs_f64();
    seen
}

fn request(streamed: bool, worker: usize) -> Vec<u8> {
    let body = serde_json::json!({"model": "bench", "stream": streamed,
        "messages": [{"role": "user", "content": format!("question of worker {worker}")}]})
    .to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn ask_until(target: SocketAddr, request: Vec<u8>, streamed: bool, until: Instant) -> Seen {
    let mut seen = Seen::default();
    let mut connection: Option<TcpStream> = None;
    let mut buffer = Vec::with_capacity(32 << 10);
    while Instant::now() < until {
        let started = Instant::now();
        match ask(&mut connection, target, &request, streamed, &mut buffer).await {
            Ok(()) => seen.latencies.push(started.elapsed().as_secs_f64()),
            Err(_) => {
                connection = None;
                seen.failed += 1;
            }
        }
    }
    seen
}

async fn ask(
    connection: &mut Option<TcpStream>,
    target: SocketAddr,
    request: &[u8],
    streamed: bool,
    buffer: &mut Vec<u8>,
) -> std::io::Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(target).await?;
            stream.set_nodelay(true)?;
            connection.insert(stream)
        }
    };
    buffer.clear();
    stream.write_all(request).await?;
    while !is_whole(buffer, streamed) {
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    if buffer.starts_with(b"HTTP/1.1 200") {
        Ok(())
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}

fn is_whole(buffer: &[u8], streamed: bool) -> bool {
    if streamed && buffer.starts_with(b"HTTP/1.1 200") {
        return buffer.ends_with(b"0\r\n\r\n");
    }
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.and_then(|value| value.trim().parse().ok()).unwrap_or(0);
    buffer.len() >= end + 4 + length
}
