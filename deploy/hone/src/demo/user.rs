//! The scripted user: likes one short plain sentence, says so in words when the answer is anything
//! else.

use std::sync::LazyLock;

use regex::Regex;

use super::client::Reply;

/// More tokens than this is too long for this user.
pub const TOKENS_MAX: u64 = 40;

static LIST_OR_BOLD: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?m)^\s*([-*•]|\d+[.)])\s+|\*\*").ok());

/// The user's rule: it ended by itself, it is short, it has no list and no bold text.
pub fn is_content(reply: &Reply) -> bool {
    reply.ended && reply.tokens <= TOKENS_MAX && !has_list(&reply.text)
}

/// Whether the text has a bulleted or numbered list, or bold text.
pub fn has_list(text: &str) -> bool {
    LIST_OR_BOLD.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

/// What the user says about an answer that breaks the rule; the wording varies, as people's does.
pub fn correction(turn: usize, reply: &Reply) -> String {
    let complaint = match (has_list(&reply.text), turn % 3) {
        (true, 0) => "I don't like lists.",
        (true, _) => "Please don't use bullet points.",
        (false, 0) => "That is too long.",
        (false, 1) => "Too long for me.",
        (false, _) => "I don't want to read that much.",
    };
    let wish = match turn % 2 {
        0 => "Answer in one short sentence, without lists or bold text.",
        _ => "Please answer in one short sentence, without lists or bold text.",
    };
    format!("{complaint} {wish}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str, tokens: u64, ended: bool) -> Reply {
        Reply { text: text.into(), tokens, ended, generation: "base".into() }
    }

    #[test]
    fn a_short_plain_sentence_that_ends_is_all_the_user_wants() {
        assert!(is_content(&reply("Boil it for ten minutes.", 7, true)));
        assert!(!is_content(&reply("Boil it for ten minutes.", 7, false)));
        assert!(!is_content(&reply("Boil it.", TOKENS_MAX + 1, true)));
    }

    #[test]
    fn lists_and_bold_text_break_the_rule_but_a_dash_inside_a_sentence_does_not() {
        for text in
            ["1. Boil it", "Do this:\n- boil it", "Do this:\n  * boil", "It is **hot**.", "2) x"]
        {
            assert!(has_list(text), "{text:?}");
        }
        assert!(!has_list("Ten minutes - not more - is enough; 3.5 is pi-like."));
    }

    #[test]
    fn every_correction_says_what_is_wanted() {
        for turn in 0..6 {
            let said = correction(turn, &reply("x", 96, false));
            assert!(said.contains("nswer in one short sentence"), "{said}");
        }
    }
}
