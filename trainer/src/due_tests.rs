//! When a round begins, and what never begins one.

use super::*;
use crate::testing::lab::{stored_turn, verdict};
use crate::testing::{policies, route_policy};
use hone_shared::store::RoundState;
use hone_shared::turn::Generation;
use serde_json::json;

fn pool(judged_ms: &[i64]) -> Vec<(StoredTurn, VerdictRow)> {
    let one = |ms: &i64| {
        let turn = stored_turn("s", "q", "an answer", "stop");
        let mut verdict = verdict(&turn, -1, &["Answer in one sentence."]);
        verdict.judged_ms = *ms;
        (turn, verdict)
    };
    judged_ms.iter().map(one).collect()
}

fn last(seen: &[(StoredTurn, VerdictRow)]) -> RoundRow {
    let ids: Vec<TurnId> = seen.iter().map(|(turn, _)| turn.turn_id).collect();
    RoundRow {
        round_id: "r".into(),
        route: "chat".into(),
        state: RoundState::Refused,
        started_ms: 0,
        finished_ms: Some(1),
        incumbent: Generation::base(),
        candidate: None,
        reason: String::new(),
        metrics: json!({"seen": ids}),
    }
}

const HOUR: i64 = 3_600_000;

#[test]
fn enough_new_turns_begin_a_round_at_once() {
    assert!(!is_due(&route_policy(), &pool(&[0; 5]), None, 1, 0));
    assert!(is_due(&route_policy(), &pool(&[0; 6]), None, 1, 0));
}

#[test]
fn issue_4_a_few_turns_begin_a_round_once_the_oldest_has_waited_long_enough() {
    let few = pool(&[100, 5_000, 6_000, 7_000]);
    assert!(!is_due(&route_policy(), &few, None, HOUR, 0));
    assert!(is_due(&route_policy(), &few, None, HOUR + 100, 0));
}

#[test]
fn three_turns_wait_because_nothing_could_be_held_out() {
    assert!(!is_due(&route_policy(), &pool(&[0; 3]), None, 10 * HOUR, 0));
}

#[test]
fn turns_that_the_last_round_looked_at_begin_no_round_by_themselves() {
    let mut all = pool(&[0; 8]);
    let before = last(&all);
    assert!(!is_due(&route_policy(), &all, Some(&before), 10 * HOUR, 0));
    all.extend(pool(&[9 * HOUR]));
    assert!(!is_due(&route_policy(), &all, Some(&before), 9 * HOUR + 1, 0));
    assert!(is_due(&route_policy(), &all, Some(&before), 10 * HOUR, 0), "one new turn, old enough");
}

#[test]
fn issue_5_turns_of_a_round_that_was_abandoned_through_no_fault_of_theirs_begin_another() {
    let route = route_policy();
    let all = pool(&[0; 8]);
    let abandoned = |spent: bool| {
        let metrics = json!({"seen": last(&all).metrics["seen"], TURNS_SPENT: spent});
        RoundRow { state: RoundState::Abandoned, metrics, ..last(&all) }
    };
    let begins = |last: &RoundRow| {
        let due = is_due(&route, &all, Some(last), 10 * HOUR, 0);
        assert_eq!(due, corrects_enough(&route, &all, &[true; 8], Some(last)));
        due
    };
    assert!(begins(&abandoned(false)));
    assert!(!begins(&abandoned(true)), "too little to learn from stays too little");
    assert!(!begins(&last(&all)), "a refused round has learned from them");
    let mut again = abandoned(false);
    for (before, tries) in [(TRIES_MAX - 2, true), (TRIES_MAX - 1, false)] {
        again.metrics[ABANDONED_BEFORE] = json!(before);
        assert_eq!(begins(&again), tries, "after {} in a row", before + 1);
    }
}

#[test]
fn a_route_that_does_not_learn_gets_no_round() {
    let observing = policies(&[("MODE", "observe")]);
    let route = observing.route("chat").unwrap();
    assert!(!is_due(route, &pool(&[0; 9]), None, 10 * HOUR, 0));
}

#[test]
fn issue_5_rounds_that_are_abandoned_again_and_again_rest_longer_and_longer() {
    let route = route_policy();
    let age_ms = i64::try_from(route.round.age_ms_max).unwrap();
    let fresh = pool(&[0; 8]);
    let abandoned = |before: u64| RoundRow {
        state: RoundState::Abandoned,
        finished_ms: Some(HOUR),
        metrics: json!({"seen": [], ABANDONED_BEFORE: before}),
        ..last(&[])
    };
    let waits =
        |before: u64, ms: i64| !is_due(&route, &fresh, Some(&abandoned(before)), HOUR + ms, 0);
    assert!(!waits(0, 0), "one fault does not keep anybody waiting");
    assert!(waits(1, age_ms.min(HOUR) - 1) && !waits(1, age_ms.min(HOUR)));
    assert!(waits(60, HOUR - 1) && !waits(60, HOUR), "and never over an hour");
    assert_eq!(abandoned_in_a_row(&abandoned(3)), 4);
    assert_eq!(abandoned_in_a_row(&last(&[])), 0);
}

#[test]
fn issue_5_a_few_turns_begin_a_round_as_soon_as_nobody_asks_anything() {
    let mut route = route_policy();
    route.round.idle_ms = 30_000;
    let few = pool(&[0; 4]);
    assert!(!is_due(&route, &few, None, 1, 29_999));
    assert!(is_due(&route, &few, None, 1, 30_000));
    assert!(!is_due(&route, &few, Some(&last(&few)), 1, 30_000), "nothing new");
    assert!(!is_due(&route, &pool(&[0; 3]), None, 1, 30_000), "nothing could be held out");
    route.round.idle_ms = 0;
    assert!(!is_due(&route, &few, None, 1, u64::MAX), "switched off");
}

#[test]
fn praise_begins_no_round_and_neither_do_corrections_that_are_not_new() {
    let route = route_policy();
    let mut pool = pool(&[0; 6]);
    assert!(!corrects_enough(&route, &pool, &[false; 6], None));
    assert!(!corrects_enough(&route, &pool, &[true, false, false, false, false, false], None));
    let two = [true, false, false, true, false, false];
    assert!(corrects_enough(&route, &pool, &two, None));
    let before = last(&pool[..4]);
    assert!(!corrects_enough(&route, &pool, &two, Some(&before)));
    pool.swap(3, 5);
    assert!(corrects_enough(&route, &pool, &two, Some(&before)));
    let praise = policies(&[("corrections_min = 2", "corrections_min = 0")]);
    assert!(corrects_enough(praise.route("chat").unwrap(), &pool, &[false; 6], None));
}
