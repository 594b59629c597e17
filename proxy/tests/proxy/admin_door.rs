//! Who may use the admin listener: every endpoint, in every spelling, with every token.

use std::time::Duration;

use hone_proxy::admin::ENDPOINTS;

use crate::client::{Client, ask};
use crate::harness::{Proxy, config, write_policies};
use crate::origin::Origin;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_nothing_but_health_is_reached_in_any_spelling() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let token = proxy.data.admin_token().unwrap();
    let wrong = [
        String::new(),
        "Authorization: Bearer wrong\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        format!("Authorization: Basic {token}\r\n"),
        format!("Authorization: Bearer {}\r\n", token.to_uppercase()),
        format!("Authorization: Bearer {}\r\n", &token[1..]),
        format!("Authorization: bearer{token}\r\n"),
        format!("X-Api-Key: {token}\r\n"),
        format!("Cookie: token={token}\r\n"),
    ];
    let methods = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "TRACE", "PATCH"];
    let guarded = ENDPOINTS.iter().filter(|endpoint| !endpoint.open);
    let mut asked = 0;
    for path in guarded.map(|endpoint| endpoint.path.replace("{name}", "test")) {
        let (rest, upper) = (&path[1..], path.to_uppercase());
        let spellings = [
            path.clone(),
            upper,
            format!("//{rest}"),
            format!("/%2f{rest}"),
            format!("/{}", rest.replace('/', "%2f")),
            format!("{path}/"),
            format!("/livez/..{path}"),
            format!("/readyz/%2e%2e{path}"),
            format!("{path}?token={token}"),
            format!("/livez;{path}"),
            format!("http://localhost{path}"),
        ];
        for method in methods {
            for spelling in &spellings {
                // Every token on the plain path; on the others none, which is the same decision.
                for header in wrong.iter().take(if *spelling == path { wrong.len() } else { 1 }) {
                    let request = format!(
                        "{method} {spelling} HTTP/1.1\r\nHost: localhost\r\n{header}\
                         Content-Length: 0\r\nConnection: close\r\n\r\n"
                    );
                    let status = head(&proxy, &request).await;
                    assert!([401, 404].contains(&status), "{status}: {request}");
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 500, "{asked}");
    let status = proxy.status().await;
    assert_eq!(status["routes"][0]["mode"], "observe");
}

/// The status only: an answer to `HEAD` has a length and no body.
async fn head(proxy: &Proxy, request: &str) -> u16 {
    let mut client = Client::connect(proxy.admin).await;
    client.send(request.as_bytes()).await;
    client.until(" ").await;
    client.response_head().await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_every_endpoint_answers_and_other_paths_are_not_found() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    for endpoint in ENDPOINTS {
        let path =
            endpoint.path.replace("{name}", "test").replace("{id}", "x").replace("{*id}", "x");
        let method = endpoint.methods.split(' ').next().unwrap();
        let response = proxy.admin_ask(method, &path, "").await;
        assert!(![401, 405].contains(&response.status), "{method} {path}: {}", response.status);
    }
    for path in ["/nothing", "//metrics", "/METRICS", "/v1%2fstatus", "/metrics/"] {
        assert_eq!(proxy.admin_ask("GET", path, "").await.status, 404, "{path}");
    }
    for path in ["/livez", "/readyz"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(ask(proxy.admin, request.as_bytes()).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_somebody_made_point_here_is_not_answered_even_with_the_token() {
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "observe", |cfg| {
        cfg.admin_hosts = vec!["hone.internal".to_owned()];
    })
    .await;
    let token = proxy.data.admin_token().unwrap();
    let asked = |host: &str| {
        let request = format!(
            "GET /livez HTTP/1.1\r\n{host}Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        async move { ask(proxy.admin, request.as_bytes()).await.status }
    };
    assert_eq!(asked("Host: hone.internal:81\r\n").await, 200);
    for host in ["Host: evil.example\r\n", "", "Host: localhost\r\nHost: evil.example\r\n"] {
        let status = asked(host).await;
        assert!([400, 421].contains(&status), "{status}: {host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_and_silent_connections_are_cut_off() {
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "observe", |cfg| {
        cfg.limits.admin_body_bytes_max = 1_000;
        cfg.limits.admin_connections_max = 4;
        cfg.limits.admin_idle_ms = 500;
    })
    .await;
    let body = format!("{{\"mode\": \"off\", \"reason\": \"{}\"}}", "x".repeat(2_000));
    let response = proxy.admin_ask("PUT", "/v1/routes/test/mode", &body).await;
    assert_eq!(response.status, 413);
    let mut silent = Vec::new();
    for _ in 0..8 {
        let mut client = Client::connect(proxy.admin).await;
        client.send(b"GET /livez HTTP/1.1\r\n").await;
        silent.push(client);
    }
    let patience = Duration::from_secs(20);
    let alive = tokio::time::timeout(patience, proxy.admin_get("/livez")).await;
    assert_eq!(alive.unwrap().status, 200, "silent connections give their places back");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_on_other_machines_need_a_token_file_and_then_have_names() {
    use std::os::unix::fs::PermissionsExt;
    let origin = Origin::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut cfg = config(dir.path(), origin.address);
    cfg.data.create().unwrap();
    write_policies(&cfg.data, "observe");
    cfg.admin = "0.0.0.0:0".parse().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let refused = {
        let (cfg, stop) = (cfg.clone(), stop.clone());
        tokio::task::spawn_blocking(move || hone_proxy::serve(cfg, stop, false, |_| {}))
    };
    let error = refused.await.unwrap().unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("--admin-token-file"), "{error}");

    let proxy = Proxy::with(origin.address, "learn", |cfg| {
        let file = cfg.data.path().join("tokens");
        std::fs::write(&file, "alice 0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        cfg.admin = "0.0.0.0:0".parse().unwrap();
        cfg.admin_token_file = Some(file);
    })
    .await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], proxy.admin.port()));
    let body = "{\"mode\": \"off\"}";
    let request = format!(
        "PUT /v1/routes/test/mode HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\
         Authorization: Bearer 0123456789abcdef\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(ask(address, request.as_bytes()).await.status, 200);
    let audit = proxy.admin_get("/v1/audit").await.json();
    assert_eq!(audit["data"][0]["actor"], "alice");
}
