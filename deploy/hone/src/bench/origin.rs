//! The engine of `hone bench proxy`: answers at once with a fixed body, so that only the proxies
//! differ. The request's `x-bench-shape` header says what to answer.
//!
//! It runs on one thread of its own and does as little as it can.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Chunks of a streamed answer, apart from `[DONE]`.
pub const CHUNKS: usize = 50;
/// Between two chunks of a paced answer.
pub const PACE: Duration = Duration::from_millis(5);
/// Chunks of an answer of the memory test.
const SLOW_CHUNKS: usize = 50;
/// Bytes of each.
const SLOW_CHUNK_BYTES: usize = 1_200;
/// Between two of them: all streams are open before the first one ends.
const SLOW_PACE: Duration = Duration::from_millis(100);
/// Bytes of each piece of a bulk answer.
const BULK_PIECE_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 64 << 10;
const HEAD_BYTES_MAX: usize = 1 << 20;

const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";

/// What is asked and answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// 2 KiB of JSON with a length.
    Json,
    /// 50 SSE chunks, written one by one without a pause.
    Burst,
    /// 50 SSE chunks, 5 ms apart.
    Paced,
    /// 60 kB of SSE within 5 s.
    Slow,
    /// So many bytes of a chunked body.
    Download(u64),
    /// So many bytes of a request body; answered with JSON at its end.
    Upload(u64),
}

impl Shape {
    /// The request header that carries [`Self::name`].
    pub const HEADER: &str = "x-bench-shape";

    /// The word on the wire.
    pub fn name(self) -> String {
        match self {
            Self::Json => "json".into(),
            Self::Burst => "burst".into(),
            Self::Paced => "paced".into(),
            Self::Slow => "slow".into(),
            Self::Download(bytes) => format!("download-{bytes}"),
            Self::Upload(bytes) => format!("upload-{bytes}"),
        }
    }

    /// What a table calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Json => "JSON, 2 KiB",
            Self::Burst => "SSE, 50 at once",
            Self::Paced => "SSE, 50 x 5 ms",
            Self::Slow => "SSE, 60 kB in 5 s",
            Self::Download(_) => "download",
            Self::Upload(_) => "upload",
        }
    }

    /// Whether the request says `"stream": true`.
    pub fn streams(self) -> bool {
        !matches!(self, Self::Json | Self::Upload(_))
    }

    /// Length of an upload.
    pub fn upload_bytes(self) -> Option<u64> {
        match self {
            Self::Upload(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Reads [`Self::name`].
    pub fn parse(name: &str) -> Option<Self> {
        let (word, bytes) = name.split_once('-').unwrap_or((name, ""));
        Some(match word {
            "json" => Self::Json,
            "burst" => Self::Burst,
            "paced" => Self::Paced,
            "slow" => Self::Slow,
            "download" => Self::Download(bytes.parse().ok()?),
            "upload" => Self::Upload(bytes.parse().ok()?),
            _ => return None,
        })
    }
}

/// Listens on a free loopback port and serves for as long as the process lives.
pub fn start() -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("origin".into()).spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            let answers = Arc::new(Answers::new());
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(serve(stream, Arc::clone(&answers)));
            }
        });
    })?;
    Ok(address)
}

/// Everything that is ever answered.
struct Answers {
    json: Bytes,
    chunks: Vec<Bytes>,
    slow: Bytes,
    bulk: Bytes,
}

impl Answers {
    fn new() -> Self {
        let chunks = (0..=CHUNKS).map(|index| framed(&event(index, " word"))).collect();
        let slow = framed(&event(0, &"x".repeat(SLOW_CHUNK_BYTES - 150)));
        let bulk = framed(&"b".repeat(BULK_PIECE_BYTES));
        Self { json: json_answer(), chunks, slow, bulk }
    }
}

async fn serve(mut stream: TcpStream, answers: Arc<Answers>) {
    // A stream without the option works, only more slowly.
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::with_capacity(4096);
    while let Ok(Some(shape)) = next_request(&mut stream, &mut buffer).await {
        if answer(&mut stream, shape, &answers).await.is_err() {
            return;
        }
    }
}

async fn answer(stream: &mut TcpStream, shape: Shape, answers: &Answers) -> std::io::Result<()> {
    match shape {
        Shape::Json | Shape::Upload(_) => return stream.write_all(&answers.json).await,
        Shape::Burst => {
            stream.write_all(STREAM_HEAD).await?;
            for chunk in &answers.chunks {
                stream.write_all(chunk).await?;
            }
        }
        Shape::Paced => {
            stream.write_all(STREAM_HEAD).await?;
            for chunk in &answers.chunks {
                stream.write_all(chunk).await?;
                tokio::time::sleep(PACE).await;
            }
        }
        Shape::Slow => {
            stream.write_all(STREAM_HEAD).await?;
            for _ in 0..SLOW_CHUNKS {
                stream.write_all(&answers.slow).await?;
                tokio::time::sleep(SLOW_PACE).await;
            }
        }
        Shape::Download(mut left) => {
            stream.write_all(STREAM_HEAD).await?;
            while left > 0 {
                stream.write_all(&answers.bulk).await?;
                left = left.saturating_sub(BULK_PIECE_BYTES as u64);
            }
        }
    }
    stream.write_all(b"0\r\n\r\n").await
}

/// Reads one request and throws its body away; `None` at the end of the connection.
async fn next_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<Shape>> {
    loop {
        if let Some(head) = Head::of(buffer) {
            return Ok(drain_body(stream, buffer, head).await?.then_some(head.shape));
        }
        if buffer.len() > HEAD_BYTES_MAX || stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Whether the body came in full.
async fn drain_body(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    head: Head,
) -> std::io::Result<bool> {
    let here = (buffer.len() - head.bytes) as u64;
    if here >= head.body_bytes {
        buffer.drain(..head.bytes + head.body_bytes as usize);
        return Ok(true);
    }
    let mut left = head.body_bytes - here;
    buffer.clear();
    let mut sink = vec![0; READ_BYTES];
    while left > 0 {
        let n = stream.read(&mut sink[..left.min(READ_BYTES as u64) as usize]).await? as u64;
        if n == 0 {
            return Ok(false);
        }
        left -= n;
    }
    Ok(true)
}

/// What of a request's head matters here.
#[derive(Clone, Copy)]
struct Head {
    bytes: usize,
    body_bytes: u64,
    shape: Shape,
}

impl Head {
    /// `None` until the whole head is here.
    fn of(buffer: &[u8]) -> Option<Self> {
        let bytes = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&buffer[..bytes]);
        let value = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let body_bytes = value("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
        let shape = value(Shape::HEADER).and_then(Shape::parse).unwrap_or(Shape::Json);
        Some(Self { bytes, body_bytes, shape })
    }
}

fn json_answer() -> Bytes {
    let text = "An answer of about two kibibytes. ".repeat(56);
    let body = serde_json::json!({"id": "bench", "object": "chat.completion", "created": 0,
        "model": "bench", "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 400, "total_tokens": 410}})
    .to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Bytes::from(head + &body)
}

/// One SSE event of a chat completion; `[DONE]` after the last one.
fn event(index: usize, text: &str) -> String {
    if index == CHUNKS {
        return "data: [DONE]\n\n".into();
    }
    let finish = (index + 1 == CHUNKS).then_some("stop");
    let chunk = serde_json::json!({"id": "bench", "object": "chat.completion.chunk", "created": 0,
        "model": "bench",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]});
    format!("data: {chunk}\n\n")
}

fn framed(data: &str) -> Bytes {
    Bytes::from(format!("{:x}\r\n{data}\r\n", data.len()))
}
