//! TLS between proxy and engine: what is trusted, what is refused, and what everybody is told.

use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::Bytes;
use hone_proxy::{EngineTls, KeyFiles, Upstream};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::certificates::{Authority, Identity, self_signed, terminate, write_file};
use crate::client::{Response, ask, chat, post};
use crate::harness::Proxy;
use crate::origin::{Origin, stream};

/// A proxy in front of `https://<host>:<port of address>`.
async fn in_front_of(address: SocketAddr, host: &str, tls: EngineTls) -> Proxy {
    let url = format!("https://{host}:{}", address.port());
    Proxy::with(address, "observe", move |cfg| {
        cfg.upstreams = vec![Upstream::parse(&url).unwrap()];
        cfg.engine_tls = tls;
    })
    .await
}

fn trusting(authority: &Authority) -> EngineTls {
    EngineTls { ca_file: Some(authority.file()), ..EngineTls::default() }
}

async fn send(proxy: &Proxy, kind: &str) -> Response {
    let target = format!("/v1/{kind}/chat/completions");
    ask(proxy.address, &post(&target, "", &chat("hello", true))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_a_good_certificate_is_spoken_to_by_its_name_or_address() {
    let (authority, origin) = (Authority::new(), Origin::start().await);
    let identity = authority.issue(&["localhost", "127.0.0.1"]);
    let config = authority.server(&identity, false, &[]);
    let (address, names) = terminate(origin.address, config).await;
    for host in ["localhost", "127.0.0.1"] {
        let proxy = in_front_of(address, host, trusting(&authority)).await;
        let response = send(&proxy, "burst").await;
        assert!(response.whole && response.text() == stream(5), "{}", response.text());
        assert_eq!(proxy.settled(1).await["stored"], 1);
    }
    let names = names.lock().unwrap().clone();
    assert_eq!(names, [Some("localhost".to_owned()), None], "SNI holds names, never addresses");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_cannot_be_trusted_gets_nothing_and_everybody_learns_why() {
    let (authority, other) = (Authority::new(), Authority::new());
    let cases: [(&str, Identity); 4] = [
        ("tls_name", authority.issue(&["other.test"])),
        (
            "tls_expired",
            authority.issue_until(
                &["localhost"],
                SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000),
            ),
        ),
        ("tls_untrusted", self_signed(&["localhost"])),
        ("tls_untrusted", other.issue(&["localhost"])),
    ];
    for (kind, identity) in cases {
        let origin = Origin::start().await;
        let config = authority.server(&identity, false, &[]);
        let (address, _) = terminate(origin.address, config).await;
        let proxy = in_front_of(address, "localhost", trusting(&authority)).await;
        let response = send(&proxy, "json").await;
        assert_eq!(response.status, 502, "{kind}");
        assert_eq!(response.json()["error"]["code"], "engine_tls_failed");
        assert!(!response.text().to_lowercase().contains("certificate verif"), "nothing internal");
        assert!(origin.seen().is_empty(), "{kind}: the engine saw a request");
        let status = proxy.status().await;
        assert_eq!(status["engines"][0]["connect_failures"][kind], 1, "{kind}: {status}");
        let metrics = proxy.admin_get("/metrics").await.text();
        assert!(metrics.contains(&format!("kind=\"{kind}\"}} 1")), "{metrics}");
        proxy.settled(1).await;
        assert_eq!(proxy.turns()[0].outcome, "upstream_error");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_tls_on_an_https_address_is_a_tls_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let _ = tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await;
        }
    });
    let proxy = in_front_of(address, "localhost", EngineTls::default()).await;
    let response = send(&proxy, "json").await;
    assert_eq!(
        (response.status, &response.json()["error"]["code"]),
        (502, &Value::from("engine_tls_failed"),)
    );
    let failures = proxy.status().await["engines"][0]["connect_failures"].clone();
    assert_eq!(failures["tls_other"], 1, "{failures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_can_be_switched_off_by_name_only() {
    let (authority, origin) = (Authority::new(), Origin::start().await);
    let config = authority.server(&self_signed(&["whatever.test"]), false, &[]);
    let (address, _) = terminate(origin.address, config).await;
    let careless = EngineTls { verify: false, ..EngineTls::default() };
    let proxy = in_front_of(address, "localhost", careless).await;
    assert_eq!(send(&proxy, "json").await.status, 200);
    assert!(EngineTls::default().verify);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_asks_for_a_certificate_gets_the_proxys() {
    let (authority, origin) = (Authority::new(), Origin::start().await);
    let config = authority.server(&authority.issue(&["localhost"]), true, &[]);
    let (address, _) = terminate(origin.address, config).await;
    let client = authority.files(&authority.issue(&["proxy.test"]));
    let known = EngineTls { client: Some(client), ..trusting(&authority) };
    let proxy = in_front_of(address, "localhost", known).await;
    assert_eq!(send(&proxy, "json").await.status, 200);
    let unknown = in_front_of(address, "localhost", trusting(&authority)).await;
    assert_eq!(send(&unknown, "json").await.status, 502);
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn issue_3_changed_files_are_used_for_new_connections_and_bad_ones_change_nothing() {
    let (authority, origin, other) = (Authority::new(), Origin::start().await, Authority::new());
    let config = authority.server(&authority.issue(&["localhost"]), true, &[]);
    let (address, _) = terminate(origin.address, config).await;
    let dir = tempfile::tempdir().unwrap();
    let name = |end: &str| dir.path().join(end);
    let files = KeyFiles { certificate: name("client.pem"), key: name("client.key") };
    let trusted = |by: &Authority| {
        write_file(&name("ca.pem"), &std::fs::read_to_string(by.file()).unwrap());
    };
    trusted(&other);
    other.issue(&["proxy.test"]).write(&files);
    let tls = EngineTls {
        ca_file: Some(name("ca.pem")),
        client: Some(files.clone()),
        ..EngineTls::default()
    };
    let proxy = in_front_of(address, "localhost", tls).await;
    assert_eq!(send(&proxy, "json").await.status, 502, "neither trusts the other");

    // Halfway through a replacement: the key is not the certificate's yet.
    trusted(&authority);
    let new = authority.issue(&["proxy.test"]);
    let half = KeyFiles { key: name("later.key"), ..files.clone() };
    new.write(&half);
    let problems = proxy.refresh().await["problems"].clone();
    assert!(problems[0].as_str().unwrap().contains("does not fit"), "{problems}");
    let state = proxy.status().await["engine_tls"].clone();
    assert_eq!((&state["loads"], state["problem"].is_string()), (&Value::from(1), true));
    let metrics = proxy.admin_get("/metrics").await.text();
    assert!(metrics.contains("hone_engine_tls_problem 1"), "{metrics}");
    assert_eq!(send(&proxy, "json").await.status, 502, "the last good ones stay");

    new.write(&files);
    assert_eq!(proxy.refresh().await["problems"], serde_json::json!([]));
    assert_eq!(send(&proxy, "json").await.status, 200);
    let state = proxy.status().await["engine_tls"].clone();
    assert_eq!((&state["loads"], &state["problem"]), (&Value::from(2), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_spoken_where_it_was_asked_for_and_the_engine_takes_it() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let address = h2_engine(TlsAcceptor::from(authority.server(&identity, false, &["h2"]))).await;
    let h2 = EngineTls { h2: true, ..trusting(&authority) };
    let proxy = in_front_of(address, "localhost", h2.clone()).await;
    for size in [2, 200_000] {
        let body = vec![b'x'; size];
        let response = ask(proxy.address, &post("/v1/x/chat/completions", "", &body)).await;
        assert_eq!(response.text(), format!("HTTP/2.0 {size} base"), "{}", response.status);
    }
    // An engine that knows only HTTP/1.1 gets that.
    let origin = Origin::start().await;
    let config = authority.server(&identity, false, &["http/1.1"]);
    let (address, _) = terminate(origin.address, config).await;
    let proxy = in_front_of(address, "localhost", h2).await;
    assert_eq!(send(&proxy, "json").await.status, 200);
}

/// Answers over HTTP/2 with the version, the length of the body and the generation.
async fn h2_engine(acceptor: TlsAcceptor) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let mut connection = h2::server::handshake(tls).await.unwrap();
                while let Some(Ok((request, answer))) = connection.accept().await {
                    tokio::spawn(answer_h2(request, answer));
                }
            });
        }
    });
    address
}

async fn answer_h2(
    request: http::Request<h2::RecvStream>,
    mut answer: h2::server::SendResponse<Bytes>,
) {
    let (head, mut body) = request.into_parts();
    let mut len = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        len += chunk.len();
        body.flow_control().release_capacity(chunk.len()).unwrap();
    }
    let generation = head.headers.get("x-hone-generation").map_or("-", |v| v.to_str().unwrap());
    let text = format!("{:?} {len} {generation}", head.version);
    let response = http::Response::builder().header("content-length", text.len());
    let mut stream = answer.send_response(response.body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from(text), true).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_said_so_at_the_start() {
    let (authority, other) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let nonsense = dir.path().join("nonsense.pem");
    write_file(&nonsense, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let empty = dir.path().join("empty.pem");
    write_file(&empty, "");
    let mut mixed = authority.files(&authority.issue(&["a"]));
    mixed.key = other.files(&other.issue(&["a"])).key;
    let ca = |file| EngineTls { ca_file: Some(file), ..EngineTls::default() };
    for (tls, word) in [
        (ca(dir.path().join("none.pem")), "none.pem"),
        (ca(nonsense), "nonsense.pem"),
        (ca(empty), "empty.pem"),
        (EngineTls { client: Some(mixed), ..EngineTls::default() }, "does not fit"),
    ] {
        let mut cfg = crate::harness::config(dir.path(), "127.0.0.1:9".parse().unwrap());
        cfg.upstreams = vec![Upstream::parse("https://localhost:9").unwrap()];
        cfg.engine_tls = tls;
        let token = tokio_util::sync::CancellationToken::new();
        let start = move || hone_proxy::serve(cfg, token, false, |_| panic!("must not start"));
        let error = tokio::task::spawn_blocking(start).await.unwrap().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
