//! What an erasure will do and what it did, for people and programs.
//!
//! Invariant: ids and numbers only; never the subject, never text.

use serde::Serialize;
use serde_json::json;

use crate::feedback::FeedbackId;
use crate::registry::AliasMove;
use crate::store::Erased;
use crate::turn::{Generation, TurnId};

/// What would be done now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// `session`, `tenant`, `turn` or `text`.
    pub kind: String,
    /// Turns whose content goes.
    pub turns: Vec<TurnId>,
    /// Turns that stay and lose their verdict, because it was made from one that goes.
    pub hinted: Vec<TurnId>,
    /// Feedback that goes: what was said about those turns, by the tenant, or in the text.
    pub feedback: Vec<FeedbackId>,
    /// Rounds that used any of them: their files go, and those that still run are ended.
    pub rounds: Vec<String>,
    /// Generations that learned from them, or on top of one that did.
    pub tainted: Vec<Generation>,
    /// Aliases that leave such a generation.
    pub aliases: Vec<AliasMove>,
    /// Turns in the spool that are not stored; their subjects are not known yet.
    pub not_stored: u64,
    /// Turns that have not ended; they are stored when they do, and can be forgotten then.
    pub in_flight: u64,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// As it was planned.
    #[serde(flatten)]
    pub plan: Plan,
    /// What went from the store.
    pub erased: Erased,
    /// Generations that are tainted from now on.
    #[serde(rename = "newly_tainted")]
    pub tainted: Vec<Generation>,
    /// Aliases that were moved.
    pub moved: Vec<AliasMove>,
    /// Generations whose directories were removed.
    pub removed: Vec<Generation>,
    /// Records that were overwritten in the spool.
    pub spool_records: u64,
    /// Damaged segments that were deleted from quarantine.
    pub quarantined_segments: u64,
}

impl Report {
    /// The numbers, for the audit trail.
    pub fn counts(&self) -> String {
        json!({
            "turns": self.plan.turns.len(),
            "hinted": self.plan.hinted.len(),
            "feedback": self.plan.feedback.len(),
            "rounds": self.plan.rounds.len(),
            "tainted": self.tainted.len(),
            "aliases_moved": self.moved.len(),
            "generations_removed": self.removed.len(),
            "erased": self.erased,
            "spool_records": self.spool_records,
        })
        .to_string()
    }
}

/// Whether none of these plans or reports, as JSON, found anything: a name may be mistyped, and that
/// must not pass for an erasure.
pub fn nothing_matched(results: &[serde_json::Value]) -> bool {
    let found = |result: &serde_json::Value, key: &str| {
        result[key].as_array().is_some_and(|ids| !ids.is_empty())
    };
    !results.iter().any(|r| ["turns", "hinted", "feedback"].iter().any(|key| found(r, key)))
}

/// A plan or a report, as JSON, in words.
pub fn describe(result: &serde_json::Value) -> String {
    let count = |key: &str| result[key].as_array().map_or(0, Vec::len);
    let number = |key: &str| result[key].as_u64().unwrap_or(0);
    let done = result.get("erased").is_some();
    let mut text = format!(
        "{} of this {}: {} turns, {} verdicts from them, {} pieces of feedback, {} rounds\n",
        if done { "forgotten" } else { "would forget" },
        result["kind"].as_str().unwrap_or_default(),
        count("turns"),
        count("hinted"),
        count("feedback"),
        count("rounds"),
    );
    let tainted = if done { "newly_tainted" } else { "tainted" };
    for generation in result[tainted].as_array().into_iter().flatten() {
        text += &format!("tainted: {}\n", generation.as_str().unwrap_or_default());
    }
    let moves = if done { "moved" } else { "aliases" };
    for step in result[moves].as_array().into_iter().flatten() {
        let part = |key: &str| step[key].as_str().unwrap_or_default().to_owned();
        text += &format!("alias {}: {} → {}\n", part("alias"), part("from"), part("to"));
    }
    if number("in_flight") + number("not_stored") > 0 {
        text += &format!(
            "note: {} turns are in flight and {} not stored yet: run this again when they are\n",
            number("in_flight"),
            number("not_stored"),
        );
    }
    text
}
