//! Chat templates: the text that a model sees for a list of messages.
//!
//! The trainer must see, token for token, what the engine saw when it answered, so this renders as
//! mistral.rs does: minijinja with Python's string methods, the same variables (`enable_thinking`
//! true), the same choice among named templates. Where that differs from transformers (`tojson`
//! escapes `<`, `>`, `&`, `'`), the engine wins.
//!
//! Invariant: what is rendered depends on the request alone, never on when it is rendered: a
//! template that prints a date prints that of the request.

mod asked;
mod clock;
mod shown;

use std::path::{Path, PathBuf};

pub use asked::Asked;
pub use shown::{call, normalise};

use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::{Map, Value};

/// Why a template could not be loaded or rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `tokenizer_config.json` is malformed.
    #[error("{path} is not valid: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The model has no chat template.
    #[error("{0} has no chat template (tokenizer_config.json or chat_template.jinja)")]
    NoTemplate(PathBuf),
    /// Tools were given, and none of the named templates takes tools.
    #[error("this model's chat template does not handle tools")]
    NoTools,
    /// The template is malformed, or refused these messages.
    #[error("chat template: {0}")]
    Template(String),
}

/// A compiled chat template with the special tokens that it may mention.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    has_default: bool,
    has_tool_use: bool,
    tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// Reads `tokenizer_config.json` and, where present, `chat_template.jinja` (which wins).
    ///
    /// # Errors
    /// Missing or malformed files, or no template in them.
    pub fn from_dir(dir: &Path) -> Result<ChatTemplate, ChatError> {
        let path = dir.join("tokenizer_config.json");
        let bytes = std::fs::read(&path)
            .map_err(|source| ChatError::Read { path: path.clone(), source })?;
        let malformed = |reason: String| ChatError::Malformed { path: path.clone(), reason };
        let mut config: Value =
            serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
        let separate = dir.join("chat_template.jinja");
        if separate.exists() {
            let text = std::fs::read_to_string(&separate)
                .map_err(|source| ChatError::Read { path: separate, source })?;
            config["chat_template"] = text.into();
        }
        let templates = named_templates(config.get("chat_template"));
        if templates.is_empty() {
            return Err(ChatError::NoTemplate(dir.to_owned()));
        }
        ChatTemplate::new(&templates, special_tokens(&config))
    }

    fn new(
        templates: &[(String, String)],
        tokens: Map<String, Value>,
    ) -> Result<ChatTemplate, ChatError> {
        let mut environment = Environment::new();
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_lstrip_blocks(true);
        environment.set_trim_blocks(true);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        let mut source = String::new();
        for (name, text) in templates {
            let text = for_minijinja(text);
            source.push_str(&text);
            environment.add_template_owned(name.clone(), text).map_err(template_error)?;
        }
        let has = |wanted: &str| templates.iter().any(|(name, _)| name == wanted);
        let (has_default, has_tool_use) = (has("default"), has("tool_use"));
        Ok(ChatTemplate { environment, source, has_default, has_tool_use, tokens })
    }

    /// The text of a request, with or without the beginning of an answer.
    ///
    /// # Errors
    /// The template refuses the messages, or cannot take tools.
    pub fn render(
        &self,
        asked: &Asked<'_>,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let tools = asked.tools.map(shown::tools).transpose()?.filter(|list| !list.is_empty());
        let name = match (tools.is_some(), self.has_default, self.has_tool_use) {
            (true, _, true) | (false, false, true) => "tool_use",
            (false, true, _) => "default",
            (true, true, false) if self.environment.templates().count() > 1 => {
                return Err(ChatError::NoTools);
            }
            _ => "default",
        };
        let template = self.environment.get_template(name).map_err(template_error)?;
        let tells_calls = self.source.contains("tool_calls");
        let messages: Vec<Value> =
            asked.messages.iter().map(|m| normalise(m, tells_calls)).collect();
        let seconds = asked.seconds();
        let strftime = move |format: String| clock::format(&format, seconds);
        let base = context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            date_string => clock::format("%d, %B, %Y", seconds),
            strftime_now => minijinja::Value::from_function(strftime),
            enable_thinking => true,
            reasoning_effort => "medium",
            ..minijinja::Value::from_serialize(&self.tokens)
        };
        let rendered = match tools {
            None => template.render(base),
            Some(tools) => template.render(context! {
                tools => tools,
                xml_tools => tools,
                builtin_tools => shown::builtin(&tools),
                ..base
            }),
        };
        rendered.map_err(template_error)
    }

    /// The text of the end-of-sequence token, if `tokenizer_config.json` names one.
    #[must_use]
    pub fn eos_token(&self) -> Option<&str> {
        self.tokens.get("eos_token").and_then(Value::as_str)
    }

    /// The template's text contains this string.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }
}

/// `chat_template` is a string, or a list of `{name, template}`.
fn named_templates(value: Option<&Value>) -> Vec<(String, String)> {
    let named = |entry: &Value| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        Some((text("name")?, text("template")?))
    };
    match value {
        Some(Value::String(text)) => vec![("default".to_owned(), text.clone())],
        Some(Value::Array(list)) => list.iter().filter_map(named).collect(),
        _ => Vec::new(),
    }
}

/// `bos_token` and the like; each is a string or an object with `content`.
fn special_tokens(config: &Value) -> Map<String, Value> {
    let mut tokens = Map::new();
    for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        let token = match config.get(name) {
            Some(Value::String(text)) => Some(text.as_str()),
            Some(other) => other.get("content").and_then(Value::as_str),
            None => None,
        };
        if let Some(token) = token {
            tokens.insert(name.to_owned(), token.into());
        }
    }
    tokens
}

/// Python idioms of published templates that minijinja does not know.
fn for_minijinja(template: &str) -> String {
    template
        .replace("[::-1]", "|reverse")
        .replace("{% generation %}", "")
        .replace("{% endgeneration %}", "")
        .replace("{%- generation %}", "")
        .replace("{%- endgeneration %}", "")
}

/// The message with the innermost cause, which is where `raise_exception` speaks.
fn template_error(error: Error) -> ChatError {
    ChatError::Template(error.to_string())
}

#[cfg(test)]
mod tests;
