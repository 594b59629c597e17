//! From the spool to the store: real files, real SQLite, and the accidents that happen between
//! them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod parts;
mod turn_taking;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hone_proxy::ingest::{Ingest, IngestConfig, IngestStats, Observer};
use hone_shared::data_dir::DataDir;
use hone_shared::spool::{QUARANTINE, Spool, SpoolConfig, SpoolWriter};
use hone_shared::store::{Counts, Store};
use hone_shared::turn::{Begin, Done, DropReason, Gap, Generation, Mode, Outcome, Record, TurnId};
use serde_json::{Value, json};

fn place() -> (tempfile::TempDir, DataDir) {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    data.create().unwrap();
    (dir, data)
}

fn config(data: &DataDir) -> IngestConfig {
    IngestConfig {
        adopt_every_ms: 20,
        retry_ms: 5,
        retry_ms_max: 20,
        busy_ms_max: 20,
        ..IngestConfig::new(data, [7; 32])
    }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn turn(messages: &[Value], answer: &str) -> (Begin, Done) {
    let request = Bytes::from(json!({"model": "m", "messages": messages}).to_string());
    let choice = json!({"index": 0, "message": assistant(answer), "finish_reason": "stop"});
    let response = Bytes::from(json!({"id": "x", "choices": [choice]}).to_string());
    let turn_id = TurnId::now();
    let begin = Begin {
        turn_id,
        started_ms: hone_shared::clock::now_ms(),
        route: "chat".into(),
        mode: Mode::Learn,
        alias: "chat".into(),
        tenant: "t".into(),
        client: String::new(),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        headers: vec![],
        generation: Generation::base(),
        policy_version: 1,
        body_len: request.len() as u64,
        body: request,
        body_truncated: false,
        body_cut: None,
    };
    let done = Done {
        turn_id,
        status: 200,
        outcome: Outcome::Complete,
        headers: vec![("content-type".into(), "application/json".into())],
        first_byte_ms: Some(1),
        duration_ms: 2,
        generation: None,
        attempts: 1,
        body_len: response.len() as u64,
        body: response,
        body_at: 0,
        body_truncated: false,
        body_cut: None,
    };
    (begin, done)
}

fn simple(n: usize) -> (Begin, Done) {
    turn(&[user(&format!("question {n}"))], &format!("answer {n}"))
}

/// Writes records as a process that is then killed. Returns its directory.
fn killed(data: &DataDir, records: &[Record], segment_bytes_max: u64) -> PathBuf {
    let cfg = SpoolConfig { segment_bytes_max, ..SpoolConfig::new(data.spool_dir()) };
    let mut writer = SpoolWriter::create(&cfg).unwrap();
    for record in records {
        writer.append(record).unwrap();
        writer.sync().unwrap();
    }
    writer.dir().to_owned()
}

/// Long, because ingest also gives way to the other tests of this process.
const WAIT_MAX: Duration = Duration::from_secs(120);

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WAIT_MAX, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs an ingest over everything that is there, until it is done.
fn ingest_all(data: &DataDir) -> IngestStats {
    let ingest = Ingest::start(config(data)).unwrap();
    ingest.drain_and_stop();
    ingest.stats()
}

fn counts(data: &DataDir) -> Counts {
    let store = Store::open_read_only(&data.store_path()).unwrap();
    assert_eq!(store.integrity_check().unwrap(), ["ok"]);
    store.counts().unwrap()
}

fn spool_dirs(data: &DataDir) -> Vec<String> {
    let names = fs::read_dir(data.spool_dir()).unwrap();
    names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn segments(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

fn both(turns: &[(Begin, Done)]) -> Vec<Record> {
    let each = |(b, d): &(Begin, Done)| [Record::Begin(b.clone()), Record::Done(d.clone())];
    turns.iter().flat_map(each).collect()
}

#[test]
fn every_turn_that_was_accepted_is_stored_and_the_books_balance() {
    let (_dir, data) = place();
    let spool = Spool::start(SpoolConfig::new(data.spool_dir())).unwrap();
    let ingest = Ingest::start(config(&data)).unwrap();
    for n in 0..300 {
        let (begin, done) = simple(n);
        spool.try_send(Record::Begin(begin)).unwrap();
        spool.try_send(Record::Done(done)).unwrap();
    }
    wait_until("all turns", || ingest.stats().stored == 300);
    spool.count_drop("chat", DropReason::QueueFull, 4);
    spool.close().unwrap();
    ingest.drain_and_stop();
    let (in_spool, stats, counts) = (spool.stats(), ingest.stats(), counts(&data));
    assert_eq!(in_spool.requests, stats.stored + in_spool.dropped.values().sum::<u64>());
    assert_eq!((counts.turns, counts.dropped[&DropReason::QueueFull]), (300, 4));
    assert!(stats.dropped.is_empty(), "{stats:?}");
    assert_eq!((stats.open, stats.lag_ms), (0, 0));
    assert!(spool_dirs(&data).is_empty(), "what is stored is deleted");
}

#[test]
fn a_conversation_is_linked_across_batches() {
    let (_dir, data) = place();
    let spool = Spool::start(SpoolConfig::new(data.spool_dir())).unwrap();
    let ingest = Ingest::start(config(&data)).unwrap();
    let mut messages = vec![user("hello")];
    for step in 0..4 {
        let answer = format!("answer number {step}");
        let (begin, done) = turn(&messages, &answer);
        spool.try_send(Record::Begin(begin)).unwrap();
        spool.try_send(Record::Done(done)).unwrap();
        wait_until("the turn", || ingest.stats().stored == step + 1);
        messages.extend([assistant(&answer), user(&format!("and {step}?"))]);
    }
    assert_eq!(ingest.stats().linked, 3);
    let store = Store::open_read_only(&data.store_path()).unwrap();
    assert_eq!(store.unjudged(10).unwrap().len(), 3);
    assert_eq!(store.counts().unwrap().sessions, 1);
}

#[test]
fn a_killed_process_is_adopted_and_its_open_turns_are_kept_as_proxy_crash() {
    let (_dir, data) = place();
    let (ended, (open, _)) = (simple(1), simple(2));
    let id = open.turn_id;
    let mut records = both(&[ended]);
    records.push(Record::Begin(open));
    killed(&data, &records, 64 << 20);
    let stats = ingest_all(&data);
    assert_eq!((stats.stored, stats.adopted), (0, 2));
    let store = Store::open_read_only(&data.store_path()).unwrap();
    let turn = store.turn(id).unwrap().unwrap();
    assert_eq!(turn.outcome, Outcome::ProxyCrash);
    assert_eq!(turn.messages, [user("question 2")]);
    assert!(spool_dirs(&data).is_empty());
}

#[test]
fn two_dead_processes_and_a_live_one_are_read_side_by_side() {
    let (_dir, data) = place();
    killed(&data, &both(&(0..20).map(simple).collect::<Vec<_>>()), 64 << 20);
    killed(&data, &both(&(20..50).map(simple).collect::<Vec<_>>()), 2_000);
    let spool = Spool::start(SpoolConfig::new(data.spool_dir())).unwrap();
    let ingest = Ingest::start(config(&data)).unwrap();
    for n in 50..60 {
        let (begin, done) = simple(n);
        spool.try_send(Record::Begin(begin)).unwrap();
        spool.try_send(Record::Done(done)).unwrap();
    }
    wait_until("all turns", || {
        let stats = ingest.stats();
        (stats.adopted, stats.stored) == (50, 10)
    });
    assert_eq!(counts(&data).turns, 60);
    wait_until("the dead ones' directories to go", || spool_dirs(&data).len() == 1);
}

#[test]
fn issue_3_an_ingest_that_dies_says_so_and_the_next_one_stores_what_it_left() {
    let (_dir, data) = place();
    let spool = Spool::start(SpoolConfig::new(data.spool_dir())).unwrap();
    let fails = Observer::of(|_| panic!("a bug that a test planted"));
    let ingest = Ingest::start(IngestConfig { observer: fails, ..config(&data) }).unwrap();
    assert!(!ingest.has_died());
    let (begin, done) = simple(1);
    spool.try_send(Record::Begin(begin)).unwrap();
    spool.try_send(Record::Done(done)).unwrap();
    wait_until("it dies", || ingest.has_died());
    drop((ingest, spool));
    ingest_all(&data);
    assert_eq!(counts(&data).turns, 1);
}

#[test]
fn issue_3_a_clock_that_jumps_ends_no_turn_of_a_process_that_lives() {
    let (_dir, data) = place();
    let spool = Spool::start(SpoolConfig::new(data.spool_dir())).unwrap();
    let ingest = Ingest::start(config(&data)).unwrap();
    let ((mut begin, done), (other, other_done)) = (simple(1), simple(2));
    begin.started_ms = hone_shared::clock::now_ms() - 2 * 86_400_000;
    let id = begin.turn_id;
    spool.try_send(Record::Begin(begin)).unwrap();
    spool.try_send(Record::Begin(other)).unwrap();
    spool.try_send(Record::Done(other_done)).unwrap();
    wait_until("the turn behind it", || ingest.stats().stored == 1);
    spool.try_send(Record::Done(done)).unwrap();
    wait_until("its end", || ingest.stats().stored == 2);
    let store = Store::open_read_only(&data.store_path()).unwrap();
    assert_eq!(store.turn(id).unwrap().unwrap().outcome, Outcome::Complete);
}

#[test]
fn the_same_spool_read_twice_is_stored_once_and_its_gaps_too() {
    let (_dir, data) = place();
    let turns: Vec<_> = (0..30).map(simple).collect();
    let mut records = both(&turns);
    let gap =
        Gap { route: "chat".into(), reason: DropReason::QueueFull, count: 5, from_ms: 1, at_ms: 1 };
    records.insert(7, Record::Gap(gap));
    // Written twice, as after a sync that failed halfway.
    records.extend(both(&turns[25..]));
    let dir = killed(&data, &records, 1_500);
    let copy = data.path().join("copy");
    copy_dir(&dir, &copy);
    assert_eq!(ingest_all(&data).adopted, 30);
    let first = counts(&data);
    // A crash after the commit and before the deletion: the position is still there, and so are the
    // files.
    let store = Store::open(&data.store_path()).unwrap();
    copy_dir(&copy, &dir);
    let end = hone_shared::store::IngestPos {
        boot: dir.file_name().unwrap().to_str().unwrap().to_owned(),
        segment: u32::MAX,
        offset: 0,
    };
    let mut store_mut = store;
    store_mut.insert_batch(&[], &end).unwrap();
    let stats = ingest_all(&data);
    assert_eq!((stats.adopted, stats.adopted_dropped.len()), (0, 0));
    assert_eq!(counts(&data), first);
    assert_eq!(first.dropped[&DropReason::QueueFull], 5);
    assert!(!first.dropped.contains_key(&DropReason::BeginLost));
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_crash_at_any_commit_leads_to_the_same_store() {
    let turns: Vec<_> = (0..12).map(simple).collect();
    let records = both(&turns);
    for stored_turns in [0usize, 1, 5, 12] {
        let (_dir, data) = place();
        let dir = killed(&data, &records, 700);
        let boot = dir.file_name().unwrap().to_str().unwrap().to_owned();
        // An earlier ingest that stored so many turns, committed its position, and died before it
        // deleted anything.
        let mut reader = hone_shared::spool::DirReader::dead(&dir);
        for _ in 0..stored_turns * 2 {
            reader.read_next().unwrap();
        }
        let at = reader.position();
        let batch: Vec<_> = turns[..stored_turns]
            .iter()
            .map(|(b, d)| {
                hone_shared::store::IngestTurn::parse(&[7; 32], b.clone(), Some(d.clone()))
            })
            .collect();
        let pos = hone_shared::store::IngestPos { boot, segment: at.segment, offset: at.offset };
        Store::open(&data.store_path()).unwrap().insert_batch(&batch, &pos).unwrap();
        let stats = ingest_all(&data);
        assert_eq!(stats.adopted as usize, 12 - stored_turns);
        assert_eq!((counts(&data).turns, counts(&data).complete), (12, 12));
        assert!(counts(&data).dropped.is_empty());
    }
}

#[test]
fn an_open_turn_keeps_its_segment_and_only_that_one() {
    let (_dir, data) = place();
    let cfg = SpoolConfig { segment_bytes_max: 1_000, ..SpoolConfig::new(data.spool_dir()) };
    let spool = Spool::start(cfg).unwrap();
    let own = data.spool_dir().join(spool.follower().boot());
    // No memory for waiting requests: they must be read again from their segment.
    let ingest = Ingest::start(IngestConfig { open_bytes_max: 0, ..config(&data) }).unwrap();
    let (slow, slow_done) = simple(1_000);
    spool.try_send(Record::Begin(slow.clone())).unwrap();
    for n in 0..40 {
        let (begin, done) = simple(n);
        spool.try_send(Record::Begin(begin)).unwrap();
        spool.try_send(Record::Done(done)).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    wait_until("the quick turns", || ingest.stats().stored == 40);
    wait_until("their segments to go", || segments(&own) <= 2);
    wait_until("the figures", || ingest.stats().open == 1);
    spool.try_send(Record::Done(slow_done)).unwrap();
    wait_until("the slow turn", || ingest.stats().stored == 41);
    let store = Store::open_read_only(&data.store_path()).unwrap();
    assert_eq!(store.turn(slow.turn_id).unwrap().unwrap().outcome, Outcome::Complete);
}

#[test]
fn damage_costs_what_it_hit_and_is_counted() {
    let (_dir, data) = place();
    let turns: Vec<_> = (0..3).map(simple).collect();
    let records = both(&turns);
    let dir = killed(&data, &records, 64 << 20);
    let path = dir.join("000000.seg");
    let mut reader = hone_shared::spool::DirReader::dead(&dir);
    let places: Vec<_> =
        std::iter::from_fn(|| reader.read_next().unwrap()).map(|(at, _)| at).collect();
    let mut bytes = fs::read(&path).unwrap();
    bytes[places[0].offset as usize + 50] ^= 1; // The first request.
    bytes[places[3].offset as usize + 50] ^= 1; // The second response.
    fs::write(&path, bytes).unwrap();
    let stats = ingest_all(&data);
    assert_eq!(stats.adopted, 2);
    assert_eq!(
        stats.adopted_dropped.into_iter().collect::<Vec<_>>(),
        [(DropReason::Undecodable, 1)]
    );
    let store = Store::open_read_only(&data.store_path()).unwrap();
    let outcome = |n: usize| store.turn(turns[n].0.turn_id).unwrap().map(|turn| turn.outcome);
    let found = [outcome(0), outcome(1), outcome(2)];
    assert_eq!(found, [None, Some(Outcome::ProxyCrash), Some(Outcome::Complete)]);
    assert_eq!(segments(&data.spool_dir().join(QUARANTINE)), 1);
}

#[test]
fn the_end_of_a_turn_whose_beginning_is_lost_is_counted() {
    let (_dir, data) = place();
    killed(&data, &[Record::Done(simple(0).1)], 64 << 20);
    let stats = ingest_all(&data);
    assert_eq!(stats.adopted_dropped[&DropReason::BeginLost], 1);
    assert_eq!(counts(&data).dropped[&DropReason::BeginLost], 1);
}

#[test]
fn a_locked_store_delays_and_loses_nothing() {
    let (_dir, data) = place();
    drop(Store::open(&data.store_path()).unwrap());
    let lock = rusqlite_lock(&data.store_path());
    let spool = Spool::start(SpoolConfig::new(data.spool_dir())).unwrap();
    let ingest = Ingest::start(config(&data)).unwrap();
    for n in 0..50 {
        let (begin, done) = simple(n);
        spool.try_send(Record::Begin(begin)).unwrap();
        spool.try_send(Record::Done(done)).unwrap();
    }
    wait_until("the lock to be felt", || ingest.stats().errors > 2);
    let waiting = ingest.stats();
    assert_eq!(waiting.stored, 0);
    assert!(waiting.last_error.is_some() && waiting.lag_ms > 0, "{waiting:?}");
    drop(lock);
    wait_until("all turns", || ingest.stats().stored == 50);
    assert_eq!(ingest.stats().last_error, None);
    assert_eq!(counts(&data).turns, 50);
}

/// Holds the write lock of a store as another process would.
fn rusqlite_lock(path: &Path) -> rusqlite::Connection {
    let other = rusqlite::Connection::open(path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    other
}

#[test]
fn a_store_that_cannot_be_opened_leaves_the_turns_in_the_spool_for_the_next_start() {
    let (_dir, data) = place();
    fs::create_dir(data.store_path()).unwrap();
    killed(&data, &both(&[simple(1)]), 64 << 20);
    let ingest = Ingest::start(IngestConfig { drain_ms_max: 50, ..config(&data) }).unwrap();
    ingest.drain_and_stop();
    assert_eq!(ingest.stats().adopted, 0);
    drop(ingest);
    fs::remove_dir(data.store_path()).unwrap();
    assert_eq!(ingest_all(&data).adopted, 1);
}

#[test]
fn bodies_that_nobody_can_read_are_stored_all_the_same() {
    let (_dir, data) = place();
    let (mut begin, mut done) = simple(1);
    begin.body = Bytes::from_static(&[0xff; 300]);
    done.body = Bytes::from_static(b"<html>502</html>");
    begin.path = "/v1/something/else".into();
    let id = begin.turn_id;
    killed(&data, &[Record::Begin(begin), Record::Done(done)], 64 << 20);
    assert_eq!(ingest_all(&data).adopted, 1);
    let store = Store::open_read_only(&data.store_path()).unwrap();
    assert!(store.turn(id).unwrap().unwrap().messages.is_empty());
}

#[test]
fn a_dead_spool_that_is_read_days_later_keeps_its_answers() {
    let (_dir, data) = place();
    let (mut begin, done) = simple(1);
    begin.started_ms = hone_shared::clock::now_ms() - 2 * 86_400_000;
    let id = begin.turn_id;
    killed(&data, &both(&[(begin, done)]), 64 << 20);
    ingest_all(&data);
    let store = Store::open_read_only(&data.store_path()).unwrap();
    let turn = store.turn(id).unwrap().unwrap();
    assert_eq!((turn.outcome, turn.choices.len()), (Outcome::Complete, 1));
}
