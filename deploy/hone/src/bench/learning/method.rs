//! The ways of learning that are compared. A way of learning is a difference from the built-in
//! chat route's `[train]` table, so that what wins here can be written into a policy as it stands.

use anyhow::Context;
use hone_shared::policy::{PolicySet, install_builtin};

use crate::cli::UsageError;

/// What happens to a correction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Ignored,
    /// It is put into the prompt of every later session.
    Remembered,
    /// It is trained on.
    Learned,
}

/// One way of learning.
#[derive(Debug, Clone)]
pub struct Method {
    /// Its name on the command line and in the results.
    pub name: String,
    /// What happens to a correction.
    pub kind: Kind,
    /// Keys of `[train]` and their values as TOML.
    pub train: Vec<(String, String)>,
    /// Whether rounds are as a deployment's: some samples held out, and the gate decides.
    pub gated: bool,
    /// Whether rounds after the first accepted one are trained on the opposite of what the user
    /// wants, so that the gate has something to refuse.
    pub sabotaged: bool,
    /// Whether the user stays when content.
    pub stays: bool,
}

/// The part of a method's name that puts its rounds before the gate.
const GATE: &str = "gate";
/// The part of a method's name that turns its signal round.
const SABOTAGE: &str = "sabotage";
/// The part of a method's name that lets the user go on after being content.
const STAY: &str = "stay";

type Known = (&'static str, Kind, &'static [(&'static str, &'static str)]);

/// All ways, in the order in which they are reported.
const KNOWN: &[Known] = &[
    ("nothing", Kind::Ignored, &[]),
    ("memory", Kind::Remembered, &[]),
    ("binary", Kind::Learned, &[("weight_opd", "0.0"), ("weight_rl", "1.0")]),
    ("opd", Kind::Learned, &[("weight_rl", "0.0")]),
    ("opd-top-k", Kind::Learned, &[("weight_rl", "0.0"), ("loss", "\"top_k\"")]),
    (
        "opd-top-k-tail",
        Kind::Learned,
        &[("weight_rl", "0.0"), ("loss", "\"top_k_tail\""), ("top_k", "50")],
    ),
    ("opd-forward-kl", Kind::Learned, &[("weight_rl", "0.0"), ("loss", "\"forward_kl\"")]),
    ("opd-reverse-kl", Kind::Learned, &[("weight_rl", "0.0"), ("loss", "\"reverse_kl\"")]),
    ("hybrid-1-1", Kind::Learned, &[("weight_rl", "1.0"), ("weight_rl_hinted", "1.0")]),
    ("hybrid", Kind::Learned, &[("weight_rl", "0.2"), ("weight_rl_hinted", "1.0")]),
    // A hint takes the place of its own -1; approvals and bare rewards still count.
    ("dispatch", Kind::Learned, &[("weight_rl", "0.2"), ("weight_rl_hinted", "0.0")]),
];

/// The place of a method among [`KNOWN`], for reports; variants stand behind what they vary.
pub fn place(name: &str) -> usize {
    let base = name.split('+').next().unwrap_or_default();
    KNOWN.iter().position(|(known, ..)| *known == base).unwrap_or(KNOWN.len())
}

/// The methods of these names, or all. `name+key=value+…` is a method with other `[train]` values,
/// `name+gate` one whose rounds pass the gate, `name+gate+stay` one whose user goes on when content,
/// `name+sabotage` one whose later rounds shall not pass.
pub fn chosen(names: &[String]) -> anyhow::Result<Vec<Method>> {
    if names.is_empty() {
        return KNOWN.iter().map(|(name, ..)| parse(name)).collect();
    }
    names.iter().map(|name| parse(name)).collect()
}

fn parse(name: &str) -> anyhow::Result<Method> {
    let mut parts = name.split('+');
    let base = parts.next().unwrap_or_default();
    let names = || KNOWN.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
    let (_, kind, own) = KNOWN
        .iter()
        .find(|(known, ..)| *known == base)
        .ok_or_else(|| UsageError(format!("no method {base:?}; there are {}", names())))?;
    let mut train: Vec<(String, String)> =
        own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let (mut gated, mut sabotaged, mut stays) = (false, false, false);
    for part in parts {
        if [GATE, SABOTAGE, STAY].contains(&part) {
            gated |= part != STAY;
            sabotaged |= part == SABOTAGE;
            stays |= part != GATE;
            continue;
        }
        let (key, value) = part.split_once('=').ok_or_else(|| {
            UsageError(format!(
                "method {name:?}: {part:?} is none of KEY=VALUE of [train], {GATE:?}, \
                 {STAY:?}, {SABOTAGE:?}"
            ))
        })?;
        train.push((key.to_owned(), value.to_owned()));
    }
    Ok(Method { name: name.to_owned(), kind: *kind, train, gated, sabotaged, stays })
}

impl Method {
    /// The built-in policies with this method's `[train]` table in the chat route.
    pub fn policies(&self, seed: u64, threads: usize) -> anyhow::Result<PolicySet> {
        let dir = tempfile::tempdir().context("no temporary directory")?;
        install_builtin(dir.path())?;
        let path = dir.path().join("routes/chat.toml");
        let mut route: toml::Table = std::fs::read_to_string(&path)?.parse()?;
        let train = route.entry("train").or_insert_with(|| toml::Table::new().into());
        let train = train.as_table_mut().context("[train] is not a table")?;
        let run = [("seed", seed.to_string()), ("threads", threads.to_string())];
        let run = run.map(|(key, value)| (key.to_owned(), value));
        for (key, value) in self.train.iter().cloned().chain(run) {
            let wrong = || UsageError(format!("method {}: {key} = {value}: not TOML", self.name));
            let parsed: toml::Table =
                format!("{key} = {value}").parse().map_err(|_: toml::de::Error| wrong())?;
            train.extend(parsed);
        }
        std::fs::write(&path, toml::to_string(&route)?)?;
        PolicySet::load(dir.path()).with_context(|| format!("method {}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_a_valid_policy_and_says_what_it_changes() {
        for method in chosen(&[]).unwrap() {
            let policies = method.policies(3, 2).unwrap();
            let train = &policies.route("chat").unwrap().train;
            assert_eq!((train.seed, train.threads), (3, 2), "{}", method.name);
            if method.name == "binary" {
                assert_eq!((train.weight_opd, train.weight_rl), (0.0, 1.0));
            }
        }
    }

    #[test]
    fn a_variant_changes_the_keys_that_it_names_and_stands_behind_its_method() {
        let name = "opd+updates=5+learning_rate=5e-4".to_owned();
        let method = chosen(std::slice::from_ref(&name)).unwrap().remove(0);
        assert!(!method.gated && chosen(&["opd+gate".to_owned()]).unwrap()[0].gated);
        let train = method.policies(1, 1).unwrap().route("chat").unwrap().train.clone();
        assert_eq!((train.updates, train.learning_rate, train.weight_rl), (5, 5e-4, 0.0));
        assert_eq!(place(&name), place("opd"));
    }

    #[test]
    fn what_is_no_method_is_answered_with_what_would_be() {
        let error = |name: &str| {
            let error = chosen(&[name.to_owned()]).and_then(|m| m[0].policies(1, 1).map(drop));
            error.unwrap_err().to_string()
        };
        assert!(error("opt").contains("hybrid"), "{}", error("opt"));
        assert!(error("opd+updates").contains("KEY=VALUE"), "{}", error("opd+updates"));
        assert!(error("opd+updates=[").contains("not TOML"), "{}", error("opd+updates=["));
        assert!(!error("opd+steps=3").is_empty());
    }
}
