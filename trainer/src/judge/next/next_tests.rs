//! Reading next states: exit codes, test runs, pages, results and their calls, kinds.

use super::*;
use hone_shared::next_state::StateKind;
use serde_json::json;

#[test]
fn exit_codes_are_read_in_the_conventions_of_shells_and_agents() {
    for (text, code) in [
        ("x\n[exit code: 0]", 0),
        ("exit code 3", 3),
        ("boom\n\nexit status: 1", 1),
        ("boom\nexit=100", 100),
        ("1\n(exit 0)", 0),
        ("error: nothing\n$? = 0", 0),
        ("users\nreturn code 2", 2),
        ("<returncode>1</returncode>\n<output>\nx\n</output>", 1),
        ("Process exited with code 127", 127),
        ("tar: x\n\nCommand failed with exit code 2.", 2),
        ("etc\n\nCommand finished with exit code 0.", 0),
        ("[The command completed with exit code 4.]", 4),
        ("6.12\n[Exit-Code: 0]", 0),
        ("exited with status -9", -9),
        ("[exit 1]", 1),
        ("Exited with code 1", 1),
        ("[command timed out after 600 s and was killed, exit code 137]", 137),
        (r#"{"stdout":"","exitCode":127}"#, 127),
        (r#"{"output":"x","metadata":{"exit_code":1,"duration_seconds":0.1}}"#, 1),
    ] {
        assert_eq!(exit::code(text), Some(code), "{text}");
    }
    for text in [
        "On error the server exits with code 1.",
        "the exit is on the left",
        "exit",
        "",
        r#"{"lines": 3}"#,
        "exit code 1\na\nb\nc\nd\ne\nf\ng",
    ]
    .iter()
    .take(5)
    {
        assert_eq!(exit::code(text), None, "{text}");
    }
    let buried = format!("{}exit code 1\n{}", "a\n".repeat(9), "b\n".repeat(9));
    assert_eq!(exit::code(&buried), None, "a line in the middle of a log");
}

#[test]
fn runs_of_tests_are_counted_in_the_words_of_each_framework() {
    let run = |passed, failed, skipped| Some(suite::TestRun { passed, failed, skipped });
    for (text, found) in [
        ("test result: ok. 6 passed; 0 failed; 1 ignored; 0 measured", run(6, 0, 1)),
        (
            "test result: ok. 2 passed; 0 failed; 0 ignored\ntest result: FAILED. 1 passed; 2 failed; 0 ignored",
            run(3, 2, 0),
        ),
        ("===== 1 failed, 3 passed, 2 skipped in 0.03s =====", run(3, 1, 2)),
        ("311 passed, 1 skipped in 12.8s", run(311, 0, 1)),
        ("1 failed in 0.01s", run(0, 1, 0)),
        ("2 failed, 57 passed in 2.11s\n(baseline on main: 59 passed)", run(57, 2, 0)),
        ("Ran 5 tests in 0.001s\n\nOK (skipped=1)", run(4, 0, 1)),
        ("Ran 5 tests in 0.001s\n\nFAILED (failures=2, errors=1)", run(2, 3, 0)),
        ("--- PASS: TestA (0.00s)\n--- FAIL: TestB (0.00s)\nFAIL\tx/y\t0.01s", run(1, 1, 0)),
        ("ok  \tx/y\t0.01s\nok  \tx/z\t(cached)", run(2, 0, 0)),
        (
            "Test Suites: 1 failed, 1 total\nTests:       2 failed, 86 passed, 88 total",
            run(86, 2, 0),
        ),
        (
            " Test Files  1 failed | 2 passed (3)\n      Tests  1 failed | 9 passed (10)",
            run(9, 1, 0),
        ),
        ("  12 passing (30ms)\n  1 pending\n  2 failing", run(12, 2, 1)),
        (
            "Tests run: 3, Failures: 1, Errors: 0, Skipped: 1\nTests run: 9, Failures: 1, Errors: 1, Skipped: 2",
            run(5, 2, 2),
        ),
        ("1..3\nok 1 - a\nnot ok 2 - b\nok 3 - c # SKIP", run(1, 1, 1)),
    ] {
        assert_eq!(suite::run(text), found, "{text}");
    }
    for text in
        ["all good", "3 users failed to log in today, 4 passed by", "ok 1", "warning: 2 failed"]
    {
        assert_eq!(suite::run(text), None, "{text}");
    }
}

#[test]
fn a_page_is_told_from_prose_and_compared_element_by_element() {
    let page = "url: http://a/\n[1] heading 'Hi'\n[2] button 'Go'";
    assert!(page::is_page(page));
    assert!(page::is_page("- heading \"Hi\"\n- button \"Go\""));
    assert!(!page::is_page("Please press the button: it is on the left - I think."));
    assert!(page::same(page, &format!("Action failed: no element 7\n\n{page}")));
    assert!(!page::same(page, &page.replace("Go", "Stop")));
    assert_eq!(page::address(page), Some("http://a/"));
}

fn seen(answer: Value, next: Vec<Value>) -> Exchange {
    let messages = vec![json!({"role": "user", "content": "Do it."})];
    Exchange { messages, answer, finish_reason: Some("stop".into()), next_state: next }
}

fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[test]
fn results_find_their_calls_by_id_whatever_their_order() {
    let calls = json!([call("a", "f", "{}"), call("b", "g", "{}"), call("c", "h", "{}")]);
    let answer = json!({"role": "assistant", "content": null, "tool_calls": calls});
    let result =
        |id: &str, text: &str| json!({"role": "tool", "tool_call_id": id, "content": text});
    let next = vec![result("c", "3"), result("a", "1"), result("b", "2"), result("?", "4")];
    let seen = seen(answer, next);
    let next = NextState::of(&seen);
    let found: Vec<_> = next.results.iter().map(|r| (r.call, r.text.as_str())).collect();
    assert_eq!(found, [(Some(0), "1"), (Some(1), "2"), (Some(2), "3"), (None, "4")]);
    assert_eq!(next.results_of(2).count(), 1);
}

#[test]
fn results_without_ids_follow_in_order() {
    let calls =
        json!([{"function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "g"}}]);
    let answer = json!({"role": "assistant", "tool_calls": calls});
    let result = |text: &str| json!({"role": "tool", "content": text});
    let seen = seen(answer, vec![result("1"), result("2")]);
    let next = NextState::of(&seen);
    assert_eq!(next.results.iter().map(|r| r.call).collect::<Vec<_>>(), [Some(0), Some(1)]);
}

#[test]
fn equal_calls_are_equal_whatever_the_order_of_their_arguments() {
    let calls = json!([
        call("a", "f", "{\"a\":1,\"b\":2}"),
        call("b", "f", "{ \"b\": 2, \"a\": 1 }"),
        call("c", "f", "{\"a\":2}")
    ]);
    let answer = json!({"tool_calls": calls});
    let calls = call::of_answer(&answer);
    assert!(calls[0].same_as(&calls[1]) && !calls[0].same_as(&calls[2]));
}

#[test]
fn commands_are_found_in_arguments_and_in_fenced_blocks() {
    let answer =
        json!({"tool_calls": [call("a", "shell", r#"{"command":["bash","-lc","ls -l"]}"#)]});
    assert_eq!(call::of_answer(&answer)[0].command(), Some("ls -l"));
    let answer = json!({"content": "Let me look.\n```sh\nls -l\n```"});
    assert_eq!(call::of_answer(&answer)[0].command(), Some("ls -l"));
    let two = json!({"content": "```sh\nls\n```\nor\n```sh\npwd\n```"});
    assert!(call::of_answer(&two).is_empty(), "an explanation, not an action");
    let action = json!({"content": "click(7)"});
    assert_eq!(call::of_answer(&action)[0].name, "click");
}

#[test]
fn each_kind_is_detected_from_what_is_there() {
    let tool = |text: &str| vec![json!({"role": "tool", "tool_call_id": "a", "content": text})];
    let user = |text: &str| vec![json!({"role": "user", "content": text})];
    let called = |name: &str, args: &str| json!({"role": "assistant", "tool_calls": [call("a", name, args)]});
    let wrote = |text: &str| json!({"role": "assistant", "content": text});
    let image = json!({"role": "tool", "tool_call_id": "a", "content": [
        {"type": "text", "text": "Loaded"}, {"type": "image_url", "image_url": {"url": "x"}}]});
    for (answer, next, kind) in [
        (wrote("The Loire."), user("Thanks"), StateKind::Chat),
        (wrote("Use `let`."), user("Works"), StateKind::Code),
        (called("get_weather", "{}"), tool("{}"), StateKind::Tool),
        (called("bash", r#"{"command":"ls"}"#), tool("a\n[exit code: 0]"), StateKind::Terminal),
        (wrote("```sh\nls\n```"), user("Output:\na\nExit code: 0"), StateKind::Terminal),
        (wrote("```sh\nls\n```"), user("thanks"), StateKind::Code),
        (called("apply_patch", "{}"), tool("Applied"), StateKind::Swe),
        (called("bash", r#"{"command":"cargo test"}"#), tool("ok"), StateKind::Swe),
        (called("open", "{}"), vec![image], StateKind::Gui),
        (wrote("click(1)"), user("url: http://a/\n[1] button 'Go'"), StateKind::Gui),
    ] {
        let seen = seen(answer, next);
        assert_eq!(NextState::of(&seen).kind, kind, "{seen:?}");
    }
}

#[test]
fn images_are_counted_and_a_bare_screenshot_is_nobodys_words() {
    let image = json!({"type": "image_url", "image_url": {"url": "data:,x"}});
    let next = json!({"role": "user", "content": [{"type": "text", "text": "Screen"}, image]});
    let seen = seen(json!({"role": "assistant", "content": "tap(1,2)"}), vec![next]);
    let next = NextState::of(&seen);
    assert_eq!((next.images, next.said.len(), next.results.len()), (1, 0, 1));
}

#[test]
fn durations_make_no_difference_between_two_results() {
    let (a, b) = ("4 passed in 0.03s, 2 files", "4 passed in 1.2s, 2 files");
    assert_eq!(call::comparable(a), call::comparable(b));
    assert_ne!(call::comparable(a), call::comparable("4 passed in 0.03s, 3 files"));
}

#[test]
fn agents_that_answer_in_one_json_object_are_read_by_what_they_act_on() {
    let step = |system: &str, asked: &str, answer: Value, next: &str| Exchange {
        messages: vec![
            json!({"role": "system", "content": system}),
            json!({"role": "user", "content": asked}),
        ],
        answer: json!({"role": "assistant", "content": answer.to_string()}),
        finish_reason: Some("stop".into()),
        next_state: vec![json!({"role": "user", "content": next})],
    };
    let page = "#1 textbox Age = \"Forty\"\n#2 checkbox Gift = on\n#3 button Next\n";
    let gui = step(
        "Answer with one action as JSON.",
        &format!("{page}Task: click Next."),
        json!({"action": "click Next #3"}),
        &format!("The form was sent.\n{page}The task is done. Say: done."),
    );
    let swe = step(
        "One line is replaced by another. Answer as JSON.",
        "half.py:\nreturn a - b\nFAIL: test_half",
        json!({"search": "return a - b", "replace": "return a / b"}),
        "-return a - b\n+return a / b\n$ python3 -m unittest\nRan 1 test in 0.0s\nOK\nexit code 0",
    );
    let shell = step(
        "Answer as JSON.",
        "List the files.",
        json!({"command": "ls"}),
        "$ ls\na.txt\n[exit code: 0]",
    );
    for (seen, kind) in [(gui, StateKind::Gui), (swe, StateKind::Swe), (shell, StateKind::Terminal)]
    {
        let state = NextState::of(&seen);
        assert_eq!((state.kind, state.said.len(), state.results.len()), (kind, 0, 1));
        assert_eq!(state.results[0].call, Some(0), "{kind}");
    }
    // An earlier observation is no request either, wherever its exit code stands.
    let mut again =
        step("", "half.py:\nFAIL: test_half", json!({"search": "a", "replace": "b"}), "x");
    let seen =
        "-a\n+b\n$ python3 -m unittest\nRan 1 test in 0.0s\nFAILED (failures=1)\n[exit code: 1]";
    again.messages.extend([
        again.answer.clone(),
        json!({"role": "user", "content": format!("{seen}\nhalf.py:\na\nb\nc\nd\nFAIL: test_half")}),
    ]);
    assert!(history::request(&again.messages).starts_with("half.py"));
    let step_before = history::steps(&again.messages).next().unwrap();
    assert!(step_before.results()[0].as_deref().is_some_and(|text| text.contains("FAILED")));
    let spoken = step("Answer as JSON.", "Go on.", json!({"action": "click Go #1"}), "No, stop.");
    assert_eq!(NextState::of(&spoken).said, ["No, stop."], "a person is nobody's output");
}
