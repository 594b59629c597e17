//! The loop, with an origin that plays the engine: malformed answers, budgets, faults.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use hone_agents::cli::run;
use hone_agents::episode::End;
use hone_agents::terminal::Terminal;
use hone_agents::tools::Tools;
use serde_json::{Value, json};
use support::{Origin, calls, obedient, options, says};

#[tokio::test]
async fn the_oracle_solves_through_the_wire_and_a_missing_feedback_api_is_tolerated() {
    let origin = Origin::start(obedient).await;
    let options = options(&origin.url, &["--episodes", "3", "--policy", "oracle"]);
    let summary = run(&options, &mut Terminal::new(false)).await.unwrap();
    assert_eq!((summary.solved, summary.broken), (3, 0), "{summary:?}");
    assert_eq!(summary.requests, summary.steps + 3, "a closing turn for each episode");
    assert_eq!((summary.outcomes.taken, summary.outcomes.refused), (0, 3));
    assert!(summary.outcomes.reason.unwrap().contains("no feedback API"));
    assert!(summary.recorded.is_none(), "nobody to ask");
    let asked = origin.asked();
    assert_eq!(asked.len(), summary.requests);
    assert!(asked.iter().all(|body| body["model"] == "scripted"));
}

#[tokio::test]
async fn malformed_answers_cost_steps_and_come_back_as_observations() {
    let script = |_: &Value, number: usize| match number {
        0 => says("I would rather not."),
        1 => says(""),
        2 => calls(&[("browser", json!({ "url": "x" }))]),
        3 => calls(&[("shell", json!({ "cmd": "ls" }))]),
        _ => says("over."),
    };
    let origin = Origin::start(script).await;
    let options = options(&origin.url, &["--episodes", "1", "--steps-max", "4"]);
    let summary = run(&options, &mut Terminal::new(false)).await.unwrap();
    let episode = &summary.episodes[0];
    assert_eq!((episode.end, episode.steps.len()), (End::Steps, 4), "{episode:?}");
    let last = origin.asked().pop().unwrap();
    let messages = last["messages"].as_array().unwrap();
    let said: Vec<&str> = messages.iter().filter_map(|m| m["content"].as_str()).collect();
    let has = |text: &str| said.iter().any(|said| said.contains(text));
    assert!(!has("malformed") || has("a call of shell"), "{said:?}");
    assert!(has("there is no tool named \"browser\"") && has("shell needs command"), "{said:?}");
    assert!(has("No steps are left"), "{said:?}");
    let empty = messages.iter().find(|m| m["role"] == "assistant" && m["content"] == "");
    assert!(empty.is_some(), "an empty answer goes back as one");
}

#[tokio::test]
async fn parallel_calls_each_get_a_result_of_their_own() {
    let script = |_: &Value, number: usize| match number {
        0 => calls(&[
            ("calculator", json!({ "expression": "2 * 3" })),
            ("sql", json!({ "query": "SELECT count(*) FROM items" })),
            ("calculator", json!({ "expression": "2 *" })),
        ]),
        _ => says("{\"answer\": \"1\"}"),
    };
    let origin = Origin::start(script).await;
    let options = options(&origin.url, &["--episodes", "1", "--free"]);
    let summary = run(&options, &mut Tools::new(true)).await.unwrap();
    assert_eq!(summary.episodes[0].end, End::Wrong, "{summary:?}");
    let second = &origin.asked()[1];
    let messages = second["messages"].as_array().unwrap();
    let call = messages.iter().rposition(|m| m["tool_calls"].is_array()).unwrap();
    let ids = messages[call]["tool_calls"].as_array().unwrap().iter().map(|call| &call["id"]);
    let results = &messages[call + 1..call + 4];
    assert!(ids.eq(results.iter().map(|message| &message["tool_call_id"])), "{results:?}");
    let texts: Vec<&str> = results.iter().map(|m| m["content"].as_str().unwrap()).collect();
    assert_eq!(texts[..2], ["6", "6"]);
    assert!(texts[2].starts_with("error: "), "{texts:?}");
}

#[tokio::test]
async fn an_episode_ends_within_its_tokens() {
    let origin = Origin::start(|_, _| calls(&[("shell", json!({ "command": "true" }))])).await;
    let flags = ["--episodes", "1", "--episode-tokens-max", "12", "--steps-max", "50"];
    let summary = run(&options(&origin.url, &flags), &mut Terminal::new(true)).await.unwrap();
    let episode = &summary.episodes[0];
    assert_eq!((episode.end, episode.steps.len()), (End::Tokens, 3), "5 tokens a step");
}

#[tokio::test]
async fn an_engine_that_fails_breaks_the_episode_but_not_the_run_and_has_no_outcome() {
    let script = |body: &Value, number: usize| match number {
        1 => json!({ "status": 500 }),
        _ => obedient(body, number),
    };
    let origin = Origin::start(script).await;
    let options = options(&origin.url, &["--episodes", "2", "--policy", "oracle", "--seed", "3"]);
    let summary = run(&options, &mut Tools::new(false)).await.unwrap();
    assert_eq!((summary.broken, summary.solved), (1, 1), "{summary:?}");
    assert_eq!(summary.score, 1.0, "a broken episode is no failure of the model");
    assert!(summary.episodes[0].error.as_ref().unwrap().contains("status 500"));
    assert_eq!(summary.outcomes.refused, 1, "an outcome for the other only");
}
