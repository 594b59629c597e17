//! What a turn becomes, with templates that show more than messages.

use super::*;
use crate::testing::lab::{Lab, stored_turn};

/// A renderer of the tiny model with another chat template.
fn renderer(template: &str) -> (Lab, Renderer) {
    let lab = Lab::new();
    std::fs::write(lab.model_dir.join("chat_template.jinja"), template).unwrap();
    let renderer = Renderer::from_dir(&lab.model_dir).unwrap();
    (lab, renderer)
}

fn prompt(renderer: &Renderer, turn: &StoredTurn) -> String {
    renderer.whole_text(&renderer.prompt(&turn.path, &asked(turn)).unwrap())
}

#[test]
fn a_prompt_bears_the_date_of_its_turn_and_not_that_of_the_training() {
    let (_lab, renderer) = renderer(
        "Today: {{ strftime_now('%d %b %Y') }} ({{ date_string }})\n\
         {% for m in messages %}{{ m.content }}{% endfor %}",
    );
    let on = |started_ms| StoredTurn { started_ms, ..stored_turn("s", "q", "some words", "stop") };
    let last_year = on(1_735_689_599_000);
    assert_eq!(prompt(&renderer, &last_year), "Today: 31 Dec 2024 (31, December, 2024)\nq");
    assert_eq!(
        prompt(&renderer, &on(1_735_689_600_000)),
        "Today: 01 Jan 2025 (01, January, 2025)\nq"
    );
}

#[test]
fn tools_that_may_not_be_called_are_not_in_the_prompt_as_in_the_engine() {
    let (_lab, renderer) = renderer("{% if tools %}tools {% endif %}{{ messages[0].content }}");
    let tools = json!([{"type": "function", "function": {"name": "now"}}]);
    let with = |choice: &str| StoredTurn {
        params: json!({"tools": tools, "tool_choice": choice}),
        ..stored_turn("s", "q", "some words", "stop")
    };
    assert_eq!(prompt(&renderer, &with("auto")), "tools q");
    assert_eq!(prompt(&renderer, &with("none")), "q");
}
