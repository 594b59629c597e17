//! Requests that must reach nobody: malformed, ambiguous, or a disguise.
//!
//! `@` stands for a target that names the case. What follows the request in some of them is what an
//! attacker would smuggle.

/// A request and what is wrong with it.
pub struct Case {
    pub name: String,
    pub bytes: Vec<u8>,
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

struct Corpus(Vec<Case>);

impl Corpus {
    fn raw(&mut self, name: &str, bytes: impl AsRef<[u8]>) {
        let target = format!("/v1/case-{}", self.0.len());
        let bytes = bytes.as_ref().split(|b| *b == b'@').collect::<Vec<_>>();
        self.0.push(Case { name: name.to_owned(), bytes: bytes.join(target.as_bytes()) });
    }

    /// A request in which `@` means itself.
    fn verbatim(&mut self, name: &str, request: String) {
        self.0.push(Case { name: name.to_owned(), bytes: request.into_bytes() });
    }

    /// A POST whose fields after `Host` and whose body are given.
    fn post(&mut self, name: &str, fields: impl AsRef<[u8]>, body: &str) {
        let head = b"POST @ HTTP/1.1\r\nHost: a\r\n".as_slice();
        self.raw(name, [head, fields.as_ref(), b"\r\n", body.as_bytes()].concat());
    }

    /// A chunked POST.
    fn chunked(&mut self, name: &str, body: &str) {
        self.post(name, "Transfer-Encoding: chunked\r\n", body);
    }

    fn get(&mut self, name: &str, fields: impl AsRef<[u8]>) {
        self.raw(name, [b"GET @ HTTP/1.1\r\n".as_slice(), fields.as_ref(), b"\r\n"].concat());
    }
}

/// All of them.
pub fn corpus() -> Vec<Case> {
    let mut all = Corpus(Vec::new());
    lengths(&mut all);
    codings(&mut all);
    lines(&mut all);
    bytes(&mut all);
    names(&mut all);
    targets(&mut all);
    hosts(&mut all);
    first_lines(&mut all);
    connections(&mut all);
    chunks(&mut all);
    trailers(&mut all);
    sizes(&mut all);
    all.0
}

fn lengths(all: &mut Corpus) {
    for value in [
        "",
        "+5",
        "-5",
        "5,5",
        "5, 5",
        "5 5",
        "0x5",
        "5.0",
        "5;",
        "five",
        "5e0",
        "\"5\"",
        "5\t",
        "\t5",
        "5 ",
        "99999999999999999999999",
        "18446744073709551616",
        "9223372036854775808",
        "-0",
        "5, 6",
        "٥",
    ] {
        all.post(&format!("length {value:?}"), format!("Content-Length: {value}\r\n"), "hello");
    }
    let twice = |a, b| format!("Content-Length: {a}\r\ncontent-length: {b}\r\n");
    all.post("two equal lengths", twice(5, 5), "hello");
    all.post("two lengths", twice(5, 0), "hello");
    all.post("two lengths, shorter last", twice(50, 5), "hello");
    let smuggle = format!("Content-Length: {}\r\nContent-Length: 0\r\n", SMUGGLED.len());
    all.post("a request behind two lengths", smuggle, SMUGGLED);
    all.post("length with a space before the colon", "Content-Length : 5\r\n", "hello");
    all.post("length with underscore", "Content_Length: 5\r\n", "");
}

fn codings(all: &mut Corpus) {
    let body = "5\r\nhello\r\n0\r\n\r\n";
    for value in [
        "",
        "Chunked",
        "CHUNKED",
        "xchunked",
        "chunkedx",
        "chunked ",
        "\tchunked",
        "chunked\t",
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "identity, chunked",
        "chunked, identity",
        "chunked;q=1",
        "\"chunked\"",
        "chunked,",
        ", chunked",
        "chu nked",
        "chunk",
        "chunked\u{b}",
        "chunked\u{c}",
        "\u{b}chunked",
        "cow",
        "trailers",
        "chunked \u{a0}",
    ] {
        all.post(&format!("coding {value:?}"), format!("Transfer-Encoding: {value}\r\n"), body);
    }
    let te = "Transfer-Encoding: chunked\r\n";
    all.post("coding twice", format!("{te}{te}"), body);
    all.post("coding twice, other case", format!("{te}transfer-encoding: chunked\r\n"), body);
    all.post("identity then chunked", format!("Transfer-Encoding: identity\r\n{te}"), body);
    all.post("chunked then identity", format!("{te}Transfer-Encoding: identity\r\n"), body);
    all.post("coding with a space before the colon", "Transfer-Encoding : chunked\r\n", body);
    all.post("coding with a tab before the colon", "Transfer-Encoding\t: chunked\r\n", body);
    all.post("coding with underscore", "Transfer_Encoding: chunked\r\n", body);
    all.post("folded coding", "Transfer-Encoding:\r\n chunked\r\n", body);
    all.post("length and coding", format!("Content-Length: 5\r\n{te}"), body);
    all.post("coding and length", format!("{te}Content-Length: 5\r\n"), body);
    all.post("length 0 and coding", format!("Content-Length: 0\r\n{te}"), body);
    let smuggle = format!("0\r\n\r\n{SMUGGLED}");
    let length = format!("Content-Length: {}\r\n{te}", smuggle.len());
    all.post("CL.TE smuggling", length, &smuggle);
    all.post("TE.CL smuggling", format!("{te}Content-Length: 4\r\n"), &format!("5c\r\n{smuggle}"));
    all.post("length and gzip", "Content-Length: 5\r\nTransfer-Encoding: gzip\r\n", "hello");
    all.raw("coding in HTTP/1.0", format!("POST @ HTTP/1.0\r\nHost: a\r\n{te}\r\n{body}"));
}

fn lines(all: &mut Corpus) {
    all.raw("bare LF everywhere", "GET @ HTTP/1.1\nHost: a\n\n");
    all.raw("bare LF after the request line", "GET @ HTTP/1.1\nHost: a\r\n\r\n");
    all.get("bare LF after a field", "Host: a\nx: y\r\n");
    all.raw("bare LF at the end", "GET @ HTTP/1.1\r\nHost: a\r\n\n");
    all.raw("bare CR as line end", "GET @ HTTP/1.1\rHost: a\r\r");
    all.get("bare CR in a value", "Host: a\r\nx: y\rz\r\n");
    all.get("bare CR hides a coding", "Host: a\r\nx: y\rTransfer-Encoding: chunked\r\n");
    all.get("bare LF hides a length", "Host: a\r\nx: y\nContent-Length: 3\r\n");
    all.get("CR CR LF", "Host: a\r\r\n");
    all.get("folded with a space", "Host: a\r\nx: y\r\n z\r\n");
    all.get("folded with a tab", "Host: a\r\nx: y\r\n\tz\r\n");
    all.get("the first field folded", " Host: a\r\n");
    all.get("folded host", "Host:\r\n a\r\n");
    all.raw("many empty lines before", "\r\n\r\n\r\nGET @ HTTP/1.1\r\nHost: a\r\n\r\n");
    all.raw("an empty line of LF before", "\nGET @ HTTP/1.1\r\nHost: a\r\n\r\n");
    all.raw("a space before", " GET @ HTTP/1.1\r\nHost: a\r\n\r\n");
    all.raw("a BOM before", "\u{feff}GET @ HTTP/1.1\r\nHost: a\r\n\r\n");
    all.raw("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n");
}

fn bytes(all: &mut Corpus) {
    for byte in [0u8, 1, 7, 8, 0xb, 0xc, 0xe, 0x1b, 0x1f, 0x7f] {
        let field = [b"Host: a\r\nx: y".as_slice(), &[byte], b"z\r\n"].concat();
        all.get(&format!("byte {byte:#x} in a value"), field);
        let name = [b"Host: a\r\nx".as_slice(), &[byte], b"y: z\r\n"].concat();
        all.get(&format!("byte {byte:#x} in a name"), name);
        let line = [b"GET @".as_slice(), &[byte], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        all.raw(&format!("byte {byte:#x} in the target"), line);
    }
    all.get("NUL after the host", b"Host: a\0b\r\n");
    all.raw("NUL in the method", b"G\0ET @ HTTP/1.1\r\nHost: a\r\n\r\n");
    all.raw("NUL in the version", b"GET @ HTTP/1.1\0\r\nHost: a\r\n\r\n");
}

fn names(all: &mut Corpus) {
    for name in [
        "", " x", "x ", "x\t", "x y", "x\"y", "x(y)", "x,y", "x/y", "x;y", "x=y", "x?y", "x[y]",
        "x{y}", "x\\y", "x@y", "x<y>", "é",
    ] {
        all.get(&format!("name {name:?}"), format!("Host: a\r\n{name}: z\r\n"));
    }
    all.get("a field without a colon", "Host: a\r\nnothing\r\n");
    all.get("a field that is only a colon", "Host: a\r\n:\r\n");
    for name in ["X_Forwarded_For", "x_hone_generation", "Content_Type", "X-Forwarded_Host"] {
        all.get(&format!("imitation {name}"), format!("Host: a\r\n{name}: z\r\n"));
    }
    for (name, value) in [
        ("Authorization", "Bearer one"),
        ("x-api-key", "one"),
        ("api-key", "one"),
        ("Content-Type", "application/json"),
        ("Expect", "100-continue"),
        ("Upgrade", "h2c"),
    ] {
        let fields = format!("Host: a\r\n{name}: {value}\r\n{name}: other\r\n");
        all.get(&format!("{name} twice"), fields);
    }
}

fn targets(all: &mut Corpus) {
    for target in [
        "",
        "*",
        "a:80",
        "v1/x",
        "/a b",
        "/a\tb",
        "/a#b",
        "/é",
        "/a\\b",
        "/a\"b",
        "/<a>",
        "http://",
        "http:///v1",
        "http://u@a/v1",
        "http://u:p@a/v1",
        "http://a b/v1",
        "ftp://a/v1",
        "http:a/v1",
        "http://a:x/v1",
        "http://a:99999/v1",
        "javascript:1",
        "http://b/v1",
        "http://a:81/v1",
        "HTTP://a/v1",
        "https://a.evil/v1",
        "http://a#@b/v1",
        "http://a\\@b/v1",
        "?x=1",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        all.verbatim(&format!("target {target:?}"), request);
    }
    all.raw("two spaces before the target", "GET  @ HTTP/1.1\r\nHost: a\r\n\r\n");
    all.raw("two spaces after the target", "GET @  HTTP/1.1\r\nHost: a\r\n\r\n");
    all.raw("a tab before the target", "GET\t@ HTTP/1.1\r\nHost: a\r\n\r\n");
    all.raw("a space after the version", "GET @ HTTP/1.1 \r\nHost: a\r\n\r\n");
    all.raw("a request in the target", "GET @ HTTP/1.1 /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
}

fn hosts(all: &mut Corpus) {
    for host in [
        "", " ", "a b", "a,b", "a, b", "a/b", "a\\b", "u@a", "a?b", "a#b", "a:", "a:x", "a:-1",
        "a:1:2", "a:99999", "[::1", "::1", "[::1]x", "[::zz]", "a\tb", "a;b", "a\"b", "http://a",
        "a ", "\ta", "é.com", "a%00b", "<a>", "a|b", "{a}",
    ] {
        let request = format!("GET /v1/host HTTP/1.1\r\nHost: {host}\r\n\r\n");
        all.verbatim(&format!("host {host:?}"), request);
    }
    all.get("no host", "x: y\r\n");
    all.get("no field at all", "");
    all.get("two equal hosts", "Host: a\r\nHost: a\r\n");
    all.get("two hosts", "Host: a\r\nhost: b\r\n");
    all.get("a host with a space before the colon", "Host : a\r\n");
    all.raw("absolute form without host", "GET http://a@ HTTP/1.1\r\nx: y\r\n\r\n");
}

fn first_lines(all: &mut Corpus) {
    for (method, target) in [
        ("get", "@"),
        ("Get", "@"),
        ("GET,", "@"),
        ("G(T", "@"),
        ("CONNECT", "a:80"),
        ("CONNECT", "@"),
        ("TRACE", "@"),
        ("TRACK", "@"),
        ("", "@"),
        ("GETGETGETGETGETGETGETGETGET", "@"),
    ] {
        all.raw(
            &format!("method {method:?}"),
            format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n"),
        );
    }
    for version in [
        "HTTP/0.9",
        "HTTP/1.2",
        "HTTP/2.0",
        "HTTP/3.0",
        "HTTP/9.9",
        "HTTP/1",
        "HTTP/1.",
        "HTTP/11",
        "HTTP/01.1",
        "HTTP/1.10",
        "http/1.1",
        "HTTP /1.1",
        "HTTPS/1.1",
        "HTTP/1.1x",
        "HTTP/+1.1",
        "",
        "HTTP/x.y",
        "ICY/1.0",
        "HTTP\\1.1",
    ] {
        all.raw(&format!("version {version:?}"), format!("GET @ {version}\r\nHost: a\r\n\r\n"));
    }
    all.raw("HTTP/0.9", "GET @\r\n\r\n");
    all.raw("only a method", "GET\r\nHost: a\r\n\r\n");
    all.raw("the h2 preface, cut", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
}

fn connections(all: &mut Corpus) {
    for name in [
        "host",
        "Host",
        "authorization",
        "close, Authorization",
        "content-length",
        "content-type",
        "transfer-encoding",
        "x-forwarded-for",
        "X-Forwarded-Proto",
        "x-real-ip",
        "forwarded",
        "cookie",
        "x-api-key",
        "api-key",
        "x-hone-generation",
        "x-hone-learn",
        "expect",
        "via",
        "a b",
        "close; x",
        "\"close\"",
        "a,b,c,d,e,f,g,h,i,j",
    ] {
        all.get(&format!("connection {name:?}"), format!("Host: a\r\nConnection: {name}\r\n"));
    }
    for value in
        ["100-continued", "200-ok", "x 100-continue", "100-continue, x", "", "100 continue"]
    {
        let fields = format!("Expect: {value}\r\nContent-Length: 5\r\n");
        all.post(&format!("expect {value:?}"), fields, "hello");
    }
    let upgrade = "Upgrade: websocket\r\nConnection: upgrade\r\n";
    all.post("a websocket by POST", upgrade, "");
    all.post("a websocket with a body", format!("{upgrade}Content-Length: 5\r\n"), "hello");
    all.get(
        "a websocket with a body, by GET",
        format!("Host: a\r\n{upgrade}Content-Length: 1\r\n"),
    );
    all.get("a premature upgrade", "Host: a\r\nUpgrade: websocket\r\n");
    all.raw("a websocket in HTTP/1.0", format!("GET @ HTTP/1.0\r\nHost: a\r\n{upgrade}\r\n"));
}

fn chunks(all: &mut Corpus) {
    for size in [
        "+5",
        "-5",
        "0x5",
        "0X5",
        " 5",
        "5 ",
        "\t5",
        "5\t",
        "5 ;a",
        "5\u{b}",
        "",
        "g",
        "5g",
        "5,",
        "5h",
        "ffffffffffffffff",
        "fffffffffffffffff",
        "10000000000000005",
        "0000000000000000005",
        "5\0",
        "5_",
        "5.",
        "٥",
    ] {
        let body = format!("{size}\r\nhello\r\n0\r\n\r\n");
        all.chunked(&format!("chunk size {size:?}"), &body);
    }
    for (name, body) in [
        ("bare LF after a size", "5\nhello\r\n0\r\n\r\n"),
        ("bare CR after a size", "5\rhello\r\n0\r\n\r\n"),
        ("bare LF after a chunk", "5\r\nhello\n0\r\n\r\n"),
        ("bare LF at the end", "5\r\nhello\r\n0\r\n\n"),
        ("bare LF after the last size", "5\r\nhello\r\n0\n\r\n"),
        ("bare LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("bare CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        ("NUL in an extension", "5;a\0b\r\nhello\r\n0\r\n\r\n"),
        ("an extension that ends in LF", "5;a=b\nhello\r\n0\r\n\r\n"),
        ("a chunk longer than its size", "5\r\nhello!\r\n0\r\n\r\n"),
        ("a chunk shorter than its size", "6\r\nhello\r\n0\r\n\r\n"),
        ("no line end after a chunk", "5\r\nhello0\r\n\r\n"),
        ("a size of nothing", ";a\r\nhello\r\n0\r\n\r\n"),
        ("a negative zero", "5\r\nhello\r\n-0\r\n\r\n"),
    ] {
        all.chunked(name, body);
    }
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000));
    all.chunked("a long extension", &long);
}

fn trailers(all: &mut Corpus) {
    for trailer in [
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
        "Host: b",
        "Authorization: x",
        "Cookie: x",
        "Connection: close",
        "Trailer: x",
        "TE: x",
        "x-hone-generation: x",
        "X-Forwarded-For: 1",
        "Content-Type: x",
        "Content_Length: 5",
        "bad name: x",
        "nothing",
        " folded: x",
        ": x",
        "x: y\0",
        "x : y",
        "X: y\nHost: b",
        "Upgrade: websocket",
    ] {
        let body = format!("5\r\nhello\r\n0\r\n{trailer}\r\n\r\n");
        all.chunked(&format!("trailer {trailer:?}"), &body);
    }
    let many = format!("0\r\n{}\r\n", "x: y\r\n".repeat(200));
    all.chunked("many trailers", &many);
    let long = format!("0\r\nx: {}\r\n\r\n", "y".repeat(9000));
    all.chunked("a long trailer", &long);
}

fn sizes(all: &mut Corpus) {
    let line = |n: usize| "y".repeat(n);
    all.raw("a long target", format!("GET @{} HTTP/1.1\r\nHost: a\r\n\r\n", line(9000)));
    all.get("a large field", format!("Host: a\r\nx: {}\r\n", line(70_000)));
    all.get("many large fields", format!("Host: a\r\n{}", "x: yyyyyyyy\r\n".repeat(8000)));
    all.get("many fields", format!("Host: a\r\n{}", "x: y\r\n".repeat(100)));
    all.get("a large name", format!("Host: a\r\n{}: y\r\n", line(70_000)));
}
