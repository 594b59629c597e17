//! What a changed judge would say of turns that were judged, in a real store.

use super::super::Judge;
use super::*;
use crate::judge::eval::LlmModel;
use crate::testing::lab::Lab;
use crate::testing::peers::{Engine, nobody};
use crate::testing::policies;
use hone_shared::clock::Clock;

#[tokio::test]
async fn a_replay_shows_what_would_change_and_changes_nothing() {
    let mut lab = Lab::new();
    let long = lab.add("s", "What is rain?", "Rain is water.", "Too long. Use one sentence.");
    let good = lab.add("t", "What is snow?", "Snow is ice.", "Thanks, perfect.");
    let mut judge = Judge::new(&nobody(), Clock::manual(1_000)).unwrap();
    judge.pass(&mut lab.store, &policies(&[])).await.unwrap();
    let before = (lab.store.verdict(long).unwrap(), lab.store.verdict(good).unwrap());

    let same = replay(&lab.store, &policies(&[]), None, 100, None).await.unwrap();
    assert_eq!((same.turns, same.skipped, same.differing.len()), (2, 0, 0));
    assert_eq!((same.changes[0][0], same.changes[2][2]), (1, 1));

    // A judge that no longer knows the complaint is silent about it; approval stays.
    let changed =
        policies(&[("'too long'", "'much too long'"), ("'one (short )?sentence'", "'x'")]);
    let found = replay(&lab.store, &changed, None, 100, None).await.unwrap();
    let [one] = found.differing.as_slice() else { panic!("{found:?}") };
    assert_eq!((one.turn, one.stands, one.now), (long, -1, None));
    assert_eq!((one.stands_by.as_str(), one.now_by.as_str()), ("rule:correction", "none"));
    assert_eq!(replay(&lab.store, &changed, Some("elsewhere"), 100, None).await.unwrap().turns, 0);
    assert_eq!(
        replay(&lab.store, &changed, None, 1, None).await.unwrap().turns,
        1,
        "the newest first"
    );
    assert_eq!(before, (lab.store.verdict(long).unwrap(), lab.store.verdict(good).unwrap()));
}

#[tokio::test]
async fn a_replay_asks_the_model_where_it_is_given_one_with_the_same_seeds_as_before() {
    let (mut lab, engine) = (Lab::new(), Engine::default());
    let turn = lab.add("s", "What is rain?", "Rain is water.", "And snow?");
    let set = policies(&[("LLM", "true")]);
    engine.says(r#"{"verdict": 1, "reason": "goes on", "hint": null}"#);
    let url = engine.serve().await;
    let seed = || engine.0.lock().unwrap().chat_body["seed"].as_u64().unwrap();
    let mut judge = Judge::new(&url, Clock::manual(1_000)).unwrap();
    judge.pass(&mut lab.store, &set).await.unwrap();
    let first = seed();
    engine.0.lock().unwrap().answers.clear();
    engine.says(r#"{"verdict": -1, "reason": "no", "hint": null}"#);
    let model = LlmModel::new(&url).unwrap();
    let found = replay(&lab.store, &set, None, 100, Some(&model)).await.unwrap();
    let [one] = found.differing.as_slice() else { panic!("{found:?}") };
    assert_eq!((one.turn, one.stands, one.now, seed()), (turn, 1, Some(-1), first));
    assert_eq!(lab.store.verdict(turn).unwrap().unwrap().verdict, 1, "nothing is written");
    let away = LlmModel::new(&nobody()).unwrap();
    let error = replay(&lab.store, &set, None, 100, Some(&away)).await.unwrap_err();
    assert!(matches!(error, ReplayError::Model(_)), "{error}");
}
