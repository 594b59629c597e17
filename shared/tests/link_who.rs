//! Linking beyond the history itself: retries, many users with the same words, histories that are
//! only named, and those that were replaced by a summary.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly")]

mod worlds;

use hone_shared::link::{LinkKind, explicit_session, idempotency_key, is_retry, person};
use hone_shared::turn::Outcome;
use serde_json::{Value, json};
use worlds::{Exchange, World, calls, linked, result, says, user};

fn long(text: &str) -> String {
    format!("{text} ").repeat(300 / text.len() + 1)
}

#[test]
fn a_retry_is_told_from_a_regeneration() {
    let mut world = World::new();
    let asked = [user("tell me a joke")];
    let ask = || Exchange::new(&asked, &[says("Knock, knock.")]).from("c1");
    let (first, resolution) = world.take(ask().ended(Outcome::UpstreamError));
    assert_eq!((resolution.repeat_of, resolution.retry), (None, false));
    let (second, resolution) = world.take(ask());
    assert_eq!((resolution.repeat_of, resolution.retry), (Some(first), true), "that one failed");
    let (third, resolution) = world.take(ask());
    assert_eq!((resolution.repeat_of, resolution.retry), (Some(second), false), "a regeneration");
    let (fourth, resolution) = world.take(Exchange { retry: true, ..ask() });
    assert_eq!((resolution.repeat_of, resolution.retry), (Some(third), true), "the client says so");
    let (_, resolution) = world.take(ask().from("c2"));
    assert_eq!((resolution.repeat_of, resolution.retry), (None, false), "somebody else");
    let (_, resolution) = world.take(ask().from("c1").of_person("p"));
    assert_eq!(resolution.repeat_of, Some(fourth), "nothing known differs");
    let (_, resolution) = world.take(Exchange { retry: true, ..ask().from("c3") });
    assert_eq!((resolution.repeat_of, resolution.retry), (None, true), "the first was not seen");
    world.take(ask().from("c4").ended(Outcome::ClientAbort));
    world.now += 2 * 3600 * 1000;
    assert!(!world.take(ask().from("c4")).1.retry, "two hours later it is meant anew");
}

#[test]
fn an_equal_idempotency_key_is_a_retry_even_of_a_complete_turn_but_not_for_another_prompt() {
    let mut world = World::new();
    let (asked, other) = ([user("a")], [user("b")]);
    let with_key = |messages| Exchange {
        idempotency_key: Some("stainless-node-retry-1"),
        ..Exchange::new(messages, &[says("x")])
    };
    let (first, resolution) = world.take(with_key(&asked));
    assert!(!resolution.retry);
    let (_, resolution) = world.take(with_key(&asked));
    assert_eq!((resolution.repeat_of, resolution.retry), (Some(first), true));
    assert!(!world.take(with_key(&other)).1.retry, "one key for everything means nothing");
}

#[test]
fn the_same_words_of_many_users_on_one_key_are_told_apart() {
    let mut world = World::new();
    let asked = [user("hi")];
    let ask = || Exchange::new(&asked, &[says("Hello!")]);
    let (by_person, _) = world.take(ask().of_person("alice").from("c0"));
    let (by_client, _) = world.take(ask().from("c1"));
    let (unknown, _) = world.take(ask());
    let (other_person, _) = world.take(ask().of_person("bob").from("c0"));
    let next = [user("hi"), says("Hello!"), user("more")];
    let more = || Exchange::new(&next, &[says("x")]);
    let parent = |world: &mut World, exchange| {
        let link = world.take(exchange).1.link.unwrap();
        (link.parent, link.confidence, link.candidates)
    };
    let alice = more().of_person("alice").from("c9");
    assert_eq!(parent(&mut world, alice), (by_person, 1.0, 4), "the person decides");
    assert_eq!(parent(&mut world, more().from("c1")), (by_client, 1.0, 4), "the client decides");
    let other = |text: &str| [user("hi"), says("Hello!"), user(text)];
    let (a, b) = (other("who are you?"), other("and you?"));
    let (found, confidence, _) = parent(&mut world, Exchange::new(&a, &[says("x")]));
    assert_eq!((found, confidence), (other_person, 0.5), "the newest that nobody continued");
    let from_new = Exchange::new(&b, &[says("x")]).from("new");
    let (found, confidence, _) = parent(&mut world, from_new);
    assert_eq!((found, confidence), (unknown, 0.8), "the only one that nobody continued");
    let mut world = World::new();
    world.take(ask().of_person("bob"));
    let carol = world.take(more().of_person("carol"));
    assert_eq!(carol.1.link, None, "another person's turn is never continued");
}

#[test]
fn a_response_that_is_named_is_the_parent_and_its_history_takes_the_name_s_place() {
    let mut world = World::new();
    let instructions =
        |text: &str| json!({"role": "system", "content": text, "instructions": true});
    let first = [instructions("Be brief."), user("capital of Australia?")];
    let (root, _) = world.take(Exchange::new(&first, &[says("Canberra.")]).answered_as("resp_1"));
    let (other, _) = world.take(Exchange::new(&first, &[says("Canberra.")]).answered_as("resp_2"));
    let next = [instructions("Be kind."), user("sure?")];
    let ask = |id: &str| Exchange::new(&next, &[says("Yes.")]).continuing(id);
    for (id, parent) in [("resp_1", root), ("resp_2", other)] {
        let (_, resolution) = world.take(ask(id));
        let link = resolution.link.unwrap();
        assert_eq!((link.parent, link.kind, link.confidence), (parent, LinkKind::Named, 1.0));
        assert_eq!(link.restores, Some(1..1), "after the instructions of this request");
        assert_eq!(resolution.repeat_of, None, "the same words to another response");
    }
    let (again, resolution) = world.take(ask("resp_1"));
    assert!(resolution.repeat_of.is_some_and(|twin| twin != again));
    assert_eq!(world.take(ask("resp_unknown")).1.link, None);
    let foreign = Exchange { tenant: "another", ..ask("resp_1") };
    assert_eq!(world.take(foreign).1.link, None, "never across tenants");
}

#[test]
fn items_that_stand_in_by_their_ids_name_their_turn() {
    let mut world = World::new();
    let asked = [user("Köln?")];
    let answer = json!({"role": "assistant", "content": null, "item_ids": ["fc_1"],
        "items": [{"type": "reasoning", "id": "rs_1"}]});
    let (root, _) = world.take(Exchange::new(&asked, &[answer]).answered_as("resp_1"));
    let reference = |id: &str| json!({"type": "item_reference", "id": id});
    let next = [
        user("Köln?"),
        json!({"role": "assistant", "content": null,
            "items": [reference("rs_1"), reference("fc_1")]}),
        result("c", "12 °C"),
    ];
    let mut exchange = Exchange::new(&next, &[says("Cold.")]);
    exchange.named.items = true;
    let link = world.take(exchange).1.link.unwrap();
    assert_eq!((link.parent, link.kind, link.restores), (root, LinkKind::Named, Some(0..2)));
}

#[test]
fn a_conversation_that_the_engine_keeps_goes_on_from_its_newest_whole_turn() {
    let mut world = World::new();
    let (asked, more) = ([user("hi")], [user("yes")]);
    let within = |messages| {
        let mut exchange = Exchange::new(messages, &[says("Hello!")]);
        exchange.named.conversation = Some("conv_1".into());
        exchange.in_session("conversation:conv_1")
    };
    let (root, resolution) = world.take(within(&asked));
    assert_eq!(resolution.link, None);
    world.take(within(&more).ended(Outcome::ModelError));
    let (second, resolution) = world.take(within(&more));
    let link = resolution.link.unwrap();
    assert_eq!((link.parent, link.restores, resolution.repeat_of), (root, Some(0..0), None));
    let link = world.take(within(&more)).1.link.unwrap();
    assert_eq!(link.parent, second, "the same word again is the next turn");
}

#[test]
fn a_predictable_call_id_counts_within_a_session_or_client_only() {
    let mut world = World::new();
    let (asked, answer) = ([user("both?")], calls(["call_0", "call_1"]));
    let ask = || Exchange::new(&asked, std::slice::from_ref(&answer));
    let (root, _) = world.take(ask().in_session("x-session-id:1"));
    world.take(ask().in_session("x-session-id:2"));
    let compacted = [user("(summary)"), calls(["call_0", "call_1"]), result("call_1", "y")];
    let more = || Exchange::new(&compacted, &[says("ok")]);
    let link = world.take(more().in_session("x-session-id:1")).1.link.unwrap();
    assert_eq!((link.parent, link.kind), (root, LinkKind::ToolCallId));
    assert_eq!(world.take(more()).1.link, None);
    let (of_client, _) = world.take(ask().from("c1"));
    assert_eq!(world.take(more().from("c1")).1.link.unwrap().parent, of_client);
}

#[test]
fn a_history_that_was_replaced_by_a_summary_is_found_by_the_summary() {
    let summary = long("The user asked for the weather in Cologne.");
    let mut world = World::new();
    let full = [user("Köln?"), says("12 degrees."), user("summarise our conversation")];
    let (asked, _) = world.take(Exchange::new(&full, &[says(&summary)]).from("c1"));
    let quoted = [user(&format!("<summary>\n{summary}\n</summary>")), user("and tomorrow?")];
    let link = world.take(Exchange::new(&quoted, &[says("x")]).from("c1")).1.link.unwrap();
    assert_eq!((link.parent, link.kind, link.answer_at), (asked, LinkKind::Compacted, 0));
    let kept = [user("(earlier turns were dropped)"), says(&summary), user("and tomorrow?")];
    let link = world.take(Exchange::new(&kept, &[says("x")]).from("c1")).1.link.unwrap();
    assert_eq!((link.parent, link.kind), (asked, LinkKind::Truncated));

    let mut world = World::new();
    let in_session = |messages, answer: &str| {
        Exchange::new(messages, &[says(answer)]).in_session("x-session-id:1")
    };
    let tagged = format!("<analysis>{}</analysis><summary>{summary}</summary>", long("I think."));
    let (asked, _) = world.take(in_session(&full, &tagged));
    let wrapped = [
        user(&format!("This session is being continued. Summary: {summary} Go on.")),
        user("and tomorrow?"),
    ];
    let link = world.take(in_session(&wrapped, "x")).1.link.unwrap();
    assert_eq!((link.parent, link.kind), (asked, LinkKind::Compacted));
    let elsewhere = world.take(Exchange::new(&wrapped, &[says("x")]));
    assert_eq!(elsewhere.1.link, None, "words around it need the session");
}

#[test]
fn an_answer_that_the_request_began_is_found_whole() {
    let mut world = World::new();
    let begun = [user("a list"), says("1. ")];
    let (root, _) = world.turn(&begun, says("Apples"));
    let next = [user("a list"), says("1. Apples"), user("more")];
    assert_eq!(linked(&world.turn(&next, says("2."),).1), Some((root, 0, LinkKind::Exact)));
}

#[test]
fn twenty_turns_of_an_agent_with_parallel_tools_are_one_chain_through_a_compaction() {
    let mut world = World::new();
    let id = |step: u32, n: u32| {
        format!("toolu_{:08x}{:08x}{:08x}", step * 7919 + 1, n + 0x9e37, step ^ 0x5bd1_e995)
    };
    let mut messages = vec![json!({"role": "system", "content": "agent"}), user("fix the tests")];
    let mut parent = None;
    for step in 0..20 {
        if step == 12 {
            // The middle of the history goes; the last call and its results stay.
            messages.drain(2..messages.len() - 3);
        }
        let answer = calls([&id(step, 0), &id(step, 1)]);
        let (turn, resolution) = world.turn(&messages, answer.clone());
        let link = resolution.link.as_ref();
        assert_eq!(link.map(|link| link.parent), parent, "step {step}");
        if let Some(link) = link {
            let kind = if step == 12 { LinkKind::ToolCallId } else { LinkKind::Exact };
            assert_eq!((link.kind, messages.len() - link.answer_at - 1), (kind, 2), "step {step}");
        }
        parent = Some(turn);
        messages.extend([answer, result(&id(step, 1), "b"), result(&id(step, 0), "a")]);
    }
}

#[test]
fn persons_retries_and_keys_are_read_from_where_clients_write_them() {
    let header = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    assert!(is_retry(&header("X-Stainless-Retry-Count", "1")));
    for count in ["0", "", "x"] {
        assert!(!is_retry(&header("x-stainless-retry-count", count)));
    }
    assert_eq!(idempotency_key(&header("Idempotency-Key", " k ")), Some("k"));
    assert_eq!(idempotency_key(&header("idempotency-key", " ")), None);
    let of = |params: Value| person(&params);
    assert_eq!(of(json!({"user": "a", "safety_identifier": "b"})), of(json!({"user": "b"})));
    assert_ne!(of(json!({"user": "a"})), of(json!({"user": "b"})));
    let code = json!({"metadata": {"user_id": "user_1_account_2_session_3"}});
    assert_eq!(of(code.clone()), of(json!({"metadata": {"user_id": "user_1_account_2"}})));
    let named = explicit_session(&Vec::new(), &code);
    assert_eq!(named.as_deref(), Some("metadata.user_id:3"));
    let code = json!({"metadata": {"user_id": r#"{"account_uuid":"u","session_id":"s"}"#}});
    assert_eq!(explicit_session(&Vec::new(), &code).as_deref(), Some("metadata.user_id:s"));
    assert_eq!(of(json!({"user": "unknown"})), None);
}
