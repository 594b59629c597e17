//! Erasure on demand, checked on the raw bytes of a real data directory: database, log, spool,
//! rounds, registry.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod records;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hone_shared::data_dir::DataDir;
use hone_shared::forget::{ForgetError, Options, Report, Subject, nothing_matched, plan, run};
use hone_shared::policy::PolicySet;
use hone_shared::registry::{AdapterConfig, ManifestDraft, Registry, RegistryError};
use hone_shared::spool::{Follower, Item, Spool, SpoolConfig};
use hone_shared::store::{
    IngestPos, IngestTurn, Judged, RoundRow, RoundState, Split, Store, TurnFilter, VerdictRow,
};
use hone_shared::turn::{Begin, Done, Generation, Record, TurnId};
use records::talk::{assistant, user};
use records::{begin, done};
use serde_json::{Value, json};

const SECRET: [u8; 32] = [7; 32];

struct Place {
    _dir: tempfile::TempDir,
    data: DataDir,
    store: Store,
    spool: Option<Spool>,
    follower: Follower,
    at: u64,
}

fn options() -> Options {
    Options {
        actor: "cli:test".into(),
        reason: "asked for".into(),
        wait_ms_max: 300,
        ..Options::default()
    }
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path().join("data"));
        data.create().unwrap();
        let store = Store::open(&data.store_path()).unwrap();
        let spool = Spool::start(SpoolConfig::new(data.spool_dir())).unwrap();
        let follower = Follower::take_unread(&data.spool_dir()).remove(0);
        Self { _dir: dir, data, store, spool: Some(spool), follower, at: 0 }
    }

    /// One exchange, through the spool's files and into the store.
    fn say(&mut self, tenant: &str, session: &str, messages: &[Value], answer: &str) -> TurnId {
        let (begin, done) = self.halves(tenant, session, messages, answer);
        self.spool(&begin, Some(&done));
        self.keep(begin, Some(done))
    }

    fn halves(
        &self,
        tenant: &str,
        session: &str,
        messages: &[Value],
        answer: &str,
    ) -> (Begin, Done) {
        let request = json!({"model": format!("model of {tenant}"), "messages": messages,
                "user": format!("user of {session}")});
        let headers = vec![("x-session-id".into(), session.into())];
        let begin =
            Begin { tenant: tenant.into(), headers, ..begin(request.to_string().into_bytes()) };
        let response = json!({"choices": [{"index": 0, "message": assistant(answer), "finish_reason": "stop"}]});
        let headers = vec![("content-type".into(), "application/json".into())];
        let done = Done { headers, ..done(begin.turn_id, response.to_string().into_bytes()) };
        (begin, done)
    }

    fn spool(&self, begin: &Begin, done: Option<&Done>) {
        let spool = self.spool.as_ref().unwrap();
        spool.try_send(Record::Begin(begin.clone())).unwrap();
        if let Some(done) = done {
            spool.try_send(Record::Done(done.clone())).unwrap();
        }
        let before = self.follower.upto();
        self.follower.wait(before, Duration::from_millis(200));
        std::thread::sleep(Duration::from_millis(60));
    }

    fn keep(&mut self, begin: Begin, done: Option<Done>) -> TurnId {
        let id = begin.turn_id;
        let turn = IngestTurn::parse(&SECRET, begin, done);
        self.at += 1;
        let upto = self.follower.upto();
        let pos = IngestPos {
            boot: self.follower.boot().to_owned(),
            segment: upto.segment,
            offset: upto.offset,
        };
        self.store.insert_batch(&[turn], &pos).unwrap();
        id
    }

    fn judge(&self, turn: TurnId, child: TurnId, hint: &str) {
        assert!(self.store.insert_verdict(&verdict(turn, child, hint)).unwrap());
    }

    /// A promoted round that trained on `turns`, its files, and its generation on top of `parent`.
    fn round(&self, name: &str, turns: &[TurnId], parent: &Generation, text: &str) -> Generation {
        let registry = self.registry();
        let draft = ManifestDraft {
            parent: parent.clone(),
            round_id: Some(name.into()),
            turns: turns.to_vec(),
            ..ManifestDraft::default()
        };
        let config = AdapterConfig::new(name, 8, 16.0).unwrap();
        let generation = registry.publish(&config, &weights(), draft).unwrap();
        let row = RoundRow {
            round_id: name.into(),
            route: "chat".into(),
            state: RoundState::Promoted,
            started_ms: 1,
            finished_ms: Some(2),
            incumbent: parent.clone(),
            candidate: Some(generation.clone()),
            reason: String::new(),
            metrics: json!({}),
        };
        self.store.begin_round(&row).unwrap();
        let used: Vec<_> = turns.iter().map(|turn| (*turn, Split::Train)).collect();
        self.store.set_round_turns(name, &used).unwrap();
        let dir = self.data.rounds_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for file in ["samples.json", ".samples.json.new", "metrics.jsonl"] {
            let text = if file == "metrics.jsonl" { "{}" } else { text };
            std::fs::write(dir.join(file), text).unwrap();
        }
        let now = registry.alias("chat").unwrap().generation;
        registry.move_alias("chat", &now, &generation, "promoted").unwrap();
        generation
    }

    fn registry(&self) -> Registry {
        Registry::open(self.data.registry_dir()).unwrap()
    }

    fn forget(&self, subject: &Subject) -> Report {
        run(&self.data, subject, &options()).unwrap()
    }

    fn hits(&self, text: &str) -> Vec<String> {
        hits(self.data.path(), text)
    }
}

fn verdict(turn_id: TurnId, child: TurnId, hint: &str) -> VerdictRow {
    VerdictRow {
        turn_id,
        child: Some(child),
        verdict: -1,
        source: "rule:correction".into(),
        reason: format!("the user says {hint}"),
        votes: json!([-1]),
        hints: vec![hint.into()],
        judge: "chat@1".into(),
        judged_ms: 5,
        kind: None,
        llm: None,
    }
}

fn weights() -> Vec<u8> {
    let header =
        json!({"m.q_proj.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}});
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()
}

/// The files under a directory that hold a text.
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

fn session(name: &str) -> Subject {
    Subject::Session(name.into())
}

/// Two tenants; amy's second message corrects the first answer.
fn two_tenants(place: &mut Place) -> [TurnId; 3] {
    let question = user("what is the shared question?");
    let first = place.say("amy", "s1", std::slice::from_ref(&question), "AMYANSWER one");
    let history = [question.clone(), assistant("AMYANSWER one"), user("AMYSECRET correction")];
    let second = place.say("amy", "s1", &history, "AMYANSWER two");
    let bob = place.say("bob", "s1", &[question, user("BOBSECRET")], "BOBANSWER");
    place.judge(first, second, "AMYSECRET correction");
    [first, second, bob]
}

#[test]
fn no_byte_of_a_forgotten_tenant_is_left_and_the_others_keep_theirs() {
    let mut place = Place::new();
    let [first, second, bob] = two_tenants(&mut place);
    place.round("r1", &[first], &Generation::base(), "AMYSECRET tokens");
    for text in ["AMYSECRET", "AMYANSWER", "BOBSECRET", "model of amy"] {
        assert!(!place.hits(text).is_empty(), "{text} is there to begin with");
    }
    let report = place.forget(&Subject::Tenant("amy".into()));
    assert_eq!(report.plan.turns, [first, second]);
    assert!(report.spool_records >= 4, "{report:?}");
    for text in ["AMYSECRET", "AMYANSWER", "user of s1\\\"amy", "model of amy"] {
        assert_eq!(place.hits(text), [""; 0], "{text}");
    }
    let kept = place.store.turn(bob).unwrap().unwrap();
    assert_eq!(kept.messages, [user("what is the shared question?"), user("BOBSECRET")]);
    assert!(!place.hits("BOBSECRET").is_empty());
    assert_eq!(place.store.integrity_check().unwrap(), ["ok"]);
    // The turn that was trained on is still known by its id, and by nothing else.
    let provenance = place.store.turn(first).unwrap().unwrap();
    assert_eq!((provenance.tenant.as_str(), provenance.messages.len()), ("forgotten", 0));
    assert_eq!(place.store.turn(second).unwrap(), None);
    assert_eq!(place.store.verdict(first).unwrap(), None);
    let row = place.store.audit(1, None).unwrap().remove(0);
    assert_eq!((row.action.as_str(), row.target.as_str()), ("forget", "tenant"));
    assert!(!format!("{row:?}").contains("amy"), "{row:?}");
    // The spool is still readable, and tells the store nothing new.
    let boot = place.data.spool_dir().join(place.follower.boot());
    place.spool.take().unwrap().close().unwrap();
    let items = records::read_dead(&boot);
    assert!(items.iter().all(|item| matches!(item, Item::Record(_))), "{items:?}");
}

#[test]
fn an_erasure_reaches_a_reserve_on_another_disk() {
    let mut place = Place::new();
    let disk = tempfile::tempdir().unwrap();
    let reserve = disk.path().join("reserve");
    place.data.note_reserve(&reserve).unwrap();
    place.spool = Some(Spool::start(SpoolConfig::new(reserve.clone())).unwrap());
    place.follower = Follower::take_unread(&reserve).remove(0);
    let turn = place.say("amy", "s1", &[user("AMYSECRET")], "fine");
    assert!(!hits(disk.path(), "AMYSECRET").is_empty());
    assert!(place.forget(&Subject::Turn(turn)).spool_records >= 2);
    assert_eq!(hits(disk.path(), "AMYSECRET"), [""; 0]);
    std::fs::rename(&reserve, disk.path().join("away")).unwrap();
    let refused = run(&place.data, &Subject::Turn(turn), &options()).unwrap_err();
    assert!(matches!(refused, ForgetError::ReserveAway(_)), "{refused}");
}

#[test]
fn what_is_listed_after_an_erasure_is_listed_as_what_it_is() {
    let mut place = Place::new();
    let [first, second, _] = two_tenants(&mut place);
    let listed = |place: &Place, filter: TurnFilter| -> Vec<TurnId> {
        let page = place.store.list_turns(&filter, None, 9).unwrap();
        page.turns.iter().map(|line| line.turn_id).collect()
    };
    let judged = |as_what| TurnFilter { verdict: Some(as_what), ..TurnFilter::default() };
    assert_eq!(listed(&place, judged(Judged::As(-1))), [first]);
    place.forget(&Subject::Turn(second));
    assert_eq!(listed(&place, judged(Judged::As(-1))), [], "its verdict is gone");
    assert!(listed(&place, judged(Judged::Not)).contains(&first));
    // A writer that knows the rows that went, by their numbers, must not use them again.
    place.forget(&Subject::Tenant("amy".into()));
    place.say("cid", "s2", &[user("a question of another tenant")], "fine");
    let again = place.say("amy", "s3", &[user("a question after all that")], "fine");
    let model = Some("model of amy".to_owned());
    assert_eq!(listed(&place, TurnFilter { model, ..TurnFilter::default() }), [again]);
}

#[test]
fn what_learned_from_a_forgotten_turn_is_tainted_down_to_the_last_descendant() {
    let mut place = Place::new();
    let [first, _, bob] = two_tenants(&mut place);
    let clean = place.round("r0", &[bob], &Generation::base(), "");
    let trained = place.round("r1", &[first], &clean, "");
    let child = place.round("r2", &[bob], &trained, "");
    let before = plan(&place.data, &session("s1"));
    assert!(before.unwrap_err().to_string().contains("several sessions"), "s1 of amy or of bob?");
    let amys = session("amy/x-session-id:s1");
    let planned = plan(&place.data, &amys).unwrap();
    let expected = BTreeSet::from([trained.clone(), child.clone()]);
    assert_eq!(planned.tainted.iter().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(planned.aliases[0].to, clean);
    assert_eq!(place.registry().alias("chat").unwrap().generation, child, "a plan does nothing");
    let report = place.forget(&amys);
    let registry = place.registry();
    assert_eq!(report.tainted.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(registry.alias("chat").unwrap().generation, clean);
    let left: Vec<_> = registry.list().unwrap().into_iter().map(|dir| dir.generation).collect();
    assert_eq!(left, std::slice::from_ref(&clean));
    let refused = registry.move_alias("chat", &clean, &child, "back");
    assert!(matches!(refused, Err(RegistryError::Tainted(_))), "{refused:?}");
    let heir = ManifestDraft { parent: trained, ..ManifestDraft::default() };
    let config = AdapterConfig::new("heir", 8, 16.0).unwrap();
    let refused = registry.publish(&config, &weights(), heir);
    assert!(matches!(refused, Err(RegistryError::Tainted(_))), "{refused:?}");
}

#[test]
fn a_session_is_forgotten_by_its_whole_name_and_also_where_that_is_hidden() {
    let mut place = Place::new();
    let one = place.say("amy", "42", &[user("ONE")], "fine");
    for longer in ["team-a/42", "x:42", "142"] {
        place.say("amy", longer, &[user("another")], "fine");
    }
    assert_eq!(plan(&place.data, &session("42")).unwrap().turns, [one]);
    let team = plan(&place.data, &session("team-a/42")).unwrap();
    assert_eq!(team.turns.len(), 1);
    assert!(team.turns[0] != one);
    // The proxy keys the hash that stands for a name with something to redact in it.
    let (begin, done) = place.halves("bob", "bob@example.org", &[user("HIDDENNAME")], "fine");
    let (policies, secret) = (PolicySet::builtin().unwrap(), place.data.secret().unwrap());
    let redactions: Vec<_> = policies.redactions.values().cloned().collect();
    let hidden = begin.turn_id;
    let turn = IngestTurn::parse_redacted(&secret, begin, Some(done), &redactions);
    let upto = place.follower.upto();
    let boot = place.follower.boot().to_owned();
    let pos = IngestPos { boot, segment: upto.segment, offset: upto.offset + 1 };
    place.store.insert_batch(&[turn], &pos).unwrap();
    let stored = place.store.turn(hidden).unwrap().unwrap().session_id;
    assert!(stored.contains(":~") && !stored.contains("bob@"), "{stored}");
    let report = place.forget(&session("bob@example.org"));
    assert_eq!(report.plan.turns, [hidden]);
    assert!(!nothing_matched(&[json!(report)]));
    let none = json!(plan(&place.data, &session("4")).unwrap());
    assert!(nothing_matched(&[none.clone(), none]), "and that is said");
}

#[test]
fn a_turn_whose_hint_is_forgotten_taints_what_it_taught() {
    let mut place = Place::new();
    let [first, second, _] = two_tenants(&mut place);
    let trained = place.round("r1", &[first], &Generation::base(), "");
    let report = place.forget(&Subject::Turn(second));
    assert_eq!((report.plan.turns, report.plan.hinted), (vec![second], vec![first]));
    assert_eq!(report.tainted, [trained]);
    assert_eq!(place.store.verdict(first).unwrap(), None);
    assert_eq!(place.store.turn(first).unwrap().unwrap().messages.len(), 1, "it stays");
    assert_eq!(place.hits("AMYSECRET"), [""; 0]);
    assert!(place.store.first_forgotten(&[first], 0).unwrap().is_some());
    let late = verdict(first, second, "AMYSECRET");
    assert!(!place.store.insert_verdict(&late).unwrap(), "judged before, written after");
}

#[test]
fn a_text_is_found_however_it_is_escaped_and_takes_what_repeats_it() {
    let mut place = Place::new();
    let text = "say \"NEEDLE\"\nagain";
    let arguments = json!({"to": text}).to_string();
    let call = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}]});
    let plain = place.say("amy", "a", &[user(text)], "ok");
    let repeats = place.say("amy", "a", &[user(text), assistant("ok"), user("go on")], "fine");
    let nested = place.say("bob", "b", &[user("x"), call, user("y")], "ok");
    let other = place.say("bob", "c", &[user("say NEED LE again")], "ok");
    let report = place.forget(&Subject::Text(text.into()));
    let found: BTreeSet<_> = report.plan.turns.into_iter().collect();
    assert_eq!(found, BTreeSet::from([plain, repeats, nested]));
    assert_eq!(place.hits("NEEDLE"), [""; 0]);
    assert!(place.store.turn(other).unwrap().is_some());
}

#[test]
fn turns_that_are_not_stored_yet_are_waited_for() {
    let mut place = Place::new();
    place.say("amy", "a", &[user("stored")], "ok");
    let (begin, done) = place.halves("amy", "a", &[user("LATECOMER")], "ok");
    place.spool(&begin, Some(&done));
    let behind = run(&place.data, &Subject::Tenant("amy".into()), &options());
    assert!(matches!(behind, Err(ForgetError::Behind(1))), "{behind:?}");
    place.keep(begin, Some(done));
    place.forget(&Subject::Tenant("amy".into()));
    assert_eq!(place.hits("LATECOMER"), [""; 0]);
}

#[test]
fn a_turn_in_flight_is_reported_and_forgotten_later() {
    let mut place = Place::new();
    let (begin, done) = place.halves("amy", "a", &[user("INFLIGHT")], "ok");
    place.spool(&begin, None);
    let report = place.forget(&Subject::Tenant("amy".into()));
    assert_eq!((report.plan.turns.len(), report.plan.in_flight), (0, 1));
    place.spool.as_ref().unwrap().try_send(Record::Done(done.clone())).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    place.keep(begin, Some(done));
    place.forget(&Subject::Tenant("amy".into()));
    assert_eq!(place.hits("INFLIGHT"), [""; 0]);
}

#[test]
fn forgetting_again_changes_nothing_and_a_forgotten_turn_does_not_come_back() {
    let mut place = Place::new();
    let (begin, done) = place.halves("amy", "a", &[user("ONCE")], "ok");
    place.spool(&begin, Some(&done));
    place.keep(begin.clone(), Some(done.clone()));
    place.say("bob", "b", &[user("hello")], "ok");
    place.forget(&Subject::Tenant("amy".into()));
    let again = place.forget(&Subject::Tenant("amy".into()));
    assert_eq!((again.plan.turns.len(), again.erased.turns), (0, 0));
    // The same record, found once more in a spool.
    place.keep(begin, Some(done));
    assert_eq!(place.hits("ONCE"), [""; 0]);
    assert_eq!(place.store.counts().unwrap().turns, 1);
}

/// The victim of the next test: forgets, and is killed at some instant.
#[test]
fn child() {
    if let Ok(data) = std::env::var("HONE_FORGET_DATA") {
        let subject = Subject::Tenant("amy".into());
        run(&DataDir::new(data), &subject, &options()).unwrap();
    }
}

#[test]
fn killed_at_any_instant_the_next_call_reaches_the_same_end() {
    for wait_us in [0, 2_000, 4_000, 6_000, 9_000, 13_000, 18_000, 25_000, 40_000, 80_000] {
        let mut place = Place::new();
        let [first, _, bob] = two_tenants(&mut place);
        let clean = place.round("r0", &[bob], &Generation::base(), "");
        place.round("r1", &[first], &clean, "AMYSECRET");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child"])
            .env("HONE_FORGET_DATA", place.data.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(wait_us));
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever the next call is about.
        place.forget(&Subject::Tenant("nobody".into()));
        place.forget(&Subject::Tenant("amy".into()));
        for text in ["AMYSECRET", "AMYANSWER"] {
            assert_eq!(place.hits(text), [""; 0], "{text} after {wait_us} us");
        }
        let registry = place.registry();
        assert_eq!(registry.alias("chat").unwrap().generation, clean, "after {wait_us} us");
        assert_eq!(registry.list().unwrap().len(), 1);
        assert!(place.store.open_forget_jobs().unwrap().is_empty());
        assert_eq!(place.store.integrity_check().unwrap(), ["ok"]);
        assert!(place.store.turn(bob).unwrap().is_some());
    }
}

#[test]
fn fifty_tenants_with_the_same_words_stay_apart() {
    let mut place = Place::new();
    let tenant = |n: usize| format!("tenant{n:02}");
    let mut turns = Vec::new();
    for n in 0..50 {
        let (question, canary) = (user("the same question"), format!("CANARY{n:02}X"));
        let (begin, done) = place.halves(
            &tenant(n),
            "same-session",
            std::slice::from_ref(&question),
            "same answer",
        );
        let root = place.keep(begin, Some(done));
        let history = [question, assistant("same answer"), user(&canary)];
        let (begin, done) = place.halves(&tenant(n), "same-session", &history, &canary);
        turns.push((root, place.keep(begin, Some(done))));
    }
    for (n, (root, child)) in turns.iter().enumerate() {
        let stored = place.store.turn(*child).unwrap().unwrap();
        assert_eq!(stored.parent, Some(*root), "linked to another tenant's turn");
        assert_eq!(place.store.children(*root).unwrap().len(), 1);
        let concerned = place.store.concerned(&Subject::Tenant(tenant(n)), &SECRET).unwrap();
        assert_eq!(concerned.turns, BTreeSet::from([*root, *child]));
        let session = place.store.concerned(&Subject::Session(stored.session_id), &SECRET).unwrap();
        assert_eq!(session.turns, concerned.turns, "another tenant's session has the name");
    }
    for item in place.store.unjudged(1_000).unwrap() {
        let child = place.store.turn(item.child).unwrap().unwrap();
        assert_eq!(item.turn.tenant, child.tenant);
    }
    place.forget(&Subject::Tenant(tenant(7)));
    assert_eq!(place.hits("CANARY07X"), [""; 0]);
    for (n, (root, child)) in turns.iter().enumerate().filter(|(n, _)| *n != 7) {
        let texts = place.store.turn(*child).unwrap().unwrap();
        assert_eq!(texts.messages[2], user(&format!("CANARY{n:02}X")));
        assert_eq!(place.store.turn(*root).unwrap().unwrap().messages.len(), 1);
    }
}
