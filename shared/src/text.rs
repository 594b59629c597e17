//! The beginning and the end of a text that is too long to be read whole.
//!
//! Invariant: what is cut is cut between characters, and is never longer than asked for.

/// The longest beginning of `text` of at most `bytes_max` bytes.
pub fn head(text: &str, bytes_max: usize) -> &str {
    let fits = |at: usize| text.get(..at);
    (0..=bytes_max.min(text.len())).rev().find_map(fits).unwrap_or_default()
}

/// The longest end of `text` of at most `bytes_max` bytes.
pub fn tail(text: &str, bytes_max: usize) -> &str {
    let from = text.len().saturating_sub(bytes_max);
    (from..=text.len()).find_map(|at| text.get(at..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_a_short_one_is_whole() {
        let text = "añb→c"; // 1 + 2 + 1 + 3 + 1 bytes
        let heads: Vec<&str> = (0..=9).map(|max| head(text, max)).collect();
        assert_eq!(heads, ["", "a", "a", "añ", "añb", "añb", "añb", "añb→", text, text]);
        let tails: Vec<&str> = (0..=9).map(|max| tail(text, max)).collect();
        assert_eq!(tails, ["", "c", "c", "c", "→c", "b→c", "b→c", "ñb→c", text, text]);
        assert_eq!((head("", 3), tail("", 3)), ("", ""));
    }
}
