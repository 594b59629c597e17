//! When a round begins: enough new judged turns, or a few that have waited long enough, or a few while
//! nobody asks anything, so that a quiet assistant learns too.
//!
//! New is what the route's last round has not looked at. Turns that it held out or dropped are not
//! new, so they never start a round by themselves; they take part in the next one. A round that was
//! abandoned through no fault of its turns has looked at none.
//!
//! Praise alone begins no round: it says nothing new. Six approved answers trained on by themselves
//! made other approved answers 1 to 1.8 nats per token less likely (`hone bench learning --methods
//! hybrid+gate` of 2026-11-23, before this rule). Approved turns wait in the pool for a correction,
//! to hold what it may not break.
//!
//! Invariant: a round begins only if it could hold out a turn, because the gate refuses without.

use crate::sample::split::SPLIT_MIN;
use hone_shared::policy::RoutePolicy;
use hone_shared::store::{RoundRow, RoundState, StoredTurn, VerdictRow};
use hone_shared::turn::TurnId;
use std::collections::HashSet;

/// Key in a round's metrics: abandoned rounds directly before it.
pub const ABANDONED_BEFORE: &str = "abandoned_before";
/// Key in the metrics of an abandoned round: its turns alone shall begin no other one, for they were too
/// few or unfit to learn from, or the trainer died of them again and again.
pub const TURNS_SPENT: &str = "turns_spent";
/// Abandoned rounds in a row after which their turns wait for a new one: trying again does not help.
const TRIES_MAX: u64 = 4;
/// Longest rest after abandoned rounds.
const REST_MS_MAX: u64 = 3_600_000;

/// How many rounds in a row, this one last, were abandoned.
pub fn abandoned_in_a_row(last: &RoundRow) -> u64 {
    match last.state {
        RoundState::Abandoned => 1 + last.metrics[ABANDONED_BEFORE].as_u64().unwrap_or(0),
        _ => 0,
    }
}

/// Whether a route still rests: a round that ends abandoned leaves its samples free, so the same
/// fault would begin and end rounds without a pause. The rest doubles with each, from `age_ms_max`.
fn rests(route: &RoutePolicy, last: &RoundRow, now_ms: i64) -> bool {
    let in_a_row = abandoned_in_a_row(last);
    let (Some(ended_ms), 2..) = (last.finished_ms, in_a_row) else { return false };
    let doubled = 1_u64 << (in_a_row - 2).min(20);
    let rest_ms = route.round.age_ms_max.saturating_mul(doubled).min(REST_MS_MAX);
    u64::try_from(now_ms - ended_ms).unwrap_or(0) < rest_ms
}

/// Whether a round of this route shall begin now, over `pool` (all its trainable turns). The youngest
/// turn of all routes ended `quiet_ms` ago.
pub fn is_due(
    route: &RoutePolicy,
    pool: &[(StoredTurn, VerdictRow)],
    last: Option<&RoundRow>,
    now_ms: i64,
    quiet_ms: u64,
) -> bool {
    if !route.mode.trains() || pool.len() < SPLIT_MIN {
        return false;
    }
    if last.is_some_and(|last| rests(route, last, now_ms)) {
        return false;
    }
    let seen: HashSet<TurnId> = last.map(seen).unwrap_or_default();
    let fresh: Vec<&VerdictRow> =
        pool.iter().filter(|(turn, _)| !seen.contains(&turn.turn_id)).map(|(_, v)| v).collect();
    if fresh.is_empty() {
        return false;
    }
    let oldest_ms = fresh.iter().map(|v| v.judged_ms).min().unwrap_or(now_ms);
    let age_ms = u64::try_from(now_ms - oldest_ms).unwrap_or(0);
    let round = &route.round;
    let is_idle = round.idle_ms > 0 && quiet_ms >= round.idle_ms;
    fresh.len() >= round.samples_min || age_ms >= round.age_ms_max || is_idle
}

/// Whether a round over `pool` would have enough to correct, and something of it new. `corrections`
/// says of each turn whether it asks for another answer.
pub fn corrects_enough(
    route: &RoutePolicy,
    pool: &[(StoredTurn, VerdictRow)],
    corrections: &[bool],
    last: Option<&RoundRow>,
) -> bool {
    let seen: HashSet<TurnId> = last.map(seen).unwrap_or_default();
    let asking = || pool.iter().zip(corrections).filter(|(_, asks)| **asks).map(|((t, _), _)| t);
    let is_new = asking().any(|turn| !seen.contains(&turn.turn_id));
    let needed = route.round.corrections_min;
    needed == 0 || asking().count() >= needed && is_new
}

/// What the route's last round has looked at.
fn seen(last: &RoundRow) -> HashSet<TurnId> {
    let spent = last.metrics[TURNS_SPENT] == true || abandoned_in_a_row(last) >= TRIES_MAX;
    if last.state == RoundState::Abandoned && !spent {
        return HashSet::new();
    }
    let list = last.metrics["seen"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|id| id.as_str()?.parse().ok()).collect()
}

#[cfg(test)]
#[path = "due_tests.rs"]
mod tests;
