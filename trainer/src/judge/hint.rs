//! Which hints are worth teaching from.
//!
//! Invariant: at most `count_max` (never more than 3) hints, each of the policy's length, no two
//! alike, none of them a piece of the answer itself: an echo would teach the model to repeat
//! itself.

use hone_shared::policy::HintPolicy;
use std::collections::HashSet;

/// No policy may keep more than this.
const HINTS_MAX: usize = 3;
/// Share of a hint's word triples that may also stand in the answer.
const ECHO_SHARE_MAX: f64 = 0.6;

/// The acceptable ones among `candidates`, shortest first (a short hint is the most general).
pub fn accept(policy: &HintPolicy, candidates: &[String], answer: &str) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut kept: Vec<String> = Vec::new();
    for candidate in candidates {
        let text = candidate.split_whitespace().collect::<Vec<_>>().join(" ");
        let length = text.chars().count();
        if length < policy.chars_min || length > policy.chars_max || echoes(&text, answer) {
            continue;
        }
        if seen.insert(words(&text).join(" ")) {
            kept.push(text);
        }
    }
    kept.sort_by_key(|text| text.chars().count());
    kept.truncate(policy.count_max.min(HINTS_MAX));
    kept
}

/// Whether a hint mostly repeats the answer.
fn echoes(hint: &str, answer: &str) -> bool {
    let (hint, answer) = (words(hint), words(answer));
    if hint.is_empty() {
        return true;
    }
    let size = hint.len().min(3);
    let said: HashSet<&[String]> = answer.windows(size).collect();
    let parts = hint.windows(size);
    let total = parts.len() as f64;
    let shared = parts.filter(|w| said.contains(w)).count() as f64;
    shared / total > ECHO_SHARE_MAX
}

fn words(text: &str) -> Vec<String> {
    let pieces = text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
    pieces.map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::judge_policy;

    fn kept(candidates: &[&str], answer: &str) -> Vec<String> {
        let candidates: Vec<String> = candidates.iter().map(|c| (*c).to_owned()).collect();
        accept(&judge_policy().hint, &candidates, answer)
    }

    #[test]
    fn too_short_and_too_long_hints_are_dropped() {
        assert!(kept(&["Shorter."], "").is_empty());
        assert!(kept(&[&"word ".repeat(200)], "").is_empty());
        assert_eq!(kept(&["Answer in one sentence."], "").len(), 1);
    }

    #[test]
    fn the_same_hint_in_other_clothes_is_kept_once() {
        let all = ["Answer in one sentence.", "answer  in ONE sentence", "Leave out the lists."];
        assert_eq!(kept(&all, "").len(), 2);
    }

    #[test]
    fn an_echo_of_the_answer_is_no_hint() {
        let answer = "Rain falls from clouds when droplets grow heavy.";
        assert!(kept(&["Rain falls from clouds when droplets grow heavy."], answer).is_empty());
        assert_eq!(kept(&["Say it in five words at most."], answer).len(), 1);
    }

    #[test]
    fn at_most_three_are_kept_shortest_first() {
        let all = [
            "Write three words less now.",
            "Use plain words.",
            "Never use any bold text.",
            "Do not use numbered lists at all, please.",
        ];
        let got = kept(&all, "");
        assert_eq!(got.len(), 3);
        assert_eq!(got[0], "Use plain words.");
    }
}
