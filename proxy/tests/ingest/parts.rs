//! Responses in parts: joined, cut short by a death, written twice, lost, and kept in segments.

use bytes::Bytes;
use hone_proxy::ingest::{Ingest, IngestConfig};
use hone_shared::data_dir::DataDir;
use hone_shared::spool::{Spool, SpoolConfig};
use hone_shared::store::{Store, flags};
use hone_shared::turn::{Done, Outcome, Part, PartHead, Record};
use serde_json::json;

use crate::{
    both, config, counts, ingest_all, killed, place, segments, simple, spool_dirs, wait_until,
};

/// A streamed turn whose answer is handed over in parts of about `size` bytes; its answer's text.
fn parted(n: usize, words: usize, size: usize) -> (Vec<Record>, String) {
    let (begin, done) = simple(n);
    let word = |at: usize| format!("w{n}.{at} ");
    let event = |at| {
        let delta = json!({"index": 0, "delta": {"role": "assistant", "content": word(at)}});
        format!("data: {}\n\n", json!({"id": "c", "choices": [delta]}))
    };
    let body: String = (0..words).map(event).chain(["data: [DONE]\n\n".into()]).collect();
    let headers = vec![("content-type".to_owned(), "text/event-stream".to_owned())];
    let cut = body.len() - body.len() % size;
    let mut records = vec![Record::Begin(begin.clone())];
    for at in (0..cut).step_by(size) {
        let head = PartHead {
            status: 200,
            headers: headers.clone(),
            first_byte_ms: Some(1),
            generation: None,
        };
        records.push(Record::Part(Part {
            turn_id: begin.turn_id,
            at: at as u64,
            after_ms: 7,
            head: (at == 0).then(|| Box::new(head)),
            body: Bytes::copy_from_slice(&body.as_bytes()[at..at + size]),
        }));
    }
    let rest = Bytes::copy_from_slice(&body.as_bytes()[cut..]);
    let (body_at, body_len) = (cut as u64, body.len() as u64);
    records.push(Record::Done(Done { headers, body: rest, body_at, body_len, ..done }));
    (records, (0..words).map(word).collect())
}

/// What is stored of a turn: outcome, text of the answer, whether it is marked as cut.
fn stored(data: &DataDir, record: &Record) -> (Outcome, String, bool) {
    let store = Store::open_read_only(&data.store_path()).unwrap();
    let turn = store.turn(record.turn_id()).unwrap().unwrap();
    let text = turn.choices.iter().map(|c| c.message["content"].as_str().unwrap_or_default());
    let file = rusqlite::Connection::open(data.store_path()).unwrap();
    let select = "SELECT flags FROM turns WHERE turn_id = ?1";
    let flags: u32 = file.query_row(select, [turn.turn_id.to_string()], |row| row.get(0)).unwrap();
    (turn.outcome, text.collect(), flags & flags::RESPONSE_TRUNCATED != 0)
}

#[test]
fn a_response_in_parts_is_one_body_wherever_the_parts_lie() {
    for segment_bytes_max in [1, 900, 64 << 20] {
        let (_dir, data) = place();
        let turns: Vec<_> = (0..6).map(|n| parted(n, 20 + n, 100 + n * 37)).collect();
        // One record of each in turn, as from streams side by side.
        let longest = turns.iter().map(|(records, _)| records.len()).max().unwrap();
        let mixed: Vec<Record> = (0..longest)
            .flat_map(|at| turns.iter().filter_map(move |(records, _)| records.get(at).cloned()))
            .collect();
        killed(&data, &mixed, segment_bytes_max);
        assert_eq!(ingest_all(&data).adopted, 6);
        for (records, text) in &turns {
            assert_eq!(stored(&data, &records[0]), (Outcome::Complete, text.clone(), false));
        }
        assert!(spool_dirs(&data).is_empty());
    }
}

#[test]
fn parts_of_a_turn_that_nobody_ended_are_its_answer_and_it_is_stored_once() {
    let (_dir, data) = place();
    let (mut records, text) = parted(1, 50, 200);
    records.pop();
    killed(&data, &records, 700);
    assert_eq!(ingest_all(&data).adopted, 1);
    let (outcome, found, cut) = stored(&data, &records[0]);
    assert_eq!((outcome, cut), (Outcome::ProxyCrash, true));
    assert!(text.starts_with(&found) && found.len() > text.len() - 20, "{found}");
    assert_eq!((ingest_all(&data).adopted, counts(&data).turns), (0, 1));
}

#[test]
fn parts_written_twice_count_once_and_a_lost_one_leaves_what_is_before_it() {
    let (_dir, data) = place();
    let (twice, whole) = parted(1, 50, 200);
    let (lost, text) = parted(2, 50, 200);
    let (late, _) = parted(3, 50, 200);
    let mut records: Vec<Record> = twice[..8].iter().chain(&twice[4..]).cloned().collect();
    records.extend(lost.iter().enumerate().filter(|(at, _)| *at != 5).map(|(_, r)| r.clone()));
    // Parts whose beginning is not here, and parts after their end.
    records.extend(late[1..4].iter().chain(&twice[1..3]).cloned());
    killed(&data, &records, 900);
    assert_eq!(ingest_all(&data).adopted, 2);
    assert_eq!(stored(&data, &twice[0]), (Outcome::Complete, whole, false));
    let (_, found, cut) = stored(&data, &lost[0]);
    assert!(cut && !found.is_empty() && text.starts_with(&found), "{found}");
    assert!(found.len() < text.len() / 2, "what is after the hole is not: {found}");
    assert_eq!(counts(&data).turns, 2);
}

#[test]
fn segments_stay_while_an_open_turn_has_parts_in_them_up_to_a_number() {
    for pinned_segments_max in [64, 2] {
        let (_dir, data) = place();
        let cfg = SpoolConfig { segment_bytes_max: 1, ..SpoolConfig::new(data.spool_dir()) };
        let spool = Spool::start(cfg).unwrap();
        let ingest =
            Ingest::start(IngestConfig { pinned_segments_max, batch_ms_max: 1, ..config(&data) })
                .unwrap();
        let dir = data.spool_dir().join(&spool_dirs(&data)[0]);
        let (mut long, text) = parted(0, 60, 500);
        let end = long.pop().unwrap();
        let parts = long.len();
        for (n, record) in long.iter().enumerate() {
            match record.clone() {
                Record::Part(part) => drop(spool.try_send_part(part).unwrap()),
                other => spool.try_send(other).unwrap(),
            }
            // Each with a turn that ends, and waited for: in a segment of its own.
            both(&[simple(n + 1)]).into_iter().for_each(|other| spool.try_send(other).unwrap());
            wait_until("the short turn", || ingest.stats().stored == n as u64 + 1);
        }
        let few = pinned_segments_max + 3;
        wait_until("no more segments than are needed", || segments(&dir) <= few.min(parts + 3));
        assert!(segments(&dir) >= parts.min(pinned_segments_max), "{}", segments(&dir));
        spool.try_send(end).unwrap();
        wait_until("the long turn", || ingest.stats().stored == parts as u64 + 1);
        assert_eq!(stored(&data, &long[0]), (Outcome::Complete, text, false));
        wait_until("the segments go", || segments(&dir) <= 2);
        spool.close().unwrap();
        ingest.drain_and_stop();
        assert!(ingest.stats().dropped.is_empty() && spool_dirs(&data).is_empty());
    }
}
