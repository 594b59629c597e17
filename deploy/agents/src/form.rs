//! The form of an answer: what may be said, as JSON schema and tools for the engine, and a lenient
//! reader of what was said.
//!
//! An answer is read in this order, and the first that fits counts:
//! 1. tool calls of the message (several are allowed, up to [`CALLS_MAX`]);
//! 2. `{"name": …, "arguments": {…}}` in the text, when tools are offered;
//! 3. a JSON object in the text that has every field;
//! 4. lines `field: value` for every field (`Action: value` for the only one);
//! 5. for a single field: the one choice that the text contains, else the text without code fence.
//!
//! Invariant: reading never fails on text of any kind; what cannot be read is a sentence that the
//! model gets back as its observation.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Most tool calls of one answer that are carried out.
pub const CALLS_MAX: usize = 8;

/// What a field may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Values {
    /// One of these.
    OneOf(Vec<String>),
    /// Any text.
    Text {
        /// Longest, characters.
        chars_max: usize,
        /// A regular expression for the whole text.
        pattern: Option<&'static str>,
        /// What a policy that draws at random draws from.
        guesses: Vec<String>,
    },
}

/// One field of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it may hold.
    pub values: Values,
}

impl Field {
    /// A choice.
    pub fn one_of(name: &'static str, choices: Vec<String>) -> Self {
        Self { name, values: Values::OneOf(choices) }
    }

    fn schema(&self) -> Value {
        match &self.values {
            Values::OneOf(choices) => json!({ "type": "string", "enum": choices }),
            Values::Text { chars_max, pattern: None, .. } => {
                json!({ "type": "string", "maxLength": chars_max })
            }
            Values::Text { pattern: Some(pattern), .. } => {
                json!({ "type": "string", "pattern": pattern })
            }
        }
    }
}

/// A tool with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// What it does, for the model.
    pub about: &'static str,
    /// Its arguments; all are needed.
    pub fields: Vec<Field>,
}

/// What may be answered now: a call of one of the tools, or the fields; either when both are given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    /// Tools that may be called.
    pub tools: Vec<Tool>,
    /// Fields of a plain answer.
    pub fields: Vec<Field>,
}

/// What was answered: a call, or a plain answer (`tool` is `None`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Action {
    /// The tool.
    pub tool: Option<String>,
    /// Its arguments, or the fields.
    pub fields: BTreeMap<String, String>,
}

impl Action {
    /// A call, or a plain answer.
    pub fn new(tool: Option<&str>, fields: &[(&str, &str)]) -> Self {
        let fields = fields.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Self { tool: tool.map(str::to_owned), fields: fields.collect() }
    }

    /// The value of a field, empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// On one line, for people.
    pub fn line(&self) -> String {
        let values: Vec<&str> = self.fields.values().map(String::as_str).collect();
        let tool = self.tool.as_deref().map_or(String::new(), |tool| format!("{tool}: "));
        format!("{tool}{}", values.join(" | ")).replace('\n', " ")
    }
}

/// One thing that an answer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Id of the tool call, when it is one.
    pub call: Option<String>,
    /// What to do; or why it cannot be read.
    pub action: Result<Action, String>,
}

impl Form {
    /// The fields that constrain an engine to this form. With `free`, tools are offered and nothing
    /// is forced.
    pub fn constrain(&self, request: &mut Map<String, Value>, free: bool) {
        if !self.tools.is_empty() {
            let tools: Vec<Value> = self.tools.iter().map(tool).collect();
            request.insert("tools".into(), tools.into());
            let choice = if free || !self.fields.is_empty() { "auto" } else { "required" };
            request.insert("tool_choice".into(), choice.into());
        } else if !self.fields.is_empty() && !free {
            request.insert("response_format".into(), format(object(&self.fields)));
        }
    }

    /// The same for exactly one answer: an engine that keeps to it has no other.
    pub fn constrain_to(&self, action: &Action, request: &mut Map<String, Value>) {
        let fix = |fields: &[Field]| -> Vec<Field> {
            let only =
                |field: &Field| Field::one_of(field.name, vec![action.get(field.name).into()]);
            fields.iter().map(only).collect()
        };
        let called = self.tools.iter().find(|tool| Some(tool.name) == action.tool.as_deref());
        match called {
            None => {
                request.insert("response_format".into(), format(object(&fix(&self.fields))));
            }
            Some(called) => {
                let only = Tool { fields: fix(&called.fields), ..called.clone() };
                request.insert("tools".into(), json!([tool(&only)]));
                let choice = json!({ "type": "function", "function": { "name": called.name } });
                request.insert("tool_choice".into(), choice);
            }
        }
    }

    /// What an assistant message asks for; at least one wish.
    pub fn read(&self, message: &Value) -> Vec<Wish> {
        let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
        if !calls.is_empty() {
            return calls.iter().enumerate().map(|(at, call)| self.read_call(at, call)).collect();
        }
        let text = message["content"].as_str().unwrap_or_default().trim();
        let action =
            self.read_text(text).ok_or_else(|| format!("malformed answer: {}", self.expected()));
        vec![Wish { call: None, action }]
    }

    fn read_call(&self, at: usize, call: &Value) -> Wish {
        let id = call["id"].as_str().unwrap_or_default().to_owned();
        let function = &call["function"];
        let name = function["name"].as_str().unwrap_or_default();
        let arguments = match &function["arguments"] {
            Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
            other => other.clone(),
        };
        let tool = self.tools.iter().find(|tool| tool.name == name);
        let action = match tool {
            _ if at >= CALLS_MAX => Err(format!("error: at most {CALLS_MAX} calls at once")),
            None => Err(format!("error: there is no tool named {name:?}")),
            Some(tool) => take(&arguments, &tool.fields)
                .map(|fields| Action { tool: Some(tool.name.into()), fields })
                .ok_or_else(|| format!("error: {name} needs {}", names(&tool.fields))),
        };
        Wish { call: Some(id), action }
    }

    fn read_text(&self, text: &str) -> Option<Action> {
        let called = |value: &Value| {
            let tool = self.tools.iter().find(|tool| value["name"] == tool.name)?;
            let fields = take(&value["arguments"], &tool.fields)?;
            Some(Action { tool: Some(tool.name.into()), fields })
        };
        if let Some(action) = objects(text).iter().find_map(called) {
            return Some(action);
        }
        let (tool, fields) = match (self.fields.as_slice(), self.tools.as_slice()) {
            ([], [only]) => (Some(only.name.to_owned()), only.fields.as_slice()),
            (fields, _) => (None, fields),
        };
        let whole = |fields| Action { tool, fields };
        objects(text)
            .iter()
            .find_map(|value| take(value, fields))
            .or_else(|| lines(text, fields))
            .or_else(|| single(text, fields))
            .map(whole)
    }

    fn expected(&self) -> String {
        let tools = self.tools.iter().map(|tool| format!("a call of {}", tool.name));
        let plain = (!self.fields.is_empty()).then(|| format!("JSON with {}", names(&self.fields)));
        let all: Vec<String> = tools.chain(plain).collect();
        format!("expected {}", all.join(", or "))
    }
}

fn names(fields: &[Field]) -> String {
    fields.iter().map(|field| field.name).collect::<Vec<_>>().join(" and ")
}

fn object(fields: &[Field]) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|field| (field.name.to_owned(), field.schema())).collect();
    let required: Vec<&str> = fields.iter().map(|field| field.name).collect();
    json!({ "type": "object", "properties": properties, "required": required,
        "additionalProperties": false })
}

fn format(schema: Value) -> Value {
    json!({ "type": "json_schema",
        "json_schema": { "name": "action", "strict": true, "schema": schema } })
}

fn tool(tool: &Tool) -> Value {
    json!({ "type": "function", "function": { "name": tool.name, "description": tool.about,
        "parameters": object(&tool.fields) } })
}

/// The fields' values in a JSON object; `None` if one is missing.
fn take(value: &Value, fields: &[Field]) -> Option<BTreeMap<String, String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let map = value.as_object().filter(|_| !fields.is_empty())?;
    fields.iter().map(|field| Some((field.name.to_owned(), text(map.get(field.name)?)?))).collect()
}

/// JSON objects in a text, from each opening brace on; few, so that hostile text costs little.
fn objects(text: &str) -> Vec<Value> {
    let starts = text.match_indices('{').take(16);
    let value = |(at, _): (usize, &str)| {
        serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>().next()?.ok()
    };
    starts.filter_map(value).collect()
}

/// Lines `name: value`.
fn lines(text: &str, fields: &[Field]) -> Option<BTreeMap<String, String>> {
    let pairs: Vec<(String, &str)> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().trim_matches(['*', '"', '`']).to_lowercase(), value))
        .collect();
    let alone = fields.len() == 1;
    let of = |field: &Field| {
        let named = |name: &str| name == field.name || (alone && name == "action");
        let value = pairs.iter().find(|(name, _)| named(name))?.1;
        Some((field.name.to_owned(), value.trim().trim_matches(['*', '`']).trim().to_owned()))
    };
    if fields.is_empty() { None } else { fields.iter().map(of).collect() }
}

/// The value of the only field, from a text that is nothing else.
fn single(text: &str, fields: &[Field]) -> Option<BTreeMap<String, String>> {
    let [field] = fields else { return None };
    let bare = bare(text);
    let contained: Vec<&String> = match &field.values {
        Values::OneOf(choices) => choices.iter().filter(|choice| bare.contains(*choice)).collect(),
        Values::Text { .. } => Vec::new(),
    };
    let value = match (contained.as_slice(), &field.values) {
        ([only], _) => (*only).clone(),
        (_, Values::OneOf(choices)) if !choices.iter().any(|choice| choice == bare) => return None,
        _ if bare.is_empty() => return None,
        _ => bare.to_owned(),
    };
    Some(BTreeMap::from([(field.name.to_owned(), value)]))
}

/// A text without a code fence around it.
fn bare(text: &str) -> &str {
    let Some((_, fenced)) = text.split_once("```") else { return text.trim() };
    let inside = fenced.split("```").next().unwrap_or_default();
    // The first line names the language.
    let code = inside.split_once('\n').map_or(inside, |(_, code)| code);
    code.trim()
}

#[cfg(test)]
#[path = "form_tests.rs"]
mod tests;
