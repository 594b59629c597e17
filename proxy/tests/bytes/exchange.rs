//! One request, and the answer that the engine has been told to give.
//!
//! Invariant: an exchange is data. It is sent by the same code to the engine and to the proxy.

use crate::wire::Fields;

/// The request field that says which exchange of the script a request belongs to.
pub const NUMBER: &str = "x-client-request-id";

/// How a body is delimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Framing {
    /// No body, and nothing said about one.
    None,
    /// `Content-Length`.
    Length,
    /// `Transfer-Encoding: chunked`, with a chunk from each of these offsets to the next.
    Chunked { starts: Vec<usize>, extension: &'static str, trailers: Fields },
    /// The end of the connection; `http10`: the response is one of HTTP/1.0.
    Close { http10: bool },
    /// `Content-Length` or chunks that the connection ends before.
    Short { chunked: bool },
}

/// Where the bytes of a message are cut into writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Writes {
    /// One write.
    #[default]
    Once,
    /// A write for each chunk, and one for the end.
    Chunks,
    /// Cuts at these offsets of the raw message, head included.
    At(Vec<usize>),
}

/// What the engine does.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Informational responses before the final one, raw.
    pub interim: String,
    pub status: u16,
    pub reason: &'static str,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub framing: Framing,
    pub writes: Writes,
    /// Between two writes, milliseconds.
    pub pause_ms: u64,
    /// The connection ends after the answer, and the answer says so.
    pub close: bool,
}

impl Default for Reply {
    fn default() -> Self {
        Self {
            interim: String::new(),
            status: 200,
            reason: "OK",
            fields: Fields::new(),
            body: Vec::new(),
            framing: Framing::Length,
            writes: Writes::Once,
            pause_ms: 0,
            close: false,
        }
    }
}

/// A request and its answer.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub number: u64,
    pub method: &'static str,
    pub target: String,
    pub http10: bool,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub framing: Framing,
    pub writes: Writes,
    /// The client sends its body when the engine has said `100 Continue`.
    pub expects: bool,
    pub reply: Reply,
    /// The text of each answer that the store should hold, where the body says one.
    pub texts: Option<Vec<String>>,
    /// Whether the engine reports an error inside its answer.
    pub model_error: bool,
}

impl Exchange {
    /// A POST of JSON with a length; the rest is up to the caller.
    pub fn post(number: u64, target: &str, body: Vec<u8>, reply: Reply) -> Self {
        let json = ("Content-Type".to_owned(), b"application/json".to_vec());
        Self {
            number,
            method: "POST",
            target: target.to_owned(),
            http10: false,
            fields: vec![json],
            body,
            framing: Framing::Length,
            writes: Writes::Once,
            expects: false,
            reply,
            texts: None,
            model_error: false,
        }
    }

    /// The path without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// All fields of the request but those of its framing.
    pub fn request_fields(&self) -> Fields {
        let mut fields = vec![
            ("Host".to_owned(), b"engine.test".to_vec()),
            (NUMBER.to_owned(), self.number.to_string().into_bytes()),
        ];
        fields.extend(self.fields.iter().cloned());
        if self.expects {
            fields.push(("Expect".to_owned(), b"100-continue".to_vec()));
        }
        fields
    }

    /// The request in writes; the first one ends with the head when the client expects a 100.
    pub fn request_writes(&self) -> Vec<Vec<u8>> {
        let version = if self.http10 { "1.0" } else { "1.1" };
        let first = format!("{} {} HTTP/{version}", self.method, self.target);
        let (head, body) = parts(&first, &self.request_fields(), &self.body, &self.framing, false);
        if self.expects {
            return vec![head, body.concat()];
        }
        writes(head, &body, &self.writes)
    }

    /// Whether the response may carry a body at all.
    pub fn answers_body(&self) -> bool {
        self.method != "HEAD" && !matches!(self.reply.status, 204 | 304)
    }

    /// The body bytes that the client should get.
    pub fn answer(&self) -> &[u8] {
        match (self.answers_body(), &self.reply.framing) {
            (false, _) | (_, Framing::None) => &[],
            (true, Framing::Short { .. }) => &self.reply.body[..self.reply.body.len() / 2],
            (true, _) => &self.reply.body,
        }
    }

    /// Whether the engine breaks off.
    pub fn breaks_off(&self) -> bool {
        self.answers_body() && matches!(self.reply.framing, Framing::Short { .. })
    }

    /// The final response in writes, and whether the connection ends after it.
    pub fn reply_writes(&self) -> (Vec<Vec<u8>>, bool) {
        let reply = &self.reply;
        let http10 = reply.framing == Framing::Close { http10: true };
        let version = if http10 { "1.0" } else { "1.1" };
        let first = format!("HTTP/{version} {} {}", reply.status, reply.reason);
        let ends = reply.close
            || self.http10
            || matches!(reply.framing, Framing::Close { .. } | Framing::Short { .. });
        let (head, body) = parts(&first, &reply.fields, &reply.body, &reply.framing, ends);
        let body = if self.answers_body() { body } else { Vec::new() };
        (writes(head, &body, &reply.writes), ends)
    }
}

/// The head, and the pieces of the framed body.
fn parts(
    first: &str,
    fields: &Fields,
    body: &[u8],
    framing: &Framing,
    close: bool,
) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut head = format!("{first}\r\n").into_bytes();
    for (name, value) in fields {
        head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    let length = format!("Content-Length: {}\r\n", body.len());
    let chunked = "Transfer-Encoding: chunked\r\n".to_owned();
    let half = body.len() / 2;
    let (line, pieces) = match framing {
        Framing::None => (String::new(), vec![]),
        Framing::Length => (length, vec![body.to_vec()]),
        Framing::Close { .. } => (String::new(), vec![body.to_vec()]),
        Framing::Short { chunked: false } => (length, vec![body[..half].to_vec()]),
        Framing::Short { chunked: true } => {
            let mut cut = format!("{:x}\r\n", body.len().max(1)).into_bytes();
            cut.extend_from_slice(&body[..half]);
            (chunked, vec![cut])
        }
        Framing::Chunked { starts, extension, trailers } => {
            let mut pieces: Vec<Vec<u8>> = Vec::new();
            for (at, start) in starts.iter().enumerate() {
                let part = &body[*start..starts.get(at + 1).copied().unwrap_or(body.len())];
                if !part.is_empty() {
                    let size = format!("{:x}{extension}\r\n", part.len());
                    pieces.push([size.as_bytes(), part, b"\r\n"].concat());
                }
            }
            let mut end = b"0\r\n".to_vec();
            for (name, value) in trailers {
                end.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
            }
            pieces.push([end.as_slice(), b"\r\n"].concat());
            (chunked, pieces)
        }
    };
    head.extend_from_slice(line.as_bytes());
    if close {
        head.extend_from_slice(b"Connection: close\r\n");
    }
    head.extend_from_slice(b"\r\n");
    (head, pieces)
}

fn writes(head: Vec<u8>, body: &[Vec<u8>], cut: &Writes) -> Vec<Vec<u8>> {
    match cut {
        Writes::Once => vec![[head, body.concat()].concat()],
        Writes::Chunks => [&[head], body].concat(),
        Writes::At(offsets) => {
            let raw = [head, body.concat()].concat();
            let mut offsets: Vec<usize> = offsets.iter().map(|at| at % raw.len()).collect();
            offsets.extend([0, raw.len()]);
            offsets.sort_unstable();
            offsets.dedup();
            offsets.windows(2).map(|pair| raw[pair[0]..pair[1]].to_vec()).collect()
        }
    }
}
