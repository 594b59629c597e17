//! What the teacher is told: the one place where a user's words become an instruction.
//!
//! The user corrects an answer that the teacher has not given. "That is too long." about nothing
//! makes a small model apologise; "Answer in one short sentence." is an instruction. Sentences that
//! only pass judgement on the reply are therefore left out, as long as an instruction remains.
//!
//! Invariant: never empty when the hint is not.

use serde_json::{Value, json};

/// Fewest characters that must remain for a sentence to be left out.
const REMAINDER_CHARS_MIN: usize = 10;
/// How a sentence begins that speaks about the reply…
const ABOUT_THE_REPLY: [&str; 12] = [
    "that is ",
    "that's ",
    "that was ",
    "this is ",
    "this was ",
    "it is ",
    "it's ",
    "it was ",
    "your answer is ",
    "your answer was ",
    "your reply is ",
    "your reply was ",
];
/// …and the words that only pass judgement, or go with them. "It's 42, not 41." has others.
const JUDGEMENT: [&str; 48] = [
    "a",
    "all",
    "an",
    "and",
    "answer",
    "asked",
    "at",
    "awful",
    "bad",
    "bit",
    "boring",
    "clear",
    "completely",
    "confusing",
    "correct",
    "far",
    "for",
    "good",
    "great",
    "helpful",
    "i",
    "incorrect",
    "just",
    "little",
    "long",
    "me",
    "much",
    "nice",
    "no",
    "nonsense",
    "not",
    "quite",
    "really",
    "right",
    "short",
    "so",
    "still",
    "the",
    "too",
    "totally",
    "useless",
    "vague",
    "verbose",
    "very",
    "wanted",
    "way",
    "what",
    "wrong",
];
/// …and whole sentences that say nothing else.
const EXCLAMATIONS: [&str; 8] =
    ["no", "nope", "wrong", "too long", "way too long", "too short", "not like that", "hm"];

/// The part of a hint that tells the teacher what to do.
pub fn instruction(hint: &str) -> String {
    let hint = hint.trim();
    let kept: Vec<&str> =
        sentences(hint).into_iter().filter(|sentence| !is_judgement(sentence)).collect();
    let text = kept.join(" ");
    if text.chars().count() < REMAINDER_CHARS_MIN { hint.to_owned() } else { text }
}

/// The same messages with the hint appended to the last user message (or the last message if there
/// is no user message), below `label`.
pub fn enhance(messages: &[Value], label: &str, hint: &str) -> Vec<Value> {
    let mut out = messages.to_vec();
    let is_user = |m: &Value| m.get("role").and_then(Value::as_str) == Some("user");
    let at = out.iter().rposition(is_user).unwrap_or(out.len().saturating_sub(1));
    let addition = format!("\n\n{label}\n{}", instruction(hint));
    if let Some(message) = out.get_mut(at).and_then(Value::as_object_mut) {
        match message.get_mut("content") {
            Some(Value::String(text)) => text.push_str(&addition),
            Some(Value::Array(parts)) => parts.push(json!({"type": "text", "text": addition})),
            _ => {
                message.insert("content".into(), Value::String(addition));
            }
        }
    }
    out
}

fn is_judgement(sentence: &str) -> bool {
    let lower = sentence.to_lowercase();
    let bare = lower.trim_matches(|c: char| !c.is_alphanumeric());
    EXCLAMATIONS.contains(&bare)
        || ABOUT_THE_REPLY
            .iter()
            .find_map(|start| lower.strip_prefix(start))
            .is_some_and(|said| words(said).all(|word| JUDGEMENT.contains(&word)))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// Splits after `.`, `!` or `?` followed by white space.
fn sentences(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut begin = 0;
    let mut after_stop = false;
    for (at, c) in text.char_indices() {
        if after_stop && c.is_whitespace() {
            out.push(text[begin..at].trim());
            begin = at;
        }
        after_stop = matches!(c, '.' | '!' | '?');
    }
    out.push(text[begin..].trim());
    out.retain(|s| !s.is_empty());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judgement_of_the_reply_is_left_out_and_the_instruction_stays() {
        let cases = [
            (
                "That is too long. Answer in one short sentence, without lists or bold text.",
                "Answer in one short sentence, without lists or bold text.",
            ),
            ("No! Use plain words, please.", "Use plain words, please."),
            ("Answer in French.", "Answer in French."),
            ("It's 42, not 41. Check the sum again.", "It's 42, not 41. Check the sum again."),
            ("This is Rust. Rewrite it with Result.", "This is Rust. Rewrite it with Result."),
            ("That's not what I asked. Name three rivers.", "Name three rivers."),
            ("This should be in French. Nothing else.", "This should be in French. Nothing else."),
        ];
        for (hint, want) in cases {
            assert_eq!(instruction(hint), want);
        }
    }

    #[test]
    fn a_hint_that_is_nothing_but_judgement_is_kept_whole() {
        assert_eq!(instruction("That is too long."), "That is too long.");
        assert_eq!(instruction("It's wrong. Why?"), "It's wrong. Why?");
    }

    #[test]
    fn the_hint_goes_below_its_label_at_the_end_of_the_last_user_message() {
        let messages = [
            json!({"role": "system", "content": "s"}),
            json!({"role": "user", "content": "q"}),
            json!({"role": "assistant", "content": "a"}),
        ];
        let out = enhance(&messages, "[hint]", "Answer in French.");
        assert_eq!(out[1]["content"], "q\n\n[hint]\nAnswer in French.");
        assert_eq!(out[2], messages[2]);
    }

    #[test]
    fn a_list_of_parts_gets_one_more_part() {
        let messages = [json!({"role": "user", "content": [{"type": "text", "text": "q"}]})];
        let out = enhance(&messages, "[hint]", "Answer in French.");
        assert_eq!(out[0]["content"][1]["text"], "\n\n[hint]\nAnswer in French.");
    }
}
