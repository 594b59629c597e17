//! What broke in the long reproduction of the reference (`openclaw-rl.md` §7), each as a test.
//!
//! Rounds that wait for one more sample are in `due_tests`, samples without ids or generation in
//! `sample_tests`.

use super::*;
use crate::testing::lab::{Lab, message};
use crate::testing::peers::nobody;
use hone_shared::policy::PolicySet;
use hone_shared::turn::TurnId;

fn rubric(kind: &str) -> Arc<JudgePolicy> {
    PolicySet::builtin().unwrap().judges[kind].clone()
}

/// The rule's verdict and name on an exchange, by the rubric of the detected kind.
fn ruled(seen: &Exchange) -> Option<(i8, &'static str)> {
    let set = PolicySet::builtin().unwrap();
    let route = set.route("chat").unwrap().clone();
    by_rules(&set, &route, seen).unwrap().rule.map(|rule| (rule.verdict, rule.rule))
}

fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]})
}

fn result(id: &str, text: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "content": text})
}

fn exchange(messages: Vec<Value>, answer: Value, next_state: Vec<Value>) -> Exchange {
    Exchange { messages, answer, finish_reason: Some("stop".into()), next_state }
}

/// The answers of an agent that makes the same step `times` times; the last one is judged.
fn again_and_again(request: &str, times: usize, steps: &[(&str, &str, &str)]) -> Exchange {
    let mut messages = vec![message("user", request)];
    for (at, (name, arguments, text)) in steps.iter().cycle().take(steps.len() * times).enumerate()
    {
        let id = format!("c{at}");
        messages.extend([call(&id, name, arguments), result(&id, text)]);
    }
    let next = messages.pop().into_iter().collect();
    let answer = messages.pop().unwrap();
    exchange(messages, answer, next)
}

fn verdict_of(lab: &Lab, turn: TurnId) -> Option<i8> {
    lab.store.verdict(turn).unwrap().map(|row| row.verdict)
}

async fn pass(lab: &mut Lab) -> PassReport {
    let mut judge = Judge::new(&nobody(), Clock::manual(1_000)).unwrap();
    judge.pass(&mut lab.store, &PolicySet::builtin().unwrap()).await.unwrap()
}

#[tokio::test]
async fn issue_4_a_clients_retry_is_no_next_state_and_no_second_verdict() {
    let mut lab = Lab::new();
    let asked = [message("user", "What is the tallest mountain?")];
    let answer = || message("assistant", "Everest, 8,849 metres.");
    let (first, _) = lab.send("s", &asked, answer(), &[]);
    let (retry, _) = lab.send("s", &asked, answer(), &[("x-stainless-retry-count", "1")]);
    assert!(lab.store.unjudged(10).unwrap().is_empty(), "asked again is not a reply");
    let mut more = asked.to_vec();
    more.extend([answer(), message("user", "Thanks!")]);
    lab.send("s", &more, message("assistant", "Sure."), &[]);
    lab.send("s", &more, message("assistant", "Sure."), &[("x-stainless-retry-count", "1")]);
    let waiting = lab.store.unjudged(10).unwrap();
    assert_eq!(waiting.len(), 1, "one of the two answers is continued, once");
    pass(&mut lab).await;
    let found: Vec<_> = [first, retry].iter().filter_map(|turn| verdict_of(&lab, *turn)).collect();
    assert_eq!(found, [1]);
}

#[tokio::test]
async fn issue_4_a_title_or_summary_call_is_no_next_state() {
    let mut lab = Lab::new();
    let asked = [message("user", "What is the tallest mountain?")];
    let (turn, _) = lab.send("s", &asked, message("assistant", "Everest."), &[]);
    let title = "Write a title for this conversation:\nUser: What is the tallest mountain?\n\
                 Assistant: Everest.";
    let side = [message("system", "You write titles."), message("user", title)];
    let (side, linked) = lab.send("s", &side, message("assistant", "Thanks, perfect"), &[]);
    assert_eq!(linked, 0);
    assert_eq!(pass(&mut lab).await, PassReport::default());
    assert_eq!((verdict_of(&lab, turn), verdict_of(&lab, side)), (None, None));
}

#[test]
fn issue_4_every_parallel_result_is_judged_not_only_the_last() {
    let answer = json!({"role": "assistant", "tool_calls": [
        {"id": "a", "function": {"name": "get_weather", "arguments": "{}"}},
        {"id": "b", "function": {"name": "get_weather", "arguments": "{\"city\":\"Oslo\"}"}}]});
    let bad = result("a", "{\"error\":\"missing parameter: city\"}");
    let good = result("b", "{\"temp_c\":4}");
    for next in [vec![bad.clone(), good.clone()], vec![good, bad]] {
        let seen = exchange(vec![message("user", "Weather?")], answer.clone(), next);
        assert_eq!(ruled(&seen), Some((-1, "tool_error")));
    }
}

#[test]
fn issue_4_a_truncated_or_failed_answer_is_never_judged_good() {
    for (kind, set) in &PolicySet::builtin().unwrap().judges {
        for finish in ["length", "error", "abort"] {
            for lenient in [true, false] {
                let mut rules = set.rules.clone();
                rules.truncated_is_negative = !lenient;
                let mut seen = exchange(
                    vec![message("user", "Explain rain.")],
                    message("assistant", "Rain falls when"),
                    vec![message("user", "Thanks, perfect!")],
                );
                assert_eq!(rules::judge(&rules, &seen).map(|v| v.verdict), Some(1));
                seen.finish_reason = Some(finish.into());
                let found = rules::judge(&rules, &seen).map(|v| v.verdict);
                assert!(found.is_some_and(|v| v < 1), "{kind} {finish} {found:?}");
            }
        }
    }
}

#[test]
fn issue_4_messages_to_oneself_and_waiting_loops_are_negative() {
    let ask = "Ask the researcher for the population of Malta.";
    let to_self = ("send_message", r#"{"to":"self","text":"ask"}"#, "delivered to self");
    assert_eq!(ruled(&again_and_again(ask, 1, &[to_self])), Some((-1, "self_message")));
    let other = ("send_message", r#"{"to":"researcher","text":"?"}"#, "delivered");
    assert_eq!(ruled(&again_and_again(ask, 1, &[other])), None, "and that is not yet good");
    let wait = |n: usize| -> Exchange {
        let texts = ["waited 10 s", "waited 20 s", "waited 30 s"];
        let arguments = [r#"{"s":10}"#, r#"{"s":20}"#, r#"{"s":30}"#];
        let steps: Vec<_> = (0..n).map(|i| ("wait", arguments[i], texts[i])).collect();
        again_and_again(ask, 1, &steps)
    };
    assert_eq!(ruled(&wait(1)), None);
    assert_eq!(ruled(&wait(3)), Some((-1, "wait_loop")));
}

#[test]
fn issue_4_identical_calls_are_bounded_and_cycles_are_seen() {
    let read = ("read_file", r#"{"path":"homework/1.txt"}"#, "2 + 2 = ?");
    assert_eq!(ruled(&again_and_again("Solve it.", 2, &[read])), None);
    assert_eq!(ruled(&again_and_again("Solve it.", 3, &[read])), Some((-1, "repeated_call")));
    let other = ("list_files", r#"{"path":"homework"}"#, "1.txt");
    assert_eq!(ruled(&again_and_again("Solve it.", 2, &[read, other])), None);
    let cycle = again_and_again("Solve it.", 3, &[read, other]);
    assert_eq!(ruled(&cycle), Some((-1, "repeated_call")));
    // Results that change are progress, up to the bound.
    let texts: Vec<String> = (0..12).map(|i| format!("{} jobs left", 90 - i)).collect();
    let poll = |n: usize| -> Exchange {
        let steps: Vec<_> = texts.iter().take(n).map(|t| ("queue", "{}", t.as_str())).collect();
        again_and_again("Empty the queue.", 1, &steps)
    };
    assert_eq!(ruled(&poll(9)), None);
    assert_eq!(ruled(&poll(12)), Some((-1, "repeated_call")));
}

#[test]
fn a_harness_that_repeats_the_task_after_a_result_does_not_complain() {
    let task = "Task: create the file hello.txt in the folder docs.";
    let mut seen = again_and_again(task, 1, &[("shell", r#"{"command":"ls"}"#, "[exit code: 0]")]);
    seen.next_state.push(message("user", task));
    assert_eq!(ruled(&seen), None);
}

#[test]
fn tests_that_pass_after_a_patch_and_a_solved_task_are_good_steps() {
    let patch = |line: &str| {
        message("assistant", &json!({"search": line, "replace": "return a / b"}).to_string())
    };
    let ran = |end: &str| message("user", &format!("-x\n+y\n$ python3 -m unittest\n{end}"));
    let red =
        ran("Ran 2 tests in 0.0s\nFAILED (failures=1)\n[exit code: 1]\nhalf.py:\na\nb\nc\nd\ne");
    let before = vec![message("user", "half.py:\nFAIL: test_half"), patch("return b"), red];
    let green = ran("Ran 2 tests in 0.0s\nOK\n[exit code: 0]");
    let seen = exchange(before.clone(), patch("return a - b"), vec![green]);
    assert_eq!(ruled(&seen), Some((1, "tests")));
    let done = ran("Ran 2 tests in 0.0s\nOK\n[exit code: 0]\nThe task is done. Say: done.");
    let seen = exchange(before[..1].to_vec(), patch("return a - b"), vec![done]);
    assert_eq!(ruled(&seen), Some((1, "outcome")));
}

#[test]
fn issue_4_garbage_is_never_good() {
    for answer in [
        "the the the the ".repeat(20),
        "\u{fffd}\u{fffd}a\u{fffd}b\u{fffd}".to_owned(),
        "a".repeat(500),
        "An error occurred while generating the response.".to_owned(),
        "(no response)".to_owned(),
        String::new(),
    ] {
        let seen = exchange(
            vec![message("user", "Explain rain.")],
            message("assistant", &answer),
            vec![message("user", "Thanks, perfect!")],
        );
        let found = ruled(&seen);
        assert!(found.is_some_and(|(verdict, _)| verdict == -1), "{answer} {found:?}");
    }
}

#[test]
fn issue_4_a_file_that_was_overwritten_instead_of_appended_to_is_negative() {
    let ask = "Append the solution to homework/1.txt";
    let write = |said: &str| {
        let arguments = r#"{"path":"homework/1.txt","content":"4"}"#;
        again_and_again(ask, 1, &[("write_file", arguments, said)])
    };
    let lost = "OK: wrote 1 bytes to homework/1.txt (previous size 90 bytes)";
    assert_eq!(ruled(&write(lost)), Some((-1, "overwritten")));
    // The whole file with the line added is longer than it was.
    let kept = "OK: wrote 92 bytes to homework/1.txt (previous size 90 bytes)";
    assert_eq!(ruled(&write(kept)), None);
    let shell = |command: &str| {
        let arguments = json!({"command": command}).to_string();
        again_and_again(ask, 1, &[("bash", &arguments, "[exit code: 0]")])
    };
    assert_eq!(ruled(&shell("echo 4 > homework/1.txt")), Some((-1, "overwritten")));
    assert_eq!(ruled(&shell("echo 4 >> homework/1.txt")), None);
}

#[test]
fn issue_4_please_save_it_approves() {
    for next in ["please save it", "Save it please.", "send it", "merge it"] {
        let seen = exchange(
            vec![message("user", "Draft a note about our hours.")],
            message("assistant", "We are open from 7 to 18."),
            vec![message("user", next)],
        );
        assert_eq!(ruled(&seen), Some((1, "approval")), "{next}");
    }
}

#[test]
fn issue_4_a_tool_call_without_an_error_is_not_yet_good() {
    for (name, text) in [("get_weather", "{\"temp_c\":4}"), ("bash", "done\n[exit code: 0]")] {
        assert_eq!(ruled(&again_and_again("Weather?", 1, &[(name, "{}", text)])), None);
    }
}

#[test]
fn every_example_of_the_built_in_rubrics_is_judged_as_its_file_says() {
    let mut seen = 0;
    for kind in StateKind::ALL {
        let policy = rubric(kind.as_str());
        assert!(policy.examples.len() >= 4, "{kind}: a rubric shows what it does");
        for example in &policy.examples {
            seen += 1;
            let exchange = of_example(example);
            let next = next::NextState::of(&exchange);
            let found = rules::judge_state(&policy.rules, &exchange, &next);
            assert_eq!(found.as_ref().map(|f| f.verdict), example.verdict, "{example:?} {found:?}");
            if let Some(rule) = &example.rule {
                assert_eq!(found.map(|f| f.rule), Some(rule.as_str()), "{example:?}");
            }
            if let Some(kind) = example.kind {
                assert_eq!(next.kind, kind, "{example:?}");
            }
        }
    }
    assert!(seen >= 40, "{seen}");
}

fn of_example(example: &hone_shared::policy::Example) -> Exchange {
    let (mut answer, mut next) = (message("assistant", &example.answer), Vec::new());
    if let Some(text) = &example.call {
        let (name, arguments) = text.split_once(' ').unwrap();
        answer = call("c", name, arguments);
    }
    next.extend(example.result.iter().map(|text| result("c", text)));
    next.extend(example.next.iter().map(|text| message("user", text)));
    let finish = example.finish.clone().unwrap_or_else(|| "stop".into());
    let messages = vec![message("user", &example.request)];
    Exchange { messages, answer, finish_reason: Some(finish), next_state: next }
}
