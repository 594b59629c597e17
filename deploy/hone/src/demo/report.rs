//! What the demo prints: a table, a line per generation, and two answers before and after.

use serde::Serialize;

use super::client::{Reply, Requests};
use super::measure::Measure;

/// The demo's result; its JSON form is the contract of `hone demo --json`.
#[derive(Debug, Serialize)]
pub struct Report {
    pub base: Base,
    pub generations: Vec<Served>,
    pub after_rollback: AfterRollback,
    pub requests: Requests,
    /// Held-out answers of base and of the last generation, for the closing comparison.
    #[serde(skip)]
    pub pairs: Vec<(String, Reply, Reply)>,
}

/// The model before any learning.
#[derive(Debug, Serialize)]
pub struct Base {
    pub held_out: Measure,
    pub trained_on: Measure,
}

/// One promoted generation.
#[derive(Debug, Serialize)]
pub struct Served {
    pub generation: String,
    /// Corrections that the user had made when it was trained.
    pub corrections: usize,
    /// From the last of them to being served.
    pub seconds_to_served: f64,
    pub held_out: Measure,
    pub trained_on: Measure,
}

/// The model after the alias went back to base.
#[derive(Debug, Serialize)]
pub struct AfterRollback {
    pub held_out: Measure,
}

impl Report {
    /// The table, the request counts and the closing comparison.
    pub fn print(&self) {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header([
            "generation",
            "corrections",
            "to served",
            "questions",
            "replies",
            "tokens",
            "lists",
            "ended",
            "keeps the rule",
        ]);
        row(&mut table, ["base", "0", ""], "held out", &self.base.held_out);
        row(&mut table, ["", "", ""], "trained on", &self.base.trained_on);
        for served in &self.generations {
            let seconds = format!("{:.0} s", served.seconds_to_served);
            let short = &served.generation[..served.generation.len().min(12)];
            let lead = [short, &served.corrections.to_string(), &seconds];
            row(&mut table, lead, "held out", &served.held_out);
            row(&mut table, ["", "", ""], "trained on", &served.trained_on);
        }
        row(&mut table, ["base again", "", ""], "held out", &self.after_rollback.held_out);
        println!("\n{table}");
        println!("requests: {} sent, {} failed", self.requests.sent, self.requests.failed);
        for (question, before, after) in &self.pairs {
            print_pair(question, before, after);
        }
    }
}

fn row(table: &mut comfy_table::Table, lead: [&str; 3], questions: &str, measure: &Measure) {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    table.add_row([
        lead[0].to_string(),
        lead[1].to_string(),
        lead[2].to_string(),
        questions.to_string(),
        measure.replies.to_string(),
        format!("{:.1}", measure.tokens_mean),
        percent(measure.list_share),
        percent(measure.ended_share),
        percent(measure.rule_share),
    ]);
}

/// One question that was never trained on, with the answer before and after, side by side.
fn print_pair(question: &str, before: &Reply, after: &Reply) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_width(100);
    let cut = |reply: &Reply| if reply.ended { "" } else { " … (cut at the cap)" };
    table.set_header([
        format!("before: {} tokens", before.tokens),
        format!("after: {} tokens", after.tokens),
    ]);
    table.add_row([
        format!("{}{}", before.text.trim(), cut(before)),
        format!("{}{}", after.text.trim(), cut(after)),
    ]);
    println!("\n\"{question}\"\n{table}");
}
