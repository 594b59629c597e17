//! Nobody waits behind turns that cannot be judged now: a real store, endpoints that are away,
//! out of tokens, or silent.

use super::super::*;
use super::{Line, TURNS_PER_LOOK, Waiting};
use crate::testing::lab::{Lab, message};
use crate::testing::peers::{Engine, nobody, serve};
use crate::testing::policies;
use axum::Router;
use hone_shared::turn::TurnId;
use std::time::Duration;

const LLM: (&str, &str) = ("LLM", "true");
const GOOD: &str = r#"{"verdict": 1, "reason": "goes on", "hint": null}"#;

fn verdict_of(lab: &Lab, turn: TurnId) -> Option<i8> {
    lab.store.verdict(turn).unwrap().map(|row| row.verdict)
}

fn judge(url: &str, clock: &Clock) -> Judge {
    Judge::new(url, clock.clone()).unwrap()
}

fn line(route: &str, judge: &str) -> Line {
    (route.to_owned(), judge.to_owned())
}

#[tokio::test]
async fn issue_4_thousands_of_turns_that_wait_for_a_model_hide_no_newer_one() {
    let (mut lab, clock) = (Lab::new(), Clock::manual(1_000));
    // More than were ever looked past in one pass.
    let waiting = 4_096 + 64 + 100;
    lab.add_many(waiting, "A number.", "And the next?");
    let ruled = lab.add("t", "What is hail?", "Hail is ice.", "Too long. Use one sentence.");
    let set = policies(&[LLM]);
    let mut judge = judge(&nobody(), &clock);
    for _ in 0..=(waiting / TURNS_PER_LOOK) {
        judge.pass(&mut lab.store, &set).await.unwrap();
    }
    assert_eq!(verdict_of(&lab, ruled), Some(-1));
    // From now on, a new turn is found at once, and an old one that is answered only now, too.
    let next = lab.add("u", "What is fog?", "Fog is a cloud.", "Too long. Use one sentence.");
    let report = judge.pass(&mut lab.store, &set).await.unwrap();
    assert_eq!((report.judged, verdict_of(&lab, next)), (1, Some(-1)));
    assert_eq!(report.waiting, waiting);
}

/// The built-in policies with more in `[llm]` of the judge of tools.
fn tool_judge_with(setting: &str) -> PolicySet {
    let files: Vec<(&str, String)> = hone_shared::policy::builtin_files()
        .iter()
        .map(|(path, text)| match *path {
            "judges/chat.toml" => (*path, text.replace("enabled = false", "enabled = true")),
            "judges/tool.toml" => (*path, format!("{text}\n[llm]\n{setting}\n")),
            _ => (*path, (*text).to_owned()),
        })
        .collect();
    PolicySet::from_files(files.iter().map(|(path, text)| (*path, text.as_str()))).unwrap()
}

#[tokio::test]
async fn issue_4_a_judge_without_tokens_or_endpoint_holds_up_no_other_judge() {
    let call = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}]});
    // Each question needs more than that judge may ever spend; then, nobody listens.
    for setting in ["tokens_per_hour_max = 10", "endpoint = \"http://127.0.0.1:9\""] {
        let (mut lab, engine, clock) = (Lab::new(), Engine::default(), Clock::manual(1_000));
        engine.says(GOOD);
        for at in 0..40 {
            let session = format!("w{at}");
            let mut messages = vec![message("user", &format!("Look {at} up."))];
            lab.send(&session, &messages, call.clone(), &[]);
            let result = json!({"role": "tool", "tool_call_id": "c", "content": "seven"});
            messages.extend([call.clone(), result]);
            lab.send(&session, &messages, message("assistant", "Seven."), &[]);
        }
        let asked = lab.add("s", "What is rain?", "Rain is water.", "And snow?");
        let set = tool_judge_with(setting);
        let report = judge(&engine.serve().await, &clock).pass(&mut lab.store, &set).await.unwrap();
        assert_eq!(verdict_of(&lab, asked), Some(1), "{setting} {report:?}");
        assert_eq!((report.judged, report.waiting), (1, 40), "{setting}");
    }
}

#[tokio::test]
async fn rules_go_on_while_a_model_thinks() {
    let mut lab = Lab::new();
    lab.add("s", "What is rain?", "Rain is water.", "And snow?");
    let silent = Router::new().fallback(std::future::pending::<&'static str>);
    let mut judge = judge(&serve(silent).await, &Clock::System);
    let set = policies(&[LLM, ("votes = 3", "votes = 3\nmodel = \"m\"")]);
    let mut other = Lab::at(lab.data.path(), &lab.model_dir);
    let mut thinking = std::pin::pin!(judge.pass(&mut lab.store, &set));
    tokio::select! {
        _ = &mut thinking => panic!("nobody answers"),
        () = tokio::time::sleep(Duration::from_millis(100)) => {}
    }
    let ruled = other.add("t", "What is hail?", "Hail is ice.", "Too long. Use one sentence.");
    for _ in 0..100 {
        tokio::select! {
            _ = &mut thinking => panic!("nobody answers"),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        if verdict_of(&other, ruled).is_some() {
            return;
        }
    }
    panic!("the rule waited for the model");
}

#[tokio::test]
async fn a_turn_that_cannot_be_read_hides_none_that_comes_after_it() {
    let (mut lab, clock) = (Lab::new(), Clock::manual(1_000));
    let broken = lab.add("s", "What is rain?", "Rain is water.", "Thanks, perfect.");
    let whole = lab.add("t", "What is snow?", "Snow is ice.", "Thanks, perfect.");
    let sqlite = rusqlite::Connection::open(lab.data.store_path()).unwrap();
    let sql = "UPDATE turns SET mode = 'nonsense' WHERE turn_id = ?1";
    assert_eq!(sqlite.execute(sql, [broken.to_string()]).unwrap(), 1);
    let report = judge(&nobody(), &clock).pass(&mut lab.store, &policies(&[])).await.unwrap();
    assert_eq!((report.judged, verdict_of(&lab, whole)), (1, Some(1)));
}

#[tokio::test]
async fn changed_policies_let_the_rules_look_again() {
    let (mut lab, clock) = (Lab::new(), Clock::manual(1_000));
    let turn = lab.add("s", "What is rain?", "Rain is water.", "And snow?");
    let mut judge = judge(&nobody(), &clock);
    let report = judge.pass(&mut lab.store, &policies(&[LLM])).await.unwrap();
    assert_eq!((report.waiting, verdict_of(&lab, turn)), (1, None));
    let report = judge.pass(&mut lab.store, &policies(&[])).await.unwrap();
    assert_eq!((report.waiting, verdict_of(&lab, turn)), (0, Some(0)), "no model is asked now");
}

#[tokio::test]
async fn a_full_queue_is_filled_again_from_the_store() {
    let (mut lab, engine, clock) = (Lab::new(), Engine::default(), Clock::manual(1_000));
    engine.says(GOOD);
    let turns = lab.add_many(20, "A number.", "And the next?");
    let set = policies(&[LLM, ("votes = 3", "votes = 3\nwaiting_max = 3")]);
    let mut judge = judge(&engine.serve().await, &clock);
    for _ in 0..turns.len() {
        judge.pass(&mut lab.store, &set).await.unwrap();
    }
    assert!(turns.iter().all(|turn| verdict_of(&lab, *turn) == Some(1)));
}

#[test]
fn queues_take_turns_and_one_whose_judge_is_away_gives_only_what_a_rule_has_settled() {
    let mut waiting = Waiting::default();
    for row in 1..=10 {
        waiting.push(line("a", "chat"), row, false, 100);
    }
    waiting.push(line("b", "chat"), 11, false, 100);
    waiting.push(line("c", "away"), 12, false, 100);
    waiting.push(line("c", "away"), 13, true, 100);
    let picks = |waiting: &mut Waiting| -> Vec<i64> {
        let mut rows: Vec<i64> =
            waiting.picks(4, |judge| judge == "chat").into_iter().map(|(_, row)| row).collect();
        rows.sort_unstable();
        rows
    };
    assert_eq!(picks(&mut waiting), [1, 2, 11, 13]);
    waiting.later(&line("a", "chat"), 1);
    waiting.settled(&line("a", "chat"), 2);
    assert_eq!(picks(&mut waiting), [3, 4, 11, 13]);
    assert_eq!(waiting.len(), 12);
}

#[test]
fn what_was_judged_by_others_is_not_remembered() {
    let mut lab = Lab::new();
    let turns = lab.add_many(3, "A number.", "And the next?");
    let mut waiting = Waiting::default();
    waiting.under(1);
    for row in waiting.fresh(&lab.store).unwrap() {
        waiting.leave(row);
    }
    assert_eq!(waiting.len(), 3);
    assert!(waiting.fresh(&lab.store).unwrap().is_empty());
    lab.store.erase_turns(&[turns[0]].into()).unwrap();
    assert!(waiting.fresh(&lab.store).unwrap().is_empty());
    assert_eq!(waiting.len(), 2);
}
