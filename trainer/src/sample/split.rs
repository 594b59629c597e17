//! Which sessions are held out from training, to test the candidate on.
//!
//! Whole sessions, by a keyed hash of round and session: nobody outside can choose where a session
//! falls, the split of a round is the same when it is resumed, and a session that was held out in
//! one round may teach in a later one (a held-out turn was never trained on before it is tested).
//!
//! Invariant: with four samples or more, of at least two sessions, both parts have at least one; a
//! session is never in both. With fewer samples nothing is held out, and the gate will refuse.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Fewest samples that are split.
pub const SPLIT_MIN: usize = 4;

/// For each sample's session whether it is held out.
pub fn hold_out(secret: &[u8; 32], round_id: &str, sessions: &[&str], share: f64) -> Vec<bool> {
    if sessions.len() < SPLIT_MIN {
        return vec![false; sessions.len()];
    }
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for session in sessions {
        *sizes.entry(session).or_default() += 1;
    }
    if sizes.len() < 2 {
        // One long session: its turns are split instead, the last ones held out.
        let keep = sessions.len() - target(sessions.len(), share);
        return (0..sessions.len()).map(|i| i >= keep).collect();
    }
    let mut ranked: Vec<([u8; 32], &str)> =
        sizes.keys().map(|session| (rank(secret, round_id, session), *session)).collect();
    ranked.sort_unstable();
    let want = target(sessions.len(), share);
    let (mut held, mut count) = (Vec::new(), 0);
    for (_, session) in &ranked {
        let size = sizes.get(session).copied().unwrap_or(0);
        if count + size < sessions.len() && (held.is_empty() || count + size <= want) {
            held.push(*session);
            count += size;
        }
    }
    sessions.iter().map(|session| held.contains(session)).collect()
}

/// How many of `total` to hold out: the share, rounded, but at least 1 and not all.
fn target(total: usize, share: f64) -> usize {
    let want = (total as f64 * share.clamp(0.0, 1.0)).round() as usize;
    want.clamp(1, total - 1)
}

fn rank(secret: &[u8; 32], round_id: &str, session: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [secret.as_slice(), round_id.as_bytes(), session.as_bytes()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn split(sessions: &[&str], share: f64) -> Vec<bool> {
        hold_out(&SECRET, "round", sessions, share)
    }

    fn held(sessions: &[&str], share: f64) -> usize {
        split(sessions, share).iter().filter(|held| **held).count()
    }

    #[test]
    fn from_four_samples_on_both_parts_have_at_least_one() {
        for share in [0.0, 0.2, 0.9, 1.0] {
            for n in 4..20 {
                let names: Vec<String> = (0..n).map(|i| format!("s{i}")).collect();
                let sessions: Vec<&str> = names.iter().map(String::as_str).collect();
                let count = held(&sessions, share);
                assert!((1..n).contains(&count), "{count} of {n} at {share}");
            }
        }
        assert_eq!(held(&["a", "b", "c"], 0.5), 0);
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
        let names: Vec<String> = (0..40).map(|i| format!("s{i}")).collect();
        let sessions: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(split(&sessions, 0.2), split(&sessions, 0.2));
        assert_eq!(held(&sessions, 0.2), 8);
        assert_ne!(split(&sessions, 0.2), hold_out(&[8; 32], "round", &sessions, 0.2));
        assert_ne!(split(&sessions, 0.2), hold_out(&SECRET, "next", &sessions, 0.2));
    }

    #[test]
    fn one_session_alone_holds_out_its_last_turns() {
        assert_eq!(split(&["a"; 5], 0.2), [false, false, false, false, true]);
    }
}
