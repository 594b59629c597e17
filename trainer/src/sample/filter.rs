//! What must not be learned from, each reason counted.
//!
//! The reference's collapse began with batches in which 7 of 16 samples were 7-token garbage;
//! nothing filtered them.
//!
//! Invariant: a turn that is dropped here has a reason that shows in the round's metrics.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;

/// Why a judged turn did not become a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The response did not end as it should.
    NotComplete,
    /// No messages, no such choice, or the generation that answered is not in the registry.
    MissingProvenance,
    /// The chat template cannot render it.
    Unrenderable,
    /// The answer came with reasoning apart from its text, so that what the model gave, token for
    /// token, is not known; or a demonstration did, of which only the text could be learned.
    ReasoningApart,
    /// The prompt is over `prompt_tokens_max`, or does not fit the model with its reply.
    PromptTooLong,
    /// Fewer than three tokens.
    TooShort,
    /// The same few tokens again and again.
    Repetitive,
    /// The answer was cut at its token limit, and judged good.
    Truncated,
    /// The answer refuses, and was judged good.
    Refusal,
    /// The same prompt and reply again in the same session.
    Duplicate,
    /// The generation that answered is more than `generations_behind_max` behind.
    Stale,
    /// Neither a reward nor a hint nor a demonstration, or their weights are zero.
    NoSignal,
    /// All attempts at the step of its task were equally good.
    ConstantGroup,
    /// The session already has `per_session_max` samples.
    SessionCap,
    /// The person already has `per_user_max` samples.
    UserCap,
    /// The tenant already has `per_tenant_max` samples, or its share of the round.
    TenantCap,
    /// Too many rewards of one sign, and nothing else to learn from.
    SignCap,
    /// The round is full; it stays for the next one.
    RoundFull,
}

impl Reason {
    /// Whether the round has not even looked at the turn, so that it may start the next one.
    pub fn is_untouched(self) -> bool {
        self == Self::RoundFull
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_value(self).unwrap_or_default();
        f.write_str(text.as_str().unwrap_or("unknown"))
    }
}

/// Fewest tokens of a reply that teach anything.
const TOKENS_MIN: usize = 3;
/// Length of the token groups whose repetition is measured.
const GROUP: usize = 4;
/// Groups needed before repetition means anything.
const GROUPS_MIN: usize = 16;
/// Share of repeated groups from which a reply is garbage.
const REPEATED_SHARE_MAX: f64 = 0.5;

/// The fault of a reply's tokens (without the end token), if any.
pub fn garbage(tokens: &[u32]) -> Option<Reason> {
    if tokens.len() < TOKENS_MIN {
        return Some(Reason::TooShort);
    }
    let groups = (tokens.len() + 1).saturating_sub(GROUP);
    if groups >= GROUPS_MIN && repeated_share(tokens) > REPEATED_SHARE_MAX {
        return Some(Reason::Repetitive);
    }
    None
}

/// Share of the 4-token groups that occurred before in the same reply, 0 for a short one.
pub fn repeated_share(tokens: &[u32]) -> f64 {
    let mut counts: HashMap<&[u32], usize> = HashMap::new();
    for group in tokens.windows(GROUP) {
        *counts.entry(group).or_default() += 1;
    }
    let total: usize = counts.values().sum();
    if total == 0 { 0.0 } else { 1.0 - counts.len() as f64 / total as f64 }
}

/// How refusals begin, in lower case. Only the beginning counts: "I cannot" further on may be about
/// anything.
const REFUSALS: [&str; 16] = [
    "i'm sorry, but i can",
    "i am sorry, but i can",
    "sorry, but i can",
    "sorry, i can't",
    "i'm sorry, i can't",
    "i apologize, but i can",
    "i can't help with",
    "i can't assist with",
    "i cannot help with",
    "i cannot assist with",
    "i cannot fulfill",
    "i'm unable to",
    "i am unable to",
    "as an ai language model, i can",
    "es tut mir leid, aber ich kann",
    "je suis désolé, mais je ne peux",
];

/// Whether a reply begins by refusing.
pub fn is_refusal(text: &str) -> bool {
    let begin: String = text.trim_start().chars().take(60).collect();
    let begin = begin.to_lowercase().replace('\u{2019}', "'");
    REFUSALS.iter().any(|refusal| begin.starts_with(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_known_by_its_beginning() {
        assert!(is_refusal("  I\u{2019}m sorry, but I can\u{2019}t help with that."));
        assert!(is_refusal("I cannot assist with this request."));
        assert!(!is_refusal("You can do it. I cannot help with the rest."));
        assert!(!is_refusal("I'm sorry to hear that."));
        assert!(!is_refusal(""));
    }

    #[test]
    fn a_reply_of_two_tokens_is_garbage() {
        assert_eq!(garbage(&[1, 2]), Some(Reason::TooShort));
        assert_eq!(garbage(&[1, 2, 3]), None);
    }

    #[test]
    fn a_reply_that_loops_is_garbage_and_ordinary_text_is_not() {
        let looping: Vec<u32> = (0..60).map(|i| i % 5).collect();
        assert_eq!(garbage(&looping), Some(Reason::Repetitive));
        let ordinary: Vec<u32> = (0..60).map(|i| (i * i * 7 + i) % 97).collect();
        assert_eq!(garbage(&ordinary), None);
        assert_eq!(garbage(&[5, 5, 5, 5]), None, "too short to tell");
    }

    #[test]
    fn the_repeated_share_is_that_of_later_occurrences() {
        assert_eq!(repeated_share(&[1, 1, 1, 1, 1]), 0.5);
        assert_eq!(repeated_share(&[1, 2, 3, 4, 5]), 0.0);
        assert_eq!(repeated_share(&[1]), 0.0);
    }

    #[test]
    fn reasons_are_written_as_words() {
        assert_eq!(Reason::PromptTooLong.to_string(), "prompt_too_long");
    }
}
