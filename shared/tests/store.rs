//! The store on a real SQLite file: exactly once, linear history, links in any order.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod records;

use std::time::Duration;

use hone_shared::store::{Batch, IngestPos, IngestTurn, Store, StoreError, flags};
use hone_shared::turn::{Done, DropReason, Gap, Generation, Mode, Outcome};
use records::talk::{SECRET, assistant, conversation, halves, place, pos, turn, user};
use records::{begin, done};
use serde_json::{Value, json};

#[test]
fn a_turn_is_read_back_as_it_was_sent_and_answered() {
    let mut place = place();
    let messages = [json!({"role": "system", "content": "be brief"}), user("hi \u{1F600}")];
    let ingest = turn(&messages, "hello");
    let id = ingest.begin.turn_id;
    place.store.insert_batch(&[ingest], &pos(10)).unwrap();
    let stored = place.store.turn(id).unwrap().unwrap();
    assert_eq!(stored.messages, messages);
    assert_eq!(stored.choices[0].message["content"], "hello");
    assert_eq!(stored.choices[0].finish_reason.as_deref(), Some("stop"));
    assert_eq!(stored.params["temperature"], 0.5);
    assert!(stored.params.get("messages").is_none());
    assert_eq!((stored.prompt_tokens, stored.completion_tokens), (Some(5), Some(2)));
    assert_eq!(
        (stored.outcome, stored.mode, stored.parent),
        (Outcome::Complete, Mode::Learn, None)
    );
    assert_eq!(stored.session_id, id.to_string());
    assert_eq!(stored.generation, Generation::base());
}

#[test]
fn a_batch_that_is_repeated_changes_nothing() {
    let mut place = place();
    let (parent, child) = conversation();
    let turns = [parent, child];
    let first = place.store.insert_batch(&turns, &pos(10)).unwrap();
    assert_eq!((first.stored, first.duplicates, first.linked), (2, 0, 1));
    let counts = place.store.counts().unwrap();
    let again = place.store.insert_batch(&turns, &pos(20)).unwrap();
    assert_eq!((again.stored, again.duplicates), (0, 2));
    assert_eq!(place.store.counts().unwrap(), counts);
    assert_eq!(place.store.ingest_pos("boot").unwrap(), Some(pos(20)));
    assert_eq!(place.store.unjudged(10).unwrap().len(), 1);
}

#[test]
fn a_child_that_is_stored_before_its_parent_is_linked_when_the_parent_comes() {
    let mut place = place();
    let (parent, child) = conversation();
    let next =
        [child.request.as_ref().unwrap().messages.clone(), vec![assistant("four"), user("ok")]];
    let grandchild = turn(&next.concat(), "fine");
    let (p, c, g) = (parent.begin.turn_id, child.begin.turn_id, grandchild.begin.turn_id);
    place.store.insert_batch(&[child, grandchild], &pos(1)).unwrap();
    assert_eq!(place.store.turn(g).unwrap().unwrap().session_id, c.to_string());
    assert_eq!(place.store.unjudged(10).unwrap().len(), 1);
    let inserted = place.store.insert_batch(&[parent], &pos(2)).unwrap();
    assert_eq!(inserted.relinked, 1);
    let stored = place.store.turn(c).unwrap().unwrap();
    assert_eq!(stored.parent, Some(p));
    for id in [p, c, g] {
        assert_eq!(place.store.turn(id).unwrap().unwrap().session_id, p.to_string());
    }
    let judged: Vec<_> =
        place.store.unjudged(10).unwrap().iter().map(|i| (i.turn.turn_id, i.child)).collect();
    assert_eq!(judged.len(), 2);
    assert!(judged.contains(&(p, c)) && judged.contains(&(c, g)));
}

#[test]
fn a_nearer_parent_that_comes_late_takes_its_place() {
    let mut place = place();
    let a = vec![user("one")];
    let b = [a.clone(), vec![assistant("first"), user("two")]].concat();
    let c = [b.clone(), vec![assistant("second"), user("three")]].concat();
    let (first, second, third) = (turn(&a, "first"), turn(&b, "second"), turn(&c, "third"));
    let (f, s, t) = (first.begin.turn_id, second.begin.turn_id, third.begin.turn_id);
    place.store.insert_batch(&[first, third], &pos(1)).unwrap();
    assert_eq!(place.store.turn(t).unwrap().unwrap().parent, Some(f));
    place.store.insert_batch(&[second], &pos(2)).unwrap();
    assert_eq!(place.store.turn(t).unwrap().unwrap().parent, Some(s));
    let pairs: Vec<_> =
        place.store.unjudged(10).unwrap().iter().map(|i| (i.turn.turn_id, i.child)).collect();
    assert!(pairs.contains(&(f, s)) && pairs.contains(&(s, t)), "{pairs:?}");
}

#[test]
fn resent_history_costs_only_what_is_new() {
    let mut place = place();
    let long = "lorem ipsum dolor sit amet ".repeat(20);
    let mut messages = vec![user(&format!("{long} start"))];
    for step in 0..40 {
        let answer = format!("{long} answer {step}");
        place.store.insert_batch(&[turn(&messages, &answer)], &pos(step)).unwrap();
        messages.extend([assistant(&answer), user(&format!("{long} question {step}"))]);
    }
    let raw = rusqlite::Connection::open(&place.path).unwrap();
    let count = |table: &str| -> i64 {
        raw.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!((count("turns"), count("nodes")), (40, 79));
    // 40 questions, 40 answers and one set of parameters, each once.
    assert!(count("bodies") <= 81, "{}", count("bodies"));
    assert_eq!(place.store.counts().unwrap().linked, 39);
    assert_eq!(place.store.counts().unwrap().sessions, 1);
}

#[test]
fn tenants_share_neither_links_nor_bodies() {
    let mut place = place();
    let (parent, _) = conversation();
    let messages = [user("what is 2+2?"), assistant("five"), user("no, it is four")];
    let (mut begin, done) = halves(&messages, "four");
    begin.tenant = "t2".into();
    let child = IngestTurn::parse(&SECRET, begin, Some(done));
    let id = child.begin.turn_id;
    place.store.insert_batch(&[parent, child], &pos(1)).unwrap();
    assert_eq!(place.store.turn(id).unwrap().unwrap().parent, None);
    let raw = rusqlite::Connection::open(&place.path).unwrap();
    let nodes: i64 = raw.query_row("SELECT count(*) FROM nodes", [], |row| row.get(0)).unwrap();
    assert_eq!(nodes, 4);
}

#[test]
fn what_cannot_be_read_is_stored_raw_and_never_judged() {
    let mut place = place();
    let garbage = begin(b"{\"messages\": [not json".to_vec());
    let answer = done(garbage.turn_id, vec![0, 159, 146, 150]);
    let id = garbage.turn_id;
    let ingest = IngestTurn::parse(&SECRET, garbage, Some(answer));
    assert_ne!(ingest.flags & flags::REQUEST_UNREAD, 0);
    let lost = begin(b"{}".to_vec());
    let crashed = lost.turn_id;
    let lost = IngestTurn::parse(&SECRET, lost, None);
    place.store.insert_batch(&[ingest, lost], &pos(1)).unwrap();
    let stored = place.store.turn(id).unwrap().unwrap();
    assert!(stored.messages.is_empty() && stored.choices.is_empty());
    assert_eq!(place.store.turn(crashed).unwrap().unwrap().outcome, Outcome::ProxyCrash);
    let raw = rusqlite::Connection::open(&place.path).unwrap();
    let kept: i64 = raw
        .query_row("SELECT count(*) FROM turns WHERE raw_request IS NOT NULL", [], |r| r.get(0))
        .unwrap();
    assert!(kept >= 1);
    assert!(place.store.unjudged(10).unwrap().is_empty());
}

/// A streamed exchange that the client left after these lines of the answer.
fn left_after(asked: Value, events: &[Value]) -> Outcome {
    left(200, asked, events)
}

fn left(status: u16, asked: Value, events: &[Value]) -> Outcome {
    let mut request = json!({"model": "m", "messages": [user("q")], "stream": true});
    request.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
    let begin = begin(request.to_string().into_bytes());
    let body: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    let headers = vec![("content-type".into(), "text/event-stream".into())];
    let outcome = Outcome::ClientAbort;
    let done = Done { status, headers, outcome, ..done(begin.turn_id, body.into_bytes()) };
    IngestTurn::parse(&SECRET, begin, Some(done)).outcome
}

#[test]
fn a_client_that_hangs_up_after_the_last_event_has_not_left_the_answer() {
    let piece = |index: usize, text: &str, end: Option<&str>| json!({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": end}]});
    let all = [piece(0, "Hel", None), piece(0, "lo", Some("stop"))];
    let oom = json!({"error": {"message": "out of memory"}});
    assert_eq!(left_after(json!({}), &all), Outcome::Complete);
    assert_eq!(left_after(json!({}), &all[..1]), Outcome::ClientAbort);
    assert_eq!(left_after(json!({"n": 2}), &all), Outcome::ClientAbort, "one answer of two");
    assert_eq!(left_after(json!({}), &[all[0].clone(), oom]), Outcome::ModelError);
    assert_eq!(left(503, json!({}), &[]), Outcome::UpstreamError);
}

#[test]
fn drops_add_up_and_come_with_the_batch() {
    let mut place = place();
    let gap = |count| Gap {
        route: "chat".into(),
        reason: DropReason::QueueFull,
        count,
        from_ms: 1,
        at_ms: 1,
    };
    place.store.add_drop(&gap(2)).unwrap();
    let batch = Batch { gaps: vec![gap(3)], pos: Some(pos(7)), ..Batch::default() };
    place.store.commit_batch(&batch).unwrap();
    assert_eq!(place.store.counts().unwrap().dropped[&DropReason::QueueFull], 5);
    place.store.forget_pos("boot").unwrap();
    assert_eq!(place.store.ingest_pos("boot").unwrap(), None);
}

#[test]
fn a_locked_store_is_a_passing_error_and_two_writers_take_turns() {
    let mut place = place();
    let other = rusqlite::Connection::open(&place.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    place.store.set_busy_timeout(Duration::from_millis(20)).unwrap();
    let error = place.store.insert_batch(&[turn(&[user("q")], "a")], &pos(1)).unwrap_err();
    assert!(error.is_passing(), "{error}");
    other.execute_batch("COMMIT").unwrap();
    place.store.insert_batch(&[turn(&[user("q")], "a")], &pos(1)).unwrap();
    let path = place.path.clone();
    let writers: Vec<_> = (0..3u8)
        .map(|n| {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut store = Store::open(&path).unwrap();
                for step in 0..20u64 {
                    let pos = IngestPos { boot: format!("b{n}"), segment: 0, offset: step };
                    store
                        .insert_batch(&[turn(&[user(&format!("{n} {step}"))], "a")], &pos)
                        .unwrap();
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert_eq!(place.store.counts().unwrap().turns, 61);
}

#[test]
fn the_file_is_whole_durable_and_ours() {
    let mut place = place();
    place.store.insert_batch(&[conversation().0], &pos(1)).unwrap();
    let raw = rusqlite::Connection::open(&place.path).unwrap();
    let mode: String = raw.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    assert_eq!(place.store.integrity_check().unwrap(), ["ok"]);
    place.store.checkpoint().unwrap();
    let reader = Store::open_read_only(&place.path).unwrap();
    assert_eq!(reader.counts().unwrap().turns, 1);
    assert!(
        reader
            .add_drop(&Gap {
                route: String::new(),
                reason: DropReason::Closed,
                count: 1,
                from_ms: 0,
                at_ms: 0
            })
            .is_err()
    );
    raw.pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Store::open(&place.path), Err(StoreError::Newer { found: 99, .. })));
    assert!(matches!(Store::open_read_only(&place.path), Err(StoreError::Newer { .. })));
}

#[test]
fn a_database_of_another_program_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("theirs.sqlite");
    let theirs = rusqlite::Connection::open(&path).unwrap();
    theirs.execute_batch("CREATE TABLE precious (x)").unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::NotOurs)));
    let tables: i64 =
        theirs.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 1);
    assert!(Store::open_read_only(&dir.path().join("nothing.sqlite")).is_err());
}

#[test]
fn many_processes_may_create_the_store_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let threads: Vec<_> = (0..6)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || Store::open(&path).map(|_| ()).map_err(|e| e.to_string()))
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Ok(()));
    }
}
