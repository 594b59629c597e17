//! The comparison: one row per method, means over its seeds.

use serde::Serialize;

use super::gated::RoundKind;
use super::life::Life;
use super::method::place;

/// One method. Field names are the `--json` contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub method: String,
    pub seeds: usize,
    /// Mean session at which the user had been content three times in a row; a life that never got
    /// there counts as its last session.
    pub sessions_mean: f64,
    /// Lives that never got there.
    pub never: usize,
    /// Share of replies to questions that were never asked before that keep the user's rule.
    pub unseen_rule_share: f64,
    /// Nats per token that the base's own neutral replies became less likely.
    pub forgotten_nats: f64,
    /// Corrections that the user had to give.
    pub corrections_mean: f64,
    /// Seconds of training.
    pub train_seconds_mean: f64,
    /// Rounds that the gate accepted, and that it saw: none without a gate.
    pub honest: Seen,
    /// Of a user who had been content before.
    pub content: Seen,
    /// Trained on the opposite.
    pub sabotaged: Seen,
    /// Each life's sessions, by seed: `x` corrected, `o` content.
    pub curves: Vec<String>,
}

/// Rounds of one kind before the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Seen {
    pub accepted: usize,
    pub rounds: usize,
}

/// One row per method, in the order in which methods are known.
pub fn rows(lives: &[Life]) -> Vec<Row> {
    let mut names: Vec<&str> = lives.iter().map(|life| life.method.as_str()).collect();
    names.sort_by_key(|name| (place(name), *name));
    names.dedup();
    let of = |name: &str| {
        let own: Vec<&Life> = lives.iter().filter(|life| life.method == name).collect();
        row(name, &own)
    };
    names.into_iter().map(of).collect()
}

/// The sessions of a life in order: `x` corrected, `o` content.
fn curve(life: &Life) -> String {
    life.sessions.iter().map(|content| if *content { 'o' } else { 'x' }).collect()
}

fn row(method: &str, lives: &[&Life]) -> Row {
    let mean = |figure: &dyn Fn(&Life) -> f64| {
        lives.iter().map(|life| figure(life)).sum::<f64>() / lives.len() as f64
    };
    let seen = |kind: RoundKind| {
        let all = lives.iter().flat_map(|life| &life.rounds).filter(|round| round.kind == kind);
        Seen { accepted: all.clone().filter(|round| round.passed).count(), rounds: all.count() }
    };
    Row {
        method: method.to_owned(),
        seeds: lives.len(),
        sessions_mean: mean(&|life| life.content_at.unwrap_or(life.sessions.len()) as f64),
        never: lives.iter().filter(|life| life.content_at.is_none()).count(),
        unseen_rule_share: mean(&|life| life.unseen_rule_share),
        forgotten_nats: mean(&|life| life.forgotten_nats),
        corrections_mean: mean(&|life| life.corrections as f64),
        train_seconds_mean: mean(&|life| life.train_seconds),
        honest: seen(RoundKind::Honest),
        content: seen(RoundKind::Content),
        sabotaged: seen(RoundKind::Sabotaged),
        curves: lives.iter().map(|life| curve(life)).collect(),
    }
}

/// The table that people read.
pub fn table(rows: &[Row]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "method",
        "seeds",
        "sessions until content",
        "never",
        "unseen questions: keeps the rule",
        "forgotten, nats/token",
        "corrections",
        "training, s",
        "accepted by the gate",
        "each life: x corrected, o content",
    ]);
    for row in rows {
        table.add_row([
            row.method.clone(),
            row.seeds.to_string(),
            format!("{:.1}", row.sessions_mean),
            row.never.to_string(),
            format!("{:.0} %", row.unseen_rule_share * 100.0),
            format!("{:.3}", row.forgotten_nats),
            format!("{:.1}", row.corrections_mean),
            format!("{:.0}", row.train_seconds_mean),
            gate(row),
            row.curves.join(" "),
        ]);
    }
    table.to_string()
}

/// What the gate did with the rounds that it saw.
fn gate(row: &Row) -> String {
    let kinds = [("", row.honest), ("when content: ", row.content), ("sabotaged: ", row.sabotaged)];
    let seen = kinds.into_iter().filter(|(_, seen)| seen.rounds > 0);
    let said: Vec<String> =
        seen.map(|(what, seen)| format!("{what}{} of {}", seen.accepted, seen.rounds)).collect();
    if said.is_empty() { "no gate".to_owned() } else { said.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_never_got_there_counts_as_its_last_session() {
        let life = |seed, content_at, sessions| Life {
            method: "opd".into(),
            seed,
            sessions: vec![false; sessions],
            content_at,
            unseen_rule_share: 0.5,
            forgotten_nats: 0.1,
            corrections: 4,
            updates: 10,
            train_seconds: 2.0,
            rounds: Vec::new(),
        };
        let rows = rows(&[life(1, Some(6), 6), life(2, None, 24)]);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].sessions_mean, rows[0].never), (15.0, 1));
        assert_eq!(rows[0].curves, ["xxxxxx", &"x".repeat(24)]);
        assert!(table(&rows).contains("opd"));
    }
}
