//! `hone route`: what each route learns, and changing it while everything runs.
//!
//! The change goes into the data directory, so that it works with or without a running proxy; a
//! running one is told, and follows before this command ends.

use hone_shared::clock::now_ms;
use hone_shared::data_dir::DataDir;
use hone_shared::policy::{ModeOverride, OverrideError, PolicySet, PolicyWatch};
use hone_shared::toggle::{self, ToggleError, Toggled};
use hone_shared::turn::Mode;
use serde_json::json;

use crate::cli::{ModeName, RouteAction, RouteArgs, UsageError};
use crate::rollback::tell_proxy;
use crate::serve::{data_dir, runtime};

/// Runs `hone route`.
pub fn run(args: &RouteArgs) -> anyhow::Result<()> {
    let data = data_dir(&args.data)?;
    match &args.action {
        RouteAction::List { json } => list(&data, *json),
        RouteAction::Set { route, mode, duration, reason, json } => {
            let ttl_s = duration.as_deref().map(seconds).transpose()?;
            let held = ModeOverride::new(mode_of(*mode), ttl_s, reason, &who(), now_ms());
            let held = held.map_err(ToggleError::Override).map_err(usage)?;
            finish(&data, toggle::set(&data, route, held), *json)
        }
        RouteAction::Reset { route, reason, json } => {
            finish(&data, toggle::reset(&data, route, &who(), reason), *json)
        }
    }
}

fn list(data: &DataDir, json: bool) -> anyhow::Result<()> {
    let day = std::time::Duration::from_secs(86_400);
    let watch = PolicyWatch::follow(data, day).map_err(|error| UsageError(error.to_string()))?;
    let (set, problems) = (watch.current(), watch.problems());
    if json {
        let rows: Vec<_> = set.routes.iter().map(|route| row(&set, &route.name)).collect();
        let text = json!({"data": rows, "problems": problems});
        println!("{}", serde_json::to_string_pretty(&text)?);
        return Ok(());
    }
    for route in &set.routes {
        let held = set.overridden.get(&route.name);
        let note = held.map_or_else(String::new, |over| {
            let by = &over.by;
            let until = by.until_ms.map_or_else(
                || "until reset".to_owned(),
                |until| format!("for {} more", time((until - now_ms()).max(0) / 1_000)),
            );
            let why = if by.reason.is_empty() { "" } else { ": " };
            format!("  (file: {}; {until}, by {}{why}{})", over.file_mode, by.who, by.reason)
        });
        println!("{:<20} {:<8}{note}", route.name, route.mode.as_str());
    }
    problems.iter().for_each(|problem| eprintln!("hone: {problem}"));
    Ok(())
}

fn row(set: &PolicySet, name: &str) -> serde_json::Value {
    let held = set.overridden.get(name);
    let mode = set.route(name).map(|route| route.mode);
    json!({"name": name, "mode": mode, "file_mode": held.map_or(mode, |over| Some(over.file_mode)),
        "override": held.map(|over| &over.by)})
}

fn finish(data: &DataDir, done: Result<Toggled, ToggleError>, json: bool) -> anyhow::Result<()> {
    let done = done.map_err(usage)?;
    let told = runtime()?.block_on(tell_proxy(data))?;
    if json {
        let mut text = serde_json::to_value(&done)?;
        text["proxy_told"] = told.into();
        println!("{}", serde_json::to_string_pretty(&text)?);
    } else {
        println!("{}: {} → {}", done.route, done.before, done.after);
    }
    if !done.audited {
        eprintln!(
            "note: the store could not be written; the audit row follows with the next change"
        );
    }
    if !told {
        eprintln!("note: no proxy was told; one that runs follows within a second");
    }
    Ok(())
}

/// What the caller can put right is a usage error.
fn usage(error: ToggleError) -> anyhow::Error {
    match &error {
        ToggleError::NoRoute { .. }
        | ToggleError::Policy(_)
        | ToggleError::Override(OverrideError::Refused(_) | OverrideError::Malformed { .. }) => {
            UsageError(error.to_string()).into()
        }
        ToggleError::Override(OverrideError::Io(_)) => error.into(),
    }
}

fn mode_of(name: ModeName) -> Mode {
    match name {
        ModeName::Off => Mode::Off,
        ModeName::Observe => Mode::Observe,
        ModeName::Shadow => Mode::Shadow,
        ModeName::Learn => Mode::Learn,
    }
}

/// `cli:<user>`, for the audit trail.
pub fn who() -> String {
    let name = |key| std::env::var(key).ok().filter(|name| !name.is_empty());
    let user = name("SUDO_USER").or_else(|| name("USER")).or_else(|| name("LOGNAME"));
    format!("cli:{}", user.unwrap_or_else(|| "unknown".to_owned()))
}

/// `90s`, `30m`, `12h`, `7d` → seconds.
fn seconds(text: &str) -> Result<u64, UsageError> {
    let wrong = || UsageError(format!("--for {text}: write a time such as 90s, 30m, 12h or 7d"));
    let unit = text.chars().last().ok_or_else(wrong)?;
    let each = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    count.checked_mul(each).filter(|seconds| *seconds > 0).ok_or_else(wrong)
}

/// Seconds in the largest unit that keeps one decimal of sense.
fn time(seconds: i64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_a_number_and_a_unit() {
        for (text, wanted) in [("90s", 90), ("30m", 1_800), ("12h", 43_200), ("7d", 604_800)] {
            assert_eq!(seconds(text).ok(), Some(wanted));
        }
        for wrong in ["", "h", "1", "-1h", "1.5h", "0s", "1w", "99999999999999999999d", "1é"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
