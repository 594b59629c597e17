//! `hone forget`: remove a session, a tenant, a turn or a text, and everything that was learned
//! from it.

use std::io::Read;

use clap::Args;
use hone_shared::forget::{self, Options, Subject};
use hone_shared::turn::TurnId;
use serde_json::json;

use crate::cli::{DataArgs, UsageError};
use crate::serve::{data_dir, runtime};

/// `hone forget`
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("subject").required(true))]
pub struct ForgetArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// A session: its stored name, or the client's own where only one session has it.
    #[arg(long, value_name = "ID", group = "subject")]
    pub session: Option<String>,
    /// A tenant by its hash, as lists show it; `-` reads the API key from standard input.
    #[arg(long, value_name = "HASH", group = "subject")]
    pub tenant: Option<String>,
    /// A turn, and all that continue it: they repeat its text.
    #[arg(long, value_name = "ID", group = "subject")]
    pub turn: Option<String>,
    /// All turns that hold a text; `-` reads it from standard input.
    #[arg(long, value_name = "STRING", group = "subject")]
    pub text: Option<String>,
    /// Say what would happen, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Why, for the audit trail: a ticket, not a name.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// Keep the weights of tainted generations on disk; they are never served again.
    #[arg(long)]
    pub keep_weights: bool,
    /// Milliseconds to wait for the proxy to store what is in its spool.
    #[arg(long, default_value_t = 30_000)]
    pub wait_ms: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs `hone forget`.
pub fn run(args: &ForgetArgs) -> anyhow::Result<()> {
    let data = data_dir(&args.data)?;
    let subjects = subjects(args, &data.secret()?)?;
    let options = Options {
        actor: format!("cli:{}", std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned())),
        reason: args.reason.clone(),
        keep_weights: args.keep_weights,
        wait_ms_max: args.wait_ms,
    };
    let mut results = Vec::new();
    for subject in &subjects {
        results.push(if args.dry_run {
            json!(forget::plan(&data, subject)?)
        } else {
            json!(forget::run(&data, subject, &options)?)
        });
    }
    let moved = results.iter().any(|r| r["moved"].as_array().is_some_and(|m| !m.is_empty()));
    if moved && !runtime()?.block_on(crate::rollback::tell_proxy(&data))? {
        eprintln!("note: the proxy was not told; if it runs, it follows within a second");
    }
    for result in &results {
        if args.json {
            println!("{}", serde_json::to_string_pretty(result)?);
        } else {
            print!("{}", forget::describe_result(result));
        }
    }
    if forget::nothing_matched(&results) {
        eprintln!("nothing matched: no stored turn or feedback is of this subject");
    }
    Ok(())
}

fn subjects(args: &ForgetArgs, secret: &[u8; 32]) -> anyhow::Result<Vec<Subject>> {
    if let Some(session) = &args.session {
        return Ok(vec![Subject::Session(session.clone())]);
    }
    if let Some(turn) = &args.turn {
        return Ok(vec![Subject::Turn(turn_id(turn)?)]);
    }
    if let Some(text) = &args.text {
        let text = if text == "-" { standard_input()? } else { text.clone() };
        return Ok(forget::of_text(&text).map_err(|e| UsageError(e.to_string()))?);
    }
    let tenant = args.tenant.as_deref().unwrap_or_default();
    if tenant == "-" {
        let key = standard_input()?;
        return Ok(forget::of_key(secret, &key).map_err(|e| UsageError(e.to_string()))?);
    }
    Ok(forget::of_tenant(tenant).map_err(|e| UsageError(e.to_string()))?)
}

fn turn_id(text: &str) -> Result<TurnId, UsageError> {
    text.parse().map_err(|error| UsageError(format!("--turn {text}: {error}")))
}

fn standard_input() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_is_no_id_is_wrong_usage() {
        assert!(turn_id("xyz").is_err_and(|error| error.to_string().contains("--turn xyz")));
        let id = TurnId::now();
        assert!(turn_id(&id.to_string()).is_ok_and(|read| read == id));
    }
}
