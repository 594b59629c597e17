//! A client for tests: raw HTTP/1.1, so that bodies can be compared byte by byte and connections
//! cut at will.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A response, with its body decoded from its framing.
#[derive(Debug, Default, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// Whether the framing ended as it should.
    pub whole: bool,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A connection.
pub struct Client {
    pub tcp: TcpStream,
    buf: Vec<u8>,
    ended: bool,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Self { tcp, buf: Vec::new(), ended: false }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).await.unwrap();
    }

    /// Reads one response; informational ones are skipped.
    pub async fn response(&mut self) -> Response {
        loop {
            let response = self.any_response().await;
            if response.status == 0 || response.status >= 200 {
                return response;
            }
        }
    }

    pub async fn any_response(&mut self) -> Response {
        let mut response = Response::default();
        let Some(first) = self.line().await else { return response };
        response.status = first.split(' ').nth(1).unwrap().parse().unwrap();
        while let Some(line) = self.line().await {
            let Some((name, value)) = line.split_once(':') else { break };
            response.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        if response.status < 200 {
            return response;
        }
        if response.headers.contains_key("transfer-encoding") {
            self.chunks(&mut response).await;
        } else if let Some(length) = response.headers.get("content-length") {
            let length: usize = length.parse().unwrap();
            response.body = self.up_to(length).await;
            response.whole = response.body.len() == length;
        }
        response
    }

    /// Reads the status of a response and throws the rest of its head away.
    pub async fn response_head(&mut self) -> u16 {
        let first = self.line().await.unwrap();
        first.split(' ').nth(1).unwrap().parse().unwrap()
    }

    async fn chunks(&mut self, response: &mut Response) {
        while let Some(line) = self.line().await {
            let size = usize::from_str_radix(&line, 16).unwrap();
            let part = self.up_to(size).await;
            response.body.extend_from_slice(&part);
            if part.len() < size || self.line().await.is_none() {
                return;
            }
            if size == 0 {
                response.whole = true;
                return;
            }
        }
    }

    /// Reads until `text` has been seen.
    pub async fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.buf).contains(text) {
            assert!(self.fill().await, "the connection ended before `{text}`");
        }
    }

    /// Reads until the end of the connection; whether it came.
    pub async fn end(&mut self) -> bool {
        while self.fill().await {}
        self.ended
    }

    async fn fill(&mut self) -> bool {
        let mut chunk = [0u8; 65536];
        let n = self.tcp.read(&mut chunk).await.unwrap_or(0);
        self.buf.extend_from_slice(&chunk[..n]);
        self.ended |= n == 0;
        n > 0
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buf.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buf[..at]).into_owned();
                self.buf.drain(..at + 2);
                return Some(line);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn up_to(&mut self, n: usize) -> Vec<u8> {
        while self.buf.len() < n && self.fill().await {}
        let n = n.min(self.buf.len());
        self.buf.drain(..n).collect()
    }
}

/// A POST with a body of known length.
pub fn post(target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: engine.test\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The head of a POST whose chunks follow.
pub fn chunked(target: &str) -> Vec<u8> {
    let head = format!("POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    head.into_bytes()
}

/// A chat request in the shape that clients send.
pub fn chat(text: &str, stream: bool) -> Vec<u8> {
    let body = serde_json::json!({
        "model": "test", "stream": stream, "messages": [{"role": "user", "content": text}],
    });
    body.to_string().into_bytes()
}

/// One request on a connection of its own.
pub async fn ask(address: SocketAddr, request: &[u8]) -> Response {
    let mut client = Client::connect(address).await;
    client.send(request).await;
    client.response().await
}

/// A GET on a connection of its own.
pub async fn get(address: SocketAddr, target: &str, headers: &str) -> Response {
    let request = format!("GET {target} HTTP/1.1\r\nHost: engine.test\r\n{headers}\r\n");
    ask(address, request.as_bytes()).await
}

/// As `get`, on the admin listener, which wants to be called by its address.
pub async fn get_admin(address: SocketAddr, target: &str, headers: &str) -> Response {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    ask(address, request.as_bytes()).await
}
