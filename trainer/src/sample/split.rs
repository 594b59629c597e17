//! Which sessions are held out from training, to test the candidate on.
//!
//! Whole sessions, by a keyed hash: nobody outside can choose where a session falls. A session
//! stays where it first fell: one that taught is never tested on later, one that was tested on
//! never teaches, so that no candidate is tested on a session that it has learned from. Only where
//! every session of a round has taught before (one person in one long conversation) are the newest
//! turns held out instead: better than no test.
//!
//! What is held out should be able to show that the candidate is better, and an approved answer
//! cannot: it came from the incumbent, so no candidate is expected to find it likelier (Gibbs'
//! inequality). Where two sessions or more have corrected turns, the first that is held out is one
//! of them, again by the hash; where only one has, it teaches.
//!
//! Invariant: with four samples or more both parts have at least one, unless all of them belong to
//! sessions that were held out before; a session is never in both but for the exception above. With
//! fewer samples nothing is held out, and the gate will refuse.

use hone_shared::store::Split;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Fewest samples that are split.
pub const SPLIT_MIN: usize = 4;

/// Tenant and session.
pub type Session = (String, String);

/// For each sample whether it is held out. `sessions` and `corrects` have an entry per sample: its
/// session, and whether it says that another answer would have been better ([`Sample::corrects`]).
/// `before` says where sessions fell earlier.
///
/// [`Sample::corrects`]: super::Sample::corrects
pub fn hold_out(
    secret: &[u8; 32],
    sessions: &[Session],
    corrects: &[bool],
    before: &BTreeMap<Session, Option<Split>>,
    share: f64,
) -> Vec<bool> {
    let total = sessions.len();
    let fell = |session: &Session| before.get(session).copied().flatten();
    if total < SPLIT_MIN {
        return sessions.iter().map(|s| fell(s) == Some(Split::Holdout)).collect();
    }
    let mut sizes: BTreeMap<&Session, usize> = BTreeMap::new();
    for session in sessions {
        *sizes.entry(session).or_default() += 1;
    }
    let want = target(total, share);
    let mut held: Vec<&Session> =
        sizes.keys().copied().filter(|s| fell(s) == Some(Split::Holdout)).collect();
    let mut count: usize = held.iter().filter_map(|s| sizes.get(*s)).sum();
    let mut ranked: Vec<([u8; 32], &Session)> = sizes
        .keys()
        .filter(|session| fell(session).is_none())
        .map(|session| (rank(secret, session), *session))
        .collect();
    ranked.sort_unstable();
    let size = |session: &Session| sizes.get(session).copied().unwrap_or(0);
    let correcting: BTreeSet<&Session> =
        sessions.iter().zip(corrects).filter(|(_, corrects)| **corrects).map(|(s, _)| s).collect();
    // Corrected sessions that are left to teach: the last one is never taken.
    let mut teaching = correcting.iter().filter(|s| fell(s) != Some(Split::Holdout)).count();
    let may_test = |session: &Session, teaching: usize| {
        size(session) < total && (teaching > 1 || !correcting.contains(session))
    };
    let by_size = |&&(rank, session): &&([u8; 32], &Session)| (size(session), rank);
    if !held.iter().any(|session| correcting.contains(session)) {
        // Beyond the share if need be: praise cannot show that a candidate is better.
        let of = |(_, s): &&([u8; 32], &Session)| correcting.contains(s) && may_test(s, teaching);
        let fits = ranked.iter().filter(of).find(|(_, session)| size(session) <= want);
        if let Some((_, first)) = fits.or_else(|| ranked.iter().filter(of).min_by_key(by_size)) {
            held.push(*first);
            count += size(first);
            teaching -= 1;
        }
    }
    for (_, session) in &ranked {
        let fits = count + size(session) <= want && may_test(session, teaching);
        if fits && !held.contains(session) {
            held.push(*session);
            count += size(session);
            teaching -= usize::from(correcting.contains(session));
        }
    }
    // None is small enough: the smallest, so that the longest conversation teaches.
    if held.is_empty() {
        let may = ranked.iter().filter(|(_, session)| may_test(session, teaching));
        held.extend(may.min_by_key(by_size).map(|(_, session)| *session));
    }
    if held.is_empty() {
        return newest(corrects, total, want);
    }
    sessions.iter().map(|session| held.contains(&session)).collect()
}

/// Holds out again what an earlier round has tested on (of one long conversation only some turns are
/// held out), as far as something is left to teach.
pub fn keep_testing(held: &mut [bool], tested: &[bool], corrects: &[bool]) {
    for i in (0..held.len()).filter(|i| tested.get(*i) == Some(&true)) {
        held[i] |= may_go(held, corrects, i);
    }
}

/// Which samples must go because an equal one, of whichever session, stands on the other side: to know
/// an answer by heart is no proof. The one that teaches goes, unless it is the last correction to do
/// so. `keys` are equal for equal samples.
pub fn twins<K: Ord>(held: &[bool], keys: &[K], corrects: &[bool]) -> Vec<bool> {
    let mut sides: BTreeMap<&K, [Vec<usize>; 2]> = BTreeMap::new();
    for (i, key) in keys.iter().enumerate() {
        sides.entry(key).or_default()[usize::from(held[i])].push(i);
    }
    let (mut left, mut goes) = (held.to_vec(), vec![false; held.len()]);
    for [teach, test] in
        sides.into_values().filter(|[teach, test]| !teach.is_empty() && !test.is_empty())
    {
        let mut stays = false;
        for i in teach {
            let may = may_go(&left, corrects, i);
            (left[i], goes[i]) = (may, may);
            stays |= !may;
        }
        test.iter().filter(|_| stays).for_each(|i| goes[*i] = true);
    }
    goes
}

/// Whether sample `i` may stop teaching: another one teaches, and another correction if it is one.
fn may_go(held: &[bool], corrects: &[bool], i: usize) -> bool {
    let asks = |j: usize| corrects.get(j) == Some(&true);
    let mut others = (0..held.len()).filter(|j| *j != i && !held[*j]);
    if asks(i) { others.any(asks) } else { others.next().is_some() }
}

/// Nothing else to test on: the newest turns, the newest correction first. The oldest correction
/// teaches.
fn newest(corrects: &[bool], total: usize, want: usize) -> Vec<bool> {
    let newest_first = (0..total).rev().filter(|i| corrects.get(*i) == Some(&true));
    let mut corrections: Vec<usize> = newest_first.collect();
    let teaches = corrections.pop();
    let first = corrections.first().copied();
    let others = (0..total).rev().filter(|i| Some(*i) != teaches && Some(*i) != first);
    let tests: Vec<usize> = first.into_iter().chain(others).take(want).collect();
    (0..total).map(|i| tests.contains(&i)).collect()
}

/// How many of `total` to hold out: the share, rounded, but at least 1 and not all.
fn target(total: usize, share: f64) -> usize {
    let want = (total as f64 * share.clamp(0.0, 1.0)).round() as usize;
    want.clamp(1, total - 1)
}

fn rank(secret: &[u8; 32], (tenant, session): &Session) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [secret.as_slice(), tenant.as_bytes(), session.as_bytes()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn named(sessions: &[&str]) -> Vec<Session> {
        sessions.iter().map(|s| ("t".to_owned(), (*s).to_owned())).collect()
    }

    fn split(sessions: &[&str], share: f64) -> Vec<bool> {
        hold_out(&SECRET, &named(sessions), &[], &BTreeMap::new(), share)
    }

    fn many(n: usize) -> Vec<Session> {
        (0..n).map(|i| ("t".to_owned(), format!("s{i}"))).collect()
    }

    fn held(parts: &[bool]) -> usize {
        parts.iter().filter(|held| **held).count()
    }

    #[test]
    fn from_four_samples_on_both_parts_have_at_least_one() {
        for share in [0.0, 0.2, 0.9, 1.0] {
            for n in 4..20 {
                let count = held(&hold_out(&SECRET, &many(n), &[], &BTreeMap::new(), share));
                assert!((1..n).contains(&count), "{count} of {n} at {share}");
            }
        }
        assert_eq!(held(&split(&["a", "b", "c"], 0.5)), 0);
    }

    #[test]
    fn the_long_conversation_teaches_and_the_short_one_tests() {
        for secret in 0..20 {
            let sessions = named(&["a", "a", "b", "a", "b", "a"]);
            let parts = hold_out(&[secret; 32], &sessions, &[], &BTreeMap::new(), 0.2);
            assert_eq!(parts, [false, false, true, false, true, false], "key {secret}");
        }
    }

    #[test]
    fn a_session_is_never_on_both_sides() {
        let sessions = ["a", "a", "b", "b", "b", "c", "c", "d"];
        let parts = split(&sessions, 0.3);
        for (i, a) in sessions.iter().enumerate() {
            for (j, b) in sessions.iter().enumerate() {
                assert!(a != b || parts[i] == parts[j]);
            }
        }
    }

    #[test]
    fn the_split_is_the_same_again_and_another_with_another_key() {
        let sessions = many(40);
        let split = |secret: u8| hold_out(&[secret; 32], &sessions, &[], &BTreeMap::new(), 0.2);
        assert_eq!(split(7), split(7));
        assert_eq!(held(&split(7)), 8);
        assert_ne!(split(7), split(8));
        let others: Vec<Session> = sessions.iter().map(|(_, s)| ("u".into(), s.clone())).collect();
        assert_ne!(split(7), hold_out(&[7; 32], &others, &[], &BTreeMap::new(), 0.2));
    }

    #[test]
    fn a_session_stays_where_it_fell_whoever_else_comes() {
        let mut before: BTreeMap<Session, Option<Split>> = BTreeMap::new();
        for round in 0..20usize {
            // Some sessions go on, some are new.
            let sessions: Vec<Session> = many(60).into_iter().skip(round * 2).take(9).collect();
            let parts = hold_out(&SECRET, &sessions, &[], &before, 0.2);
            assert!((1..9).contains(&held(&parts)), "round {round}: {parts:?}");
            for (session, held) in sessions.into_iter().zip(parts) {
                let now = Some(if held { Split::Holdout } else { Split::Train });
                let then = before.insert(session.clone(), now).flatten();
                assert!(then.is_none() || then == now, "round {round}: {session:?}");
            }
        }
    }

    #[test]
    fn one_session_alone_holds_out_its_newest_turns_and_so_do_sessions_that_all_taught() {
        let taught = |s: &str| (named(&[s])[0].clone(), Some(Split::Train));
        let before = BTreeMap::from([taught("a"), taught("b")]);
        let want = [false, false, false, false, true];
        assert_eq!(hold_out(&SECRET, &named(&["a"; 5]), &[], &before, 0.2), want);
        assert_eq!(hold_out(&SECRET, &named(&["a", "b", "a", "b", "a"]), &[], &before, 0.2), want);
        assert_eq!(split(&["a"; 5], 0.2), want);
    }

    #[test]
    fn what_was_held_out_never_teaches_even_in_a_round_of_its_own() {
        let before = BTreeMap::from([(named(&["a"])[0].clone(), Some(Split::Holdout))]);
        assert_eq!(hold_out(&SECRET, &named(&["a"; 5]), &[], &before, 0.2), [true; 5]);
        assert_eq!(hold_out(&SECRET, &named(&["a"; 2]), &[], &before, 0.2), [true; 2]);
    }

    #[test]
    fn of_two_corrected_sessions_one_is_held_out_and_an_only_one_teaches() {
        let sessions = many(6);
        for secret in 0..30 {
            let parts = |corrects: [bool; 6]| {
                hold_out(&[secret; 32], &sessions, &corrects, &BTreeMap::new(), 0.2)
            };
            let two = parts([false, true, false, false, true, false]);
            assert!(two[1] != two[4] && held(&two) == 1, "key {secret}: {two:?}");
            let all = parts([true; 6]);
            assert_eq!(all, parts([false; 6]), "key {secret}: the hash alone decides");
            let one = parts([false, false, true, false, false, false]);
            assert!(!one[2] && held(&one) == 1, "key {secret}: {one:?}");
        }
    }

    #[test]
    fn whatever_the_sizes_a_correction_teaches_and_with_two_sessions_of_them_another_tests() {
        for secret in 0..60 {
            let split = |names: &[&str], corrects: &[bool], share: f64| {
                hold_out(&[secret; 32], &named(names), corrects, &BTreeMap::new(), share)
            };
            // The short session has all corrections.
            let parts = split(&["s", "s", "t", "t", "t"], &[true, true, false, false, false], 0.2);
            assert_eq!(parts, [false, false, true, true, true], "key {secret}");
            // Two corrected sessions of three turns beside praise, where two turns are wanted.
            let names = ["a", "a", "a", "b", "b", "b", "c", "d", "e", "f"];
            let corrects: Vec<bool> = (0..10).map(|i| i < 6).collect();
            let parts = split(&names, &corrects, 0.2);
            assert!(parts[0] != parts[3] && held(&parts) == 3, "key {secret}: {parts:?}");
            // Half is wanted, and only two of ten correct.
            let names: Vec<String> = (0..10).map(|i| i.to_string()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let corrects: Vec<bool> = (0..10).map(|i| i < 2).collect();
            let parts = split(&names, &corrects, 0.5);
            assert!(parts[0] != parts[1] && held(&parts) == 5, "key {secret}: {parts:?}");
        }
    }

    #[test]
    fn praise_that_was_held_out_before_does_not_take_the_place_of_a_correction() {
        let sessions = many(6);
        let before = BTreeMap::from([(sessions[0].clone(), Some(Split::Holdout))]);
        let corrects = [false, true, true, true, false, false];
        let parts = hold_out(&SECRET, &sessions, &corrects, &before, 0.2);
        assert!(parts[0] && held(&parts[1..4]) == 1 && held(&parts) == 2, "{parts:?}");
    }

    #[test]
    fn issue_5_what_was_tested_on_in_a_long_conversation_is_tested_on_again() {
        let again = |held: [bool; 4], tested: [bool; 4], corrects: [bool; 4]| {
            let mut held = held;
            keep_testing(&mut held, &tested, &corrects);
            held
        };
        let (newest, second) = ([false, false, false, true], [false, true, false, false]);
        assert_eq!(again(newest, second, [true; 4]), [false, true, false, true]);
        assert_eq!(again(newest, second, second), newest, "the only correction teaches");
        assert_eq!(again(newest, [true; 4], [false; 4]), [true, true, false, true], "one is left");
    }

    #[test]
    fn issue_5_equal_samples_never_stand_on_both_sides() {
        let held = [false, false, true, false];
        let keys = ["a", "b", "a", "c"];
        let none = [false; 4];
        assert_eq!(twins(&held, &keys, &[true; 4]), [true, false, false, false]);
        assert_eq!(twins(&held, &["a", "b", "d", "c"], &[true; 4]), none);
        let only = [true, false, true, false];
        assert_eq!(twins(&held, &keys, &only), [false, false, true, false], "it must teach");
        assert_eq!(twins(&held, &["a", "a", "b", "b"], &none), [false, false, false, true]);
    }

    #[test]
    fn of_one_long_session_the_newest_correction_is_held_out_if_another_one_teaches() {
        let alone = |corrects: [bool; 5]| {
            hold_out(&SECRET, &named(&["a"; 5]), &corrects, &BTreeMap::new(), 0.2)
        };
        let newest = [false, false, false, false, true];
        assert_eq!(alone([true, false, true, false, false]), [false, false, true, false, false]);
        assert_eq!(alone([true, false, false, false, false]), newest);
        assert_eq!(alone([true, false, false, true, true]), newest);
        assert_eq!(alone([false, false, false, false, true]), [false, false, false, true, false]);
        let two = [false, false, false, true, true];
        let parts = hold_out(&SECRET, &named(&["a"; 5]), &two, &BTreeMap::new(), 0.4);
        assert_eq!(parts, [false, false, true, false, true], "one of the two teaches");
    }
}
