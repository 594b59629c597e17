//! What the ingest has read of a spool and not yet committed.
//!
//! Invariant: it is held until it is committed; reading goes on only after that.

use std::collections::BTreeSet;
use std::time::Instant;

use hone_shared::feedback::Feedback;
use hone_shared::store::Batch;
use hone_shared::turn::{DropReason, TurnId};

/// A batch with what is needed to count it.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) batch: Batch,
    pub(super) ids: BTreeSet<TurnId>,
    pub(super) orphans: Vec<TurnId>,
    pub(super) lost: Vec<DropReason>,
    /// What was said, as it was spooled.
    pub(super) feedback: Vec<Feedback>,
    pub(super) bytes: usize,
    /// When the first of it was read.
    pub(super) since: Option<Instant>,
    /// When the oldest and the youngest of its turns ended, milliseconds since 1970.
    pub(super) ended_ms: Option<(i64, i64)>,
    /// Whether the source has nothing more to read for now.
    pub(super) dry: bool,
    /// Whether the source is over and every turn of it is settled.
    pub(super) over: bool,
}

impl Gathered {
    /// Whether there is nothing to commit. Requests alone are not: they wait in the spool.
    pub(super) fn is_empty(&self) -> bool {
        let batch = &self.batch;
        let turns = batch.turns.is_empty() && batch.gaps.is_empty() && self.lost.is_empty();
        turns && self.feedback.is_empty() && batch.feedback_lost == 0
    }
}
