//! The store on a real SQLite file: exactly once, linear history, links in any order, verdicts and
//! rounds.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod records;

use std::path::PathBuf;
use std::time::Duration;

use hone_shared::next_state::StateKind;
use hone_shared::store::{
    Batch, IngestPos, IngestTurn, LlmTrace, RoundRow, RoundState, Split, Store, StoreError,
    VerdictRow, flags,
};
use hone_shared::turn::{Begin, Done, DropReason, Gap, Generation, Mode, Outcome, TurnId};
use records::{begin, done};
use serde_json::{Value, json};

const SECRET: [u8; 32] = [7; 32];

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
    store: Store,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let store = Store::open(&path).unwrap();
    Place { _dir: dir, path, store }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

/// One exchange: the messages that were sent and the answer that came.
fn halves(messages: &[Value], answer: &str) -> (Begin, Done) {
    let request = json!({"model": "m", "messages": messages, "temperature": 0.5, "stream": false});
    let begin = Begin { tenant: "t1".into(), ..begin(request.to_string().into_bytes()) };
    let response = json!({"id": "x", "model": "m", "choices": [
        {"index": 0, "message": assistant(answer), "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2}});
    let headers = vec![("content-type".into(), "application/json".into())];
    let done = Done { headers, ..done(begin.turn_id, response.to_string().into_bytes()) };
    (begin, done)
}

fn turn(messages: &[Value], answer: &str) -> IngestTurn {
    let (begin, done) = halves(messages, answer);
    IngestTurn::parse(&SECRET, begin, Some(done))
}

fn pos(offset: u64) -> IngestPos {
    IngestPos { boot: "boot".into(), segment: 0, offset }
}

fn conversation() -> (IngestTurn, IngestTurn) {
    let parent = turn(&[user("what is 2+2?")], "five");
    let child = turn(&[user("what is 2+2?"), assistant("five"), user("no, it is four")], "four");
    (parent, child)
}

fn verdict(turn_id: TurnId, child: TurnId, verdict: i8, hints: &[&str]) -> VerdictRow {
    VerdictRow {
        turn_id,
        child: Some(child),
        verdict,
        source: "rule:correction".into(),
        reason: "the user says no".into(),
        votes: json!([-1]),
        hints: hints.iter().map(|hint| (*hint).to_owned()).collect(),
        judge: "chat@1".into(),
        judged_ms: 5,
        kind: None,
        llm: None,
    }
}

#[test]
fn a_verdict_keeps_its_kind_and_what_asking_a_model_took() {
    let mut place = place();
    let (parent, child) = conversation();
    let (parent_id, child_id) = (parent.begin.turn_id, child.begin.turn_id);
    place.store.insert_batch(&[parent, child], &pos(10)).unwrap();
    let llm = LlmTrace {
        model: "judge".into(),
        prompt: "p1".into(),
        prompt_tokens: 900,
        completion_tokens: 60,
        duration_ms: 1_200,
    };
    let kind = Some(StateKind::Terminal);
    let row = VerdictRow { kind, llm: Some(llm), ..verdict(parent_id, child_id, -1, &[]) };
    assert!(place.store.insert_verdict(&row).unwrap());
    assert_eq!(place.store.verdict(parent_id).unwrap(), Some(row));
}

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
fn a_child_gives_its_parent_a_next_state_until_a_verdict_stands() {
    let mut place = place();
    let (parent, child) = conversation();
    let (p, c) = (parent.begin.turn_id, child.begin.turn_id);
    place.store.insert_batch(&[parent, child], &pos(1)).unwrap();
    let items = place.store.unjudged(10).unwrap();
    assert_eq!(items.len(), 1);
    assert_eq!((items[0].turn.turn_id, items[0].child), (p, c));
    assert_eq!(items[0].next_state, [user("no, it is four")]);
    assert_eq!(place.store.children(p).unwrap()[0].turn_id, c);
    let row = verdict(p, c, -1, &["say four"]);
    assert!(place.store.insert_verdict(&row).unwrap());
    assert!(!place.store.insert_verdict(&verdict(p, c, 1, &[])).unwrap(), "the first one stands");
    assert!(place.store.unjudged(10).unwrap().is_empty());
    let trainable = place.store.trainable("chat", 10).unwrap();
    assert_eq!((trainable[0].0.turn_id, &trainable[0].1), (p, &row));
    assert!(place.store.trainable("other", 10).unwrap().is_empty());
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
fn only_modes_that_train_and_whole_turns_are_judged() {
    let cases: [(Mode, Outcome, bool, usize); 5] = [
        (Mode::Learn, Outcome::Complete, false, 1),
        (Mode::Shadow, Outcome::Complete, false, 1),
        (Mode::Observe, Outcome::Complete, false, 0),
        (Mode::Learn, Outcome::ClientAbort, false, 0),
        (Mode::Learn, Outcome::Complete, true, 0),
    ];
    for (mode, outcome, truncated, expected) in cases {
        let mut place = place();
        let (mut b, d) = halves(&[user("q")], "a");
        b.mode = mode;
        let d = Done { outcome, body_truncated: truncated, ..d };
        let parent = IngestTurn::parse(&SECRET, b, Some(d));
        let child = turn(&[user("q"), assistant("a"), user("more")], "b");
        let done = place.store.insert_batch(&[parent, child], &pos(1)).unwrap();
        assert_eq!(done.linked, 1, "{mode} {outcome}");
        assert_eq!(
            place.store.unjudged(9).unwrap().len(),
            expected,
            "{mode} {outcome} {truncated}"
        );
    }
}

#[test]
fn a_finished_round_uses_up_its_train_split_and_an_abandoned_one_does_not() {
    let mut place = place();
    let (parent, child) = conversation();
    let (p, c) = (parent.begin.turn_id, child.begin.turn_id);
    place.store.insert_batch(&[parent, child], &pos(1)).unwrap();
    place.store.insert_verdict(&verdict(p, c, 0, &["a hint is enough"])).unwrap();
    let mut row = RoundRow {
        round_id: uuid::Uuid::now_v7().to_string(),
        route: "chat".into(),
        state: RoundState::Sampling,
        started_ms: 1,
        finished_ms: None,
        incumbent: Generation::base(),
        candidate: None,
        reason: String::new(),
        metrics: json!({"a": [1, 2]}),
    };
    let store = &place.store;
    store.begin_round(&row).unwrap();
    assert!(store.begin_round(&row).is_err());
    store.set_round_turns(&row.round_id, &[(p, Split::Train)]).unwrap();
    store.set_round_turns(&row.round_id, &[(p, Split::Train)]).unwrap();
    assert_eq!(store.round_turns(&row.round_id).unwrap(), [(p, Split::Train)]);
    assert_eq!(store.unfinished_rounds().unwrap(), [row.clone()]);
    assert_eq!(store.trainable("chat", 9).unwrap().len(), 1, "the round is not finished");
    let mut ended = 0;
    for (state, left) in [
        (RoundState::Abandoned, 1),
        (RoundState::Promoted, 0),
        (RoundState::Refused, 0),
        (RoundState::Failed, 0),
    ] {
        row.state = state;
        row.finished_ms = Some(2);
        assert!(store.round_is_open(&row.round_id).unwrap());
        store.update_round(&row).unwrap();
        assert!(!store.round_is_open(&row.round_id).unwrap());
        assert_eq!(store.round(&row.round_id).unwrap(), Some(row.clone()));
        assert_eq!(store.last_round("chat").unwrap(), Some(row.clone()));
        assert_eq!(store.trainable("chat", 9).unwrap().len(), left, "{state}");
        ended += 1;
        assert_eq!(store.counts().unwrap().rounds_finished(), ended);
        row.state = RoundState::Training;
        let again = store.update_round(&row);
        assert!(matches!(again, Err(StoreError::RoundEnded(_))), "{state}: what ended stays so");
        store.set_round_turns(&row.round_id, &[]).unwrap();
        row.round_id = uuid::Uuid::now_v7().to_string();
        row.finished_ms = None;
        store.begin_round(&row).unwrap();
        store.set_round_turns(&row.round_id, &[(p, Split::Train)]).unwrap();
    }
    row.state = RoundState::Promoted;
    row.finished_ms = Some(2);
    store.update_round(&row).unwrap();
    store.set_round_turns(&row.round_id, &[(p, Split::Holdout)]).unwrap();
    assert_eq!(store.trainable("chat", 9).unwrap().len(), 1, "a holdout is not used up");
    let turn = store.turn(p).unwrap().unwrap();
    let fell = |route: &str| store.session_split(route, &turn.tenant, &turn.session_id).unwrap();
    assert_eq!((fell("chat"), fell("other")), (Some(Split::Holdout), None));
    assert_eq!(store.session_split("chat", "nobody", &turn.session_id).unwrap(), None);
    for (again, left) in [("00000000-again", 1), ("00000001-again", 0)] {
        store.begin_round(&RoundRow { round_id: again.into(), ..row.clone() }).unwrap();
        store.set_round_turns(again, &[(p, Split::Holdout)]).unwrap();
        assert_eq!(store.trainable("chat", 9).unwrap().len(), left, "{again}");
    }
    store.set_round_turns("00000001-again", &[(p, Split::Train)]).unwrap();
    assert_eq!(fell("chat"), Some(Split::Train), "teaching weighs more than testing");
    let stranger = store.set_round_turns(&row.round_id, &[(TurnId::now(), Split::Train)]);
    assert!(matches!(stranger, Err(StoreError::Missing { .. })));
    row.round_id = "nobody".into();
    assert!(matches!(store.update_round(&row), Err(StoreError::Missing { .. })));
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
