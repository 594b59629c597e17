//! `POST /v1/completions`: the legacy API, plain prompts.

use serde_json::{Map, Value};

use super::params::{ALTERNATIVES_MAX, Params, refuse};
use super::{Fields, Job, Limits, Prompt, wrong};
use crate::error::ApiError;

/// Reads a legacy completion request.
///
/// # Errors
/// The first field that is missing, wrong or not served.
pub fn parse(body: &Map<String, Value>, limits: &Limits) -> Result<Job, ApiError> {
    let mut params = Params::read(body, limits)?;
    refuse(body, &["echo", "suffix"])?;
    let fields = Fields(body);
    if fields.count("best_of", 1, 1024)?.is_some_and(|best| best != params.n) {
        return Err(ApiError::value("best_of", "`best_of` must equal `n`; leave it out."));
    }
    // OpenAI's default here is 16, not "until the model stops".
    let limited = fields.get("max_tokens").or(fields.get("max_completion_tokens")).is_some();
    params.draw.alternatives = fields.count("logprobs", 0, ALTERNATIVES_MAX)?;
    let prompts = prompts(&fields)?;
    let choices = prompts.len() * params.n;
    if choices > limits.choices_max {
        let most = limits.choices_max;
        let message = format!("{choices} replies were asked for, at most {most} are served.");
        return Err(ApiError::value("prompt", message));
    }
    Ok(Job {
        model: params.model,
        adapter: body.get("adapter").cloned().unwrap_or_default(),
        prompts,
        n: params.n,
        tokens_max: if limited { params.tokens_max } else { 16 },
        draw: params.draw,
        stops: params.stops,
        tools: Vec::new(),
        callable: Vec::new(),
        schema: None,
        stream: params.stream,
        include_usage: params.include_usage,
    })
}

fn prompts(fields: &Fields) -> Result<Vec<Prompt>, ApiError> {
    let form = "a string, an array of strings, or an array of token ids";
    let prompts: Vec<Prompt> = match fields.get("prompt") {
        None => return Err(ApiError::value("prompt", "`prompt` is missing.")),
        Some(Value::String(text)) => vec![Prompt::Text(text.clone())],
        Some(value @ Value::Array(list)) if list.first().is_some_and(Value::is_number) => {
            vec![Prompt::Tokens(tokens(value, form)?)]
        }
        Some(Value::Array(list)) => list
            .iter()
            .map(|prompt| match prompt {
                Value::String(text) => Ok(Prompt::Text(text.clone())),
                Value::Array(_) => Ok(Prompt::Tokens(tokens(prompt, form)?)),
                other => Err(wrong("prompt", form, other)),
            })
            .collect::<Result<_, _>>()?,
        Some(value) => return Err(wrong("prompt", form, value)),
    };
    let empty = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Tokens(ids) => ids.is_empty(),
        Prompt::Chat(_) => false,
    };
    if prompts.is_empty() || prompts.iter().any(empty) {
        return Err(ApiError::value("prompt", "`prompt` must not be empty."));
    }
    Ok(prompts)
}

fn tokens(value: &Value, form: &str) -> Result<Vec<u32>, ApiError> {
    let list = value.as_array().ok_or_else(|| wrong("prompt", form, value))?;
    list.iter()
        .map(|id| {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| ApiError::value("prompt", format!("`prompt` must be {form}.")))
        })
        .collect()
}
