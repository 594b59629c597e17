//! A new program takes over from the running one, and no client notices.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hone_proxy::ListenTls;
use hone_shared::data_dir::{DataDir, RunFile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::certificates::Authority;
use crate::client::{Client, ask, chat, post};
use crate::harness::{eventually, turns_in, write_policies};
use crate::origin::{Origin, stream};
use crate::process::{Process, signal};

const UPGRADES: u64 = 20;

struct Load {
    address: SocketAddr,
    stop: AtomicBool,
    asked: AtomicU64,
}

impl Load {
    /// One request; every answer must be whole.
    fn next(&self) -> (u64, Vec<u8>) {
        let id = self.asked.fetch_add(1, Ordering::SeqCst);
        (id, post("/v1/json/chat/completions", "", &chat(&format!("request {id} end"), false)))
    }

    async fn on_new_connections(self: Arc<Self>) {
        while !self.stop.load(Ordering::SeqCst) {
            let (id, request) = self.next();
            let response = ask(self.address, &request).await;
            assert!(response.status == 200 && response.whole, "request {id}: {response:?}");
        }
    }

    async fn on_kept_connections(self: Arc<Self>) {
        while !self.stop.load(Ordering::SeqCst) {
            let mut client = Client::connect(self.address).await;
            loop {
                let (id, request) = self.next();
                client.send(&request).await;
                let response = client.response().await;
                assert!(response.status == 200 && response.whole, "request {id}: {response:?}");
                let last = response.headers.get("connection").is_some_and(|v| v == "close");
                if last || self.stop.load(Ordering::SeqCst) {
                    break;
                }
                // Not all the time in flight: a connection is also idle when its process is replaced.
                tokio::time::sleep(Duration::from_millis(id % 7)).await;
            }
        }
    }
}

async fn data() -> (tempfile::TempDir, DataDir, Origin) {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    data.create().unwrap();
    write_policies(&data, "observe");
    (dir, data, Origin::start().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_upgrades_under_load_fail_no_request_and_store_every_turn_once() {
    let (_dir, data, origin) = data().await;
    let (mut current, mut file) = Process::start(&data, origin.address).await;
    let address: SocketAddr = file.address.parse().unwrap();
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = Arc::new(Load { address, stop, asked });
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(tokio::spawn(Arc::clone(&load).on_new_connections()));
        clients.push(tokio::spawn(Arc::clone(&load).on_kept_connections()));
    }
    let (mut streams, mut old) = (Vec::new(), Vec::new());
    for round in 0..UPGRADES {
        let mut client = Client::connect(address).await;
        let text = chat(&format!("stream {round} end"), true);
        client.send(&post("/v1/paced/chat/completions?n=60&ms=20", "", &text)).await;
        client.until("w0 ").await;
        streams.push(tokio::spawn(async move { client.response().await }));
        let (next, took) = Process::upgrade(&data, origin.address, &file).await;
        assert_eq!((&took.address, &took.admin_address), (&file.address, &file.admin_address));
        old.push(std::mem::replace(&mut current, next));
        file = took;
    }
    for stream_seen in streams {
        let response = stream_seen.await.unwrap();
        assert!(response.whole && response.text() == stream(60));
    }
    load.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    for process in &mut old {
        assert!(process.ended().await.success());
    }
    current.signal("-TERM");
    assert!(current.ended().await.success());
    assert_eq!(RunFile::read(&data, "proxy").unwrap(), None);
    assert!(!data.proxy_socket().exists());

    let asked = load.asked.load(Ordering::SeqCst);
    println!("{UPGRADES} upgrades, {asked} requests and {UPGRADES} streams, none failed");
    assert!(asked > 200, "only {asked} requests: that is no load");
    let turns = turns_in(&data);
    let texts: BTreeSet<String> = turns.iter().map(|turn| turn.request.clone()).collect();
    assert_eq!((turns.len() as u64, texts.len() as u64), (asked + UPGRADES, asked + UPGRADES));
    assert!(turns.iter().all(|turn| turn.outcome == "complete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigusr2_starts_a_successor_that_takes_over() {
    let (_dir, data, origin) = data().await;
    let (mut process, file) = Process::start(&data, origin.address).await;
    process.signal("-USR2");
    let new = || RunFile::read(&data, "proxy").unwrap().filter(|new| new.pid != file.pid);
    eventually("the successor is ready", || new().is_some()).await;
    assert!(process.ended().await.success());
    let new = new().unwrap();
    assert_eq!((&new.address, &new.admin_address), (&file.address, &file.admin_address));
    let address = new.address.parse().unwrap();
    let request = post("/v1/json/chat/completions", "", &chat("a", false));
    assert_eq!(ask(address, &request).await.status, 200);
    signal("-TERM", new.pid);
    eventually("the successor ends", || RunFile::read(&data, "proxy").unwrap().is_none()).await;
    eventually("its turn is stored", || turns_in(&data).len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_cannot_start_changes_nothing() {
    let (_dir, data, origin) = data().await;
    let (mut process, file) = Process::start(&data, origin.address).await;
    std::fs::write(data.policies_dir().join("routes/test.toml"), "mode = 1").unwrap();
    process.signal("-USR2");
    // Long enough for a successor to have come and gone; whatever happens, requests are answered.
    for _ in 0..30 {
        let request = post("/v1/json/chat/completions", "", &chat("a", false));
        assert_eq!(ask(file.address.parse().unwrap(), &request).await.status, 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(RunFile::read(&data, "proxy").unwrap(), Some(file));
    assert!(process.0.try_wait().unwrap().is_none());
    process.signal("-TERM");
    assert!(process.ended().await.success());
}

/// One request on a TLS connection of its own, with the leaf that was shown.
async fn ask_tls(authority: &Authority, address: SocketAddr) -> (String, Vec<u8>) {
    let mut tls = authority.connect(address, "localhost", &["http/1.1"]).await.unwrap();
    let leaf = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let request = post("/v1/json/chat/completions", "Connection: close\r\n", &chat("a", false));
    tls.write_all(&request).await.unwrap();
    let mut back = Vec::new();
    let _ = tls.read_to_end(&mut back).await;
    (String::from_utf8_lossy(&back).into_owned(), leaf)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tls_listener_is_handed_over_without_a_refused_connection_or_a_cut_stream() {
    let (_dir, data, origin) = data().await;
    let authority = Authority::new();
    let first = authority.issue(&["localhost"]);
    let files = authority.files(&first);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listen = ListenTls { address: free, files };
    let (mut old, file) = Process::start_tls(&data, origin.address, &listen, None).await;
    let mut stream_seen = authority.connect(free, "localhost", &["http/1.1"]).await.unwrap();
    let long = post("/v1/paced/chat/completions?n=100&ms=20", "", &chat("long", true));
    stream_seen.write_all(&long).await.unwrap();
    let mut start = [0u8; 64];
    stream_seen.read_exact(&mut start).await.unwrap();
    let (over, authority) = (Arc::new(AtomicBool::new(false)), Arc::new(authority));
    let asking = tokio::spawn({
        let (over, authority) = (Arc::clone(&over), Arc::clone(&authority));
        async move {
            let (mut asked, mut leaves) = (0, BTreeSet::new());
            while !over.load(Ordering::SeqCst) {
                let (answer, leaf) = ask_tls(&authority, free).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "request {asked}: {answer}");
                leaves.insert(leaf);
                asked += 1;
            }
            (asked, leaves.len())
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    authority.issue(&["localhost"]).write(&listen.files);
    let (mut new, took) = Process::start_tls(&data, origin.address, &listen, Some(&file)).await;
    assert_ne!(took.pid, file.pid);
    let mut rest = Vec::new();
    while !rest.ends_with(b"0\r\n\r\n") {
        assert!(stream_seen.read_buf(&mut rest).await.unwrap() > 0, "the stream was cut");
    }
    assert!(String::from_utf8_lossy(&rest).contains("[DONE]"));
    drop(stream_seen);
    assert!(old.ended().await.success());
    tokio::time::sleep(Duration::from_millis(300)).await;
    over.store(true, Ordering::SeqCst);
    let (asked, leaves) = asking.await.unwrap();
    println!("{asked} TLS connections during the hand-over, none failed");
    assert!(asked > 20 && leaves == 2, "{asked} requests, {leaves} certificates");
    new.signal("-TERM");
    assert!(new.ended().await.success());
    assert_eq!(turns_in(&data).len(), asked + 1);
}
