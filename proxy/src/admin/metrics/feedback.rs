//! Feedback: at the door, and on its way into the store.
//!
//! Invariant: `accepted = stored + duplicates + dropped` once all is at rest.

use super::Page;
use crate::admin::Operator;

pub(super) fn render(page: &mut Page, operator: &Operator) {
    let counter = "counter";
    let help = "Parts of feedback at the door, by shape, kind and what became of them.";
    page.head("hone_feedback_total", counter, help);
    for ([shape, kind, outcome], count) in operator.feedback.counts.read() {
        let labels = [("shape", shape), ("kind", kind), ("outcome", outcome)];
        page.labelled("hone_feedback_total", &labels, count);
    }
    let help = "Pieces of feedback that were accepted.";
    page.one("hone_feedback_accepted_total", counter, help, operator.feedback.counts.accepted());
    let ingest = operator.ingest.stats().feedback;
    let help = "Pieces of feedback in the store, those that wait for their turn included.";
    page.one("hone_feedback_stored_total", counter, help, ingest.stored);
    let help = "Pieces of feedback that were stored before.";
    page.one("hone_feedback_duplicates_total", counter, help, ingest.duplicates);
    let help = "Accepted pieces of feedback that were not stored, by reason.";
    page.head("hone_feedback_dropped_total", counter, help);
    for (reason, count) in &ingest.dropped {
        page.labelled("hone_feedback_dropped_total", &[("reason", reason)], *count);
    }
    let help = "Pieces of feedback whose turn did not come in time.";
    page.one("hone_feedback_given_up_total", counter, help, ingest.given_up);
}
