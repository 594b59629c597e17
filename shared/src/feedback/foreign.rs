//! The shapes of TensorZero, Langfuse and Portkey, so that their clients need another address only.
//!
//! Numbers there have no scale of their own: the operator's `[feedback.scales]` names it, else it is
//! −1…1 (Portkey's is −10…10 by its documentation). Tags and metadata are not kept.
//!
//! Invariant: a value that cannot be told good from bad is refused, never guessed at.

use serde_json::Value;

use super::fields::{Fields, checked, must_be, scaled};
use super::native::of_session;
use super::{
    COMMENT_CHARS_MAX, FeedbackError, Given, Part, Scales, Shape, Target, demonstration, wrong,
};

/// Categories that say good or bad by themselves.
const GOOD: [&str; 10] =
    ["up", "good", "positive", "correct", "pass", "passed", "true", "yes", "like", "success"];
const BAD: [&str; 10] =
    ["down", "bad", "negative", "incorrect", "fail", "failed", "false", "no", "dislike", "failure"];
const NEITHER: [&str; 2] = ["neutral", "mixed"];

/// `{metric_name, inference_id | episode_id, value, tags?, dryrun?}`
pub(super) fn tensorzero(mut fields: Fields, scales: &Scales) -> Result<Given, FeedbackError> {
    let metric = fields.id("metric_name")?;
    let metric = metric.ok_or_else(|| wrong("metric_name", "`metric_name` is missing."))?;
    let target = match (fields.id("inference_id")?, fields.id("episode_id")?) {
        (Some(id), None) => Target::Response(id),
        (None, Some(id)) => Target::Session(id),
        _ => {
            let message = "Give `inference_id` (the `id` of the response) or `episode_id` (the \
                           session), and only one of them.";
            return Err(wrong("inference_id", message));
        }
    };
    let dry_run = fields.boolean("dryrun")?.unwrap_or(false);
    let value = fields.take("value").ok_or_else(|| wrong("value", "`value` is missing."))?;
    let part = match (metric.as_str(), value) {
        ("comment", Value::String(text)) => {
            Part::Comment(checked("value", text, COMMENT_CHARS_MAX)?)
        }
        ("comment", other) => return Err(must_be("value", "a string, for a comment", &other)),
        ("demonstration", value) => Part::Demonstration(demonstration::of_blocks("value", value)?),
        (_, Value::Bool(good)) => Part::Thumb(if good { 1.0 } else { -1.0 }),
        (name, Value::Number(number)) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            Part::Score(on_scale("value", number, name, scales)?)
        }
        (_, other) => return Err(must_be("value", "true, false or a number", &other)),
    };
    let mut parts = vec![part];
    of_session(&target, &mut parts)?;
    Ok(Given { shape: Shape::Tensorzero, target, parts, weight: 1.0, key: None, dry_run })
}

fn on_scale(
    field: &'static str,
    number: f64,
    metric: &str,
    scales: &Scales,
) -> Result<f64, FeedbackError> {
    scaled(field, number, scales.of(metric)).map_err(|mut error| {
        error.message +=
            " The operator can set the scale of this metric: `[feedback.scales]` in proxy.toml.";
        error
    })
}

/// `{id?, name, value, dataType?, traceId | observationId | sessionId, comment?}`
pub(super) fn langfuse(mut fields: Fields, scales: &Scales) -> Result<Given, FeedbackError> {
    let name = fields.id("name")?.ok_or_else(|| wrong("name", "`name` is missing."))?;
    let (trace, observation) = (fields.id("traceId")?, fields.id("observationId")?);
    let session = fields.id("sessionId")?;
    // An observation is the nearer one, and comes with its trace.
    let target = match (observation.or(trace), session) {
        (Some(id), None) => Target::Response(id),
        (None, Some(id)) => Target::Session(id),
        _ => {
            let message = "Give `traceId` or `observationId` (the `id` of the response), or \
                           `sessionId`.";
            return Err(wrong("traceId", message));
        }
    };
    let value = fields.take("value").ok_or_else(|| wrong("value", "`value` is missing."))?;
    let kind = fields.text("dataType", 32)?;
    let kind = kind.unwrap_or_else(|| {
        let guess = if value.is_string() { "CATEGORICAL" } else { "NUMERIC" };
        guess.to_owned()
    });
    let mut parts = vec![score(&kind, &name, value, scales)?];
    if let Some(comment) = fields.text("comment", COMMENT_CHARS_MAX)? {
        if matches!(parts.as_slice(), [Part::Comment(_)]) {
            return Err(wrong("comment", "A TEXT score is the comment: give it once."));
        }
        parts.push(Part::Comment(comment));
    }
    of_session(&target, &mut parts)?;
    let key = fields.id("id")?;
    Ok(Given { shape: Shape::Langfuse, target, parts, weight: 1.0, key, dry_run: false })
}

fn score(kind: &str, name: &str, value: Value, scales: &Scales) -> Result<Part, FeedbackError> {
    match (kind, value) {
        ("NUMERIC", Value::Number(number)) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            Ok(Part::Score(on_scale("value", number, name, scales)?))
        }
        ("NUMERIC", other) => Err(must_be("value", "a number", &other)),
        ("BOOLEAN", Value::Bool(good)) => Ok(Part::Thumb(if good { 1.0 } else { -1.0 })),
        ("BOOLEAN", Value::Number(number)) if number.as_f64() == Some(1.0) => Ok(Part::Thumb(1.0)),
        ("BOOLEAN", Value::Number(number)) if number.as_f64() == Some(0.0) => Ok(Part::Thumb(-1.0)),
        ("BOOLEAN", other) => Err(must_be("value", "0 or 1, for a BOOLEAN", &other)),
        ("CATEGORICAL", Value::String(word)) => category(&word),
        ("CATEGORICAL", other) => Err(must_be("value", "a category", &other)),
        ("TEXT", Value::String(text)) => {
            Ok(Part::Comment(checked("value", text, COMMENT_CHARS_MAX)?))
        }
        ("TEXT", other) => Err(must_be("value", "a string, for a TEXT", &other)),
        _ => {
            let message = "`dataType` must be NUMERIC, CATEGORICAL, BOOLEAN or TEXT.";
            Err(wrong("dataType", message))
        }
    }
}

fn category(word: &str) -> Result<Part, FeedbackError> {
    let is_in = |words: &[&str]| words.iter().any(|known| word.trim().eq_ignore_ascii_case(known));
    if is_in(&GOOD) {
        return Ok(Part::Thumb(1.0));
    }
    if is_in(&BAD) {
        return Ok(Part::Thumb(-1.0));
    }
    if is_in(&NEITHER) {
        return Ok(Part::Score(0.0));
    }
    let (good, bad) = (GOOD.join(", "), BAD.join(", "));
    let message = format!("`value` is no category that says good ({good}) or bad ({bad}).");
    Err(wrong("value", message))
}

/// `{trace_id, value, weight?, metadata?}`
pub(super) fn portkey(mut fields: Fields) -> Result<Given, FeedbackError> {
    let trace = fields.id("trace_id")?;
    let trace = trace.ok_or_else(|| wrong("trace_id", "`trace_id` is missing."))?;
    let value = fields.number("value")?;
    let value = value.ok_or_else(|| wrong("value", "`value` is missing."))?;
    let weight = fields.number("weight")?.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&weight) {
        return Err(wrong("weight", format!("`weight` is {weight}; it is from 0 to 1.")));
    }
    let parts = vec![Part::Score(scaled("value", value, [-10.0, 10.0])?)];
    let target = Target::Response(trace);
    Ok(Given { shape: Shape::Portkey, target, parts, weight, key: None, dry_run: false })
}
