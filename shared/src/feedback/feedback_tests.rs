//! All four shapes, and every way to get them wrong.
#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use serde_json::{Value, json};

use super::*;

fn read(body: &Value) -> Result<Given, FeedbackError> {
    let scales = Scales(BTreeMap::from([
        ("rating".to_owned(), [1.0, 5.0]),
        ("latency".to_owned(), [10.0, 0.0]),
    ]));
    parse(None, body.to_string().as_bytes(), &scales)
}

fn parts(body: &Value) -> Vec<Part> {
    read(body).unwrap().parts
}

/// The body is refused, the field is named, and the message says `word`.
fn refused(body: &Value, param: Option<&str>, word: &str) {
    let error = read(body).unwrap_err();
    assert_eq!(error.param, param, "{body}: {error}");
    assert!(error.message.contains(word), "{body}: {error}");
    assert!(error.message.ends_with('.'), "{error}");
}

#[test]
fn a_thumb_a_score_a_comment_a_demonstration_and_an_outcome_are_read_together() {
    let given = read(&json!({"response_id": "chatcmpl-1", "score": 4, "scale": [1, 5],
        "comment": "use metres", "demonstration": "3 m", "outcome": false, "id": "k"}))
    .unwrap();
    assert_eq!(given.target, Target::Response("chatcmpl-1".into()));
    assert_eq!(
        given.parts,
        [
            Part::Score(0.5),
            Part::Comment("use metres".into()),
            Part::Demonstration(json!({"role": "assistant", "content": "3 m"})),
            Part::Outcome(-1.0),
        ]
    );
    assert_eq!((given.shape, given.weight, given.dry_run), (Shape::Native, 1.0, false));
    assert_eq!(parts(&json!({"turn_id": Uuid::nil(), "thumb": "down"})), [Part::Thumb(-1.0)]);
}

#[test]
fn a_number_about_a_session_is_its_outcome() {
    for body in [
        json!({"session_id": "s", "thumb": "up"}),
        json!({"session_id": "s", "score": 1}),
        json!({"session_id": "s", "outcome": true}),
        json!({"metric_name": "solved", "episode_id": "s", "value": true}),
        json!({"name": "solved", "sessionId": "s", "value": 1, "dataType": "BOOLEAN"}),
    ] {
        assert_eq!(parts(&body), [Part::Outcome(1.0)], "{body}");
    }
    refused(
        &json!({"session_id": "s", "thumb": "up", "outcome": 1}),
        Some("outcome"),
        "one number",
    );
    refused(
        &json!({"session_id": "s", "demonstration": "x"}),
        Some("demonstration"),
        "response_id",
    );
}

#[test]
fn a_native_body_that_is_wrong_says_where_and_what_would_be_right() {
    let about = |more: Value| {
        let mut body = json!({"response_id": "r"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    refused(&json!({"thumb": "up"}), Some("response_id"), "turn_id");
    refused(&json!({"response_id": "r"}), None, "at least one");
    refused(&about(json!({"turn_id": "t", "thumb": "up"})), Some("response_id"), "only one");
    refused(&json!({"turn_id": "chatcmpl-1", "thumb": "up"}), Some("turn_id"), "UUID");
    refused(&about(json!({"thumb": "sideways"})), Some("thumb"), "\"up\" or \"down\"");
    refused(&about(json!({"thumb": true})), Some("thumb"), "not a boolean");
    refused(&about(json!({"thumb": "up", "score": 1})), Some("score"), "not both");
    refused(&about(json!({"score": "high"})), Some("score"), "a number, not a string");
    refused(&about(json!({"score": 7, "scale": [1, 5]})), Some("score"), "from 1 to 5");
    refused(&about(json!({"score": 1, "scale": [5, 1]})), Some("scale"), "the smaller one first");
    refused(&about(json!({"score": 1, "scale": [1]})), Some("scale"), "two numbers");
    refused(&about(json!({"scale": [1, 5], "thumb": "up"})), Some("scale"), "missing");
    refused(&about(json!({"comment": " "})), Some("comment"), "empty");
    refused(&about(json!({"comment": "x".repeat(8_001)})), Some("comment"), "8000");
    refused(&about(json!({"outcome": "won"})), Some("outcome"), "true, false or a number");
    refused(&about(json!({"outcome": 2})), Some("outcome"), "from -1 to 1");
    refused(&about(json!({"thumbs": "up"})), None, "`thumbs` is not a field");
    refused(&about(json!({"thumb": "up", "id": 7})), Some("id"), "a string");
    refused(&json!({"response_id": "a\u{7}b", "thumb": "up"}), Some("response_id"), "control");
    refused(&json!(["r"]), None, "not an array");
    for body in ["", "{", "{\"response_id\": \"r\", \"score\": 1e999}", "\u{0}"] {
        let error = parse(None, body.as_bytes(), &Scales::default()).unwrap_err();
        assert!(error.message.contains("not JSON"), "{error}");
    }
    let deep = "[".repeat(100_000);
    assert!(parse(None, deep.as_bytes(), &Scales::default()).is_err());
}

#[test]
fn a_demonstration_is_an_assistants_message_that_says_or_calls_something() {
    let of = |given: Value| json!({"response_id": "r", "demonstration": given});
    let call = json!({"id": "c", "type": "function",
        "function": {"name": "add", "arguments": "{}"}});
    let message = json!({"role": "assistant", "content": null, "tool_calls": [call]});
    assert_eq!(parts(&of(message.clone())), [Part::Demonstration(message)]);
    for (wrong, word) in [
        (json!({"role": "user", "content": "x"}), "\"assistant\""),
        (json!({"content": ""}), "neither says nor calls"),
        (json!({"content": 1}), "not a number"),
        (json!({"content": [{"type": "image_url"}]}), "text parts only"),
        (json!({"content": "x", "audio": {}}), "`audio`"),
        (json!({"tool_calls": [{"name": "add"}]}), "must be a list"),
        (json!(""), "empty"),
        (json!(1), "not a number"),
    ] {
        refused(&of(wrong), Some("demonstration"), word);
    }
}

#[test]
fn tensorzero_says_good_or_bad_a_number_a_comment_or_a_demonstration() {
    let of = |metric: &str, value: Value| json!({"metric_name": metric, "inference_id": "r", "value": value, "tags": {"a": "b"}});
    assert_eq!(parts(&of("helpful", json!(true))), [Part::Thumb(1.0)]);
    assert_eq!(parts(&of("rating", json!(2))), [Part::Score(-0.5)]);
    assert_eq!(parts(&of("latency", json!(0))), [Part::Score(1.0)], "less is better");
    assert_eq!(parts(&of("comment", json!("too long"))), [Part::Comment("too long".into())]);
    let blocks = json!([{"type": "text", "text": "a"}, {"type": "tool_call", "id": "1",
        "name": "add", "arguments": {"x": 1}}]);
    let [Part::Demonstration(message)] = &parts(&of("demonstration", blocks))[..] else {
        unreachable!()
    };
    assert_eq!(message["content"], "a");
    assert_eq!(message["tool_calls"][0]["function"]["arguments"], "{\"x\":1}");
    let mut dry = of("helpful", json!(true));
    dry["dryrun"] = json!(true);
    assert!(read(&dry).unwrap().dry_run);
    refused(&of("stars", json!(4)), Some("value"), "[feedback.scales]");
    refused(&of("helpful", json!("yes")), Some("value"), "true, false or a number");
    refused(&of("comment", json!(1)), Some("value"), "a string");
    refused(&of("demonstration", json!([{"type": "image"}])), Some("value"), "blocks of type");
    refused(&json!({"metric_name": "x", "value": true}), Some("inference_id"), "episode_id");
    refused(&json!({"metric_name": "x", "inference_id": "r"}), Some("value"), "missing");
}

#[test]
fn langfuse_scores_of_every_type_are_read_and_others_refused() {
    let of = |kind: &str, value: Value| json!({"id": "k", "name": "quality", "traceId": "r", "value": value, "dataType": kind});
    assert_eq!(parts(&of("NUMERIC", json!(-0.25))), [Part::Score(-0.25)]);
    assert_eq!(parts(&of("BOOLEAN", json!(0))), [Part::Thumb(-1.0)]);
    assert_eq!(parts(&of("CATEGORICAL", json!("Good"))), [Part::Thumb(1.0)]);
    assert_eq!(parts(&of("TEXT", json!("use metres"))), [Part::Comment("use metres".into())]);
    let mut commented = of("BOOLEAN", json!(1));
    commented["comment"] = json!("nice");
    commented["observationId"] = json!("o");
    let given = read(&commented).unwrap();
    assert_eq!(given.target, Target::Response("o".into()), "the nearer one");
    assert_eq!(given.parts, [Part::Thumb(1.0), Part::Comment("nice".into())]);
    assert_eq!(given.key.as_deref(), Some("k"));
    refused(&of("NUMERIC", json!("1")), Some("value"), "a number");
    refused(&of("BOOLEAN", json!(2)), Some("value"), "0 or 1");
    refused(&of("CATEGORICAL", json!("billing")), Some("value"), "no category");
    refused(&of("STARS", json!(1)), Some("dataType"), "NUMERIC");
    refused(&json!({"name": "q", "dataType": "NUMERIC", "value": 1}), Some("traceId"), "sessionId");
    let bare = json!({"name": "q", "traceId": "r", "value": 1}).to_string();
    let given = parse(Some(Shape::Langfuse), bare.as_bytes(), &Scales::default()).unwrap();
    assert_eq!(given.parts, [Part::Score(1.0)], "the type is told by the value");
}

#[test]
fn portkey_counts_from_minus_ten_to_ten_and_may_count_for_less() {
    let given = read(&json!({"trace_id": "r", "value": -5, "weight": 0.5, "metadata": {}}));
    let given = given.unwrap();
    assert_eq!((given.parts, given.weight), (vec![Part::Score(-0.5)], 0.5));
    assert_eq!(given.shape, Shape::Portkey);
    refused(&json!({"trace_id": "r", "value": 11}), Some("value"), "from -10 to 10");
    refused(&json!({"trace_id": "r", "value": 1, "weight": 2}), Some("weight"), "from 0 to 1");
    refused(&json!({"trace_id": "r"}), Some("value"), "missing");
}

#[test]
fn a_key_of_a_tenant_gives_the_same_id_and_no_other_tenants() {
    let given = |key: Option<&str>| Given {
        shape: Shape::Native,
        target: Target::Response("r".into()),
        parts: vec![Part::Thumb(1.0)],
        weight: 0.5,
        key: key.map(str::to_owned),
        dry_run: false,
    };
    let id = |key, tenant| given(key).by(tenant, 1.0, 0).id;
    assert_eq!(id(Some("k"), "t"), id(Some("k"), "t"));
    assert_ne!(id(Some("k"), "t"), id(Some("k"), "u"));
    assert_ne!(id(Some("k"), "t"), id(Some("l"), "t"));
    assert_ne!(id(None, "t"), id(None, "t"));
    assert_eq!(given(None).by("anonymous", 0.0, 0).weight, 0.0);
    assert_eq!(given(None).by("t", 1.0, 0).weight, 0.5);
}

#[test]
fn feedback_survives_json_as_it_was() {
    let given = read(&json!({"response_id": "r", "score": 0.5, "comment": "é\u{0}",
        "demonstration": {"content": "x"}}));
    let feedback = given.unwrap().by("t", 1.0, 5);
    let json = serde_json::to_vec(&feedback).unwrap();
    assert_eq!(serde_json::from_slice::<Feedback>(&json).unwrap(), feedback);
}
