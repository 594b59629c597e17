//! The spool on real files: what is written comes back, whatever happens to the process, the disk
//! or the bytes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod records;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::Duration;

use hone_shared::spool::{
    DirReader, Item, PAYLOAD_BYTES_MAX, QUARANTINE, Spool, SpoolConfig, claim_dead,
};
use hone_shared::turn::{DropReason, Gap, Part, Record, TurnId};
use records::{begin, dead_process, done, items, read_all, read_dead, segments, setup};

fn records(count: usize) -> Vec<Record> {
    (0..count).map(|i| Record::Begin(begin(vec![b'a' + (i % 26) as u8; 40 + i * 7]))).collect()
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[test]
fn what_is_sent_is_read_back_in_order_and_the_gap_too() {
    let (_dir, cfg) = setup();
    let spool = Spool::start(cfg).unwrap();
    let turn = begin(b"{}".to_vec());
    let sent = [Record::Begin(turn.clone()), Record::Done(done(turn.turn_id, vec![b'x'; 100_000]))];
    for record in &sent {
        spool.try_send(record.clone()).unwrap();
    }
    spool.count_drop("chat", DropReason::QueueFull, 3);
    let mut reader = DirReader::live(spool.follower());
    spool.close().unwrap();
    let read: Vec<_> = read_all(&mut reader).into_iter().map(|(_, item)| item).collect();
    assert_eq!(read[..2], items(&sent));
    let Item::Record(Record::Gap(Gap { route, reason, count, .. })) = &read[2] else {
        panic!("{read:?}")
    };
    assert_eq!((route.as_str(), *reason, *count), ("chat", DropReason::QueueFull, 3));
    let stats = spool.stats();
    assert_eq!((stats.requests, stats.accepted), (4, 1));
    assert_eq!(spool.try_send(Record::Begin(turn)), Err(DropReason::Closed));
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future to its end on this thread.
fn wait_for<F: Future>(future: F) -> F::Output {
    let waker = Arc::new(Unpark(thread::current())).into();
    let (mut future, mut cx) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(found) => return found,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn issue_3_a_record_that_has_left_is_in_a_file_whatever_becomes_of_the_process() {
    let (_dir, mut cfg) = setup();
    // Nothing is synced meanwhile: a kill takes the process, not what it wrote.
    cfg.sync_ms_max = 60_000;
    let spool = Spool::start(cfg.clone()).unwrap();
    for i in 0..200 {
        let body = format!("the body of number {i}.");
        let place = spool.try_send_to(Record::Begin(begin(body.clone().into_bytes()))).unwrap();
        wait_for(spool.left(place, Duration::ZERO));
        let files = segments(spool.follower().dir());
        let held: Vec<u8> = files.iter().flat_map(|path| fs::read(path).unwrap()).collect();
        let found = held.windows(body.len()).any(|bytes| bytes == body.as_bytes());
        assert!(found, "{body} in {files:?}");
        // Nobody waits for a thread that is not late.
        let place = spool.try_send_to(Record::Begin(begin(vec![b'x']))).unwrap();
        wait_for(spool.left(place, Duration::from_secs(3_600)));
    }
    spool.close().unwrap();
}

#[test]
fn a_live_reader_sees_records_soon_without_any_further_traffic() {
    let (_dir, cfg) = setup();
    let spool = Spool::start(cfg).unwrap();
    let follower = spool.follower();
    let mut reader = DirReader::live(follower.clone());
    assert!(reader.read_next().unwrap().is_none());
    for record in records(3) {
        spool.try_send(record.clone()).unwrap();
        while reader.position() >= follower.upto() {
            follower.wait(reader.position(), Duration::from_secs(10));
        }
        assert_eq!(reader.read_next().unwrap().unwrap().1, Item::Record(record));
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_written() {
    let (_dir, cfg) = setup();
    let sent = records(50);
    let dir = dead_process(&cfg, &sent);
    assert_eq!(read_dead(&dir), items(&sent));
}

#[test]
fn a_truncated_tail_is_cut_off_wherever_it_was_torn() {
    let (_dir, cfg) = setup();
    let sent = records(3);
    let dir = dead_process(&cfg, &sent);
    let path = segments(&dir).remove(0);
    let whole = fs::read(&path).unwrap();
    let last = read_all(&mut DirReader::dead(&dir))[2].0.offset as usize;
    for len in last + 1..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(read_dead(&dir), items(&sent[..2]), "torn at {len}");
        assert_eq!(fs::metadata(&path).unwrap().len(), last as u64);
    }
    // A torn page: the length is there, the bytes are not.
    let mut zeroed = whole.clone();
    zeroed[last + 40..].fill(0);
    fs::write(&path, &zeroed).unwrap();
    assert_eq!(read_dead(&dir), items(&sent[..2]));
}

#[test]
fn a_flipped_byte_loses_one_record_and_keeps_the_segment_for_people() {
    let (_dir, cfg) = setup();
    let sent = records(4);
    let dir = dead_process(&cfg, &sent);
    let path = segments(&dir).remove(0);
    let second = read_all(&mut DirReader::dead(&dir))[1].0.offset;
    flip(&path, second + 45);
    let mut reader = DirReader::dead(&dir);
    let read: Vec<_> = read_all(&mut reader).into_iter().map(|(_, item)| item).collect();
    let mut expected = items(&sent);
    expected[1] = Item::Damaged { kind: 1, turn_id: sent[1].turn_id() };
    assert_eq!(read, expected);
    reader.delete_before(u32::MAX, &BTreeSet::new()).unwrap();
    assert!(segments(&dir).is_empty());
    assert_eq!(segments(&cfg.dir.join(QUARANTINE)).len(), 1);
}

#[test]
fn any_flipped_byte_in_a_sealed_segment_is_noticed_and_the_next_segment_is_read() {
    let (_dir, cfg) = setup();
    let cfg = SpoolConfig { segment_bytes_max: 900, ..cfg };
    let sent = records(6);
    let dir = dead_process(&cfg, &sent);
    let paths = segments(&dir);
    assert!(paths.len() >= 2);
    let first = fs::read(&paths[0]).unwrap();
    let in_first = read_all(&mut DirReader::dead(&dir)).iter().filter(|i| i.0.segment == 0).count();
    for offset in 0..first.len() as u64 {
        flip(&paths[0], offset);
        let read = read_dead(&dir);
        let bad = read.iter().filter(|i| !matches!(i, Item::Record(_))).count();
        assert_eq!(bad, 1, "flipped {offset}");
        let rest = items(&sent[in_first..]);
        assert_eq!(read[read.len() - rest.len()..], rest, "flipped {offset}");
        fs::write(&paths[0], &first).unwrap();
    }
}

#[test]
fn empty_segments_and_garbage_are_survived() {
    let (_dir, cfg) = setup();
    let dir = dead_process(&cfg, &[]);
    assert_eq!(read_dead(&dir), vec![]);
    fs::write(dir.join("000000.seg"), b"").unwrap();
    assert_eq!(read_dead(&dir), vec![]);
    fs::write(dir.join("000001.seg"), b"this is no frame at all, but it is long enough").unwrap();
    fs::write(dir.join("000002.seg"), b"").unwrap();
    fs::write(dir.join("notes.txt"), b"ignored").unwrap();
    assert_eq!(read_dead(&dir), vec![Item::Lost { bytes: 46 }]);
    fs::write(dir.join("000002.seg"), [0xff; 64]).unwrap();
    assert_eq!(read_dead(&dir), vec![Item::Lost { bytes: 46 }]);
    assert_eq!(fs::metadata(dir.join("000002.seg")).unwrap().len(), 0, "a torn tail is cut");
}

#[test]
fn only_a_dead_process_can_be_claimed_and_only_once() {
    let (_dir, cfg) = setup();
    let live = Spool::start(cfg.clone()).unwrap();
    let dead = dead_process(&cfg, &records(1));
    let claimed = claim_dead(&cfg.dir, &|_| false).unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].path, dead);
    assert!(claim_dead(&cfg.dir, &|_| false).unwrap().is_empty(), "it is locked by us");
    drop(claimed);
    assert_eq!(claim_dead(&cfg.dir, &|_| false).unwrap().len(), 1);
    live.close().unwrap();
    drop(live);
    assert_eq!(claim_dead(&cfg.dir, &|_| false).unwrap().len(), 2);
}

#[test]
fn a_full_queue_refuses_new_turns_and_still_ends_the_accepted_ones() {
    let (_dir, cfg) = setup();
    let cfg = SpoolConfig { queue_records_max: 4, ..cfg };
    let spool = Spool::start(cfg).unwrap();
    let turns: Vec<_> = (0..8).map(|_| begin(vec![])).collect();
    let mut accepted = Vec::new();
    for turn in &turns {
        match spool.try_send(Record::Begin(turn.clone())) {
            Ok(()) => accepted.push(turn.turn_id),
            Err(reason) => assert_eq!(reason, DropReason::QueueFull),
        }
    }
    assert!(accepted.len() <= 4, "one place is kept for each end");
    for turn in &turns {
        let sent = spool.try_send(Record::Done(done(turn.turn_id, vec![])));
        let expected =
            if accepted.contains(&turn.turn_id) { Ok(()) } else { Err(DropReason::BeginLost) };
        assert_eq!(sent, expected);
    }
    let stats = spool.stats();
    assert_eq!(stats.requests, 8);
    assert_eq!(stats.accepted + stats.dropped[&DropReason::QueueFull], 8);
    assert_eq!(stats.open, 0);
}

#[test]
fn a_full_disk_refuses_turns_with_a_reason_and_comes_back_when_segments_are_deleted() {
    let (_dir, cfg) = setup();
    let cfg = SpoolConfig { disk_bytes_max: 20_000, ..cfg };
    let spool = Spool::start(cfg).unwrap();
    let mut reader = DirReader::live(spool.follower());
    let noise: Vec<u8> =
        (0..5_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let refused = (0..2_000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(5));
        spool.try_send(Record::Begin(begin(noise.clone()))).err()
    });
    assert_eq!(refused, Some(DropReason::SpoolFull));
    let accepted = (0..4_000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        read_all(&mut reader);
        reader.delete_before(reader.position().segment, &BTreeSet::new()).unwrap();
        spool.try_send(Record::Begin(begin(vec![]))).is_ok()
    });
    assert!(accepted, "{:?}", spool.stats());
    let stats = spool.stats();
    assert_eq!(stats.requests, stats.accepted + stats.dropped.values().sum::<u64>());
}

#[test]
fn a_disk_that_refuses_writes_for_a_while_costs_nothing() {
    let (_dir, cfg) = setup();
    let cfg = SpoolConfig { retry_ms: 10, ..cfg };
    let spool = Spool::start(cfg.clone()).unwrap();
    let own = cfg.dir.join(spool.follower().boot());
    // A directory where the segment should be: opening it for writing fails, also for root.
    fs::create_dir(own.join("000000.seg")).unwrap();
    let sent = records(20);
    for record in &sent {
        spool.try_send(record.clone()).unwrap();
    }
    while spool.stats().write_errors < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(spool.stats().degraded);
    fs::remove_dir(own.join("000000.seg")).unwrap();
    spool.close().unwrap();
    assert!(!spool.stats().degraded);
    assert_eq!(read_dead(&own), items(&sent));
}

#[test]
fn turns_that_can_never_be_written_are_counted_when_the_spool_is_closed() {
    let (_dir, cfg) = setup();
    let cfg = SpoolConfig { retry_ms: 10, close_ms_max: 50, ..cfg };
    let spool = Spool::start(cfg.clone()).unwrap();
    fs::create_dir(cfg.dir.join(spool.follower().boot()).join("000000.seg")).unwrap();
    for record in records(5) {
        spool.try_send(record).unwrap();
    }
    assert!(spool.close().is_err());
    assert_eq!(spool.stats().dropped[&DropReason::SpoolError], 5);
}

#[test]
fn a_body_longer_than_a_frame_may_be_is_cut_and_marked() {
    let (_dir, cfg) = setup();
    let dir = dead_process(&cfg, &[Record::Begin(begin(vec![b'x'; PAYLOAD_BYTES_MAX]))]);
    let [Item::Record(Record::Begin(read))] = &read_dead(&dir)[..] else { panic!() };
    assert!(read.body_truncated);
    assert_eq!(read.body_len, PAYLOAD_BYTES_MAX as u64);
    assert!(read.body.len() < PAYLOAD_BYTES_MAX && read.body.len() > PAYLOAD_BYTES_MAX - 4096);
}

#[test]
fn a_record_can_be_read_again_by_its_position() {
    let (_dir, cfg) = setup();
    let sent = records(5);
    let dir = dead_process(&cfg, &sent);
    let mut reader = DirReader::dead(&dir);
    let read = read_all(&mut reader);
    for ((position, _), record) in read.iter().zip(&sent) {
        assert_eq!(reader.read_again(*position).unwrap().as_ref(), Some(record));
    }
}

fn part(turn_id: TurnId, at: usize, bytes: usize) -> Part {
    let mut body = Vec::with_capacity(1_000);
    body.resize(bytes, b'x');
    Part { turn_id, at: at as u64, after_ms: 1, head: None, body: body.into() }
}

#[test]
fn parts_belong_to_open_turns_and_their_buffers_are_used_again() {
    let (_dir, cfg) = setup();
    let cfg = SpoolConfig { part_bytes: 1_000, part_buffers_max: 2, ..cfg };
    let spool = Spool::start(cfg).unwrap();
    let turn = begin(b"{}".to_vec());
    let id = turn.turn_id;
    assert_eq!(spool.try_send_part(part(id, 0, 900)).unwrap_err().len(), 900, "not begun");
    spool.try_send(Record::Begin(turn.clone())).unwrap();
    let mut sent = vec![Record::Begin(turn)];
    let (mut at, mut again) = (0, None);
    while again.is_none() {
        sent.push(Record::Part(part(id, at, 900)));
        again = spool.try_send_part(part(id, at, 900)).unwrap();
        at += 900;
        std::thread::sleep(Duration::from_millis(5));
    }
    let again = again.unwrap();
    assert_eq!((again.len(), again.capacity()), (0, 1_000));
    sent.push(Record::Done(done(id, b"end".to_vec())));
    spool.try_send(sent.last().unwrap().clone()).unwrap();
    assert_eq!(spool.try_send_part(part(id, at, 9)).unwrap_err().len(), 9, "it has ended");
    let mut reader = DirReader::live(spool.follower());
    spool.close().unwrap();
    let read: Vec<_> = read_all(&mut reader).into_iter().map(|(_, item)| item).collect();
    assert_eq!(read, items(&sent));
    assert_eq!((spool.stats().requests, spool.stats().accepted), (1, 1), "parts are no turns");
}

#[test]
fn a_part_that_finds_no_room_comes_back_whole_and_costs_no_turn_its_end() {
    let (_dir, cfg) = setup();
    let cfg = SpoolConfig { queue_bytes_max: 3_000, ..cfg };
    let spool = Spool::start(cfg).unwrap();
    let turn = begin(b"{}".to_vec());
    let id = turn.turn_id;
    spool.try_send(Record::Begin(turn)).unwrap();
    assert_eq!(spool.try_send_part(part(id, 0, 4_000)).unwrap_err(), vec![b'x'; 4_000]);
    spool.try_send(Record::Done(done(id, vec![b'y'; 100]))).unwrap();
    spool.close().unwrap();
    assert_eq!((spool.stats().accepted, spool.stats().dropped.len()), (1, 0));
}
