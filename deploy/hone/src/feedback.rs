//! `hone feedback`: says what an answer was worth, by the running proxy's admin listener.
//!
//! Invariant: nothing is said twice by mistake: the proxy's answer is the only proof that it was
//! taken, and anything else ends with an exit code that is not 0.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use hone_shared::data_dir::{DataDir, RunFile};
use serde_json::{Map, Value, json};

use crate::cli::{DataArgs, UsageError};
use crate::serve::{data_dir, runtime};

/// How long the proxy may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// `hone feedback`
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("about").required(true))]
#[command(group = clap::ArgGroup::new("said").required(true).multiple(true))]
pub struct FeedbackArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// What it is about: the `id` of a response.
    #[arg(long, value_name = "ID", group = "about")]
    pub response: Option<String>,
    /// Or a turn, as `hone turns list` shows it.
    #[arg(long, value_name = "ID", group = "about")]
    pub turn: Option<String>,
    /// Or a session: its stored name.
    #[arg(long, value_name = "ID", group = "about")]
    pub session: Option<String>,
    /// Whether it was good.
    #[arg(long, group = "said")]
    pub thumb: Option<Thumb>,
    /// How good it was, as a number on --scale.
    #[arg(
        long,
        group = "said",
        allow_hyphen_values = true,
        conflicts_with = "thumb",
        value_parser = number
    )]
    pub score: Option<f64>,
    /// The worst and the best score [default: -1,1].
    #[arg(long, value_name = "MIN,MAX", requires = "score", allow_hyphen_values = true)]
    pub scale: Option<String>,
    /// In words: what should have been different.
    #[arg(long, group = "said")]
    pub comment: Option<String>,
    /// The answer as it should have been.
    #[arg(long, value_name = "TEXT", group = "said")]
    pub demonstration: Option<String>,
    /// How the episode ended: from -1 (failed) to 1 (solved).
    #[arg(long, group = "said", allow_hyphen_values = true, value_parser = number)]
    pub outcome: Option<f64>,
    /// A name of your own for this feedback: sent twice, it is stored once.
    #[arg(long)]
    pub id: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Good or bad.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Thumb {
    /// Good.
    Up,
    /// Bad.
    Down,
}

/// Runs `hone feedback`.
pub fn run(args: &FeedbackArgs) -> anyhow::Result<()> {
    let data = data_dir(&args.data)?;
    let body = body(args)?;
    let (status, answer) = runtime()?.block_on(send(&data, &body))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    }
    let id = answer["feedback_id"].as_str();
    match (status, id) {
        (202, Some(id)) if !args.json => println!("taken: {id}"),
        (202, Some(_)) => {}
        (400..500, _) => return Err(UsageError(problem(&answer)).into()),
        _ => anyhow::bail!("the proxy did not take it (status {status}): {}", problem(&answer)),
    }
    Ok(())
}

fn problem(answer: &Value) -> String {
    let message = answer["error"]["message"].as_str().unwrap_or("it gave no reason");
    // The proxy speaks of fields; here they are flags.
    message.replace("`response_id`", "--response").replace("`turn_id`", "--turn")
}

fn body(args: &FeedbackArgs) -> Result<Value, UsageError> {
    // clap waives what an argument requires where something that excludes it was given.
    if args.scale.is_some() && args.score.is_none() {
        return Err(UsageError("--scale goes with --score".to_owned()));
    }
    let mut body = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        body.extend(value.map(|value| (name.to_owned(), value)));
    };
    put("response_id", args.response.as_ref().map(|id| json!(id)));
    put("turn_id", args.turn.as_ref().map(|id| json!(id)));
    put("session_id", args.session.as_ref().map(|id| json!(id)));
    put("thumb", args.thumb.map(|thumb| json!(if let Thumb::Up = thumb { "up" } else { "down" })));
    put("score", args.score.map(|score| json!(score)));
    put("scale", args.scale.as_deref().map(scale).transpose()?);
    put("comment", args.comment.as_ref().map(|text| json!(text)));
    put("demonstration", args.demonstration.as_ref().map(|text| json!(text)));
    put("outcome", args.outcome.map(|outcome| json!(outcome)));
    put("id", args.id.as_ref().map(|id| json!(id)));
    Ok(Value::Object(body))
}

/// A number that JSON can hold.
fn number(text: &str) -> Result<f64, String> {
    let read = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    read.ok_or_else(|| "write a number".to_owned())
}

fn scale(text: &str) -> Result<Value, UsageError> {
    let ends = text.split(',').map(number).collect::<Result<Vec<_>, _>>();
    match ends.as_deref() {
        Ok([low, high]) => Ok(json!([low, high])),
        _ => Err(UsageError(format!("--scale {text}: write two numbers such as 1,5"))),
    }
}

/// Status and body of the proxy's answer.
async fn send(data: &DataDir, body: &Value) -> anyhow::Result<(u16, Value)> {
    let address = RunFile::read(data, "proxy")?.and_then(|file| file.admin_address);
    let address = address.ok_or_else(|| {
        UsageError(
            "no proxy runs in this data directory: start one, or say where with --data".into(),
        )
    })?;
    let http = reqwest::Client::builder().no_proxy().timeout(ANSWER_LIMIT).build()?;
    let url = format!("http://{address}/v1/feedback");
    let sent = http.post(url).bearer_auth(data.admin_token()?).json(body).send().await;
    let answer = sent.map_err(reqwest::Error::without_url).context("the proxy does not answer")?;
    let status = answer.status().as_u16();
    Ok((status, answer.json().await.unwrap_or(Value::Null)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn read(line: &str) -> Result<Value, String> {
        let parsed = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        let Command::Feedback(args) = parsed.command else { return Err("another".to_owned()) };
        body(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_become_the_body_that_the_api_takes() {
        let line = "hone feedback --response r --score 4 --scale 1,5 --comment shorter --id k";
        let wanted = json!({"response_id": "r", "score": 4.0, "scale": [1.0, 5.0],
            "comment": "shorter", "id": "k"});
        assert_eq!(read(line).unwrap(), wanted);
        let wanted = json!({"session_id": "s", "outcome": -1.0});
        assert_eq!(read("hone feedback --session s --outcome -1").unwrap(), wanted);
    }

    #[test]
    fn what_it_is_about_and_what_is_said_are_both_needed_and_once() {
        for line in [
            "hone feedback --thumb up",
            "hone feedback --response r",
            "hone feedback --response r --turn t --thumb up",
            "hone feedback --response r --thumb up --score 1",
            "hone feedback --response r --thumb sideways",
            "hone feedback --response r --thumb up --scale 1,5",
            "hone feedback --response r --score 1 --scale 1",
            "hone feedback --response r --thumb up --outcome nan",
            "hone feedback --response r --score inf",
            "hone feedback --response r --score 1 --scale 1,inf",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
