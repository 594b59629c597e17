//! Linking of requests to turns: what clients really do to a history, and what must never be linked.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly")]

use hone_shared::link::{
    Answers, History, Incoming, LinkKey, LinkKind, MemoryIndex, Resolution, canon, entries,
    explicit_session, idempotency_key, is_retry, person, resolve, similarity,
    tool_call_entropy_bits,
};
use hone_shared::turn::{Outcome, TurnId};
use hone_shared::wire::{Choice, Named, ResponseView};
use proptest::prelude::*;
use serde_json::{Value, json};

const LONG: &str = "The capital of Australia is Canberra, which lies between Sydney and Melbourne.";

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn says(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

/// One request with its answer, as a test writes it.
#[derive(Clone)]
struct Exchange<'a> {
    tenant: &'a str,
    session: Option<&'a str>,
    person: &'a str,
    client: &'a str,
    retry: bool,
    idempotency_key: Option<&'a str>,
    named: Named,
    messages: &'a [Value],
    response: ResponseView,
    outcome: Outcome,
}

impl<'a> Exchange<'a> {
    fn new(messages: &'a [Value], answers: &[Value]) -> Self {
        let choice = |(index, message): (u32, &Value)| Choice {
            index,
            message: message.clone(),
            finish_reason: None,
        };
        let choices = (0u32..).zip(answers).map(choice).collect();
        Self {
            tenant: "t",
            session: None,
            person: "",
            client: "",
            retry: false,
            idempotency_key: None,
            named: Named::default(),
            messages,
            response: ResponseView { choices, ..ResponseView::default() },
            outcome: Outcome::Complete,
        }
    }

    fn from(self, client: &'a str) -> Self {
        Self { client, ..self }
    }

    fn of_person(self, person: &'a str) -> Self {
        Self { person, ..self }
    }

    fn in_session(self, session: &'a str) -> Self {
        Self { session: Some(session), ..self }
    }

    fn ended(self, outcome: Outcome) -> Self {
        Self { outcome, ..self }
    }

    fn continuing(mut self, response: &str) -> Self {
        self.named.response = Some(response.to_owned());
        self
    }

    fn answered_as(mut self, id: &str) -> Self {
        self.response.id = Some(id.to_owned());
        self.response.resumable = true;
        self
    }
}

/// A proxy's ingest in small: requests come, are resolved, answered and indexed.
struct World {
    index: MemoryIndex,
    now: i64,
    route: &'static str,
}

impl World {
    fn new() -> Self {
        Self { index: MemoryIndex::default(), now: 1_000_000, route: "chat" }
    }

    fn take(&mut self, exchange: Exchange<'_>) -> (TurnId, Resolution) {
        let key = LinkKey::new(&[7; 32], exchange.tenant);
        let turn_id = TurnId::now();
        self.now += 1000;
        let history = History::of(&key, self.route, &exchange.named, exchange.messages);
        let incoming = Incoming {
            turn_id,
            started_ms: self.now,
            messages: exchange.messages,
            shown: exchange.messages,
            history: &history,
            named: &exchange.named,
            explicit_session: exchange.session,
            person: exchange.person,
            client: exchange.client,
            retry: exchange.retry,
            idempotency_key: exchange.idempotency_key,
        };
        let resolution = resolve(&self.index, &key, &incoming).unwrap();
        let entries = entries(&key, &incoming, Some(&exchange.response));
        let answers =
            Answers { outcome: exchange.outcome, choices: exchange.response.choices.clone() };
        self.index.insert(&incoming, &resolution, answers, &entries);
        (turn_id, resolution)
    }

    fn turn_as(
        &mut self,
        tenant: &str,
        session: Option<&str>,
        messages: &[Value],
        answers: &[Value],
        outcome: Outcome,
    ) -> (TurnId, Resolution) {
        self.take(Exchange { tenant, session, outcome, ..Exchange::new(messages, answers) })
    }

    fn turn(&mut self, messages: &[Value], answer: Value) -> (TurnId, Resolution) {
        self.take(Exchange::new(messages, &[answer]))
    }
}

fn linked(resolution: &Resolution) -> Option<(TurnId, u32, LinkKind)> {
    resolution.link.as_ref().map(|link| (link.parent, link.choice, link.kind))
}

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
    let (first, _) = world.turn(&[user("hi there")], json!({
        "role": "assistant", "content": "Hello!", "refusal": null, "annotations": [], "tool_calls": [], "reasoning_content": "greet"
    }));
    let parts = [
        json!({"content": [{"type": "text", "text": "hi "}, {"text": "there", "type": "text", "cache_control": {"type": "ephemeral"}}], "role": "user"}),
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

fn calls(ids: [&str; 2]) -> Value {
    let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "get", "arguments": arguments}});
    json!({"role": "assistant", "content": null, "tool_calls": [call(ids[0], "{\"a\": 1, \"b\": 2}"), call(ids[1], "{}")]})
}

fn result(id: &str, text: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "content": text})
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
        json!({"role": "assistant", "content": null, "items": [reference("rs_1"), reference("fc_1")]}),
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
