//! A spool thread that is late, not by chance but held: the segment that it opens is a pipe, and
//! opening one for writing blocks until somebody opens it for reading.
//!
//! With a tail nobody notices, and a kill takes nothing. Without one, answers wait.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use hone_shared::data_dir::{DataDir, RunFile};
use tokio::io::AsyncReadExt;

use crate::client::{Client, chat, get_admin, post};
use crate::death::{adopt, start, start_tailless};
use crate::harness::write_policies;
use crate::origin::{Origin, stream};
use crate::rows::turns_in;

/// `O_NONBLOCK`: the end for reading opens at once, and reading what is not there fails.
const NONBLOCK: i32 = 0o4000;

/// The spool thread of the only proxy of a data directory, held from its first record on.
struct Held(PathBuf);

impl Held {
    fn new(data: &DataDir) -> Self {
        let own = std::fs::read_dir(data.spool_dir()).unwrap().next().unwrap().unwrap().path();
        let segment = own.join("000000.seg");
        assert!(Command::new("mkfifo").arg(&segment).status().unwrap().success());
        Self(segment)
    }

    /// Lets the thread go on; where its bytes go.
    fn release(&self) -> File {
        OpenOptions::new().read(true).custom_flags(NONBLOCK).open(&self.0).unwrap()
    }

    /// Takes the pipe away, after the death of the proxy.
    fn remove(self) {
        assert!(std::fs::metadata(&self.0).unwrap().file_type().is_fifo(), "nothing was written");
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn fresh() -> (tempfile::TempDir, DataDir) {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    data.create().unwrap();
    write_policies(&data, "observe");
    (dir, data)
}

fn ask(text: &str) -> Vec<u8> {
    post("/v1/json/chat/completions", "", &chat(text, false))
}

#[tokio::test(flavor = "multi_thread")]
async fn issue_3_what_a_client_was_answered_is_whole_after_a_kill_however_late_the_spool_is() {
    let origin = Origin::start().await;
    let (_dir, data) = fresh();
    let (mut child, address) = start(&data, origin.address).await;
    let held = Held::new(&data);
    // Long ones go out in parts; the paced ones write their last bytes long after their first.
    let kinds = [("json", false), ("burst?n=3", true), ("burst?n=900", true), ("paced?n=4", true)];
    let mut answers = Vec::new();
    for number in 0..40 {
        let (kind, streams) = kinds[number % kinds.len()];
        let (kind, query) = kind.split_once('?').unwrap_or((kind, ""));
        let text = format!("question {number} of a held spool");
        let mut client = Client::connect(address).await;
        let target = format!("/v1/{kind}/chat/completions?{query}");
        client.send(&post(&target, "", &chat(&text, streams))).await;
        let response = client.response().await;
        assert!(response.status == 200 && response.whole, "{kind}: {response:?}");
        answers.push((text, response));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    held.remove();
    adopt(&data, origin.address).await;
    let turns = turns_in(&data);
    assert_eq!(turns.len(), answers.len());
    for (text, response) in answers {
        let turn = turns.iter().find(|turn| turn.request.contains(&text)).unwrap();
        assert_eq!((turn.outcome.as_str(), turn.status), ("complete", 200), "{text}");
        let said = response.text();
        let said = match said.strip_prefix("data: ") {
            Some(_) => {
                let n = said.matches("data: ").count() as u64 - 1;
                assert_eq!(said, stream(n));
                (0..n).map(|at| format!("w{at} ")).collect()
            }
            None => {
                response.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
            }
        };
        assert_eq!(turn.response, said, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_proxy_left_in_memory_is_gone_from_there_once_it_is_adopted() {
    let origin = Origin::start().await;
    let (_dir, data) = fresh();
    let (mut child, address) = start(&data, origin.address).await;
    let held = Held::new(&data);
    let own = held.0.parent().unwrap().to_owned();
    let tails: Vec<PathBuf> = (0..2)
        .map(|number| std::fs::read_link(own.join(format!("tail.{number}"))).unwrap())
        .collect();
    let secret = "a text for the store only";
    assert_eq!(crate::client::ask(address, &ask(secret)).await.status, 200);
    let holds = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(secret.len()).any(|text| text == secret.as_bytes())
    };
    assert!(tails.iter().any(holds), "it is in the tail while it is not written");
    child.kill().unwrap();
    child.wait().unwrap();
    held.remove();
    adopt(&data, origin.address).await;
    assert!(tails.iter().all(|path| !path.exists()), "{tails:?}");
    assert_eq!(turns_in(&data).len(), 1);

    // And while a proxy lives, what was written is taken out.
    let (mut child, address) = start(&data, origin.address).await;
    let own = std::fs::read_dir(data.spool_dir()).unwrap().next().unwrap().unwrap().path();
    let tails: Vec<PathBuf> =
        (0..2).map(|n| std::fs::read_link(own.join(format!("tail.{n}"))).unwrap()).collect();
    assert_eq!(crate::client::ask(address, &ask(secret)).await.status, 200);
    crate::harness::eventually("it is wiped", || !tails.iter().any(holds)).await;
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(tails.iter().all(|path| !path.exists()), "{tails:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn issue_3_without_a_tail_an_answer_waits_until_its_request_is_written() {
    let origin = Origin::start().await;
    let (_dir, data) = fresh();
    let (mut child, run) = start_tailless(&data, origin.address, 60_000).await;
    let held = Held::new(&data);
    let text = "asked while nothing was written";
    let mut client = Client::connect(run.address.parse().unwrap()).await;
    // The engine takes 50 ms, so that the thread is late when it answers.
    let request = post("/v1/slow/chat/completions?ms=50", "", &chat(text, false));
    client.send(&request).await;
    let mut byte = [0u8];
    let early = tokio::time::timeout(Duration::from_millis(700), client.tcp.peek(&mut byte)).await;
    assert!(early.is_err(), "the answer overtook its request");
    assert_eq!(origin.seen().len(), 1, "the engine has answered");
    let mut written = held.release();
    client.tcp.read_exact(&mut byte).await.unwrap();
    let mut bytes = vec![0; 64 << 10];
    let n = written.read(&mut bytes).expect("written before the answer");
    assert!(String::from_utf8_lossy(&bytes[..n]).contains(text));
    drop(written);
    assert_eq!(overtaken(&data, &run).await, 0);
    // A pipe cannot be synced: the record went on to a file, and is stored after a kill.
    let own = held.0.parent().unwrap().file_name().unwrap().to_owned();
    let places = [data.spool_dir(), data.reserve_dir()];
    let next = places.map(|place| place.join(&own).join("000001.seg"));
    let in_a_file = || next.iter().any(|path| path.metadata().is_ok_and(|meta| meta.len() > 0));
    crate::harness::eventually("it is in a file", in_a_file).await;
    child.kill().unwrap();
    child.wait().unwrap();
    adopt(&data, origin.address).await;
    assert!(turns_in(&data)[0].request.contains(text));
}

#[tokio::test(flavor = "multi_thread")]
async fn issue_3_without_a_tail_an_answer_that_has_waited_long_enough_goes_and_is_counted() {
    let origin = Origin::start().await;
    let (_dir, data) = fresh();
    let (mut child, run) = start_tailless(&data, origin.address, 300).await;
    let held = Held::new(&data);
    let since = Instant::now();
    let mut client = Client::connect(run.address.parse().unwrap()).await;
    client.send(&post("/v1/slow/chat/completions?ms=50", "", &chat("hi", false))).await;
    assert_eq!(client.response().await.status, 200);
    assert!(since.elapsed() >= Duration::from_millis(350), "{:?}", since.elapsed());
    assert_eq!(overtaken(&data, &run).await, 1);
    child.kill().unwrap();
    child.wait().unwrap();
    held.remove();
}

/// How many answers the proxy says it let go unrecorded.
async fn overtaken(data: &DataDir, run: &RunFile) -> u64 {
    let admin = run.admin_address.as_ref().unwrap().parse().unwrap();
    let bearer = format!("Authorization: Bearer {}\r\n", data.admin_token().unwrap());
    let page = get_admin(admin, "/metrics", &format!("{bearer}Connection: close\r\n")).await.text();
    let line = page.lines().find_map(|line| line.strip_prefix("hone_spool_overtaken_total "));
    line.unwrap_or_else(|| panic!("no such metric: {page}")).parse().unwrap()
}
