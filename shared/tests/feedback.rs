//! Feedback in a real store: found by every name, waiting for its turn, never across tenants.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod records;

use std::path::PathBuf;

use hone_shared::feedback::{ANY_TENANT, Feedback, FeedbackId, FeedbackKind, Part, Shape, Target};
use hone_shared::policy::PolicySet;
use hone_shared::store::{Batch, FeedbackInserted, IngestFeedback, IngestTurn, Store, WAITING_MAX};
use hone_shared::turn::{Begin, Done, TurnId};
use records::{begin, done};
use serde_json::json;

const SECRET: [u8; 32] = [7; 32];
const DAY_MS: i64 = 24 * 3600 * 1000;

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

/// A turn of a tenant, whose response has the id `response`.
fn turn(tenant: &str, response: &str, session: Option<&str>) -> IngestTurn {
    let text = format!("question {response} {tenant}");
    let request = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    let headers = session.map(|name| ("x-session-id".to_owned(), name.to_owned()));
    let headers = headers.into_iter().collect();
    let begin = Begin { tenant: tenant.into(), headers, ..begin(request.to_string().into_bytes()) };
    let response = json!({"id": response, "model": "m", "choices": [{"index": 0,
        "message": {"role": "assistant", "content": "an answer"}, "finish_reason": "stop"}]});
    let headers = vec![("content-type".into(), "application/json".into())];
    let done = Done { headers, ..done(begin.turn_id, response.to_string().into_bytes()) };
    IngestTurn::parse(&SECRET, begin, Some(done))
}

fn said(tenant: &str, target: Target, parts: &[Part]) -> Feedback {
    Feedback {
        id: FeedbackId::now(),
        tenant: tenant.into(),
        shape: Shape::Native,
        target,
        parts: parts.to_vec(),
        weight: 1.0,
        made_ms: 5,
    }
}

fn response(id: &str) -> Target {
    Target::Response(id.to_owned())
}

fn session(name: &str) -> Target {
    Target::Session(name.to_owned())
}

const UP: Part = Part::Thumb(1.0);

impl Place {
    fn turn(&mut self, tenant: &str, response: &str, session: Option<&str>) -> TurnId {
        let turn = turn(tenant, response, session);
        let id = turn.begin.turn_id;
        self.store.commit_batch(&Batch { turns: vec![turn], ..Batch::default() }).unwrap();
        id
    }

    fn say(&mut self, feedback: Feedback) -> FeedbackInserted {
        let feedback = vec![IngestFeedback::prepare(&SECRET, feedback, &[])];
        let batch = Batch { feedback, ..Batch::default() };
        self.store.commit_batch(&batch).unwrap().feedback
    }

    fn kinds(&self, turn: TurnId) -> Vec<FeedbackKind> {
        self.store.feedback_of_turn(turn).unwrap().iter().map(|row| row.kind).collect()
    }

    fn drops(&self, reason: &str) -> u64 {
        self.store.feedback_drops().unwrap().get(reason).copied().unwrap_or(0)
    }

    fn rows(&self, condition: &str) -> i64 {
        let conn = rusqlite::Connection::open(&self.path).unwrap();
        let sql = format!("SELECT count(*) FROM feedback WHERE {condition}");
        conn.query_row(&sql, [], |row| row.get(0)).unwrap()
    }
}

#[test]
fn a_turn_is_found_by_its_response_its_id_and_its_session() {
    let mut place = place();
    let turn = place.turn("t", "chatcmpl-1", Some("chat 7"));
    let root = place.turn("t", "chatcmpl-2", None);
    for target in [response("chatcmpl-1"), Target::Turn(turn), response(&turn.to_string())] {
        let done = place.say(said("t", target, &[UP]));
        assert_eq!((done.stored, done.waiting), (1, 0));
    }
    assert_eq!(place.kinds(turn).len(), 3);
    let stored = place.store.turn(turn).unwrap().unwrap().session_id;
    for (name, of) in [("chat 7", turn), (&stored, turn), (&root.to_string(), root)] {
        let done = place.say(said("t", session(name), &[Part::Outcome(-1.0)]));
        assert_eq!((done.stored, done.waiting), (1, 0), "{name}");
        let session = place.store.turn(of).unwrap().unwrap().session_id;
        let outcome = place.store.outcome_of_session("t", &session).unwrap().unwrap();
        assert_eq!((outcome.value, outcome.of_session), (Some(-1.0), true));
    }
    assert_eq!(place.kinds(turn).len(), 3, "what is about the session is not about the turn");
}

#[test]
fn all_parts_of_a_piece_are_read_back_as_they_were() {
    let mut place = place();
    let turn = place.turn("t", "r", None);
    let message = json!({"role": "assistant", "content": "so"});
    let parts = [
        Part::Score(-0.5),
        Part::Comment("use metres".into()),
        Part::Demonstration(message.clone()),
        Part::Outcome(0.25),
    ];
    let feedback = said("t", response("r"), &parts);
    let id = feedback.id;
    place.say(feedback);
    let rows = place.store.feedback_given(turn).unwrap();
    assert!(rows.iter().all(|row| row.id == id && row.turn_id == turn && row.made_ms == 5));
    assert_eq!(rows[0].value, Some(-0.5));
    assert_eq!(rows[1].text.as_deref(), Some("use metres"));
    assert_eq!(rows[2].message, Some(message));
    assert_eq!(rows[3].kind, FeedbackKind::Outcome);
    assert_eq!(place.kinds(turn).len(), 3, "the outcome is the session's");
    let session = place.store.turn(turn).unwrap().unwrap().session_id;
    let outcome = place.store.outcome_of_session("t", &session).unwrap().unwrap();
    assert_eq!((outcome.value, outcome.of_session), (Some(0.25), false));
    assert_eq!(place.store.outcome_of_session("u", &session).unwrap(), None);
}

#[test]
fn feedback_that_comes_first_waits_and_is_attached_when_its_turn_comes() {
    let mut place = place();
    let early = turn("t", "r", Some("s"));
    let id = early.begin.turn_id;
    for target in [response("r"), Target::Turn(id), session("s")] {
        let done = place.say(said("t", target, &[UP]));
        assert_eq!((done.stored, done.waiting), (1, 1));
    }
    let of_root = turn("t", "q", None);
    let root = of_root.begin.turn_id;
    place.say(said("t", session(&root.to_string()), &[Part::Outcome(1.0)]));
    assert_eq!(place.rows("turn IS NULL"), 4);
    let turns = vec![early, of_root];
    let batch = Batch { turns, ..Batch::default() };
    assert_eq!(place.store.commit_batch(&batch).unwrap().feedback.attached, 4);
    assert_eq!((place.rows("turn IS NULL"), place.rows("target <> ''")), (0, 0));
    assert_eq!(place.kinds(id), [FeedbackKind::Thumb, FeedbackKind::Thumb]);
    let session = root.to_string();
    assert!(place.store.outcome_of_session("t", &session).unwrap().is_some());
}

#[test]
fn feedback_and_its_turn_in_one_batch_find_each_other() {
    let mut place = place();
    let turn = turn("t", "r", None);
    let id = turn.begin.turn_id;
    let feedback = vec![IngestFeedback::prepare(&SECRET, said("t", response("r"), &[UP]), &[])];
    let batch = Batch { turns: vec![turn], feedback, ..Batch::default() };
    let done = place.store.commit_batch(&batch).unwrap().feedback;
    assert_eq!((done.stored, done.waiting), (1, 0));
    assert_eq!(place.kinds(id), [FeedbackKind::Thumb]);
}

#[test]
fn what_is_sent_twice_is_stored_once_and_the_first_stands() {
    let mut place = place();
    let turn = place.turn("t", "r", None);
    let id = FeedbackId::of("t", "k");
    let first = Feedback { id, ..said("t", response("r"), &[UP]) };
    assert_eq!(place.say(first.clone()).stored, 1);
    let other = Feedback { parts: vec![Part::Thumb(-1.0), Part::Comment("no".into())], ..first };
    let done = place.say(other);
    assert_eq!((done.stored, done.duplicates), (0, 1));
    let rows = place.store.feedback_of_turn(turn).unwrap();
    assert_eq!((rows.len(), rows[0].value), (1, Some(1.0)));
}

#[test]
fn no_tenant_touches_anothers_turns_by_any_name() {
    let mut place = place();
    let turn = place.turn("tenant-of-alice", "r", Some("s"));
    let stored = place.store.turn(turn).unwrap().unwrap().session_id;
    let names = [
        response("r"),
        response(&turn.to_string()),
        Target::Turn(turn),
        session("s"),
        session(&stored),
    ];
    for target in names.clone() {
        for thief in ["tenant-of-mallory", "anonymous", ""] {
            let done = place.say(said(thief, target.clone(), &[Part::Thumb(-1.0)]));
            assert_eq!((done.stored, done.waiting), (1, 1), "{thief} {target:?}");
        }
    }
    assert!(place.store.feedback_given(turn).unwrap().is_empty());
    // Nor by being there before: what waits is attached to turns of its own tenant only.
    let late = place.turn("tenant-of-alice", "r2", Some("s"));
    assert!(place.store.feedback_given(late).unwrap().is_empty());
    assert_eq!(place.rows("turn IS NOT NULL"), 0);
    assert_eq!(place.store.outcome_of_session("tenant-of-alice", &stored).unwrap(), None);
    // An operator may.
    for target in [response("r"), Target::Turn(turn), session(&stored)] {
        let done = place.say(said(ANY_TENANT, target, &[UP]));
        assert_eq!((done.stored, done.waiting), (1, 0));
    }
    let rows = place.store.feedback_given(turn).unwrap();
    assert!(rows.iter().all(|row| row.tenant == "tenant-of-alice"), "{rows:?}");
}

#[test]
fn an_operators_feedback_waits_too_and_is_attached_whoevers_turn_it_is() {
    let mut place = place();
    place.say(said(ANY_TENANT, response("r"), &[UP]));
    let turn = place.turn("t", "r", None);
    assert_eq!(place.kinds(turn), [FeedbackKind::Thumb]);
}

#[test]
fn what_names_two_turns_is_dropped_and_counted() {
    let mut place = place();
    let (a, b) = (place.turn("t", "same", None), place.turn("t", "same", None));
    assert_eq!(place.say(said("t", response("same"), &[UP])).ambiguous, 1);
    place.turn("u", "other", None);
    place.turn("v", "other", None);
    assert_eq!(place.say(said(ANY_TENANT, response("other"), &[UP])).ambiguous, 1);
    assert_eq!(place.say(said("u", response("other"), &[UP])).ambiguous, 0, "u has one");
    assert_eq!(place.drops("ambiguous"), 2);
    assert!(place.kinds(a).is_empty() && place.kinds(b).is_empty());
}

#[test]
fn what_weighs_nothing_is_kept_and_never_offered_for_learning() {
    let mut place = place();
    let turn = place.turn("anonymous", "r", None);
    let session = place.store.turn(turn).unwrap().unwrap().session_id;
    let parts = [UP, Part::Outcome(1.0)];
    place.say(Feedback { weight: 0.0, ..said("anonymous", response("r"), &parts) });
    assert!(place.kinds(turn).is_empty());
    assert_eq!(place.store.outcome_of_session("anonymous", &session).unwrap(), None);
    assert_eq!(place.store.feedback_given(turn).unwrap().len(), 2);
    assert!(place.store.feedback_to_judge("chat", 9).unwrap().is_empty());
}

#[test]
fn waiting_feedback_is_given_up_after_a_day_and_when_too_much_waits() {
    let mut place = place();
    let [own, _] = WAITING_MAX;
    let feedback: Vec<_> = (0..own + 3)
        .map(|n| said("t", response(&format!("never-{n}")), &[UP]))
        .map(|feedback| IngestFeedback::prepare(&SECRET, feedback, &[]))
        .collect();
    let first = feedback[0].id();
    let batch = Batch { feedback, ..Batch::default() };
    let done = place.store.commit_batch(&batch).unwrap().feedback;
    assert_eq!((done.stored, done.evicted), (own as u64 + 3, 3));
    assert_eq!(place.rows("turn IS NULL"), own as i64);
    assert!(!place.store.has_feedback(first).unwrap(), "the oldest goes");
    place.say(said("u", response("mine"), &[UP]));
    assert_eq!(place.rows("tenant = 'u'"), 1, "another tenant has room of its own");
    assert_eq!(place.drops("waiting_full"), 3);
    let now = hone_shared::clock::now_ms();
    assert_eq!(place.store.sweep_feedback(now).unwrap(), 0);
    assert_eq!(place.store.sweep_feedback(now + DAY_MS + 1_000).unwrap(), own as u64 + 1);
    assert_eq!((place.rows("TRUE"), place.drops("expired")), (0, own as u64 + 1));
}

#[test]
fn a_piece_of_several_parts_makes_room_by_as_many_of_the_oldest() {
    let mut place = place();
    let [own, _] = WAITING_MAX;
    let piece = |n: usize, parts: &[Part]| {
        IngestFeedback::prepare(&SECRET, said("t", response(&format!("never-{n}")), parts), &[])
    };
    let feedback: Vec<_> = (0..own).map(|n| piece(n, &[UP])).collect();
    let ids: Vec<_> = feedback.iter().map(IngestFeedback::id).collect();
    place.store.commit_batch(&Batch { feedback, ..Batch::default() }).unwrap();
    let parts = [UP, Part::Comment("a remark".into()), Part::Outcome(1.0)];
    let feedback = vec![piece(own, &parts)];
    let newest = feedback[0].id();
    let done = place.store.commit_batch(&Batch { feedback, ..Batch::default() }).unwrap();
    assert_eq!((done.feedback.evicted, place.rows("turn IS NULL")), (3, own as i64));
    let kept: Vec<_> = ids.iter().map(|id| place.store.has_feedback(*id).unwrap()).collect();
    assert_eq!(kept.iter().position(|kept| *kept), Some(3), "the three oldest went");
    assert!(kept[3..].iter().all(|kept| *kept) && place.store.has_feedback(newest).unwrap());
}

#[test]
fn comments_demonstrations_and_names_of_sessions_are_redacted_before_they_are_stored() {
    let (secret, mail) = ("sk-abcdefghijklmnopqrstuvwxyz012345", "ann@example.com");
    let policies = PolicySet::builtin().unwrap();
    let redactions: Vec<_> = policies.redactions.values().cloned().collect();
    assert!(redactions.len() >= 2);
    let mut place = place();
    place.turn("t", "r", None);
    let message = json!({"role": "assistant", "content": format!("write to {mail}"),
        "tool_calls": [{"type": "function",
            "function": {"name": "f", "arguments": format!("{{\"key\": \"{secret}\"}}")}}]});
    let parts = [Part::Comment(format!("why {secret}?")), Part::Demonstration(message)];
    let waits = said("t", session(mail), &[Part::Outcome(1.0)]);
    for feedback in [said("t", response("r"), &parts), waits] {
        let feedback = vec![IngestFeedback::prepare(&SECRET, feedback, &redactions)];
        place.store.commit_batch(&Batch { feedback, ..Batch::default() }).unwrap();
    }
    place.store.checkpoint().unwrap();
    let bytes = std::fs::read(&place.path).unwrap();
    for text in [secret, mail] {
        let found = bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!found, "{text} is in the database");
    }
    assert_eq!(place.rows("turn IS NULL"), 1);
}

#[test]
fn a_store_with_verdicts_of_before_takes_ones_without_a_child() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.pragma_update(None, "foreign_keys", false).unwrap();
    for sql in [
        include_str!("../src/store/0001_init.sql"),
        include_str!("../src/store/0002_wire.sql"),
        include_str!("../src/store/0003_list.sql"),
        include_str!("../src/store/0004_privacy.sql"),
    ] {
        old.execute_batch(sql).unwrap();
    }
    old.pragma_update(None, "application_id", 0x484F_4E45).unwrap();
    old.pragma_update(None, "user_version", 4).unwrap();
    let child = TurnId::now();
    old.execute(
        "INSERT INTO verdicts (turn, child, verdict, source, reason, votes, hints, judge, judged_ms)
         VALUES (1, ?1, -1, 'rule:x', '', '[]', '[]', 'chat@1', 5)",
        [child.to_string()],
    )
    .unwrap();
    drop(old);
    drop(Store::open(&path).unwrap());
    let new = rusqlite::Connection::open(&path).unwrap();
    let kept: String =
        new.query_row("SELECT child FROM verdicts WHERE turn = 1", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, child.to_string());
    new.execute("UPDATE verdicts SET child = NULL", []).unwrap();
    let index = "SELECT 1 FROM sqlite_schema WHERE name = 'verdicts_by_child'";
    assert!(new.prepare(index).unwrap().exists([]).unwrap());
}
