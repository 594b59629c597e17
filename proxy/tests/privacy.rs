//! Secrets in real traffic through a real proxy, with logs at TRACE: none is written anywhere.
//!
//! Credentials in headers and queries must not even reach the spool. What stands inside a body is
//! the user's own text: it passes through the spool and is redacted before the database, as the
//! route's policy says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use hone_proxy::{Bound, ProxyConfig, Upstream};
use hone_shared::data_dir::DataDir;
use tokio_util::sync::CancellationToken;

/// In headers, targets and tokens: recorded nowhere.
const OUTSIDE: [&str; 11] = [
    "sk-hdrAUTHORIZATION0123456789abcd",
    "sk-hdrXAPIKEY0123456789abcdefghij",
    "sk-hdrAPIKEY0123456789abcdefghijk",
    "session=COOKIEVALUE0123456789",
    "sk-hdrPROXYAUTH0123456789abcdefgh",
    "AIzaGOOGKEY0123456789abcdefghijklmnopqr",
    "QUERYKEY0123456789abcdef",
    "USERINFOPASS0123456789",
    "SETCOOKIEVALUE0123456789",
    "WRONGADMINTOKEN0123456789",
    "sk-hdrREFUSED0123456789abcdefghij",
];
/// In bodies and in recorded headers: redacted before the database.
const INSIDE: [&str; 9] = [
    "sk-bodyMESSAGE0123456789abcdefgh",
    "sk-bodyTOOLARGS0123456789abcdefg",
    "ghp_bodyANSWERSPLIT0123456789abcdefghijk",
    "sk-bodyERRORTEXT0123456789abcdef",
    "sk-bodyECHOED0123456789abcdefghi",
    "sk-bodyMULTIPART0123456789abcdef",
    "sk-bodyMETADATA0123456789abcdefg",
    "sk-hdrSESSION0123456789abcdefghij",
    "sk-hdrUSERAGENT0123456789abcdefgh",
];

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An engine that answers by path, and says too much.
fn engine() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            let Ok(tcp) = tcp else { return };
            std::thread::spawn(move || answer(tcp));
        }
    });
    address
}

fn answer(mut tcp: TcpStream) {
    let Some(head) = read_request(&mut tcp) else { return };
    let (status, kind, body) = if head.contains("/stream/") {
        let (a, b) = INSIDE[2].split_at(14);
        let chunk = |text: &str| {
            format!(
                "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
            )
        };
        let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
        let text = format!("{}{}{}{end}data: [DONE]\n\n", chunk("use "), chunk(a), chunk(b));
        ("200 OK", "text/event-stream", text)
    } else if head.contains("/error/") {
        let text =
            format!("{{\"error\":{{\"message\":\"Incorrect API key provided: {}\"}}}}", INSIDE[3]);
        ("500 Internal Server Error", "application/json", text)
    } else if head.contains("/echo/") {
        ("401 Unauthorized", "text/plain", format!("bad credentials: Bearer {}", INSIDE[4]))
    } else {
        let text = "{\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"ok\"},\"finish_reason\":\"stop\"}]}";
        ("200 OK", "application/json", text.to_owned())
    };
    let reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nSet-Cookie: {}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        OUTSIDE[8],
        body.len()
    );
    let _ = tcp.write_all(reply.as_bytes());
}

/// Reads a request whole; its head.
fn read_request(tcp: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut block = [0u8; 4096];
    loop {
        let n = tcp.read(&mut block).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&block[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        });
        if body.len() >= length.unwrap_or(0) {
            return Some(head.to_owned());
        }
    }
}

fn ask(address: SocketAddr, request: &str) -> String {
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    tcp.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    let _ = tcp.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

fn post(target: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nHost: proxy\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn hits(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(hits(&path, text));
        } else if holds(&std::fs::read(&path).unwrap_or_default(), text) {
            found.push(path.display().to_string());
        }
    }
    found
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// All traffic. Returns how many requests were recorded, at least.
fn talk(address: SocketAddr, admin: SocketAddr) {
    let chat = |text: &str| {
        format!("{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}")
    };
    let bearer = |key: &str| format!("Authorization: Bearer {key}\r\n");
    let path = "/v1/x/chat/completions";
    let mut replies = vec![
        ask(address, &post(path, &bearer(OUTSIDE[0]), &chat("hello"))),
        ask(address, &post(path, &format!("x-api-key: {}\r\n", OUTSIDE[1]), &chat("hello"))),
        ask(address, &post(path, &format!("api-key: {}\r\n", OUTSIDE[2]), &chat("hello"))),
        ask(address, &post(path, &format!("Cookie: {}\r\n", OUTSIDE[3]), &chat("hello"))),
        ask(
            address,
            &post(path, &format!("Proxy-Authorization: Basic {}\r\n", OUTSIDE[4]), &chat("hello")),
        ),
        ask(address, &post(path, &format!("x-goog-api-key: {}\r\n", OUTSIDE[5]), &chat("hello"))),
        ask(address, &post(&format!("{path}?key={}", OUTSIDE[6]), "", &chat("hello"))),
        ask(address, &post(path, "", &chat(&format!("my key is {}", INSIDE[0])))),
        ask(address, &post("/v1/stream/chat/completions", "", &chat("which key?"))),
        ask(address, &post("/v1/error/chat/completions", "", &chat("hello"))),
        ask(address, &post("/v1/echo/chat/completions", "", &chat("hello"))),
        ask(
            address,
            &post(
                "/v1/files",
                "",
                &format!(
                    "--b\r\nContent-Disposition: form-data; name=\"k\"\r\n\r\n{}\r\n--b--\r\n",
                    INSIDE[5]
                ),
            ),
        ),
        ask(
            address,
            &post(
                path,
                &format!("x-session-id: {}\r\nUser-Agent: {}\r\n", INSIDE[7], INSIDE[8]),
                &chat("hello"),
            ),
        ),
    ];
    let call = format!(
        "{{\"metadata\":{{\"k\":\"{}\"}},\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}},{{\"role\":\"assistant\",\
         \"content\":null,\"tool_calls\":[{{\"id\":\"c\",\"type\":\"function\",\"function\":{{\"name\":\"f\",\
         \"arguments\":\"{{\\\"k\\\":\\\"{}\\\"}}\"}}}}]}},{{\"role\":\"tool\",\"tool_call_id\":\"c\",\"content\":\"y\"}}]}}",
        INSIDE[6], INSIDE[1]
    );
    replies.push(ask(address, &post(path, "", &call)));
    assert!(replies.iter().all(|reply| reply.starts_with("HTTP/1.1 ")), "{replies:?}");
    assert!(replies[9].contains(INSIDE[3]) && replies[10].contains(INSIDE[4]), "transparent");
    // Refused requests; whatever the answer is.
    let userinfo = format!("http://user:{}@proxy{path}", OUTSIDE[7]);
    ask(address, &post(&userinfo, "", &chat("hello")));
    ask(address, &post("/v1/load_lora_adapter", &bearer(OUTSIDE[10]), "{}"));
    ask(
        address,
        &post(path, &format!("{}Transfer-Encoding: chunked\r\n", bearer(OUTSIDE[10])), "x"),
    );
    let wrong = format!(
        "GET /v1/status HTTP/1.1\r\nHost: a\r\n{}Connection: close\r\n\r\n",
        bearer(OUTSIDE[9])
    );
    ask(admin, &wrong);
}

#[test]
fn no_secret_is_written_anywhere_at_any_log_level() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path().join("data"));
    data.create().unwrap();
    hone_shared::policy::install_builtin(&data.policies_dir()).unwrap();
    let route = "mode = \"observe\"\nalias = \"main\"\njudge = \"chat\"\ngate = \"chat\"\n\
                 redaction = \"secrets\"\n[matches]\npaths = [\"/v1/*\"]\n";
    for name in ["chat", "completions"] {
        std::fs::write(data.policies_dir().join(format!("routes/{name}.toml")), route).unwrap();
    }
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let upstream = Upstream::parse(&format!("http://{}", engine())).unwrap();
    let mut cfg = ProxyConfig::new(data.clone(), any, any, vec![upstream]);
    cfg.threads = 2;
    let (stop, (told, bound)) = (CancellationToken::new(), mpsc::channel::<Bound>());
    let token = stop.clone();
    let proxy = std::thread::spawn(move || {
        hone_proxy::serve(cfg, token, false, |bound| told.send(bound).unwrap())
    });
    let bound = bound.recv_timeout(Duration::from_secs(20)).unwrap();
    talk(bound.address, bound.admin_address);

    let admin_token = data.admin_token().unwrap();
    let page = |path: &str| {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {admin_token}\r\n\
             Connection: close\r\n\r\n"
        );
        ask(bound.admin_address, &request)
    };
    let since = Instant::now();
    while !page("/v1/status").contains("\"pending\":0") && since.elapsed().as_secs() < 20 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let pages = [page("/v1/status"), page("/metrics"), page("/livez"), page("/readyz")].concat();
    // The spool still holds every record as it came.
    assert!(!hits(&data.spool_dir(), INSIDE[0]).is_empty(), "the search finds what is there");
    for secret in OUTSIDE {
        assert_eq!(hits(data.path(), secret), [""; 0], "{secret}");
    }
    for secret in INSIDE {
        let found = hits(data.path(), secret);
        assert!(found.iter().all(|file| file.contains("/spool/")), "{secret}: {found:?}");
    }
    stop.cancel();
    proxy.join().unwrap().unwrap();

    let logged = log.0.lock().unwrap().clone();
    assert!(holds(&logged, "proxy ready") && holds(&logged, "TRACE"), "logging works");
    for secret in OUTSIDE.iter().chain(&INSIDE).chain([&admin_token.as_str()]) {
        assert!(!holds(&logged, secret), "{secret} is in the log");
        assert!(!holds(pages.as_bytes(), secret), "{secret} is on a page");
    }
    for secret in OUTSIDE.iter().chain(&INSIDE) {
        assert_eq!(hits(data.path(), secret), [""; 0], "{secret}");
    }
    let store = rusqlite::Connection::open(data.store_path()).unwrap();
    let count: i64 = store.query_row("SELECT count(*) FROM turns", [], |row| row.get(0)).unwrap();
    assert!(count >= 14, "{count} turns are stored");
    let rules: i64 =
        store.query_row("SELECT sum(count) FROM turn_redactions", [], |row| row.get(0)).unwrap();
    assert!(rules >= 8, "{rules} hits are counted");
}
