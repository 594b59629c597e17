//! The fields that chat and legacy completions share: sampling, length, stops, streaming.

use serde_json::{Map, Value};

use super::{Fields, Limits, wrong};
use crate::error::{ApiError, Code};
use crate::sample::Draw;

/// Most stop strings per request.
const STOPS_MAX: usize = 16;
/// Most alternatives per token.
pub const ALTERNATIVES_MAX: u64 = 20;
/// Any count that fits the engine.
pub const ANY: u64 = u32::MAX as u64;

/// The shared fields, checked.
#[derive(Debug)]
pub struct Params {
    /// The model as the client wrote it.
    pub model: Option<String>,
    /// Choices.
    pub n: usize,
    /// Reply tokens.
    pub tokens_max: usize,
    /// How tokens are drawn, log-probabilities not yet set.
    pub draw: Draw,
    /// Where replies stop.
    pub stops: Vec<String>,
    /// Whether to stream.
    pub stream: bool,
    /// Whether the stream ends with a usage chunk.
    pub include_usage: bool,
}

impl Params {
    /// Reads the shared fields.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn read(body: &Map<String, Value>, limits: &Limits) -> Result<Self, ApiError> {
        let fields = Fields(body);
        let newer = fields.count("max_completion_tokens", 1, ANY)?;
        let older = fields.count("max_tokens", 1, ANY)?;
        let default = match limits.tokens_default_max {
            0 => usize::MAX,
            most => most,
        };
        Ok(Self {
            model: fields.text("model")?.map(str::to_owned),
            n: fields.count("n", 1, limits.choices_max as u64)?.unwrap_or(1),
            tokens_max: newer.or(older).unwrap_or(default),
            draw: draw(&fields)?,
            stops: stops(&fields)?,
            stream: fields.flag("stream")?,
            include_usage: include_usage(&fields)?,
        })
    }
}

fn draw(fields: &Fields) -> Result<Draw, ApiError> {
    let default = Draw::default();
    let number = |name, least, most, otherwise: f32| {
        Ok::<_, ApiError>(fields.number(name, least, most)?.unwrap_or(otherwise))
    };
    Ok(Draw {
        temperature: number("temperature", 0.0, 2.0, default.temperature)?,
        top_p: number("top_p", 0.0, 1.0, default.top_p)?.max(1e-6),
        top_k: fields.count("top_k", 0, ANY)?.unwrap_or(default.top_k),
        min_p: number("min_p", 0.0, 1.0, default.min_p)?,
        presence_penalty: number("presence_penalty", -2.0, 2.0, default.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", -2.0, 2.0, default.frequency_penalty)?,
        repetition_penalty: number("repetition_penalty", 0.01, 10.0, default.repetition_penalty)?,
        bias: bias(fields)?,
        seed: seed(fields)?,
        alternatives: None,
    })
}

fn seed(fields: &Fields) -> Result<u64, ApiError> {
    match fields.get("seed") {
        None => Ok(rand::random()),
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_i64().map(i64::cast_unsigned))
            .ok_or_else(|| wrong("seed", "an integer", value)),
    }
}

fn bias(fields: &Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(value) = fields.get("logit_bias") else { return Ok(Vec::new()) };
    let form = "an object of token ids and numbers from -100 to 100";
    let map = value.as_object().ok_or_else(|| wrong("logit_bias", form, value))?;
    map.iter()
        .map(|(id, bias)| {
            let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            match (id.parse(), bias) {
                (Ok(id), Some(bias)) => Ok((id, bias as f32)),
                _ => Err(ApiError::value("logit_bias", format!("`logit_bias` must be {form}."))),
            }
        })
        .collect()
}

fn stops(fields: &Fields) -> Result<Vec<String>, ApiError> {
    let form = "a string or an array of strings";
    let stops = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .map(|stop| stop.as_str().map(str::to_owned).ok_or_else(|| wrong("stop", form, stop)))
            .collect::<Result<_, _>>()?,
        Some(value) => return Err(wrong("stop", form, value)),
    };
    if stops.len() > STOPS_MAX {
        return Err(ApiError::value("stop", format!("`stop` may have {STOPS_MAX} strings.")));
    }
    Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
}

fn include_usage(fields: &Fields) -> Result<bool, ApiError> {
    match fields.get("stream_options") {
        None => Ok(false),
        Some(Value::Object(options)) => Fields(options).flag("include_usage"),
        Some(value) => Err(wrong("stream_options", "an object", value)),
    }
}

/// Refuses fields that would change the reply and are not served.
///
/// # Errors
/// [`Code::Unsupported`] for the first one that is set to anything but null or false.
pub fn refuse(body: &Map<String, Value>, names: &[&str]) -> Result<(), ApiError> {
    let set = |name: &&&str| {
        body.get(**name).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
    };
    match names.iter().find(set) {
        None => Ok(()),
        Some(name) => {
            let message = format!("`{name}` is not served by this engine; leave it out.");
            Err(ApiError::of(Code::Unsupported, *name, message))
        }
    }
}
