//! Sudden death: `kill -9` of a real proxy process under load, again and again.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hone_shared::data_dir::{DataDir, RunFile};
use hone_shared::store::Store;

use crate::client::{chat, post};
use crate::harness::{config, eventually, write_policies};
use crate::origin::Origin;
use crate::rows::turns_in;

const CHILD_DATA: &str = "HONE_DURABLE_TEST_DATA";
const CHILD_UPSTREAM: &str = "HONE_DURABLE_TEST_UPSTREAM";
/// Set: no tail, and answers wait so many milliseconds at most for their recording.
const CHILD_WAIT: &str = "HONE_DURABLE_TEST_WAIT";

/// Not a test: the proxy process of the test below, which runs this binary again.
#[test]
fn proxy_process() {
    let Ok(data) = std::env::var(CHILD_DATA) else { return };
    let upstream = std::env::var(CHILD_UPSTREAM).unwrap().parse().unwrap();
    let mut cfg = config(Path::new(&data), upstream);
    // An event or two: parts of every stream are on disk before its end.
    cfg.limits.capture_part_bytes = 150;
    if let Ok(wait) = std::env::var(CHILD_WAIT) {
        cfg.tail = None;
        cfg.limits.record_wait_ms_max = wait.parse().unwrap();
    }
    hone_proxy::run(cfg).unwrap();
}

pub async fn start(data: &DataDir, upstream: SocketAddr) -> (Child, SocketAddr) {
    let (child, run) = start_with(data, upstream, &[]).await;
    (child, run.address.parse().unwrap())
}

/// A proxy process without a tail.
pub async fn start_tailless(
    data: &DataDir,
    upstream: SocketAddr,
    wait_ms: u64,
) -> (Child, RunFile) {
    start_with(data, upstream, &[(CHILD_WAIT, wait_ms.to_string())]).await
}

async fn start_with(
    data: &DataDir,
    upstream: SocketAddr,
    more: &[(&str, String)],
) -> (Child, RunFile) {
    let child = Command::new(std::env::current_exe().unwrap())
        .envs(more.iter().map(|(name, value)| (name, value)))
        .args(["--exact", "death::proxy_process", "--nocapture"])
        .env(CHILD_DATA, data.path())
        .env(CHILD_UPSTREAM, upstream.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let id = child.id();
    let file = || RunFile::read(data, "proxy").ok().flatten().filter(|file| file.pid == id);
    eventually("the proxy process is ready", || file().is_some()).await;
    (child, file().unwrap())
}

/// Ends a proxy once it has adopted what dead ones left.
pub async fn adopt(data: &DataDir, upstream: SocketAddr) {
    let (mut child, _) = start(data, upstream).await;
    // Everything that is there is adopted when only the living process's directory is left.
    let left = || std::fs::read_dir(data.spool_dir()).unwrap().count();
    eventually("the dead processes' spools are adopted", || left() == 1).await;
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(child.wait().unwrap().success());
}

/// One client: asks without pause until the process dies; the texts whose answers came whole.
async fn client(address: SocketAddr, next: Arc<AtomicUsize>, over: Arc<AtomicBool>) -> Vec<String> {
    let mut answered = Vec::new();
    while !over.load(Ordering::SeqCst) {
        let text = format!("turn {} end", next.fetch_add(1, Ordering::SeqCst));
        let stream = answered.len() % 2 == 0;
        let kind = if stream { "paced" } else { "slow" };
        let target = format!("/v1/{kind}/chat/completions?n=3&ms=5");
        let request = post(&target, "", &chat(&text, stream));
        let Ok(tcp) = tokio::net::TcpStream::connect(address).await else { continue };
        if ask_once(tcp, &request).await {
            answered.push(text);
        }
    }
    answered
}

/// Whether the answer came whole. Any error is the death of the other side.
async fn ask_once(mut tcp: tokio::net::TcpStream, request: &[u8]) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    if tcp.write_all(request).await.is_err() {
        return false;
    }
    let (mut seen, mut chunk) = (Vec::new(), [0u8; 4096]);
    loop {
        match tcp.read(&mut chunk).await {
            Ok(n) if n > 0 => seen.extend_from_slice(&chunk[..n]),
            _ => return false,
        }
        let text = String::from_utf8_lossy(&seen);
        if text.starts_with("HTTP/1.1 200")
            && (text.ends_with("0\r\n\r\n") || text.ends_with("{\"slow\":true}"))
        {
            return true;
        }
    }
}

/// `HONE_KILLS=200` for the long form.
#[tokio::test(flavor = "multi_thread")]
async fn after_any_kill_9_every_answered_turn_is_stored_once() {
    let kills: u64 = std::env::var("HONE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let seed = std::env::var("HONE_SEED")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("HONE_SEED={seed} HONE_KILLS={kills}");
    let origin = Origin::start().await;
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    data.create().unwrap();
    write_policies(&data, "observe");
    let next = Arc::new(AtomicUsize::new(0));
    let mut answered = Vec::new();
    let mut random = seed | 1;
    for _ in 0..kills {
        let (mut child, address) = start(&data, origin.address).await;
        let over = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..6)
            .map(|_| tokio::spawn(client(address, Arc::clone(&next), Arc::clone(&over))))
            .collect();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(10 + (random >> 33) % 200)).await;
        child.kill().unwrap();
        over.store(true, Ordering::SeqCst);
        child.wait().unwrap();
        for client in clients {
            answered.extend(client.await.unwrap());
        }
    }
    adopt(&data, origin.address).await;
    let turns = turns_in(&data);
    let mut found: std::collections::HashMap<&str, (usize, &str)> = Default::default();
    for turn in &turns {
        let at = turn.request.find("turn ").unwrap_or_else(|| panic!("no prompt: {turn:?}"));
        let end = turn.request[at..].find(" end").unwrap() + at + 4;
        let entry = found.entry(&turn.request[at..end]).or_insert((0, &turn.outcome));
        entry.0 += 1;
    }
    let lost: Vec<_> = answered.iter().filter(|text| !found.contains_key(text.as_str())).collect();
    let crashed: Vec<_> = answered
        .iter()
        .filter(|t| found.get(t.as_str()).is_some_and(|f| f.1 != "complete"))
        .collect();
    println!(
        "{kills} kills: {} answered, {} rows, {} of the answered without their answer",
        answered.len(),
        turns.len(),
        crashed.len()
    );
    assert_eq!(lost, Vec::<&String>::new(), "answered and not stored");
    assert_eq!(crashed, Vec::<&String>::new(), "answered and stored without the answer");
    let twice: Vec<_> = found.iter().filter(|(_, (count, _))| *count > 1).collect();
    assert!(twice.is_empty(), "stored twice: {twice:?}");
    assert!(!answered.is_empty());
    let store = Store::open_read_only(&data.store_path()).unwrap();
    assert_eq!(store.integrity_check().unwrap(), ["ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_dies_with_its_proxy_is_stored_once_with_what_its_client_had_read() {
    let origin = Origin::start().await;
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    data.create().unwrap();
    write_policies(&data, "observe");
    let (mut child, address) = start(&data, origin.address).await;
    let mut clients = Vec::new();
    for at in 0..5 {
        let mut client = crate::client::Client::connect(address).await;
        let request = chat(&format!("stream {at}"), true);
        client.send(&post("/v1/paced/chat/completions?n=5000&ms=3", "", &request)).await;
        clients.push(client);
    }
    for client in &mut clients {
        client.until("w60 ").await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    adopt(&data, origin.address).await;
    let turns = turns_in(&data);
    assert_eq!(turns.len(), 5, "{turns:?}");
    let whole: String = (0..5_000).map(|at| format!("w{at} ")).collect();
    for turn in turns {
        assert_eq!((turn.outcome.as_str(), turn.status), ("proxy_crash", 200));
        assert!(turn.response.contains("w55 "), "what is in parts is there: {}", turn.response);
        assert!(whole.starts_with(&turn.response), "and nothing else: {}", turn.response);
    }
}
