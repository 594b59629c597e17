//! One mistake, one message: what is wrong in a judge that others extend is said once, at its place.
//!
//! Why: a judge is checked together with what it extends, so that each of those above would report
//! the mistake again, without a line.
//! Invariant: a mistake that was found in a judge itself is never left out, and of several messages
//! about one mistake the one with the file that holds it stays.

use std::collections::{BTreeMap, BTreeSet};

use super::{PolicyError, split_path};

/// Judges above each other that are followed; a circle ends here.
const BASES_MAX: usize = 8;

/// The problems that were found, each with the file that was being checked, without those that a
/// file has from a broken judge below it. `judges`: texts by name.
pub(super) fn each_once(
    found: Vec<(&str, PolicyError)>,
    judges: &BTreeMap<&str, &str>,
) -> Vec<PolicyError> {
    let below: BTreeMap<&str, Vec<String>> =
        judges.keys().map(|name| (*name, bases(name, judges))).collect();
    let broken: BTreeSet<&str> = found.iter().filter_map(|(path, _)| judge_of(path)).collect();
    let mut kept: Vec<PolicyError> = Vec::new();
    for (path, error) in found {
        let bases = judge_of(path).and_then(|name| Some((name, below.get(name)?)));
        let inherited = bases.is_some_and(|(name, bases)| {
            let in_circle = |base: &String| {
                below.get(base.as_str()).is_some_and(|under| under.iter().any(|one| one == name))
            };
            bases.iter().any(|base| broken.contains(base.as_str()) && !in_circle(base))
        });
        if (!inherited || is_own(path, &error)) && !kept.contains(&error) {
            kept.push(error);
        }
    }
    kept
}

/// Whether the mistake stands in the file itself.
fn is_own(path: &str, error: &PolicyError) -> bool {
    match error {
        PolicyError::Syntax { file, .. } => file == path,
        PolicyError::Invalid { file, line, key, .. } => {
            file == path && line.is_some() && key != "extends"
        }
        _ => true,
    }
}

fn judge_of(path: &str) -> Option<&str> {
    split_path(path).ok().filter(|(section, _)| *section == "judges").map(|(_, name)| name)
}

/// The judges that one rests upon, nearest first.
fn bases(name: &str, judges: &BTreeMap<&str, &str>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut at = name.to_owned();
    while found.len() < BASES_MAX
        && let Some(text) = judges.get(at.as_str())
        && let Ok(table) = text.parse::<toml::Table>()
        && let Some(base) = table.get("extends").and_then(toml::Value::as_str)
    {
        found.push(base.to_owned());
        at = base.to_owned();
    }
    found
}
