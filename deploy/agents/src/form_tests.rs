//! What is read from answers, and what is not.

use super::*;

fn choice() -> Form {
    Form {
        fields: vec![Field::one_of("action", vec!["click Save #1".into(), "click Send #2".into()])],
        ..Form::default()
    }
}

fn edit() -> Form {
    let text = |name| Field {
        name,
        values: Values::Text { chars_max: 80, pattern: None, guesses: vec![] },
    };
    Form { fields: vec![text("search"), text("replace")], ..Form::default() }
}

fn shell() -> Form {
    let command = Field {
        name: "command",
        values: Values::Text { chars_max: 80, pattern: None, guesses: vec![] },
    };
    let tool = Tool { name: "shell", about: "runs a command", fields: vec![command] };
    Form { tools: vec![tool], ..Form::default() }
}

fn said(form: &Form, text: &str) -> Result<Action, String> {
    let mut wishes = form.read(&json!({ "role": "assistant", "content": text }));
    assert_eq!(wishes.len(), 1, "{wishes:?}");
    wishes.remove(0).action
}

#[test]
fn a_choice_is_read_from_json_lines_and_plain_words() {
    let send = Ok(Action::new(None, &[("action", "click Send #2")]));
    for text in [
        r#"{"action": "click Send #2"}"#,
        "Sure! {\"action\": \"click Send #2\"} That is it.",
        "I think so.\nAction: click Send #2",
        "**action**: click Send #2",
        "I will click Send #2 now.",
        "```\nclick Send #2\n```",
    ] {
        assert_eq!(said(&choice(), text), send, "{text}");
    }
}

#[test]
fn what_fits_no_form_is_answered_with_what_was_expected() {
    for text in ["", "hello", "{", "{\"action\": ", "{\"other\": 1}", "click Save #1 click Send #2"]
    {
        let why = said(&choice(), text).unwrap_err();
        assert!(why.contains("JSON with action"), "{text}: {why}");
    }
    assert!(said(&edit(), "{\"search\": \"a\"}").is_err(), "one of two fields is not enough");
    assert!(said(&shell(), "").unwrap_err().contains("a call of shell"));
}

#[test]
fn two_fields_are_read_from_json_and_from_lines() {
    let fields = Ok(Action::new(None, &[("search", "a - b"), ("replace", "a + b")]));
    assert_eq!(said(&edit(), r#"{"search": "a - b", "replace": "a + b"}"#), fields);
    assert_eq!(said(&edit(), "Search: a - b\nReplace: `a + b`"), fields);
}

#[test]
fn a_command_is_read_from_a_call_from_its_json_and_from_a_fence() {
    let list = Action::new(Some("shell"), &[("command", "ls -l")]);
    for text in [
        r#"{"name": "shell", "arguments": {"command": "ls -l"}}"#,
        r#"{"command": "ls -l"}"#,
        "```bash\nls -l\n```",
        "ls -l",
    ] {
        assert_eq!(said(&shell(), text), Ok(list.clone()), "{text}");
    }
    let call = |arguments: &str| {
        let function = json!({ "name": "shell", "arguments": arguments });
        json!({ "tool_calls": [{ "id": "c1", "type": "function", "function": function }] })
    };
    let wishes = shell().read(&call(r#"{"command": "ls -l"}"#));
    assert_eq!(wishes, [Wish { call: Some("c1".into()), action: Ok(list) }]);
    for broken in ["", "{", "[]", "{}", "{\"command\": [1]}"] {
        let wish = shell().read(&call(broken)).remove(0);
        assert!(wish.action.unwrap_err().contains("needs command"), "{broken}");
    }
}

#[test]
fn parallel_calls_are_all_read_up_to_the_cap_and_unknown_tools_are_named() {
    let call = |at: usize, name: &str| {
        let function = json!({ "name": name, "arguments": { "command": "ls" } });
        json!({ "id": format!("c{at}"), "function": function })
    };
    let calls: Vec<Value> =
        (0..10).map(|at| call(at, if at == 1 { "browser" } else { "shell" })).collect();
    let wishes = shell().read(&json!({ "tool_calls": calls }));
    assert_eq!(wishes.len(), 10, "every call gets a result");
    assert_eq!(wishes.iter().filter(|wish| wish.action.is_ok()).count(), CALLS_MAX - 1);
    assert!(wishes[1].action.as_ref().unwrap_err().contains("browser"));
    assert!(wishes[9].action.as_ref().unwrap_err().contains("at most"));
}

#[test]
fn a_request_that_is_constrained_to_one_answer_allows_no_other() {
    let mut request = Map::new();
    choice().constrain_to(&Action::new(None, &[("action", "click Send #2")]), &mut request);
    let schema = &request["response_format"]["json_schema"]["schema"];
    assert_eq!(schema["properties"]["action"]["enum"], json!(["click Send #2"]));
    let mut request = Map::new();
    shell().constrain_to(&Action::new(Some("shell"), &[("command", "ls")]), &mut request);
    assert_eq!(request["tool_choice"]["function"]["name"], "shell");
    let parameters = &request["tools"][0]["function"]["parameters"];
    assert_eq!(parameters["properties"]["command"]["enum"], json!(["ls"]));
}
