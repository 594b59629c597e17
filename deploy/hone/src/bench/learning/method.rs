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
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Its name on the command line and in the results.
    pub name: &'static str,
    /// What happens to a correction.
    pub kind: Kind,
    /// Keys of `[train]` and their values as TOML.
    pub train: &'static [(&'static str, &'static str)],
}

const fn learned(name: &'static str, train: &'static [(&'static str, &'static str)]) -> Method {
    Method { name, kind: Kind::Learned, train }
}

/// All ways, in the order in which they are reported.
pub const METHODS: &[Method] = &[
    Method { name: "nothing", kind: Kind::Ignored, train: &[] },
    Method { name: "memory", kind: Kind::Remembered, train: &[] },
    learned("binary", &[("weight_opd", "0.0"), ("weight_rl", "1.0")]),
    learned("opd", &[("weight_opd", "1.0"), ("weight_rl", "0.0")]),
    learned("hybrid", &[("weight_opd", "1.0"), ("weight_rl", "0.2")]),
    learned("hybrid-1-1", &[("weight_opd", "1.0"), ("weight_rl", "1.0")]),
    learned("hybrid-top-k", &[("loss", "\"top_k\"")]),
    learned("hybrid-top-k-tail", &[("loss", "\"top_k_tail\""), ("top_k", "50")]),
    learned("hybrid-forward-kl", &[("loss", "\"forward_kl\"")]),
    learned("hybrid-reverse-kl", &[("loss", "\"reverse_kl\"")]),
];

/// The methods of these names, or all.
pub fn chosen(names: &[String]) -> anyhow::Result<Vec<Method>> {
    if names.is_empty() {
        return Ok(METHODS.to_vec());
    }
    let known = || METHODS.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
    let find = |name: &String| {
        let found = METHODS.iter().find(|method| method.name == name);
        let unknown = || UsageError(format!("no method {name:?}; there are {}", known()));
        Ok(*found.ok_or_else(unknown)?)
    };
    names.iter().map(find).collect()
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
        let own = self.train.iter().map(|(key, value)| (*key, (*value).to_owned()));
        for (key, value) in own.chain(run) {
            let parsed: toml::Table = format!("{key} = {value}").parse()?;
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
        for method in METHODS {
            let policies = method.policies(3, 2).unwrap();
            let train = &policies.route("chat").unwrap().train;
            assert_eq!((train.seed, train.threads), (3, 2), "{}", method.name);
            if method.name == "binary" {
                assert_eq!((train.weight_opd, train.weight_rl), (0.0, 1.0));
            }
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = chosen(&["opt".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("opt") && error.contains("hybrid"), "{error}");
    }
}
