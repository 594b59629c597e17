//! Erasure reaches what was said by the API: in the database, its log and the spool, and what
//! learned from it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod records;

use std::path::Path;
use std::time::Duration;

use hone_shared::data_dir::DataDir;
use hone_shared::feedback::{Feedback, FeedbackId, Part, Shape, Target};
use hone_shared::forget::{ForgetError, Options, Report, Subject, plan, run};
use hone_shared::policy::PolicySet;
use hone_shared::spool::{Follower, Spool, SpoolConfig};
use hone_shared::store::{
    Batch, IngestFeedback, IngestPos, IngestTurn, RoundRow, RoundState, Settled, Split, Store,
    VerdictRow,
};
use hone_shared::turn::{Begin, Done, Generation, Record, TurnId};
use records::{begin, done};
use serde_json::json;

const SECRET: [u8; 32] = [7; 32];
const WORDS: &str = "call Ann Miller of Seven Oaks first";

struct Place {
    _dir: tempfile::TempDir,
    data: DataDir,
    store: Store,
    spool: Spool,
    follower: Follower,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path().join("data"));
        data.create().unwrap();
        let store = Store::open(&data.store_path()).unwrap();
        let spool = Spool::start(SpoolConfig::new(data.spool_dir())).unwrap();
        let follower = Follower::take_unread(&data.spool_dir()).remove(0);
        Self { _dir: dir, data, store, spool, follower }
    }

    fn turn(&mut self, tenant: &str, response: &str) -> TurnId {
        let request = json!({"model": "m",
            "messages": [{"role": "user", "content": format!("question {response}")}]});
        let headers = vec![("x-session-id".into(), format!("session of {response}"))];
        let begin =
            Begin { tenant: tenant.into(), headers, ..begin(request.to_string().into_bytes()) };
        let response = json!({"id": response, "choices": [{"index": 0,
            "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}]});
        let headers = vec![("content-type".into(), "application/json".into())];
        let done = Done { headers, ..done(begin.turn_id, response.to_string().into_bytes()) };
        let id = begin.turn_id;
        let turns = vec![IngestTurn::parse(&SECRET, begin, Some(done))];
        self.store.commit_batch(&Batch { turns, ..Batch::default() }).unwrap();
        id
    }

    /// Says something, through the spool's files; `keep`: and into the store.
    fn say(&mut self, tenant: &str, response: &str, words: &str, keep: bool) -> FeedbackId {
        let feedback = Feedback {
            id: FeedbackId::now(),
            tenant: tenant.into(),
            shape: Shape::Native,
            target: Target::Response(response.into()),
            parts: vec![Part::Thumb(-1.0), Part::Comment(words.into())],
            weight: 1.0,
            made_ms: 5,
        };
        let id = feedback.id;
        let before = self.follower.upto();
        self.spool.try_send(Record::Feedback(Box::new(feedback.clone()))).unwrap();
        while self.follower.upto() == before {
            self.follower.wait(before, Duration::from_millis(200));
        }
        if keep {
            let upto = self.follower.upto();
            let boot = self.follower.boot().to_owned();
            let pos = Some(IngestPos { boot, segment: upto.segment, offset: upto.offset });
            let feedback = vec![IngestFeedback::prepare(&SECRET, feedback, &[])];
            self.store.commit_batch(&Batch { feedback, pos, ..Batch::default() }).unwrap();
        }
        id
    }

    /// A verdict made of what was said, with the words as its hint.
    fn judge(&self, turn: TurnId, hint: &str) {
        let said = self.store.feedback_to_judge("chat", 99).unwrap();
        let said = said.iter().find(|said| said.turn.turn_id == turn).unwrap();
        let verdict = VerdictRow {
            turn_id: turn,
            child: None,
            verdict: -1,
            source: "feedback".into(),
            reason: String::new(),
            votes: json!([]),
            hints: vec![hint.into()],
            judge: "chat@1".into(),
            judged_ms: 5,
            kind: None,
            llm: None,
        };
        assert_eq!(self.store.judge_by_feedback(said, Some(&verdict)).unwrap(), Settled::Stands);
    }

    fn trained_on(&self, turn: TurnId) {
        let row = RoundRow {
            round_id: "r".into(),
            route: "chat".into(),
            state: RoundState::Training,
            started_ms: 1,
            finished_ms: None,
            incumbent: Generation::base(),
            candidate: None,
            reason: String::new(),
            metrics: json!({}),
        };
        self.store.begin_round(&row).unwrap();
        self.store.set_round_turns("r", &[(turn, Split::Train)]).unwrap();
    }

    fn forget(&self, subject: &Subject) -> Result<Report, ForgetError> {
        let (actor, reason) = ("cli:test".into(), "asked for".into());
        run(&self.data, subject, &Options { actor, reason, wait_ms_max: 300, ..Options::default() })
    }

    fn holds(&self, words: &str) -> Vec<String> {
        hits(self.data.path(), words)
    }
}

fn hits(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(hits(&path, text));
        } else if std::fs::read(&path).unwrap().windows(text.len()).any(|w| w == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn with_a_turn_its_session_or_its_tenant_goes_what_was_said_about_it() {
    for by in ["turn", "session", "tenant"] {
        let mut place = Place::new();
        let (turn, other) = (place.turn("t", "r1"), place.turn("u", "r2"));
        let id = place.say("t", "r1", WORDS, true);
        let kept = place.say("u", "r2", "shorter next time, please", true);
        let waits = place.say("t", "not yet", "another remark of mine", true);
        assert!(!place.holds(WORDS).is_empty());
        let subject = match by {
            "turn" => Subject::Turn(turn),
            "session" => Subject::Session("session of r1".into()),
            _ => Subject::Tenant("t".into()),
        };
        let report = place.forget(&subject).unwrap();
        assert!(report.plan.feedback.contains(&id), "{by}: {report:?}");
        assert!(report.erased.feedback >= 2 && report.spool_records >= 1, "{by}: {report:?}");
        assert_eq!(place.holds(WORDS), Vec::<String>::new(), "{by}");
        assert!(place.store.has_feedback(kept).unwrap());
        assert_eq!(place.store.feedback_of_turn(other).unwrap().len(), 2);
        let gone = !place.store.has_feedback(waits).unwrap();
        assert_eq!(gone, by == "tenant", "what waits belongs to its tenant");
        assert_eq!(place.holds("another remark of mine").is_empty(), by == "tenant");
    }
}

#[test]
fn a_text_that_only_was_said_goes_with_the_verdict_and_the_rounds_that_used_it() {
    let mut place = Place::new();
    let turn = place.turn("t", "r1");
    let id = place.say("t", "r1", WORDS, true);
    place.judge(turn, "a hint in other words");
    place.trained_on(turn);
    let subject = Subject::Text("Seven Oaks".into());
    let planned = plan(&place.data, &subject).unwrap();
    assert_eq!((planned.feedback, planned.hinted), (vec![id], vec![turn]));
    assert!(planned.turns.is_empty(), "the turn itself does not hold it");
    let report = place.forget(&subject).unwrap();
    assert_eq!((report.erased.feedback, report.erased.verdicts), (2, 1));
    assert_eq!(report.plan.rounds, ["r"]);
    assert_eq!(place.holds("Seven Oaks"), Vec::<String>::new());
    assert!(place.store.turn(turn).unwrap().is_some());
    assert_eq!(place.store.verdict(turn).unwrap(), None);
    assert_eq!(place.store.round("r").unwrap().unwrap().state, RoundState::Abandoned);
    // A round that drew the turn before must not publish; one that draws it anew may.
    assert_eq!(place.store.first_forgotten(&[turn], 0).unwrap(), Some(turn));
    let done = place.store.forgets_done().unwrap();
    assert_eq!((done, place.store.first_forgotten(&[turn], done).unwrap()), (1, None));
    // While an erasure is not finished, what is drawn may still hold what it takes.
    let concerned = place.store.concerned(&Subject::Turn(turn), &[7; 32]).unwrap();
    let job = place.store.begin_forget("turn", "cli:test", "", &concerned).unwrap();
    assert_eq!(place.store.forgets_done().unwrap(), job.id - 1);
    assert_eq!(place.store.first_forgotten(&[turn], job.id).unwrap(), Some(turn), "it is gone");
}

#[test]
fn a_text_that_a_verdict_quotes_goes_with_its_turn() {
    let mut place = Place::new();
    let turn = place.turn("t", "r1");
    place.say("t", "r1", WORDS, true);
    place.judge(turn, WORDS);
    place.forget(&Subject::Text("Seven Oaks".into())).unwrap();
    assert_eq!(place.holds("Seven Oaks"), Vec::<String>::new());
    assert_eq!(place.store.verdict(turn).unwrap(), None);
}

#[test]
fn what_is_said_again_under_a_forgotten_id_is_dropped() {
    let mut place = Place::new();
    place.turn("t", "r1");
    let id = place.say("t", "r1", WORDS, true);
    place.forget(&Subject::Text("Seven Oaks".into())).unwrap();
    let again = Feedback {
        id,
        tenant: "t".into(),
        shape: Shape::Native,
        target: Target::Response("r1".into()),
        parts: vec![Part::Comment(WORDS.into())],
        weight: 1.0,
        made_ms: 5,
    };
    let feedback = vec![IngestFeedback::prepare(&SECRET, again, &[])];
    let done = place.store.commit_batch(&Batch { feedback, ..Batch::default() }).unwrap();
    assert_eq!((done.feedback.stored, done.feedback.forgotten), (0, 1));
    assert_eq!(place.holds("Seven Oaks"), Vec::<String>::new());
}

#[test]
fn what_is_said_about_a_forgotten_turn_is_dropped_and_a_verdict_on_its_way_is_refused() {
    let mut place = Place::new();
    let (turn, _newest) = (place.turn("t", "r1"), place.turn("t", "r2"));
    place.say("t", "r1", WORDS, true);
    let said = place.store.feedback_to_judge("chat", 9).unwrap().remove(0);
    place.forget(&Subject::Turn(turn)).unwrap();
    assert_eq!(place.store.judge_by_feedback(&said, None).unwrap(), Settled::Forgotten);
    let late = Feedback {
        id: FeedbackId::now(),
        tenant: "t".into(),
        shape: Shape::Native,
        target: Target::Turn(turn),
        parts: vec![Part::Comment(WORDS.into())],
        weight: 1.0,
        made_ms: 5,
    };
    let feedback = vec![IngestFeedback::prepare(&SECRET, late, &[])];
    let done = place.store.commit_batch(&Batch { feedback, ..Batch::default() }).unwrap();
    assert_eq!((done.feedback.stored, done.feedback.forgotten), (0, 1));
}

#[test]
fn an_erasure_waits_for_feedback_that_is_spooled_and_not_stored() {
    let mut place = Place::new();
    let turn = place.turn("t", "r1");
    place.say("t", "r1", WORDS, false);
    let refused = place.forget(&Subject::Turn(turn)).unwrap_err();
    assert!(matches!(refused, ForgetError::Behind(1)), "{refused}");
}

#[test]
fn retention_takes_what_was_said_with_its_turn() {
    let mut place = Place::new();
    let turn = place.turn("t", "r1");
    place.say("t", "r1", WORDS, true);
    let newer = Begin { started_ms: 1_700_000_000_000 + 9 * 86_400_000, ..begin(vec![]) };
    let turns = vec![IngestTurn::parse(&SECRET, newer, None)];
    place.store.commit_batch(&Batch { turns, ..Batch::default() }).unwrap();
    let route = PolicySet::builtin().unwrap().route("chat").unwrap().as_ref().clone();
    let mut route = route;
    route.retention.days_max = Some(7);
    let swept = place.store.sweep_route(&route, i64::MAX).unwrap();
    assert_eq!((swept.erased.turns, swept.erased.feedback), (1, 2));
    assert!(place.store.feedback_given(turn).unwrap().is_empty());
}
