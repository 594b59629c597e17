//! HTTP/2 clients with prior knowledge get what HTTP/1.1 clients get.

use std::collections::BTreeMap;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderName, HeaderValue, Method, Request};
use tokio::net::TcpStream;

use crate::compare;
use crate::diff::{drawn, none};
use crate::engine::Engine;
use crate::exchange::{Exchange, Framing};
use crate::harness::Proxy;
use crate::lanes::ask_all;

/// What a client got over HTTP/2.
#[derive(Debug, Default)]
struct Got {
    status: u16,
    fields: BTreeMap<String, Vec<String>>,
    body: Vec<u8>,
    whole: bool,
}

/// Whether HTTP/2 can carry the exchange as it is.
fn possible(exchange: &Exchange) -> bool {
    !exchange.http10 && !exchange.expects
}

async fn ask(send: &mut SendRequest<Bytes>, exchange: &Exchange) -> Option<Got> {
    let method = Method::from_bytes(exchange.method.as_bytes()).unwrap();
    let uri = format!("http://engine.test{}", exchange.target);
    let mut request = Request::builder().method(method).uri(uri).body(()).unwrap();
    for (name, value) in exchange.request_fields().iter().skip(1) {
        if !["connection", "keep-alive"].contains(&name.to_ascii_lowercase().as_str()) {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
        }
    }
    std::future::poll_fn(|cx| send.poll_ready(cx)).await.ok()?;
    let bodiless = exchange.framing == Framing::None;
    let (response, mut upload) = send.send_request(request, bodiless).ok()?;
    if !bodiless {
        upload.send_data(Bytes::from(exchange.body.clone()), true).ok()?;
    }
    let mut response = response.await.ok()?;
    let mut got = Got { status: response.status().as_u16(), whole: true, ..Got::default() };
    let other = |(name, _): &(&HeaderName, &HeaderValue)| *name != http::header::DATE;
    for (name, value) in response.headers().iter().filter(other) {
        let value = value.as_bytes().escape_ascii().to_string();
        got.fields.entry(name.as_str().to_owned()).or_default().push(value);
    }
    while let Some(data) = response.body_mut().data().await {
        let Ok(data) = data else {
            got.whole = false;
            break;
        };
        let _ = response.body_mut().flow_control().release_capacity(data.len());
        got.body.extend_from_slice(&data);
    }
    Some(got)
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_clients_get_what_http1_clients_get_direct() {
    let exchanges: Vec<Exchange> = drawn().into_iter().filter(possible).take(400).collect();
    let engine = Engine::start(&exchanges).await;
    let direct = ask_all(engine.address, &exchanges, 16).await;
    let asked = engine.take_seen();
    let proxy = Proxy::start(engine.address, "observe").await;
    let mut found = Vec::new();
    for (part, direct) in exchanges.chunks(50).zip(direct.chunks(50)) {
        let tcp = TcpStream::connect(proxy.address).await.unwrap();
        let (send, connection) = h2::client::handshake(tcp).await.unwrap();
        tokio::spawn(connection);
        let all = part.iter().map(|exchange| {
            let mut send = send.clone();
            async move { ask(&mut send, exchange).await.unwrap_or_default() }
        });
        let got = futures::future::join_all(all).await;
        for ((exchange, direct), got) in part.iter().zip(direct).zip(got) {
            let fields = compare::end_to_end(&direct.last.fields).into_iter();
            let values =
                |all: Vec<(String, String)>| all.into_iter().map(|(_, value)| value).collect();
            let fields: BTreeMap<String, Vec<String>> =
                fields.map(|(name, all)| (name, values(all))).collect();
            let about =
                format!("exchange {}: {} {}", exchange.number, exchange.method, exchange.target);
            let last = &direct.last;
            if (last.status(), &fields, last.whole) != (got.status, &got.fields, got.whole) {
                let (whole, status) = (last.whole, last.status());
                let Got { status: its, fields: theirs, whole: done, .. } = &got;
                found.push(format!(
                    "{about}: {status} {whole} {fields:?}\n  {its} {done} {theirs:?}"
                ));
            }
            // The reset of a stream overtakes data that is still queued: of an answer that the
            // engine broke off, less may arrive.
            let same = last.body == got.body || (!last.whole && last.body.starts_with(&got.body));
            if !same {
                found.push(format!(
                    "{about}: {} bytes, {} over h2",
                    last.body.len(),
                    got.body.len()
                ));
            }
        }
    }
    let seen = engine.take_seen();
    for exchange in &exchanges {
        let (direct, through) = (&asked[&exchange.number][0], seen.get(&exchange.number));
        let Some([through]) = through.map(Vec::as_slice) else {
            found.push(format!("exchange {} was asked {through:?}", exchange.number));
            continue;
        };
        if direct.body != through.body || !through.whole {
            found.push(format!("exchange {}: another request body", exchange.number));
        }
    }
    none(&found);
}
