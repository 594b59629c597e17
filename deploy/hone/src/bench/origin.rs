//! The engine of `hone bench proxy`: answers at once with a fixed body, so that only the proxies
//! differ.
//!
//! `/json` (any path without `stream`) answers 2 KiB of JSON; a request whose body asks to stream
//! gets 50 SSE chunks.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Chunks of a streamed answer.
pub const CHUNKS: usize = 50;
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Listens on a free loopback port and serves for as long as the runtime lives.
pub async fn start() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let (json, chunks) = (json_answer(), sse_chunks());
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            tokio::spawn(serve(stream, json.clone(), chunks.clone()));
        }
    });
    Ok(address)
}

async fn serve(mut stream: TcpStream, json: bytes::Bytes, chunks: std::sync::Arc<Vec<Vec<u8>>>) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::with_capacity(4096);
    while let Ok(Some(streamed)) = next_request(&mut stream, &mut buffer).await {
        let written = if streamed {
            write_stream(&mut stream, &chunks).await
        } else {
            stream.write_all(&json).await
        };
        if written.is_err() {
            return;
        }
    }
}

async fn write_stream(stream: &mut TcpStream, chunks: &[Vec<u8>]) -> std::io::Result<()> {
    let head =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head).await?;
    for chunk in chunks {
        stream.write_all(chunk).await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}

/// Reads one request; `Some(true)` when it asks for a stream, `None` at the end of the connection.
async fn next_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<bool>> {
    loop {
        if let Some((end, body_len)) = complete_head(buffer)
            && buffer.len() >= end + body_len
        {
            let body = &buffer[end..end + body_len];
            let streamed = body.windows(13).any(|window| window == b"\"stream\":true");
            buffer.drain(..end + body_len);
            return Ok(Some(streamed));
        }
        if buffer.len() > REQUEST_BYTES_MAX || stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Where the head ends and how long the body is, once the whole head is here.
fn complete_head(buffer: &[u8]) -> Option<(usize, usize)> {
    let end = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    Some((end, length.and_then(|value| value.trim().parse().ok()).unwrap_or(0)))
}

fn json_answer() -> bytes::Bytes {
    let text = "An answer of about two kibibytes. ".repeat(56);
    let body = serde_json::json!({"id": "bench", "object": "chat.completion", "created": 0, "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 400, "total_tokens": 410}})
    .to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    bytes::Bytes::from(head + &body)
}

fn sse_chunks() -> std::sync::Arc<Vec<Vec<u8>>> {
    let event = |index: usize| {
        let finish =
            if index + 1 == CHUNKS { serde_json::json!("stop") } else { serde_json::Value::Null };
        let chunk = serde_json::json!({"id": "bench", "object": "chat.completion.chunk", "created": 0,
            "model": "bench", "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": finish}]});
        let data =
            if index < CHUNKS { format!("data: {chunk}\n\n") } else { "data: [DONE]\n\n".into() };
        format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
    };
    std::sync::Arc::new((0..=CHUNKS).map(event).collect())
}
