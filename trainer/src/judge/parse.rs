//! From the text a judge model wrote to one vote.
//!
//! Accepted: one JSON object `{"verdict": −1 | 0 | 1, "reason": "...", "hint": "..." | null}`, bare
//! or in a code fence, possibly after a closed `<think>` block. Everything else is no vote.
//!
//! Invariant: a vote is never guessed from prose.

use serde::{Deserialize, Serialize};

/// One valid vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// +1, 0 or −1.
    pub verdict: i8,
    /// The judge's reason, shortened.
    pub reason: String,
    /// What would have made the answer better.
    pub hint: Option<String>,
}

#[derive(Deserialize)]
struct Raw {
    verdict: i8,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    hint: Option<String>,
}

/// Characters of a judge's reason that are kept.
const REASON_CHARS_MAX: usize = 300;

/// Parses one vote, or says what is wrong with it.
pub fn vote(text: &str) -> Result<Vote, String> {
    let text = after_thinking(text).trim();
    let body = unfence(text).trim();
    let raw: Raw =
        serde_json::from_str(body).map_err(|e| format!("not the JSON asked for: {e}"))?;
    if !(-1..=1).contains(&raw.verdict) {
        return Err(format!("verdict {} is not -1, 0 or 1", raw.verdict));
    }
    let reason = super::rules::shorten(&raw.reason.unwrap_or_default(), REASON_CHARS_MAX);
    let hint = raw.hint.filter(|h| !h.trim().is_empty());
    Ok(Vote { verdict: raw.verdict, reason, hint })
}

/// What follows a reasoning block.
fn after_thinking(text: &str) -> &str {
    text.rsplit_once("</think>").map_or(text, |(_, rest)| rest)
}

/// The content of a code fence, if the text is one.
fn unfence(text: &str) -> &str {
    let Some(rest) = text.strip_prefix("```") else { return text };
    let Some(body) = rest.trim_end().strip_suffix("```") else { return text };
    // The first line may name a language.
    match body.split_once('\n') {
        Some((first, rest)) if !first.contains('{') => rest,
        _ => body,
    }
}

/// The majority among votes: fewer than `valid_min` votes, or a tie for first, is 0.
pub fn majority(votes: &[Vote], valid_min: usize) -> i8 {
    if votes.is_empty() || votes.len() < valid_min {
        return 0;
    }
    let count = |verdict: i8| votes.iter().filter(|v| v.verdict == verdict).count();
    let counts = [(-1, count(-1)), (0, count(0)), (1, count(1))];
    let most = counts.iter().map(|c| c.1).max().unwrap_or(0);
    let mut first = counts.iter().filter(|c| c.1 == most);
    match (first.next(), first.next()) {
        (Some((verdict, _)), None) => *verdict,
        _ => 0,
    }
}

/// Whether `left` further votes can no longer change the majority.
pub fn decided(votes: &[Vote], left: usize, valid_min: usize) -> bool {
    if votes.len() < valid_min.max(1) {
        return false;
    }
    let mut counts =
        [-1, 0, 1].map(|verdict| votes.iter().filter(|v| v.verdict == verdict).count());
    counts.sort_unstable();
    // Strictly: a tie would be 0.
    counts[2] > counts[1] + left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn votes(list: &[i8]) -> Vec<Vote> {
        let vote = |v: &i8| Vote { verdict: *v, reason: String::new(), hint: None };
        list.iter().map(vote).collect()
    }

    #[test]
    fn the_object_is_read_bare_and_in_a_fence() {
        let bare = r#"{"verdict": -1, "reason": "too long", "hint": "Use one sentence."}"#;
        let want = vote(bare).unwrap();
        assert_eq!((want.verdict, want.hint.as_deref()), (-1, Some("Use one sentence.")));
        for text in [
            format!("```json\n{bare}\n```"),
            format!("```\n{bare}\n```"),
            format!("```{bare}```"),
            format!("  {bare}\n"),
            format!("<think>it was long</think>\n{bare}"),
        ] {
            assert_eq!(vote(&text).as_ref(), Ok(&want), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_vote() {
        for text in [
            "",
            "1",
            "\\boxed{1}",
            "The verdict is 1.",
            r#"{"verdict": 2}"#,
            r#"{"verdict": "1"}"#,
            r#"{"verdict": 1} and more"#,
            r#"{"reason": "x"}"#,
            r#"{"verdict": 1} {"verdict": -1}"#,
            r#"{"verdict": 0.5}"#,
        ] {
            assert!(vote(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_majority_decides_and_a_tie_is_neutral() {
        assert_eq!(majority(&votes(&[1, 1, -1]), 1), 1);
        assert_eq!(majority(&votes(&[-1, -1, 0]), 1), -1);
        assert_eq!(majority(&votes(&[1, -1]), 1), 0);
        assert_eq!(majority(&votes(&[1, 0, -1]), 1), 0);
        assert_eq!(majority(&votes(&[1, 1, -1, -1]), 1), 0);
        assert_eq!(majority(&votes(&[0, 0, 1, 1, -1]), 1), 0);
    }

    #[test]
    fn a_majority_is_decided_once_no_vote_can_change_it() {
        let all: Vec<Vec<i8>> = (0..3i32.pow(5))
            .map(|n| (0..5).map(|i| (n / 3i32.pow(i) % 3 - 1) as i8).collect())
            .collect();
        for full in &all {
            for seen in 0..=5 {
                if decided(&votes(&full[..seen]), 5 - seen, 2) {
                    let now = majority(&votes(&full[..seen]), 2);
                    assert_eq!(now, majority(&votes(full), 2), "{full:?} after {seen}");
                }
            }
        }
        assert!(decided(&votes(&[1, 1]), 1, 1) && !decided(&votes(&[1]), 2, 1));
        assert!(!decided(&votes(&[1, 1]), 1, 3), "too few are valid so far");
    }

    #[test]
    fn too_few_valid_votes_are_neutral() {
        assert_eq!(majority(&votes(&[]), 0), 0);
        assert_eq!(majority(&votes(&[1]), 2), 0);
        assert_eq!(majority(&votes(&[1]), 1), 1);
    }
}
