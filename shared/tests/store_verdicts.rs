//! Verdicts and rounds on a real SQLite file: what waits for a verdict, what a round may learn from,
//! and what it uses up.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod records;

use hone_shared::next_state::StateKind;
use hone_shared::store::{
    IngestTurn, LlmTrace, RoundRow, RoundState, Split, StoreError, VerdictRow,
};
use hone_shared::turn::{Done, Generation, Mode, Outcome, TurnId};
use records::talk::{SECRET, assistant, conversation, halves, place, pos, turn, user, verdict};
use serde_json::json;

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
fn issue_5_praise_does_not_hide_an_old_correction_and_what_is_new_is_not_hidden() {
    let mut place = place();
    let mut all = Vec::new();
    for (at, given) in [-1, -1, 1, 1, 1, 1].into_iter().enumerate() {
        let asked = user(&format!("question {at}"));
        let parent = turn(std::slice::from_ref(&asked), "four");
        let child = turn(&[asked, assistant("four"), user("ok")], "fine");
        let (p, c) = (parent.begin.turn_id, child.begin.turn_id);
        place.store.insert_batch(&[parent, child], &pos(at as u64 + 1)).unwrap();
        assert!(place.store.insert_verdict(&verdict(p, c, given, &[])).unwrap());
        all.push(p);
    }
    let taken = |limit: usize| -> Vec<TurnId> {
        let pool = place.store.trainable("chat", limit).unwrap();
        pool.into_iter().map(|(turn, _)| turn.turn_id).collect()
    };
    assert_eq!(taken(6), all, "oldest first");
    assert_eq!(taken(4), [all[0], all[1], all[4], all[5]]);
    assert_eq!(taken(2), [all[1], all[5]], "half of the room each");
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
    let tested = |route: &str, turn: TurnId| store.was_held_out(route, turn).unwrap();
    assert!(tested("chat", p) && !tested("other", p) && !tested("chat", TurnId::now()));
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
