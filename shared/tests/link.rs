//! Linking of requests to turns: what clients really do to a history, and what must never be
//! linked.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly")]

mod worlds;

use hone_shared::link::{
    History, Incoming, LinkKey, LinkKind, Resolution, canon, entries, explicit_session, similarity,
    tool_call_entropy_bits,
};
use hone_shared::turn::{Outcome, TurnId};
use hone_shared::wire::Named;
use proptest::prelude::*;
use serde_json::{Value, json};
use worlds::{Exchange, LONG, World, calls, linked, result, says, user};

#[test]
fn a_conversation_is_a_chain_with_the_next_state_after_each_answer() {
    let mut world = World::new();
    let mut messages = vec![json!({"role": "system", "content": "Be kind."}), user("hi")];
    let (root, at_root) = world.turn(&messages, says("Hello!"));
    let session_id = root.to_string();
    assert_eq!(at_root, Resolution { session_id, link: None, repeat_of: None, retry: false });
    let mut parent = root;
    for step in 0..5 {
        let answer = if step == 0 { "Hello!".to_owned() } else { format!("Answer {step}") };
        messages.extend([says(&answer), user("and then?")]);
        let (turn, resolution) = world.turn(&messages, says(&format!("Answer {}", step + 1)));
        let link = resolution.link.as_ref().unwrap();
        assert_eq!((link.parent, link.kind, link.candidates), (parent, LinkKind::Exact, 1));
        assert_eq!((link.confidence, link.answer_at), (1.0, messages.len() - 2));
        assert_eq!(resolution.session_id, root.to_string());
        parent = turn;
    }
}

#[test]
fn content_as_string_or_parts_and_null_or_absent_keys_are_the_same() {
    let mut world = World::new();
    let answer = json!({"role": "assistant", "content": "Hello!", "refusal": null,
        "annotations": [], "tool_calls": [], "reasoning_content": "greet"});
    let (first, _) = world.turn(&[user("hi there")], answer);
    let marked = json!({"text": "there", "type": "text", "cache_control": {"type": "ephemeral"}});
    let parts = [
        json!({"content": [{"type": "text", "text": "hi "}, marked], "role": "user"}),
        json!({"role": "assistant", "content": [{"type": "text", "text": "Hello!"}]}),
        user("next"),
    ];
    assert_eq!(linked(&world.turn(&parts, says("x")).1), Some((first, 0, LinkKind::Exact)));
}

#[test]
fn a_retry_keeps_its_parent_and_a_regeneration_is_a_sibling() {
    let mut world = World::new();
    // Twins: the same question and answer, twice, on one key at temperature 0.
    let (_, _) = world.turn(&[user("hi")], says("Hello!"));
    let (newer, again) = world.turn(&[user("hi")], says("Hello!"));
    assert!(again.link.is_none() && again.repeat_of.is_some());
    let next = [user("hi"), says("Hello!"), user("tell me more")];
    let (first, resolution) = world.turn_as("t", None, &next, &[], Outcome::UpstreamError);
    let link = resolution.link.unwrap();
    assert_eq!((link.parent, link.candidates), (newer, 2));
    assert!(link.confidence < 1.0, "two turns match equally well");
    let (second, resolution) = world.turn(&next, says("More."));
    assert_eq!(linked(&resolution).unwrap().0, newer, "a retry does not move on to the other twin");
    assert_eq!(resolution.repeat_of, Some(first));
    let (_, resolution) = world.turn(&next, says("Something else."));
    assert_eq!((linked(&resolution).unwrap().0, resolution.repeat_of), (newer, Some(second)));
}

#[test]
fn an_edited_question_is_a_branch_of_the_same_parent() {
    let mut world = World::new();
    let (root, _) = world.turn(&[user("hi")], says("Hello!"));
    let (a, one) = world.turn(&[user("hi"), says("Hello!"), user("cats?")], says("Meow."));
    let (b, two) = world.turn(&[user("hi"), says("Hello!"), user("dogs?")], says("Woof."));
    assert_eq!((linked(&one).unwrap().0, linked(&two).unwrap().0), (root, root));
    assert!(two.repeat_of.is_none());
    let on_a = [user("hi"), says("Hello!"), user("cats?"), says("Meow."), user("ok")];
    let on_b = [user("hi"), says("Hello!"), user("dogs?"), says("Woof."), user("ok")];
    assert_eq!(linked(&world.turn(&on_a, says("1")).1).unwrap().0, a);
    assert_eq!(linked(&world.turn(&on_b, says("2")).1).unwrap().0, b);
}

#[test]
fn the_child_says_which_of_several_choices_was_taken() {
    let mut world = World::new();
    let answers = [says("One."), says("Two."), says("Three.")];
    let (root, _) = world.turn_as("t", None, &[user("count")], &answers, Outcome::Complete);
    let (_, child) = world.turn(&[user("count"), says("Two."), user("go on")], says("x"));
    assert_eq!(linked(&child), Some((root, 1, LinkKind::Exact)));
}

#[test]
fn all_parallel_tool_results_are_the_next_state() {
    let mut world = World::new();
    let (root, _) = world.turn(&[user("both?")], calls(["call_0", "call_1"]));
    let mut echoed = calls(["call_0", "call_1"]);
    echoed["tool_calls"][0]["function"]["arguments"] = json!("{\"b\":2,\"a\":1.0}");
    echoed["tool_calls"][1]["function"]["arguments"] = json!("");
    echoed["content"] = json!("");
    let next = [user("both?"), echoed, result("call_0", "x"), result("call_1", "y")];
    let (_, resolution) = world.turn(&next, says("Done."));
    assert_eq!(linked(&resolution), Some((root, 0, LinkKind::Exact)));
    assert_eq!(next.len() - resolution.link.unwrap().answer_at - 1, 2);
}

#[test]
fn a_random_tool_call_id_survives_a_rewritten_history_and_a_counter_does_not() {
    let mut world = World::new();
    let ids = ["call_Zk3vT9qLw8RbN2xYcD5fGh7J", "call_Qw4eRt6yUi8oPa1sDf3gHj5K"];
    let (root, _) = world.turn(&[user("both?")], calls(ids));
    let compacted = [
        json!({"role": "system", "content": "Summary: asked for both."}),
        user("(summary)"),
        calls(ids),
        result(ids[1], "y"),
    ];
    assert_eq!(
        linked(&world.turn(&compacted, says("ok")).1),
        Some((root, 0, LinkKind::ToolCallId))
    );
    let (_, _) = world.turn(&[user("other")], calls(["call_0", "call_1"]));
    let foreign = [user("(summary)"), calls(["call_0", "call_1"]), result("call_0", "y")];
    assert_eq!(linked(&world.turn(&foreign, says("ok")).1), None);
    assert!(tool_call_entropy_bits("call_0123456789") < 64.0);
    assert!(tool_call_entropy_bits("call_aaaaaaaaaaaaaaaaaaaaaaaa") < 64.0);
    assert!(tool_call_entropy_bits("call_3f2b8c1d-9e4a-4b7f-8a6d-5c0e1f2a3b4d") >= 64.0);
}

#[test]
fn folded_white_space_changed_system_prompts_and_stripped_thoughts_are_loose() {
    let mut world = World::new();
    let dated = |day: &str| json!({"role": "system", "content": format!("Today is {day}.")});
    let answer = "<think>easy</think>\n\nIt is\n\n  blue. ";
    let (root, _) = world.turn(&[dated("Monday"), user("sky?")], says(answer));
    let next = [dated("Tuesday"), user("sky?"), says("It is blue."), user("why?")];
    let (second, resolution) = world.turn(&next, says("Rayleigh."));
    assert_eq!(linked(&resolution), Some((root, 0, LinkKind::Loose)));
    let next = [user("sky? "), says("It is blue."), user("why?"), says("Rayleigh."), user("ok")];
    assert_eq!(linked(&world.turn(&next, says("x")).1), Some((second, 0, LinkKind::Loose)));
}

#[test]
fn an_aborted_answer_is_found_by_the_part_that_the_client_shows() {
    let mut world = World::new();
    let (root, _) = world.turn_as(
        "t",
        None,
        &[user("tell")],
        &[says("Once upon a time there")],
        Outcome::ClientAbort,
    );
    let next = [user("tell"), says("Once upon a"), user("stop, shorter")];
    let (_, resolution) = world.turn(&next, says("ok"));
    assert_eq!(linked(&resolution), Some((root, 0, LinkKind::Loose)));
    let mut world = World::new();
    world.turn(&[user("tell")], says("Once upon a time there was a king who had three daughters"));
    let (_, resolution) = world.turn(&next, says("ok"));
    assert_eq!(linked(&resolution), None, "a complete answer is not matched by a small part");
}

#[test]
fn an_answer_that_the_client_edited_a_little_is_linked_and_one_it_replaced_is_not() {
    let mut world = World::new();
    let (root, _) = world.turn(&[user("capital?")], says(LONG));
    let edited = [user("capital?"), says(&LONG.replace("lies", "is")), user("thanks")];
    let (_, resolution) = world.turn(&edited, says("x"));
    assert_eq!(linked(&resolution), Some((root, 0, LinkKind::Edited)));
    let confidence = resolution.link.unwrap().confidence;
    assert!(confidence > 0.7 && confidence < 0.8, "{confidence}");
    let replaced =
        [user("capital?"), says("I do not know anything about capitals."), user("thanks")];
    assert_eq!(linked(&world.turn(&replaced, says("x")).1), None);
}

#[test]
fn a_truncated_history_is_found_by_its_last_answer_if_only_one_turn_gave_it() {
    let mut world = World::new();
    let (root, _) = world.turn(&[user("a"), says("b"), user("capital?")], says(LONG));
    let cut = [says(LONG), user("are you sure?")];
    let (_, resolution) = world.turn(&cut, says("Yes."));
    assert_eq!(linked(&resolution), Some((root, 0, LinkKind::Truncated)));
    let (twin, _) = world.turn_as(
        "t",
        Some("x-session-id:s"),
        &[user("c"), user("capital?")],
        &[says(LONG)],
        Outcome::Complete,
    );
    assert_eq!(linked(&world.turn(&cut, says("No.")).1), None, "two turns gave it");
    let (_, resolution) =
        world.turn_as("t", Some("x-session-id:s"), &cut, &[says("x")], Outcome::Complete);
    assert_eq!(linked(&resolution), Some((twin, 0, LinkKind::Truncated)), "the session decides");
    let (_, _) = world.turn(&[user("z")], says("Short."));
    assert_eq!(linked(&world.turn(&[says("Short."), user("y")], says("x")).1), None, "too short");
    let mut world = World::new();
    world.turn(&[user("a"), says("b"), user("capital?")], says(LONG));
    world.now += 25 * 3600 * 1000;
    assert_eq!(linked(&world.turn(&cut, says("x")).1), None, "too old");
}

#[test]
fn an_older_answer_is_a_last_resort_with_half_the_confidence() {
    let mut world = World::new();
    let (root, _) = world.turn(&[user("hi")], says("Hello!"));
    let through_another_model =
        [user("hi"), says("Hello!"), user("sum?"), says("42"), user("thanks")];
    let (_, resolution) = world.turn(&through_another_model, says("x"));
    let link = resolution.link.unwrap();
    assert_eq!((link.parent, link.answer_at, link.confidence), (root, 1, 0.5));
}

#[test]
fn tenants_routes_and_prefills_never_link() {
    let mut world = World::new();
    world.turn(&[user("hi")], says(LONG));
    let next = [user("hi"), says(LONG), user("more")];
    let (_, other) = world.turn_as("other tenant", None, &next, &[says("x")], Outcome::Complete);
    assert_eq!((other.link, other.repeat_of), (None, None));
    assert_eq!(linked(&world.turn(&[user("hi"), says(LONG)], says("x")).1), None, "no next state");
    let key = LinkKey::new(&[7; 32], "t");
    let (asked, named) = ([user("q")], Named::default());
    let response = Exchange::new(&asked, &[says("a")]).response;
    let of = |key: &LinkKey, route: &str| {
        let history = History::of(key, route, &named, &asked);
        let incoming = Incoming {
            turn_id: TurnId::now(),
            started_ms: 0,
            messages: &asked,
            shown: &asked,
            history: &history,
            named: &named,
            explicit_session: None,
            person: "",
            client: "",
            retry: false,
            idempotency_key: None,
        };
        entries(key, &incoming, Some(&response))
    };
    let shared = of(&key, "chat").into_iter().filter(|e| of(&key, "code").contains(e)).count();
    assert_eq!(shared, 0);
    let rotated = LinkKey::new(&[8; 32], "t");
    assert_ne!(of(&key, "chat"), of(&rotated, "chat"));
}

#[test]
fn an_explicit_session_wins_for_the_session_and_ties_but_the_parent_is_found_by_content() {
    let mut world = World::new();
    let turn = |world: &mut World, session, messages: &[Value], answer| {
        world.turn_as("t", Some(session), messages, &[says(answer)], Outcome::Complete)
    };
    let (one, at_one) = turn(&mut world, "x-session-id:1", &[user("hi")], "Hello!");
    let (_, at_two) = turn(&mut world, "x-session-id:2", &[user("hi")], "Hello!");
    assert_eq!(at_one.session_id, "t/x-session-id:1");
    assert!(at_two.repeat_of.is_none(), "another session's twin is no retry");
    let next = [user("hi"), says("Hello!"), user("more")];
    let (_, resolution) = turn(&mut world, "x-session-id:1", &next, "x");
    let link = resolution.link.unwrap();
    assert_eq!((link.parent, link.confidence, link.candidates), (one, 1.0, 2));
    let (_, title) = turn(&mut world, "x-session-id:1", &[user("Write a title")], "Hi");
    assert_eq!((title.session_id.as_str(), title.link), ("t/x-session-id:1", None));
}

#[test]
fn explicit_ids_are_read_from_headers_and_body_with_their_source() {
    let header = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let of = |headers, params| explicit_session(&headers, &params);
    let no = Vec::new;
    assert_eq!(of(header("X-Session-Id", " a "), json!({})).as_deref(), Some("x-session-id:a"));
    assert_eq!(
        of(header("session_id", "b"), json!({"session_id": "c"})).as_deref(),
        Some("session_id:b")
    );
    assert_eq!(
        of(no(), json!({"metadata": {"chat_id": "d"}, "prompt_cache_key": "e"})).as_deref(),
        Some("metadata.chat_id:d")
    );
    assert_eq!(of(no(), json!({"prompt_cache_key": "e"})).as_deref(), Some("prompt_cache_key:e"));
    assert_eq!(of(no(), json!({"conversation": {"id": "f"}})).as_deref(), Some("conversation:f"));
    for (headers, params) in [
        (header("x-session-id", "unknown"), json!({})),
        (header("x-session-id", ""), json!({"session_id": 5})),
        (no(), json!({"user": "alice", "safety_identifier": "alice"})),
        (no(), json!([])),
        (header("x-session-id", "a\u{7}b"), Value::Null),
    ] {
        assert_eq!(of(headers, params), None);
    }
    let long = of(header("x-session-id", &"y".repeat(5000)), json!({})).unwrap();
    assert_eq!(long.len(), "x-session-id:".len() + 256);
}

#[test]
fn similarity_is_one_for_equal_and_zero_for_unrelated_texts() {
    assert_eq!(similarity("", ""), 1.0);
    assert_eq!(similarity("ab", "ac"), 0.0);
    assert_eq!(similarity("abcdef", "ghijkl"), 0.0);
    assert!(similarity(LONG, &LONG.replace("Australia", "Austria")) > 0.85);
}

proptest! {
    #[test]
    fn different_texts_roles_and_ids_never_share_a_canonical_form(
        a in ("[a-c]{0,3}", "[a-c]{1,3}", "[a-c]{0,3}"),
        b in ("[a-c]{0,3}", "[a-c]{1,3}", "[a-c]{0,3}"),
    ) {
        let message = |m: &(String, String, String)| json!({"role": m.1, "content": m.0, "tool_call_id": m.2});
        prop_assert_eq!(a == b, canon(&message(&a)) == canon(&message(&b)));
    }

    #[test]
    fn any_json_can_be_linked_without_a_panic(texts in prop::collection::vec(".{0,40}", 0..6)) {
        let odd = |text: &String| match serde_json::from_str::<Value>(text) {
            Ok(value) => value,
            Err(_) => json!({"role": if text.len().is_multiple_of(2) { "assistant" } else { "user" }, "content": [{"x": text}, null, 1.5e300], "tool_calls": {"a": text}}),
        };
        let messages: Vec<Value> = texts.iter().map(odd).chain([json!(null), json!({"role": 3}), says("x"), user("y")]).collect();
        let mut world = World::new();
        world.turn(&messages, json!(["odd"]));
        world.turn(&messages, says("x"));
    }
}
