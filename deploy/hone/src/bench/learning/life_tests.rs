//! What a scripted life asks, remembers and counts as content.

use super::super::method::chosen;
use super::*;

#[test]
fn the_final_questions_are_never_asked_before() {
    for seed in 0..20 {
        let (asked, unseen) = questions(seed);
        assert_eq!(asked.len() + unseen.len(), ASKED.len() + HELD_OUT.len());
        assert!(unseen.iter().all(|question| !asked.contains(question)), "seed {seed}");
    }
    assert_ne!(questions(1).0, questions(2).0);
}

#[test]
fn three_content_answers_in_a_row_are_contentment_and_no_fewer() {
    let mut state = State::new(&chosen(&[]).unwrap()[0], 1);
    for (content, end) in
        [(true, false), (true, false), (false, false), (true, false), (true, false), (true, true)]
    {
        state.life.sessions.push(content);
        assert_eq!(state.is_content(), end, "{:?}", state.life.sessions);
    }
}

#[test]
fn the_memory_keeps_the_newest_wishes_once() {
    let mut state = State::new(&chosen(&[]).unwrap()[1], 1);
    for words in ["a", "b", "a", "c", "d"] {
        state.remember(words.into());
    }
    assert_eq!(state.remembered, ["a", "c", "d"]);
}
