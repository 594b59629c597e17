//! What does differ by design, each with its reason.

use crate::engine::Engine;
use crate::exchange::{Exchange, Framing, Reply};
use crate::harness::Proxy;
use crate::lanes::ask_all;

/// One exchange, direct and through the proxy.
async fn both(exchange: Exchange) -> [crate::wire::Message; 2] {
    let exchanges = [exchange];
    let engine = Engine::start(&exchanges).await;
    let proxy = Proxy::start(engine.address, "observe").await;
    let direct = ask_all(engine.address, &exchanges, 1).await.remove(0);
    let through = ask_all(proxy.address, &exchanges, 1).await.remove(0);
    [direct.last, through.last]
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_over_http1_are_discarded_and_the_body_stays_whole() {
    // RFC 9110 §6.5.1 lets an intermediary discard them; pingora 0.9.1 does. No engine sends any.
    let trailers = vec![("X-Checksum".to_owned(), b"abc".to_vec())];
    let framing = Framing::Chunked { starts: vec![0], extension: "", trailers };
    let reply = Reply { body: b"hello".to_vec(), framing, ..Reply::default() };
    let [direct, through] = both(Exchange::post(0, "/v1/x", Vec::new(), reply)).await;
    assert_eq!((direct.trailers.len(), through.trailers.len()), (1, 0));
    assert!(through.whole);
    assert_eq!(through.body, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_one_hop_end_at_the_proxy() {
    let fields = [("Keep-Alive", "timeout=5"), ("Proxy-Connection", "keep-alive"), ("X-Kept", "1")];
    let fields = fields.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec();
    let reply = Reply { body: b"hello".to_vec(), ..Reply::default() };
    let mut exchange = Exchange::post(0, "/v1/x", Vec::new(), reply);
    exchange.fields.extend(fields);
    let exchanges = [exchange];
    let engine = Engine::start(&exchanges).await;
    let proxy = Proxy::start(engine.address, "off").await;
    ask_all(proxy.address, &exchanges, 1).await;
    let seen = engine.take_seen().remove(&0).unwrap().remove(0);
    assert!(seen.field("keep-alive").is_none() && seen.field("proxy-connection").is_none());
    assert_eq!(seen.field("x-kept"), Some(&b"1"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_date_of_a_response_is_the_proxys_own() {
    // Pingora 0.9.1 replaces it and offers no way round; §6.6.1 asks for one where there was none.
    let old = "Sun, 22 Nov 2020 10:00:00 GMT";
    let fields = vec![("Date".to_owned(), old.into())];
    let reply = Reply { fields, body: b"hello".to_vec(), ..Reply::default() };
    let [direct, through] = both(Exchange::post(0, "/v1/x", Vec::new(), reply)).await;
    assert_eq!(direct.field("date"), Some(old.as_bytes()));
    assert!(
        through.field("date").is_some_and(|date| date.ends_with(b" GMT") && date != old.as_bytes())
    );
}
