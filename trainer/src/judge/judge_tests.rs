//! Judging with a real store and a real HTTP endpoint, up, down and talking nonsense.

use super::*;
use crate::testing::lab::Lab;
use crate::testing::peers::{Engine, nobody};
use crate::testing::policies;
use hone_shared::turn::TurnId;

const LLM: (&str, &str) = ("LLM", "true");

fn verdict_of(lab: &Lab, turn: TurnId) -> Option<VerdictRow> {
    lab.store.verdict(turn).unwrap()
}

async fn pass(judge: &mut Judge, lab: &mut Lab, edits: &[(&str, &str)]) -> PassReport {
    judge.pass(&mut lab.store, &policies(edits)).await.unwrap()
}

fn judge(url: &str) -> Judge {
    Judge::new(url, Clock::manual(1_000)).unwrap()
}

#[tokio::test]
async fn rules_judge_without_any_model_and_keep_the_users_words_as_the_hint() {
    let mut lab = Lab::new();
    let turn = lab.add("s", "What is rain?", "Rain is water.", "Too long. Use one sentence.");
    let good = lab.add("t", "What is snow?", "Snow is ice.", "Thanks, perfect.");
    let report = pass(&mut judge(&nobody()), &mut lab, &[]).await;
    assert_eq!(report, PassReport { judged: 2, waiting: 0 });
    let row = verdict_of(&lab, turn).unwrap();
    assert_eq!((row.verdict, row.source.as_str()), (-1, "rule:correction"));
    assert_eq!(row.hints, ["Too long. Use one sentence."]);
    assert!(row.judge.starts_with("chat@"));
    assert_eq!(verdict_of(&lab, good).unwrap().verdict, 1);
}

#[tokio::test]
async fn hints_can_be_switched_off() {
    let mut lab = Lab::new();
    let turn = lab.add("s", "What is rain?", "Rain is water.", "Too long. Use one sentence.");
    pass(&mut judge(&nobody()), &mut lab, &[("HINT", "off")]).await;
    assert!(verdict_of(&lab, turn).unwrap().hints.is_empty());
}

#[tokio::test]
async fn where_rules_are_silent_and_the_model_is_off_the_verdict_is_neutral() {
    let mut lab = Lab::new();
    let turn = lab.add("s", "What is rain?", "Rain is water.", "And snow?");
    pass(&mut judge(&nobody()), &mut lab, &[]).await;
    assert_eq!(verdict_of(&lab, turn).unwrap().source, "rule:none");
}

#[tokio::test]
async fn three_votes_of_the_base_model_decide_and_are_stored() {
    let (mut lab, engine) = (Lab::new(), Engine::default());
    let turn = lab.add("s", "What is rain?", "Rain is water.", "And snow?");
    engine.says(r#"{"verdict": 1, "reason": "goes on", "hint": null}"#);
    engine.says("```json\n{\"verdict\": 1, \"reason\": \"goes on\"}\n```");
    engine.says(r#"{"verdict": -1, "reason": "unclear"}"#);
    pass(&mut judge(&engine.serve().await), &mut lab, &[LLM]).await;
    let row = verdict_of(&lab, turn).unwrap();
    assert_eq!((row.verdict, row.source.as_str(), row.reason.as_str()), (1, "llm", "goes on"));
    assert_eq!(row.votes.as_array().unwrap().len(), 2, "the third cannot change it");
    let state = engine.0.lock().unwrap();
    assert_eq!(state.chat_headers.as_ref().unwrap()["x-hone-generation"], "base");
    assert_eq!(state.chat_body["temperature"], 0.6);
    assert_eq!(state.chat_body["model"], "tiny");
    assert!(state.chat_body["messages"][1]["content"].as_str().unwrap().contains("And snow?"));
}

#[tokio::test]
async fn a_tie_is_neutral_and_so_are_too_few_valid_votes() {
    for answers in [
        [r#"{"verdict": 1}"#, r#"{"verdict": -1}"#, r#"{"verdict": 0}"#],
        [r#"{"verdict": 1}"#, "I would say it is good.", "1"],
    ] {
        let (mut lab, engine) = (Lab::new(), Engine::default());
        let turn = lab.add("s", "What is rain?", "Rain is water.", "And snow?");
        answers.iter().for_each(|text| engine.says(text));
        pass(&mut judge(&engine.serve().await), &mut lab, &[LLM]).await;
        let row = verdict_of(&lab, turn).unwrap();
        assert_eq!((row.verdict, row.votes.as_array().unwrap().len()), (0, 3), "{answers:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_down_delays_its_turns_and_nothing_else() {
    let mut lab = Lab::new();
    let asks = lab.add("s", "What is rain?", "Rain is water.", "And snow?");
    let ruled = lab.add("t", "What is hail?", "Hail is ice.", "Too long. Use one sentence.");
    let engine = Engine::default();
    let url = engine.serve().await;
    let clock = Clock::manual(1_000);
    let mut judge = Judge::new(&url, clock.clone()).unwrap();
    // No answers are queued: the endpoint answers 503.
    let report = pass(&mut judge, &mut lab, &[LLM]).await;
    assert_eq!(report, PassReport { judged: 1, waiting: 1 });
    assert_eq!(verdict_of(&lab, ruled).unwrap().verdict, -1);
    assert_eq!(verdict_of(&lab, asks), None);

    engine.says(r#"{"verdict": 1}"#);
    let calls = || engine.0.lock().unwrap().calls.len();
    let before = calls();
    let report = pass(&mut judge, &mut lab, &[LLM]).await;
    assert_eq!((report.judged, calls()), (0, before), "left alone while it recovers");
    clock.advance(backoff::FIRST_MS);
    assert_eq!(pass(&mut judge, &mut lab, &[LLM]).await.judged, 1);
    assert_eq!(verdict_of(&lab, asks).unwrap().verdict, 1);
}

#[tokio::test]
async fn a_correction_is_judged_with_the_users_words_when_the_hint_writer_is_down() {
    let mut lab = Lab::new();
    let turn = lab.add("s", "What is rain?", "Rain is water.", "Too long. Use one sentence.");
    let report = pass(&mut judge(&nobody()), &mut lab, &[LLM, ("HINT", "llm")]).await;
    assert_eq!(report.judged, 1);
    let row = verdict_of(&lab, turn).unwrap();
    assert_eq!((row.verdict, row.hints.len()), (-1, 1));
}

#[tokio::test]
async fn hints_are_written_by_the_model_where_the_policy_says_so() {
    let (mut lab, engine) = (Lab::new(), Engine::default());
    let turn = lab.add("s", "What is rain?", "Rain is water.", "Too long. Use one sentence.");
    engine.says(r#"{"verdict": -1, "hint": "Answer in a single sentence."}"#);
    let mut judge = judge(&engine.serve().await);
    pass(&mut judge, &mut lab, &[LLM, ("HINT", "llm")]).await;
    let row = verdict_of(&lab, turn).unwrap();
    assert_eq!((row.verdict, row.source.as_str()), (-1, "rule:correction"));
    assert_eq!(row.hints, ["Answer in a single sentence."]);
}

#[tokio::test]
async fn a_question_that_the_endpoint_refuses_is_settled_as_neutral() {
    let (mut lab, engine) = (Lab::new(), Engine::default());
    let turn = lab.add("s", "What is rain?", "Rain is water.", "And snow?");
    engine.0.lock().unwrap().answers.push_back((400, json!({"error": {"message": "too long"}})));
    pass(&mut judge(&engine.serve().await), &mut lab, &[LLM]).await;
    assert_eq!(verdict_of(&lab, turn).unwrap().verdict, 0);
}

#[tokio::test]
async fn many_turns_that_wait_for_a_model_do_not_hide_one_that_a_rule_can_judge() {
    let mut lab = Lab::new();
    for i in 0..80 {
        lab.add(&format!("s{i}"), &format!("What is {i}?"), "A number.", "And the next?");
    }
    let ruled = lab.add("t", "What is hail?", "Hail is ice.", "Too long. Use one sentence.");
    let mut judge = judge(&nobody());
    for _ in 0..3 {
        pass(&mut judge, &mut lab, &[LLM]).await;
    }
    assert_eq!(verdict_of(&lab, ruled).unwrap().verdict, -1);
}

#[tokio::test]
async fn a_route_that_stopped_learning_is_not_judged() {
    let mut lab = Lab::new();
    let turn = lab.add("s", "What is rain?", "Rain is water.", "Too long. Use one sentence.");
    pass(&mut judge(&nobody()), &mut lab, &[("MODE", "observe")]).await;
    assert_eq!(verdict_of(&lab, turn), None);
}
