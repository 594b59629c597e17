//! What each rule sees, and which rule wins.

use super::*;
use crate::testing::judge_policy;
use serde_json::{Value, json};

fn found(seen: &Exchange) -> Option<RuleVerdict> {
    judge(&judge_policy().rules, seen)
}

fn exchange(answer: Value, next: Vec<Value>) -> Exchange {
    Exchange {
        messages: vec![json!({"role": "user", "content": "Explain rain."})],
        answer,
        finish_reason: Some("stop".into()),
        next_state: next,
    }
}

fn said(text: &str) -> Exchange {
    let answer = json!({"role": "assistant", "content": "Rain falls from clouds."});
    exchange(answer, vec![json!({"role": "user", "content": text})])
}

fn tool(text: &str) -> Exchange {
    let answer = json!({"role": "assistant", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "sh", "arguments": "{}"}}]});
    exchange(answer, vec![json!({"role": "tool", "tool_call_id": "1", "content": text})])
}

#[test]
fn a_correction_is_negative_and_keeps_the_users_words() {
    let found = found(&said("That is too long. Answer in one short sentence.")).unwrap();
    assert_eq!((found.verdict, found.rule), (-1, "correction"));
    let words = found.correction.as_deref();
    assert_eq!(words, Some("That is too long. Answer in one short sentence."));
}

#[test]
fn correction_beats_approval_in_the_same_message() {
    let found = found(&said("Thanks, but that is too long.")).unwrap();
    assert_eq!((found.verdict, found.rule), (-1, "correction"));
}

#[test]
fn approval_is_positive() {
    let found = found(&said("Thanks, perfect!")).unwrap();
    assert_eq!((found.verdict, found.rule), (1, "approval"));
}

#[test]
fn an_unrelated_message_is_left_to_the_model() {
    assert_eq!(found(&said("And how tall is Everest?")), None);
}

#[test]
fn a_tool_error_is_negative_even_among_good_results() {
    let mut seen = tool("ok");
    seen.next_state.push(json!({"role": "tool", "content": "Traceback (most recent call last):"}));
    assert_eq!(found(&seen).map(|v| (v.verdict, v.rule)), Some((-1, "tool_error")));
}

#[test]
fn only_exit_codes_other_than_zero_are_negative() {
    for text in [
        "exit code: 1",
        "Process exited with code 127",
        r#"{"exit_code": 2}"#,
        "exit status 3",
        "exit code -9",
    ] {
        let found = found(&tool(text)).map(|v| (v.verdict, v.rule));
        assert_eq!(found, Some((-1, "exit_code")), "{text}");
    }
    for text in ["exit code: 0", r#"{"exit_code": 0, "lines": 3}"#, "the exit is on the left"] {
        assert_eq!(found(&tool(text)), None, "{text}");
    }
}

#[test]
fn the_same_call_again_and_again_is_negative() {
    let call = json!({"role": "assistant", "tool_calls": [{"function": {"name": "read",
        "arguments": "{\"path\":\"a\"}"}}]});
    let result = json!({"role": "tool", "content": "text"});
    let mut seen = exchange(call.clone(), vec![result.clone()]);
    assert_eq!(found(&seen), None, "once is fine");
    seen.messages.extend([call.clone(), result.clone()]);
    assert_eq!(found(&seen), None, "as often as the policy allows is fine");
    seen.messages.push(call.clone());
    assert_eq!(found(&seen), None, "what an earlier call returned is not known");
    seen.messages.push(result);
    assert_eq!(found(&seen).map(|v| (v.verdict, v.rule)), Some((-1, "repeated_call")));
}

#[test]
fn a_command_that_succeeded_is_not_yet_an_approval() {
    assert_eq!(found(&tool("done, exit code 0")), None);
}

#[test]
fn a_truncated_answer_is_never_approved() {
    let mut seen = said("Thanks, perfect!");
    seen.finish_reason = Some("length".into());
    let mut policy = judge_policy();
    policy.rules.truncated_is_negative = false;
    let lenient = judge(&policy.rules, &seen);
    assert_eq!(lenient.map(|v| (v.verdict, v.rule)), Some((0, "truncated")));
    policy.rules.truncated_is_negative = true;
    let strict = judge(&policy.rules, &seen);
    assert_eq!(strict.map(|v| (v.verdict, v.rule)), Some((-1, "truncated")));
}

#[test]
fn a_truncated_answer_that_is_corrected_keeps_the_correction() {
    let mut seen = said("That is too long.");
    seen.finish_reason = Some("length".into());
    assert_eq!(found(&seen).map(|v| v.rule), Some("correction"));
}

#[test]
fn an_empty_answer_is_negative() {
    let seen = exchange(json!({"role": "assistant", "content": "  "}), vec![]);
    assert_eq!(found(&seen).map(|v| (v.verdict, v.rule)), Some((-1, "empty_answer")));
}

#[test]
fn a_system_message_in_the_next_state_is_not_the_user() {
    let mut seen = said("next question");
    seen.next_state.push(json!({"role": "system", "content": "That is too long."}));
    assert_eq!(found(&seen), None);
}

#[test]
fn nobody_elses_praise_makes_a_cut_broken_or_empty_answer_good() {
    let rules = judge_policy().rules;
    let mut seen = said("And then?");
    assert_eq!([1, 0, -1].map(|verdict| at_most(&rules, &seen, verdict)), [1, 0, -1]);
    for finish in ["length", "error", "aborted"] {
        seen.finish_reason = Some(finish.into());
        assert_eq!([1, 0, -1].map(|verdict| at_most(&rules, &seen, verdict)), [0, 0, -1]);
    }
    let empty = exchange(json!({"role": "assistant", "content": ""}), vec![]);
    assert_eq!(at_most(&rules, &empty, 1), 0);
}
