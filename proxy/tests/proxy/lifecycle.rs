//! Starting, stopping, signals and sudden death.

use std::net::SocketAddr;
use std::time::Duration;

use hone_shared::data_dir::{DataDir, RunFile};

use crate::client::{Client, ask, chat, get_admin, post};
use crate::harness::{Proxy, config, eventually, turns_in, write_policies};
use crate::origin::{Origin, stream};
use crate::process::Process;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_proxy_stops_at_once_however_long_its_grace() {
    let origin = Origin::start().await;
    let mut proxy = Proxy::with(origin.address, "observe", |cfg| cfg.grace_ms = 600_000).await;
    let mut idle = Client::connect(proxy.address).await;
    idle.send(&post("/v1/json/chat/completions", "", &chat("a", false))).await;
    assert!(idle.response().await.whole);
    let silent = Client::connect(proxy.address).await;
    let took = proxy.join().await;
    assert!(took < Duration::from_secs(15), "took {took:?} with nothing to wait for");
    assert!(idle.end().await);
    drop(silent);
    assert_eq!(RunFile::read(&proxy.data, "proxy").unwrap(), None);
    assert_eq!(turns_in(&proxy.data).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_the_stream_in_flight_and_stores_its_turn() {
    let origin = Origin::start().await;
    let mut proxy = Proxy::start(origin.address, "observe").await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/v1/paced/chat/completions?n=100&ms=10", "", &chat("a", true))).await;
    client.until("w2 ").await;
    proxy.stop();
    let not_ready = || std::net::TcpStream::connect(proxy.address).is_err();
    eventually("no new connection is taken", not_ready).await;
    assert_eq!(get_admin(proxy.admin, "/readyz", "Connection: close\r\n").await.status, 503);
    let response = client.response().await;
    assert!(response.whole);
    assert_eq!(response.text(), stream(100));
    proxy.join().await;
    let turns = turns_in(&proxy.data);
    assert_eq!((turns.len(), turns[0].outcome.as_str()), (1, "complete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_longer_than_the_grace_is_cut_and_what_it_said_is_kept() {
    let origin = Origin::start().await;
    let mut proxy = Proxy::with(origin.address, "observe", |cfg| cfg.grace_ms = 200).await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/v1/paced/chat/completions?n=100000&ms=10", "", &chat("a", true))).await;
    client.until("w2 ").await;
    proxy.join().await;
    assert!(!client.response().await.whole);
    let turns = turns_in(&proxy.data);
    assert_eq!((turns.len(), turns[0].outcome.as_str()), (1, "proxy_crash"));
    assert!(turns[0].response.contains("w0 w1 w2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_and_a_wrong_policy_are_clear_errors() {
    let origin = Origin::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut cfg = config(dir.path(), origin.address);
    cfg.data.create().unwrap();
    write_policies(&cfg.data, "observe");
    cfg.listen = origin.address;
    let data = cfg.data.clone();
    let error = start_error(cfg).await;
    assert!(error.contains(&origin.address.to_string()) && error.contains("taken"), "{error}");

    let address = "127.0.0.1:1".to_owned();
    let running = RunFile { pid: 1, address, admin_address: None, started_ms: 1 };
    running.write(&data, "proxy").unwrap();
    let mut cfg = config(dir.path(), origin.address);
    cfg.admin = origin.address;
    start_error(cfg).await;
    let left = RunFile::read(&data, "proxy").unwrap();
    assert_eq!(left, Some(running), "the run file of another proxy stays");

    let file = data.policies_dir().join("routes/test.toml");
    std::fs::write(&file, "mode = \"on\"\n").unwrap();
    let error = start_error(config(dir.path(), origin.address)).await;
    assert!(error.contains("routes/test.toml"), "{error}");
}

async fn start_error(cfg: hone_proxy::ProxyConfig) -> String {
    let stop = tokio_util::sync::CancellationToken::new();
    let serve = move || hone_proxy::serve(cfg, stop, false, |_| {});
    tokio::task::spawn_blocking(serve).await.unwrap().unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_streams_reach_their_end_through_a_shutdown() {
    let origin = Origin::start().await;
    let mut proxy = Proxy::start(origin.address, "observe").await;
    let mut clients = Vec::new();
    for at in 0..200 {
        let mut client = Client::connect(proxy.address).await;
        let text = chat(&format!("stream {at} end"), true);
        client.send(&post("/v1/paced/chat/completions?n=40&ms=50", "", &text)).await;
        clients.push(client);
    }
    for client in &mut clients {
        client.until("w0 ").await;
    }
    proxy.stop();
    for mut client in clients {
        let response = client.response().await;
        assert!(response.whole && response.text() == stream(40));
    }
    proxy.join().await;
    let turns = turns_in(&proxy.data);
    assert_eq!(turns.len(), 200);
    assert!(turns.iter().all(|turn| turn.outcome == "complete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reads_policies_again_and_sigterm_drains_and_exits_0() {
    let origin = Origin::start().await;
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    data.create().unwrap();
    write_policies(&data, "off");
    let (mut process, file) = Process::start(&data, origin.address).await;
    let address: SocketAddr = file.address.parse().unwrap();
    write_policies(&data, "observe");
    process.signal("-HUP");
    let mut asked = 0;
    while origin.seen().last().is_none_or(|seen| !seen.headers.contains_key("x-hone-generation")) {
        assert_eq!(
            ask(address, &post("/v1/json/chat/completions", "", &chat("a", false))).await.status,
            200
        );
        asked += 1;
        assert!(asked < 1000, "the policy was never read again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut client = Client::connect(address).await;
    client.send(&post("/v1/paced/chat/completions?n=50&ms=10", "", &chat("last", true))).await;
    client.until("w1 ").await;
    process.signal("-TERM");
    assert!(client.response().await.whole);
    assert!(process.ended().await.success());
    let turns = turns_in(&data);
    assert!(turns.last().unwrap().request.contains("last"));
    assert!(turns.iter().all(|turn| turn.outcome == "complete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_every_answered_turn_is_stored_once_and_the_open_one_as_a_crash() {
    let origin = Origin::start().await;
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    data.create().unwrap();
    write_policies(&data, "observe");
    for round in 0..3 {
        let (mut process, file) = Process::start(&data, origin.address).await;
        let address: SocketAddr = file.address.parse().unwrap();
        for at in 0..10 {
            let text = format!("round {round} turn {at} end");
            ask(address, &post("/v1/json/chat/completions", "", &chat(&text, false))).await;
        }
        let mut client = Client::connect(address).await;
        client
            .send(&post("/v1/paced/chat/completions?n=1000&ms=10", "", &chat("open", true)))
            .await;
        client.until("w1 ").await;
        process.signal("-KILL");
        assert!(!process.ended().await.success());
    }
    let (mut process, _) = Process::start(&data, origin.address).await;
    eventually("the dead processes' turns are adopted", || turns_in(&data).len() == 33).await;
    process.signal("-TERM");
    assert!(process.ended().await.success());
    let turns = turns_in(&data);
    assert_eq!(turns.len(), 33);
    for round in 0..3 {
        for at in 0..10 {
            let text = format!("round {round} turn {at} end");
            let found = turns.iter().filter(|turn| turn.request.contains(&text));
            assert_eq!(found.count(), 1, "{text}");
        }
    }
    // The three open ones, and at most an answer or two that was still on its way to the disk.
    let crashes = turns.iter().filter(|turn| turn.outcome == "proxy_crash").count();
    assert!((3..=6).contains(&crashes), "{crashes}");
    let store = hone_shared::store::Store::open_read_only(&data.store_path()).unwrap();
    assert_eq!(store.integrity_check().unwrap(), ["ok"]);
}
