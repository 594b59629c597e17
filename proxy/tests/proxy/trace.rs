//! W3C trace context: passes as it came, and stands on the turn.

use rusqlite::Connection;

use crate::client::{ask, chat, post};
use crate::harness::Proxy;
use crate::origin::Origin;

#[tokio::test(flavor = "multi_thread")]
async fn trace_context_reaches_the_engine_unchanged_and_is_stored_with_the_turn() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let state = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";
    let headers = format!("Traceparent: {parent}\r\ntracestate: {state}\r\nbaggage: a=b\r\n");
    ask(proxy.address, &post("/v1/json/chat/completions", &headers, &chat("a", false))).await;
    proxy.settled(1).await;
    let seen = origin.seen().pop().unwrap().headers;
    assert_eq!((seen["traceparent"].as_str(), seen["tracestate"].as_str()), (parent, state));
    assert_eq!(seen["baggage"], "a=b");
    let rows = Connection::open(proxy.data.store_path()).unwrap();
    let stored: String =
        rows.query_row("SELECT request_headers FROM turns", [], |row| row.get(0)).unwrap();
    assert!(stored.contains(parent) && stored.contains(state), "{stored}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_opts_out_passes_is_not_recorded_and_gets_the_base_model() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    for (headers, recorded) in
        [("X-Hone-Learn: off\r\n", false), ("x-hone-learn:  OFF \r\n", false), ("", true)]
    {
        let request = post("/v1/json/chat/completions", headers, &chat("private", false));
        assert_eq!(ask(proxy.address, &request).await.status, 200);
        let seen = origin.seen().pop().unwrap().headers;
        assert!(!seen.contains_key("x-hone-learn"), "hone's own headers stop here");
        assert_eq!(seen.contains_key("x-hone-generation"), recorded);
    }
    proxy.settled(1).await;
    assert_eq!(proxy.turns().len(), 1);
}
