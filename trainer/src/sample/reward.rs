//! What each turn of a pool is worth: its verdict, or the advantage of a step of an episode.
//!
//! A turn whose session has an outcome, or that belongs to a task, is a step: its reward is the
//! outcome and its own verdict (`train/stepwise.rs`), standardised among the steps of the same tenant,
//! task and number. Any other turn is worth its verdict, less the route's running baseline if the policy has
//! one: `b ← (1 − rate) b + rate · mean(r)` after every round (Williams 1992, REINFORCE with a
//! baseline).
//!
//! Invariant: a turn without verdict and outcome is worth nothing, with or without a baseline, and is
//! compared with no other.

use super::notes::Note;
use crate::train::stepwise::{Group, reward, standardise};
use hone_shared::store::{StoredTurn, VerdictRow};
use std::collections::BTreeMap;

/// What a turn is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Worth {
    /// This much.
    Advantage(f64),
    /// All of its group were equally good.
    Constant,
}

/// One worth per turn. `coefficient` weighs a step's verdict against the outcome.
pub fn worth(
    pool: &[(StoredTurn, VerdictRow)],
    notes: &[Note],
    coefficient: f64,
    baseline: f64,
) -> Vec<Worth> {
    let raw = |(i, note): (usize, &Note)| {
        let own = f64::from(pool[i].1.verdict);
        if note.outcome.is_none() && note.task.is_none() {
            return if own == 0.0 { None } else { Some(own - baseline) };
        }
        reward(note.outcome, own, coefficient)
    };
    let found: Vec<Option<f64>> = notes.iter().enumerate().map(raw).collect();
    let raw: Vec<f64> = found.iter().map(|reward| reward.unwrap_or(0.0)).collect();
    let mut groups: BTreeMap<(&str, &str, usize), Vec<usize>> = BTreeMap::new();
    for (i, note) in notes.iter().enumerate() {
        if let (Some(task), Some(_)) = (&note.task, found[i]) {
            groups.entry((pool[i].0.tenant.as_str(), task, note.step)).or_default().push(i);
        }
    }
    let mut out: Vec<Worth> = raw.iter().map(|r| Worth::Advantage(*r)).collect();
    for members in groups.values() {
        let rewards: Vec<f64> = members.iter().map(|i| raw[*i]).collect();
        match standardise(&rewards) {
            Group::Single(_) => {}
            Group::Constant => members.iter().for_each(|i| out[*i] = Worth::Constant),
            Group::Standardised(all) => {
                members.iter().zip(all).for_each(|(i, a)| out[*i] = Worth::Advantage(a));
            }
        }
    }
    out
}

/// Mean verdict of the turns that are worth their verdict, for the baseline.
pub fn mean_of_verdicts(pool: &[(StoredTurn, VerdictRow)], notes: &[Note]) -> Option<f64> {
    let own = pool.iter().zip(notes).filter(|(_, n)| n.outcome.is_none() && n.task.is_none());
    let rewards: Vec<f64> =
        own.map(|((_, v), _)| f64::from(v.verdict)).filter(|r| *r != 0.0).collect();
    (!rewards.is_empty()).then(|| rewards.iter().sum::<f64>() / rewards.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::lab::{stored_turn, verdict};

    fn turn(session: &str, sign: i8) -> (StoredTurn, VerdictRow) {
        let turn = stored_turn(session, "q", "some words", "stop");
        (turn.clone(), verdict(&turn, sign, &[]))
    }

    fn step(task: Option<&str>, step: usize, outcome: Option<f64>) -> Note {
        Note { task: task.map(str::to_owned), step, outcome, demonstration: None }
    }

    #[test]
    fn a_turn_of_a_chat_is_worth_its_verdict_less_the_baseline() {
        let pool = [turn("a", 1), turn("b", -1), turn("c", 0)];
        let notes = vec![Note::default(); 3];
        let found = worth(&pool, &notes, 1.0, 0.25);
        assert_eq!(found, [0.75, -1.25, 0.0].map(Worth::Advantage));
        assert_eq!(mean_of_verdicts(&pool, &notes), Some(0.0));
    }

    #[test]
    fn issue_5_a_wrong_step_of_a_good_episode_is_worth_less_than_its_right_ones() {
        let pool = [turn("a", 1), turn("a", -1), turn("a", 0)];
        let notes = [0, 1, 2].map(|at| step(None, at, Some(1.0)));
        let found = worth(&pool, &notes, 0.5, 0.5);
        assert_eq!(found, [1.5, 0.5, 1.0].map(Worth::Advantage));
        assert_eq!(mean_of_verdicts(&pool, &notes), None);
    }

    #[test]
    fn attempts_at_a_task_are_compared_step_by_step() {
        let pool = [turn("a", 1), turn("b", -1), turn("a", -1), turn("b", 1), turn("c", 1)];
        let at = |s: usize, outcome: f64| step(Some("t"), s, Some(outcome));
        // First step: 1 + 1 against −1 − 1. Second step: 1 − 1 against −1 + 1: no difference.
        let notes = [at(0, 1.0), at(0, -1.0), at(1, 1.0), at(1, -1.0), at(2, 0.5)];
        let found = worth(&pool, &notes, 1.0, 0.0);
        let Worth::Advantage(first) = found[0] else { panic!() };
        assert!((first - 1.0).abs() < 1e-5);
        assert_eq!(found[1], Worth::Advantage(-first));
        assert_eq!((found[2], found[3]), (Worth::Constant, Worth::Constant));
        assert_eq!(found[4], Worth::Advantage(1.5), "a singleton keeps its raw value");
    }

    #[test]
    fn a_step_that_nobody_judged_is_compared_with_no_other() {
        let pool = [turn("a", 1), turn("b", 0), turn("c", -1)];
        let notes = vec![step(Some("t"), 0, None); 3];
        let found = worth(&pool, &notes, 1.0, 0.0);
        let Worth::Advantage(first) = found[0] else { panic!() };
        assert!((first - 1.0).abs() < 1e-5, "two are compared");
        assert_eq!((found[1], found[2]), (Worth::Advantage(0.0), Worth::Advantage(-first)));
    }

    #[test]
    fn attempts_that_ended_alike_teach_nothing_and_tenants_are_not_compared() {
        let mut pool = vec![turn("a", 1), turn("b", 1)];
        let notes = vec![step(Some("t"), 0, Some(1.0)); 2];
        assert_eq!(worth(&pool, &notes, 1.0, 0.0), [Worth::Constant; 2]);
        pool[1].0.tenant = "other".into();
        assert_eq!(worth(&pool, &notes, 1.0, 0.0), [Worth::Advantage(2.0); 2]);
    }
}
