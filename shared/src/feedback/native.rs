//! hone's own shape: one target, and at least one of thumb, score, comment, demonstration, outcome.
//!
//! Invariant: every field that is given is understood or refused; none is ignored.

use serde_json::Value;

use super::fields::{Fields, must_be, scaled};
use super::{COMMENT_CHARS_MAX, FeedbackError, Given, Part, Shape, Target, demonstration, wrong};

const FIELDS: &str = "response_id, turn_id, session_id, thumb, score, scale, comment, \
                      demonstration, outcome and id";

pub(super) fn read(mut fields: Fields) -> Result<Given, FeedbackError> {
    let target = target(&mut fields)?;
    let mut parts = Vec::new();
    parts.extend(thumb(&mut fields)?);
    parts.extend(score(&mut fields)?);
    parts.extend(fields.text("comment", COMMENT_CHARS_MAX)?.map(Part::Comment));
    if let Some(given) = fields.take("demonstration") {
        parts.push(Part::Demonstration(demonstration::read("demonstration", given)?));
    }
    parts.extend(outcome(&mut fields)?);
    let key = fields.id("id")?;
    fields.finish(FIELDS)?;
    of_session(&target, &mut parts)?;
    if parts.is_empty() {
        let message = "Say at least one of `thumb`, `score`, `comment`, `demonstration` and \
                       `outcome`.";
        return Err(FeedbackError { param: None, message: message.to_owned() });
    }
    Ok(Given { shape: Shape::Native, target, parts, weight: 1.0, key, dry_run: false })
}

fn target(fields: &mut Fields) -> Result<Target, FeedbackError> {
    let response = fields.id("response_id")?;
    let turn = fields.id("turn_id")?;
    let session = fields.id("session_id")?;
    match (response, turn, session) {
        (Some(id), None, None) => Ok(Target::Response(id)),
        (None, Some(id), None) => id.parse().map(Target::Turn).map_err(|_| {
            let message = "`turn_id` is not a turn's id (a UUID); the `id` of a response goes \
                           into `response_id`.";
            wrong("turn_id", message)
        }),
        (None, None, Some(id)) => Ok(Target::Session(id)),
        (None, None, None) => {
            let message = "Say what this is about: `response_id` (the `id` of the response), \
                           `turn_id` or `session_id`.";
            Err(wrong("response_id", message))
        }
        _ => {
            let message = "Give only one of `response_id`, `turn_id` and `session_id`.";
            Err(wrong("response_id", message))
        }
    }
}

fn thumb(fields: &mut Fields) -> Result<Option<Part>, FeedbackError> {
    let Some(given) = fields.take("thumb") else { return Ok(None) };
    match given.as_str() {
        Some("up") => Ok(Some(Part::Thumb(1.0))),
        Some("down") => Ok(Some(Part::Thumb(-1.0))),
        Some(_) => Err(wrong("thumb", "`thumb` must be \"up\" or \"down\".")),
        None => Err(must_be("thumb", "\"up\" or \"down\"", &given)),
    }
}

fn score(fields: &mut Fields) -> Result<Option<Part>, FeedbackError> {
    let number = fields.number("score")?;
    let scale = scale(fields)?;
    match (number, scale) {
        (Some(number), scale) => {
            Ok(Some(Part::Score(scaled("score", number, scale.unwrap_or([-1.0, 1.0]))?)))
        }
        (None, Some(_)) => Err(wrong("scale", "`scale` goes with `score`, which is missing.")),
        (None, None) => Ok(None),
    }
}

fn scale(fields: &mut Fields) -> Result<Option<[f64; 2]>, FeedbackError> {
    let Some(given) = fields.take("scale") else { return Ok(None) };
    let ends: Option<Vec<f64>> =
        given.as_array().and_then(|ends| ends.iter().map(Value::as_f64).collect());
    match ends.as_deref() {
        Some([low, high]) if low < high => Ok(Some([*low, *high])),
        _ => Err(wrong("scale", "`scale` must be [min, max], two numbers, the smaller one first.")),
    }
}

fn outcome(fields: &mut Fields) -> Result<Option<Part>, FeedbackError> {
    let Some(given) = fields.take("outcome") else { return Ok(None) };
    let value = match &given {
        Value::Bool(true) => 1.0,
        Value::Bool(false) => -1.0,
        Value::Number(number) => {
            scaled("outcome", number.as_f64().unwrap_or(f64::NAN), [-1.0, 1.0])?
        }
        other => return Err(must_be("outcome", "true, false or a number from -1 to 1", other)),
    };
    Ok(Some(Part::Outcome(value)))
}

/// A thumb or score of a session says how the episode ended; an answer of it there is none.
pub(super) fn of_session(target: &Target, parts: &mut [Part]) -> Result<(), FeedbackError> {
    let numbers = parts.iter().filter(|part| part.value().is_some()).count();
    let graded = parts.iter().filter(|p| matches!(p, Part::Thumb(_) | Part::Score(_))).count();
    if graded > 1 {
        return Err(wrong("score", "Give `thumb` or `score`, not both."));
    }
    if !matches!(target, Target::Session(_)) {
        return Ok(());
    }
    if numbers > 1 {
        let message = "Of a session there is one number: `outcome`, `thumb` or `score`.";
        return Err(wrong("outcome", message));
    }
    for part in parts {
        match part {
            Part::Demonstration(_) => {
                let message = "A demonstration is of one answer: give its `response_id`.";
                return Err(wrong("demonstration", message));
            }
            Part::Thumb(value) | Part::Score(value) => *part = Part::Outcome(*value),
            _ => {}
        }
    }
    Ok(())
}
