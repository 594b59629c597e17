//! What a killed process leaves in memory comes back as its last segment.

use bytes::Bytes;

use super::*;
use crate::turn::{Part, Record, TurnId};

fn record(text: &str) -> Record {
    let (turn_id, body) = (TurnId::now(), Bytes::copy_from_slice(text.as_bytes()));
    Record::Part(Part { turn_id, at: 0, after_ms: 1, head: None, body })
}

fn frame_of(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(record, &mut out);
    out
}

struct Place {
    _root: tempfile::TempDir,
    memory: PathBuf,
    own: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (memory, own) = (root.path().join("memory"), root.path().join("spool/boot"));
        [&memory, &own].iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        Self { _root: root, memory, own }
    }

    /// As the process that adopts it: all records of the directory.
    fn adopted(&self) -> Vec<Record> {
        let dirs = vec![self.own.clone()];
        adopt(&dirs).unwrap();
        let mut reader = DirReader::dead_in(dirs);
        let mut found = Vec::new();
        while let Some((_, item)) = reader.read_next().unwrap() {
            let crate::spool::Item::Record(record) = item else { panic!("{item:?}") };
            found.push(record);
        }
        found
    }
}

#[test]
fn what_both_files_hold_comes_back_in_order_and_only_once() {
    let place = Place::new();
    let records: Vec<Record> = (0..5).map(|n| record(&format!("record {n}"))).collect();
    let mut tail = Tail::create(&place.memory, &place.own, 4096).unwrap();
    // The first file is full of what is being written, the second of what came since.
    records[..2].iter().for_each(|record| assert!(tail.put(&frame_of(record))));
    tail.take_turns();
    records[2..].iter().for_each(|record| assert!(tail.put(&frame_of(record))));
    tail.take_turns(); // Not yet: the first is still needed.
    std::mem::forget(tail); // Killed.
    assert_eq!(place.adopted(), records);
    assert_eq!(place.adopted(), records, "adopting again changes nothing");
    assert_eq!(fs::read_dir(&place.memory).unwrap().count(), 0, "nothing stays in memory");
}

#[test]
fn what_was_written_neither_comes_back_nor_stays_in_memory() {
    let place = Place::new();
    let mut tail = Tail::create(&place.memory, &place.own, 4096).unwrap();
    let held = || -> Vec<u8> {
        let file =
            |number: i32| fs::read(place.memory.join(format!("hone-boot.{number}"))).unwrap();
        [file(0), file(1)].concat()
    };
    let since = record("since");
    for number in 0..20 {
        assert!(tail.put(&frame_of(&record(&format!("written {number}")))));
        tail.take_turns();
        tail.wrote();
    }
    assert!(tail.put(&frame_of(&since)));
    tail.wipe(false);
    let text = String::from_utf8_lossy(&held()).into_owned();
    assert!(text.contains("since") && !text.contains("written 19"), "{text}");
    tail.wipe(true);
    assert!(!String::from_utf8_lossy(&held()).contains("since"));
    assert!(tail.put(&frame_of(&since)));
    std::mem::forget(tail);
    assert_eq!(place.adopted(), [since]);

    let place = Place::new();
    drop(Tail::create(&place.memory, &place.own, 4096).unwrap());
    assert_eq!(fs::read_dir(&place.memory).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&place.own).unwrap().count(), 0);
}

#[test]
fn a_frame_that_was_being_put_or_written_at_the_kill_is_cut_off() {
    let place = Place::new();
    let (whole, torn) = (record("whole"), frame_of(&record("torn")));
    // The open segment ends in the middle of a frame, too.
    let segment = segment_path(&place.own, 7);
    fs::write(&segment, [frame_of(&whole), torn[..20].to_vec()].concat()).unwrap();
    let mut tail = Tail::create(&place.memory, &place.own, 4096).unwrap();
    assert!(tail.put(&frame_of(&whole)) && tail.put(&torn[..torn.len() - 1]));
    std::mem::forget(tail);
    assert_eq!(place.adopted(), [whole.clone(), whole]);
}

#[test]
fn what_lies_in_used_pages_does_not_come_back() {
    let place = Place::new();
    let mut tail = Tail::create(&place.memory, &place.own, 4096).unwrap();
    // All of the same length, so that new frames end where old ones begin.
    for number in 10..14 {
        assert!(tail.put(&frame_of(&record(&format!("written {number}")))));
        assert!(tail.put(&frame_of(&record(&format!("written {number}")))));
        tail.take_turns();
        tail.wrote();
    }
    // Filling since, with nothing put, or with less than lies there.
    let new = record("written 99");
    std::mem::forget(tail);
    assert_eq!(place.adopted(), []);
    let place = Place::new();
    let mut tail = Tail::create(&place.memory, &place.own, 4096).unwrap();
    for number in 10..14 {
        assert!(tail.put(&frame_of(&record(&format!("written {number}")))));
        assert!(tail.put(&frame_of(&record(&format!("written {number}")))));
        tail.take_turns();
        tail.wrote();
    }
    assert!(tail.put(&frame_of(&new)));
    std::mem::forget(tail);
    assert_eq!(place.adopted(), [new]);
}

#[test]
fn a_tail_that_somebody_else_put_in_its_place_is_left_there_and_blocks_nothing() {
    let place = Place::new();
    let mut tail = Tail::create(&place.memory, &place.own, 4096).unwrap();
    let kept = record("kept");
    tail.take_turns();
    assert!(tail.put(&frame_of(&kept)));
    std::mem::forget(tail);
    let planted = place.memory.join("hone-boot.0");
    let filling = fs::read(&planted).unwrap().len() as u64 > HEADER_BYTES;
    let planted = if filling { place.memory.join("hone-boot.1") } else { planted };
    fs::remove_file(&planted).unwrap();
    symlink("/dev/zero", &planted).unwrap();
    fs::write(place.own.join(PART), "half of one").unwrap();
    assert!(is_left(&place.own));
    assert_eq!(place.adopted(), [kept]);
    assert!(!is_left(&place.own) && !place.own.join(PART).exists());
}

#[test]
fn a_full_tail_takes_no_more_until_what_it_holds_is_written() {
    let place = Place::new();
    let frame = frame_of(&record("one of many"));
    let mut tail = Tail::create(&place.memory, &place.own, 1_000).unwrap();
    let fitted = (0..100).take_while(|_| tail.put(&frame)).count();
    assert_eq!(fitted, (1_000 - HEADER_BYTES as usize) / (HEADER_BYTES as usize + frame.len()));
    tail.take_turns();
    assert!(tail.put(&frame));
    tail.take_turns();
    assert!((0..100).take_while(|_| tail.put(&frame)).count() < 100, "the first is not written");
    tail.wrote();
    tail.take_turns();
    assert!(tail.put(&frame));
}

#[test]
fn a_tail_that_went_with_the_power_is_not_missed() {
    let place = Place::new();
    let mut tail = Tail::create(&place.memory, &place.own, 4096).unwrap();
    assert!(tail.put(&frame_of(&record("gone"))));
    std::mem::forget(tail);
    fs::remove_dir_all(&place.memory).unwrap();
    assert_eq!(place.adopted(), []);
    assert_eq!(fs::read_dir(&place.own).unwrap().count(), 0, "the directory can be removed");
}

#[test]
fn a_tail_that_cannot_be_adopted_keeps_nobody_from_the_spools_of_others() {
    let place = Place::new();
    let mut tail = Tail::create(&place.memory, &place.own, 4096).unwrap();
    assert!(tail.put(&frame_of(&record("one"))));
    std::mem::forget(tail); // Killed.
    // Where its segment is to be made, nothing can be.
    fs::create_dir_all(place.own.join(PART).join("in the way")).unwrap();
    let spool = place.own.parent().unwrap();
    fs::create_dir(spool.join("other")).unwrap();
    let boots = |claimed: Vec<crate::spool::ClaimedDir>| -> Vec<String> {
        claimed.iter().map(|claimed| claimed.boot.clone()).collect()
    };
    let found = crate::spool::claim_dead(spool, &|_| false).unwrap();
    assert_eq!(boots(found), ["other"]);
    fs::remove_dir_all(place.own.join(PART)).unwrap();
    assert_eq!(boots(crate::spool::claim_dead(spool, &|_| false).unwrap()), ["boot", "other"]);
}
