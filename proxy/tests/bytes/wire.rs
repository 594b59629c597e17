//! HTTP/1.1 messages as they are on the wire: names in their case, values as bytes, repetitions in
//! order, trailers apart.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Header or trailer fields in wire order: the name as sent, the value without white space around.
pub type Fields = Vec<(String, Vec<u8>)>;

/// A request or a response.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Message {
    /// The first line, without its end; empty when the connection ended before it.
    pub first: String,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// Whether the framing ended as it should.
    pub whole: bool,
    /// Whether the body had no framing but the end of the connection.
    pub until_close: bool,
}

impl Message {
    /// The first value of a field.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        let found = self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_slice())
    }

    pub fn has(&self, name: &str, value: &str) -> bool {
        self.field(name).is_some_and(|v| v.eq_ignore_ascii_case(value.as_bytes()))
    }

    /// The status of a response; 0 when there is none.
    pub fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    pub fn is_http10(&self) -> bool {
        self.first.contains("HTTP/1.0")
    }

    /// Whether the connection can carry another message after this one.
    pub fn keeps_alive(&self) -> bool {
        let asked = match self.is_http10() {
            true => self.has("connection", "keep-alive"),
            false => !self.has("connection", "close"),
        };
        self.whole && !self.until_close && asked
    }
}

/// One end of a connection.
pub struct Wire(BufReader<TcpStream>);

impl Wire {
    pub fn new(tcp: TcpStream) -> Self {
        tcp.set_nodelay(true).unwrap();
        Self(BufReader::with_capacity(64 << 10, tcp))
    }

    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes).await
    }

    /// Says that no more will be written.
    pub async fn finish(&mut self) {
        let _ = self.0.get_mut().shutdown().await;
    }

    /// Whether the other side has closed.
    pub async fn at_end(&mut self) -> bool {
        self.0.fill_buf().await.map_or(true, <[u8]>::is_empty)
    }

    async fn line(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).await.ok()?;
        let text = line.strip_suffix(b"\r\n")?;
        Some(text.to_vec())
    }

    async fn fields(&mut self) -> Option<Fields> {
        let mut fields = Fields::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(fields);
            }
            let colon = line.iter().position(|b| *b == b':')?;
            let (name, value) = line.split_at(colon);
            let name = String::from_utf8(name.to_vec()).ok()?;
            fields.push((name, value[1..].trim_ascii().to_vec()));
        }
    }

    async fn head(&mut self) -> Option<Message> {
        let first = String::from_utf8_lossy(&self.line().await?).into_owned();
        Some(Message { first, fields: self.fields().await?, ..Message::default() })
    }

    /// The head of a request; `None` at the end of the connection.
    pub async fn request_head(&mut self) -> Option<Message> {
        self.head().await
    }

    /// The body that a request's head announces.
    pub async fn request_body(&mut self, message: &mut Message) {
        self.body(message).await;
    }

    /// An informational response, or the final one with its body. An empty one when the connection
    /// ends.
    pub async fn response(&mut self, method: &str) -> Message {
        let Some(mut message) = self.head().await else { return Message::default() };
        let status = message.status();
        let bodiless = method == "HEAD" || status < 200 || status == 204 || status == 304;
        if bodiless {
            message.whole = true;
            return message;
        }
        let framed = ["content-length", "transfer-encoding"];
        if framed.iter().all(|name| message.field(name).is_none()) {
            message.until_close = true;
            message.whole = self.0.read_to_end(&mut message.body).await.is_ok();
            return message;
        }
        self.body(&mut message).await;
        message
    }

    async fn body(&mut self, message: &mut Message) {
        if message.has("transfer-encoding", "chunked") {
            message.whole = self.chunks(message).await.is_some();
            return;
        }
        let length = message.field("content-length").map(<[u8]>::to_vec);
        let length = length.map_or(0, |v| String::from_utf8(v).unwrap().parse().unwrap());
        message.whole = self.take(length, &mut message.body).await;
    }

    async fn chunks(&mut self, message: &mut Message) -> Option<()> {
        loop {
            let line = String::from_utf8(self.line().await?).ok()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).ok()?;
            if size == 0 {
                message.trailers = self.fields().await?;
                return Some(());
            }
            if !self.take(size, &mut message.body).await || !self.line().await?.is_empty() {
                return None;
            }
        }
    }

    async fn take(&mut self, size: u64, into: &mut Vec<u8>) -> bool {
        let read = (&mut self.0).take(size).read_to_end(into).await;
        read.is_ok_and(|n| n as u64 == size)
    }
}
