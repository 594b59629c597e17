//! Templates as models publish them, and messages as clients send them.

use serde_json::json;

use super::*;

/// The kind of template that Qwen 2.5 and Hermes publish, shortened.
const WITH_TOOLS: &str = r#"
{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls %}
            {{- '\n<tool_call>' + call.function.name + ' ' }}{{ call.function.arguments | tojson }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content.strip() + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"#;

fn load(config: Value) -> Result<ChatTemplate, ChatError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    ChatTemplate::from_dir(dir.path())
}

fn template(text: &str) -> ChatTemplate {
    load(json!({"chat_template": text, "bos_token": "<s>", "eos_token": {"content": "</s>"}}))
        .unwrap()
}

fn asked<'a>(messages: &'a [Value], tools: Option<&'a Value>) -> Asked<'a> {
    Asked { tools, ..Asked::undated(messages) }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

#[test]
fn blocks_are_trimmed_as_transformers_trims_them() {
    let text = "{% for m in messages %}\n    {% if true %}\n{{ m['content'] }}\n    {% endif %}\n\
                {% endfor %}\nend\n";
    assert_eq!(
        template(text).render(&asked(&[user("a"), user("b")], None), false).unwrap(),
        "a\nb\nend"
    );
}

#[test]
fn special_tokens_and_the_generation_prompt_are_there() {
    let text = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}\
                {% if add_generation_prompt %}>{% endif %}";
    assert_eq!(template(text).render(&asked(&[user("x")], None), true).unwrap(), "<s>x</s>>");
    assert_eq!(template(text).render(&asked(&[user("x")], None), false).unwrap(), "<s>x</s>");
    assert_eq!(template(text).eos_token(), Some("</s>"));
}

#[test]
fn python_methods_and_reversed_lists_work() {
    let text = "{% for m in messages[::-1] %}{{ m.content.upper().split('-')[0].strip() }},\
                {% endfor %}{{ messages[0].get('name', 'none') }}";
    let messages = [user("a -1"), user("b -2")];
    assert_eq!(template(text).render(&asked(&messages, None), false).unwrap(), "B,A,none");
}

#[test]
fn a_template_can_refuse_messages_and_its_words_are_passed_on() {
    let text = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}\
                {% endif %}ok";
    let error = template(text).render(&asked(&[user("x")], None), false).unwrap_err().to_string();
    assert!(error.contains("system first"), "{error}");
}

#[test]
fn thinking_is_on_as_in_the_engine_and_dates_are_those_of_the_request() {
    let text = "{% macro day(form) %}{{ strftime_now(form) }}{% endmacro %}{{ enable_thinking }} \
                {{ strftime_now is defined }} {{ day('%d %b %Y') }} {{ date_string }}";
    let at = |at_ms| {
        let asked = Asked { at_ms, ..Asked::undated(&[]) };
        template(text).render(&asked, false).unwrap()
    };
    assert_eq!(at(951_782_399_999), "True True 28 Feb 2000 28, February, 2000");
    assert_eq!(at(951_782_400_000), "True True 29 Feb 2000 29, February, 2000");
    let undated = template(text).render(&Asked::undated(&[]), false).unwrap();
    assert_eq!(undated, "True True 01 Jan 2026 01, January, 2026");
}

#[test]
fn tools_and_tool_calls_are_rendered() {
    let tools = json!([{"type": "function", "function": {"name": "now", "parameters": {}}}]);
    let call = json!({"id": "1", "type": "function",
                      "function": {"name": "now", "arguments": "{\"zone\":\"UTC\"}"}});
    let messages = [
        user(" time? "),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "1", "content": "12:00"}),
    ];
    let rendered = template(WITH_TOOLS).render(&asked(&messages, Some(&tools)), true).unwrap();
    assert!(rendered.starts_with("<|im_start|>system\n# Tools\n{"), "{rendered}");
    assert!(rendered.contains("\"name\":\"now\""), "{rendered}");
    assert!(rendered.ends_with(
        "<|im_start|>user\ntime?<|im_end|>\n<|im_start|>assistant\n<tool_call>now \
         {\"zone\":\"UTC\"}<|im_end|>\n<|im_start|>tool\n12:00<|im_end|>\n<|im_start|>assistant\n"
    ));
    let without =
        template(WITH_TOOLS).render(&asked(&messages[..1], Some(&json!([]))), false).unwrap();
    assert_eq!(without, "<|im_start|>user\ntime?<|im_end|>\n");
}

#[test]
fn issue_5_tools_and_messages_are_shown_as_the_engine_shows_them_and_nothing_else() {
    let text = "{{ tools | tojson }}{{ builtin_tools }}{% for m in messages %}{{ m | tojson }}{% endfor %}";
    let bare = json!([
        {"type": "function", "function": {"name": "python", "parameters": {"b": 1, "a": 2}}},
    ]);
    let dressed = json!([{"function": {
        "strict": true, "parameters": {"a": 2, "b": 1}, "name": "python", "description": null,
    }, "cache_control": {}, "type": "function"}]);
    let messages = [json!({"role": "assistant", "content": "x", "refusal": null, "name": "n",
        "audio": {}, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]})];
    let rendered = template(text).render(&asked(&messages, Some(&bare)), false).unwrap();
    assert_eq!(rendered, template(text).render(&asked(&messages, Some(&dressed)), false).unwrap());
    assert!(rendered.contains("\"description\":null") && rendered.contains("[\"python\"]"));
    assert!(rendered.contains("\"arguments\":{}") && !rendered.contains("audio"), "{rendered}");
    let odd = json!([{"type": "web_search"}]);
    let refused = template(text).render(&asked(&[], Some(&odd)), false);
    assert!(matches!(refused, Err(ChatError::Template(_))), "no engine of ours answered that");
}

#[test]
fn content_is_always_text() {
    let parts = json!({"role": "user", "content": [
        {"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "two"},
    ]});
    assert_eq!(normalise(&parts, true)["content"], "one\ntwo");
    let call = json!({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]});
    assert_eq!(normalise(&call, true)["content"], "");
    assert_eq!(normalise(&call, false)["content"], "[{\"name\":\"f\"}]");
    assert_eq!(normalise(&json!({"role": "user"}), true)["content"], "");
    assert_eq!(normalise(&user("x"), true), user("x"));
    let newer = json!({"role": "developer", "content": "x"});
    assert_eq!(normalise(&newer, true)["role"], "system");
}

#[test]
fn named_templates_are_chosen_by_the_presence_of_tools() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let both = load(json!({"chat_template": [
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"},
    ]}))
    .unwrap();
    assert_eq!(both.render(&asked(&[], None), false).unwrap(), "plain");
    assert_eq!(both.render(&asked(&[], Some(&tools)), false).unwrap(), "tools");
    let rag = load(json!({"chat_template": [
        {"name": "default", "template": "plain"}, {"name": "rag", "template": "rag"},
    ]}))
    .unwrap();
    assert!(matches!(rag.render(&asked(&[], Some(&tools)), false), Err(ChatError::NoTools)));
}

#[test]
fn a_separate_template_file_wins() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"chat_template": "old"}).to_string();
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "new").unwrap();
    let template = ChatTemplate::from_dir(dir.path()).unwrap();
    assert_eq!(template.render(&asked(&[], None), false).unwrap(), "new");
    assert!(template.mentions("new") && !template.mentions("old"));
}

#[test]
fn missing_and_broken_templates_are_refused() {
    assert!(matches!(load(json!({})), Err(ChatError::NoTemplate(_))));
    assert!(matches!(load(json!({"chat_template": "{% if"})), Err(ChatError::Template(_))));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(ChatTemplate::from_dir(dir.path()), Err(ChatError::Read { .. })));
}
