//! The load of `hone bench proxy`: keep-alive connections that ask, read the whole answer, and ask
//! again.
//!
//! It runs on one thread of its own and looks at each byte at most once, so that on a small machine
//! it takes little from what it measures. Requests carry the headers of the OpenAI Python client,
//! because a proxy's work is mostly headers, and each has a text of its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::origin::Shape;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Digits of the running number in each request's text.
const DIGITS: usize = 12;
/// End of a chunked body.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What one measurement saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Seconds from sending a request to its last byte.
    pub latencies: Vec<f64>,
    /// Seconds from sending a request to the first byte of the answer.
    pub first_bytes: Vec<f64>,
    /// Requests that ended in any other way than a whole 200 answer.
    pub failed: u64,
    /// Seconds that the measurement took.
    pub elapsed: f64,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.first_bytes.extend(other.first_bytes);
        self.failed += other.failed;
    }
}

/// How long to go on.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// For some seconds.
    Seconds(f64),
    /// One request per connection.
    Once,
}

/// Loads `target` with `connections` connections. Blocks.
pub fn run(
    target: SocketAddr,
    shape: Shape,
    connections: usize,
    until: Until,
) -> anyhow::Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let started = Instant::now();
        let workers: Vec<_> = (0..connections)
            .map(|worker| tokio::spawn(Worker::new(target, shape, worker).ask_until(until)))
            .collect();
        let mut seen = Seen::default();
        for worker in workers {
            seen.add(worker.await.context("a worker of the load died")?);
        }
        seen.elapsed = started.elapsed().as_secs_f64();
        Ok(seen)
    })
}

struct Worker {
    target: SocketAddr,
    shape: Shape,
    head: Vec<u8>,
    body: Vec<u8>,
    /// Where the running number stands in `body`.
    number_at: usize,
    asked: u64,
    buffer: Vec<u8>,
}

impl Worker {
    fn new(target: SocketAddr, shape: Shape, worker: usize) -> Self {
        let number = "0".repeat(DIGITS);
        let body = serde_json::json!({"model": "bench", "stream": shape.streams(), "messages": [
            {"role": "system", "content": "You are a helpful assistant. Answer briefly."},
            {"role": "user", "content": format!("Question {number} of worker {worker}: why?")}]})
        .to_string();
        let number_at = body.find(&number).unwrap_or(0);
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n\
             Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n\
             Accept: application/json\r\nContent-Type: application/json\r\n\
             User-Agent: OpenAI/Python 2.8.1\r\nX-Stainless-Lang: python\r\n\
             X-Stainless-Package-Version: 2.8.1\r\nX-Stainless-OS: Linux\r\n\
             X-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n\
             X-Stainless-Runtime-Version: 3.12.3\r\nX-Stainless-Async: false\r\n\
             x-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\n\
             Authorization: Bearer sk-bench-0123456789abcdef\r\n{}: {}\r\n\
             Content-Length: {}\r\n\r\n",
            Shape::HEADER,
            shape.name(),
            shape.upload_bytes().unwrap_or(body.len() as u64),
        );
        let buffer = vec![0; READ_BYTES];
        let (head, body) = (head.into_bytes(), body.into_bytes());
        Self { target, shape, head, body, number_at, asked: worker as u64, buffer }
    }

    async fn ask_until(mut self, until: Until) -> Seen {
        let started = Instant::now();
        let mut seen = Seen::default();
        let mut connection: Option<TcpStream> = None;
        loop {
            let asked = Instant::now();
            match self.ask(&mut connection).await {
                Ok(first_byte) => {
                    seen.latencies.push(asked.elapsed().as_secs_f64());
                    seen.first_bytes.push((first_byte - asked).as_secs_f64());
                }
                Err(_) => {
                    connection = None;
                    seen.failed += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            match until {
                Until::Seconds(seconds) if started.elapsed().as_secs_f64() < seconds => {}
                _ => return seen,
            }
        }
    }

    /// Asks once; returns when the first byte came.
    async fn ask(&mut self, connection: &mut Option<TcpStream>) -> std::io::Result<Instant> {
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.target).await?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        self.send(&mut stream).await?;
        let mut answer = Answer::default();
        let mut first_byte = None;
        while !answer.whole {
            let n = stream.read(&mut self.buffer).await?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            first_byte.get_or_insert_with(Instant::now);
            answer.take(&self.buffer[..n])?;
        }
        *connection = Some(stream);
        Ok(first_byte.unwrap_or_else(Instant::now))
    }

    async fn send(&mut self, stream: &mut TcpStream) -> std::io::Result<()> {
        if let Some(mut left) = self.shape.upload_bytes() {
            stream.write_all(&self.head).await?;
            while left > 0 {
                let n = left.min(self.buffer.len() as u64);
                stream.write_all(&self.buffer[..n as usize]).await?;
                left -= n;
            }
            return Ok(());
        }
        self.asked += 1_000;
        let number = format!("{:0DIGITS$}", self.asked);
        self.body[self.number_at..self.number_at + DIGITS].copy_from_slice(number.as_bytes());
        let request = [self.head.as_slice(), self.body.as_slice()].concat();
        stream.write_all(&request).await
    }
}

/// An answer on its way in.
#[derive(Default)]
struct Answer {
    head: Vec<u8>,
    head_done: bool,
    /// Bytes still to come; `None` for a chunked body.
    left: Option<u64>,
    /// The last bytes of a chunked body.
    tail: Vec<u8>,
    whole: bool,
}

impl Answer {
    fn take(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.head_done {
            self.body(bytes);
            return Ok(());
        }
        self.head.extend_from_slice(bytes);
        let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Ok(());
        };
        if !self.head.starts_with(b"HTTP/1.1 200") {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let head = String::from_utf8_lossy(&self.head[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        self.left = length.and_then(|value| value.trim().parse().ok());
        self.head_done = true;
        let body = self.head.split_off(end + 4);
        self.body(&body);
        Ok(())
    }

    fn body(&mut self, bytes: &[u8]) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(bytes.len() as u64);
            self.whole = *left == 0;
            return;
        }
        let last = &bytes[bytes.len().saturating_sub(LAST_CHUNK.len())..];
        self.tail.extend_from_slice(last);
        let extra = self.tail.len().saturating_sub(LAST_CHUNK.len());
        self.tail.drain(..extra);
        self.whole = self.tail == LAST_CHUNK;
    }
}
