//! Requests that look odd and are legal: they must arrive unchanged.

/// A request, and what the engine must see of it.
pub struct Case {
    pub name: String,
    pub bytes: Vec<u8>,
    pub target: String,
    pub body: Vec<u8>,
}

struct Corpus(Vec<Case>);

impl Corpus {
    fn get(&mut self, name: &str, target: &str, fields: &str) {
        let host = if fields.contains("Host") { "" } else { "Host: a\r\n" };
        let bytes = format!("GET {target} HTTP/1.1\r\n{host}{fields}\r\n").into_bytes();
        self.0.push(Case {
            name: name.to_owned(),
            bytes,
            target: target.to_owned(),
            body: Vec::new(),
        });
    }

    fn body(&mut self, name: &str, method: &str, fields: &str, wire: &str, body: &str) {
        let target = format!("/v1/ok-{}", self.0.len());
        let bytes = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n{wire}");
        self.0.push(Case {
            name: name.to_owned(),
            bytes: bytes.into_bytes(),
            target,
            body: body.as_bytes().to_vec(),
        });
    }
}

/// All of them.
pub fn corpus() -> Vec<Case> {
    let mut all = Corpus(Vec::new());
    targets(&mut all);
    fields(&mut all);
    bodies(&mut all);
    all.0
}

fn targets(all: &mut Corpus) {
    for target in [
        "/",
        "//",
        "/a//b/./c/../d",
        "/?",
        "/x?a=1&a=2&&",
        "/x?q={a:1}",
        "/%7Euser/%2F%00%0d%0a",
        "/100%",
        "/%zz",
        "/a;b=c;d",
        "/a,b!$&'()*+=:@~_-.",
        "/x?y=[1]|2^3`4",
        "/v1/models/org%2Fname:tag",
        "/x?url=http://b/c?d=e",
        "http://a/v1/absolute",
    ] {
        all.get(&format!("target {target}"), target, "");
    }
}

fn fields(all: &mut Corpus) {
    let mut get = |name: &str, fields: &str| {
        let target = format!("/v1/field-{}", all.0.len());
        all.get(name, &target, fields);
    };
    get("a host with a port", "Host: a.example:8443\r\n");
    get("a host with an underscore", "Host: my_engine:8000\r\n");
    get("an IPv4 host", "Host: 127.0.0.1\r\n");
    get("an IPv6 host with a port", "Host: [::1]:8080\r\n");
    get("no blank after the colons", "Host:a\r\nx-a:b\r\n");
    get("blanks around a value", "x-a:   b c  \r\n");
    get("a tab in a value", "x-a: b\tc\r\n");
    get("an empty value", "x-a:\r\nx-b: \r\n");
    get("bytes beyond ASCII in a value", "x-name: J\u{f6}rg \u{2713}\r\n");
    get("a name of all token characters", "!#$%&'*+-.^_`|~09azAZ: x\r\n");
    get("names with underscores", "session_id: 1\r\nx_trace_id: 2\r\n");
    get("repeated fields", "x-a: 1\r\nx-a: 2\r\nAccept: a\r\nAccept: b\r\n");
    get("two cookies are sent", "Cookie: a=b\r\nCookie: c=d\r\n");
    get("a long value of 16 KiB", &format!("x-a: {}\r\n", "y".repeat(16 << 10)));
    let many: String = (0..98).map(|n| format!("x-{n}: {n}\r\n")).collect();
    get("99 fields altogether", &many);
    get("hop-by-hop of the client's own", "Connection: keep-alive, x-hop\r\nx-hop: 1\r\n");
    get("connection with empty elements", "Connection: , keep-alive,\r\n");
    get("TE trailers", "TE: trailers\r\nConnection: TE\r\n");
    get(
        "what Java asks for",
        "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\nUpgrade: h2c\r\n",
    );
    get("an expectation without a body", "Expect: 100-continue\r\n");
    get("a GET with a length of zero", "Content-Length: 0\r\n");
    get("both kinds of key", "Authorization: x\r\nx-api-key: y\r\n");
}

fn bodies(all: &mut Corpus) {
    let te = "Transfer-Encoding: chunked\r\n";
    all.body("a length with zeros", "POST", "Content-Length: 0005\r\n", "hello", "hello");
    all.body("a length in odd case", "POST", "cONTENT-lENGTH: 5\r\n", "hello", "hello");
    all.body("a length without blank", "POST", "Content-Length:5\r\n", "hello", "hello");
    all.body("a length after blanks", "POST", "Content-Length:   5\r\n", "hello", "hello");
    all.body(
        "a body of line ends",
        "POST",
        "Content-Length: 6\r\n",
        "\r\n\r\n\r\n",
        "\r\n\r\n\r\n",
    );
    let inner = "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = format!("Content-Length: {}\r\n", inner.len());
    all.body("a body that is a request", "POST", &length, inner, inner);
    all.body("a body on a GET", "GET", "Content-Length: 2\r\n", "{}", "{}");
    all.body("a body on a DELETE", "DELETE", "Content-Length: 2\r\n", "{}", "{}");
    all.body("a POST without a body", "POST", "", "", "");
    all.body("another method", "PATCH", "Content-Length: 2\r\n", "{}", "{}");
    all.body("a method of its own", "X-MAGIC", "", "", "");
    all.body("chunks", "POST", te, "5\r\nhello\r\n0\r\n\r\n", "hello");
    all.body("chunks of one", "POST", te, "1\r\na\r\n1\r\nb\r\n0\r\n\r\n", "ab");
    all.body("upper case sizes", "POST", te, "A\r\n0123456789\r\n0\r\n\r\n", "0123456789");
    all.body("sizes with zeros", "POST", te, "005\r\nhello\r\n000\r\n\r\n", "hello");
    all.body("extensions", "POST", te, "5;a=b;c=\"d;e\"\r\nhello\r\n0;z\r\n\r\n", "hello");
    all.body("trailers", "POST", te, "5\r\nhello\r\n0\r\nx-sum: 1\r\nx-b:\r\n\r\n", "hello");
    all.body("an empty chunked body", "POST", te, "0\r\n\r\n", "");
    all.body("chunked without blank", "POST", "transfer-encoding:chunked\r\n", "0\r\n\r\n", "");
    let expects = "Expect: 100-Continue\r\nContent-Length: 5\r\n";
    all.body("an expectation that does not wait", "POST", expects, "hello", "hello");
    all.body("an empty line before", "POST", "", "", "");
    if let Some(case) = all.0.last_mut() {
        case.bytes = [b"\r\n".as_slice(), &case.bytes].concat();
    }
    let big = "x".repeat(200_000);
    all.body("a large body", "POST", "Content-Length: 200000\r\n", &big, &big);
    let chunk = format!("{:x}\r\n{big}\r\n0\r\n\r\n", big.len());
    all.body("a large chunk", "POST", te, &chunk, &big);
    let bytes = b"GET /v1/old HTTP/1.0\r\n\r\n".to_vec();
    let (target, body) = ("/v1/old".to_owned(), Vec::new());
    all.0.push(Case { name: "HTTP/1.0 without host".to_owned(), bytes, target, body });
    let bytes = b"POST /v1/o HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}".to_vec();
    let (target, body) = ("/v1/o".to_owned(), b"{}".to_vec());
    all.0.push(Case { name: "HTTP/1.0 with a body".to_owned(), bytes, target, body });
}
