//! From token bytes to text that can be sent: whole characters only, and nothing of a stop string.
//!
//! Invariant: the pieces of a reply, joined, are the same text however they were cut, and every
//! piece is valid UTF-8 by itself.

/// Joins token bytes into text, holding back a character until all its bytes are there.
#[derive(Debug, Default)]
pub struct Characters {
    tail: Vec<u8>,
}

impl Characters {
    /// Takes the bytes of a token, gives the text that is now certain. Bytes that can never be a
    /// character become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.tail.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.tail) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.tail.clear();
                    return text;
                }
                Err(error) => {
                    let (good, rest) = self.tail.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(good));
                    match error.error_len() {
                        None => {
                            self.tail = rest.to_vec();
                            return text;
                        }
                        Some(bad) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            self.tail = rest[bad..].to_vec();
                        }
                    }
                }
            }
        }
    }

    /// The end: an unfinished character becomes one U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.tail);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// Cuts the text at the first stop string, holding back what may become one.
#[derive(Debug, Default)]
pub struct Stops {
    stops: Vec<String>,
    held: String,
    hit: bool,
}

impl Stops {
    /// Stops at any of these (none empty).
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, ..Self::default() }
    }

    /// Whether a stop string was met: nothing comes any more.
    pub fn hit(&self) -> bool {
        self.hit
    }

    /// Takes text, gives what is certainly before any stop string.
    pub fn push(&mut self, text: &str) -> String {
        if self.hit {
            return String::new();
        }
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.hit = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let stops = self.stops.iter().map(String::as_str);
        let keep = partial_suffix(&self.held, stops);
        let tail = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, tail)
    }

    /// The end: what was held back was no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length in bytes of the longest end of `text` that begins one of `words` without being all of it.
pub fn partial_suffix<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> usize {
    words
        .map(|word| {
            let most = word.len().saturating_sub(1).min(text.len());
            (1..=most)
                .rev()
                .find(|n| word.is_char_boundary(*n) && text.ends_with(&word[..*n]))
                .unwrap_or(0)
        })
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_in_pieces_comes_out_whole() {
        let text = "aé😀z";
        for size in 1..=4 {
            let mut characters = Characters::default();
            let mut joined = String::new();
            for chunk in text.as_bytes().chunks(size) {
                let piece = characters.push(chunk);
                assert!(!piece.contains('\u{FFFD}'), "size {size}");
                joined.push_str(&piece);
            }
            joined.push_str(&characters.finish());
            assert_eq!(joined, text, "size {size}");
        }
    }

    #[test]
    fn broken_bytes_become_the_replacement_character_however_they_are_cut() {
        let bytes = b"a\xFFb\xF0\x9F\x98";
        let mut whole = Characters::default();
        let expected = whole.push(bytes) + &whole.finish();
        let mut cut = Characters::default();
        let mut joined: String = bytes.iter().map(|byte| cut.push(&[*byte])).collect();
        joined.push_str(&cut.finish());
        assert_eq!(joined, expected);
        assert_eq!(joined, "a\u{FFFD}b\u{FFFD}");
    }

    fn through(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut scanner = Stops::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut joined: String = pieces.iter().map(|piece| scanner.push(piece)).collect();
        joined.push_str(&scanner.finish());
        (joined, scanner.hit())
    }

    #[test]
    fn a_stop_string_across_pieces_never_leaks() {
        assert_eq!(through(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), true));
        assert_eq!(through(&["END"], &["one E", "N"]), ("one EN".to_owned(), false));
        assert_eq!(through(&["b", "ab"], &["xa", "b"]), ("x".to_owned(), true));
        assert_eq!(through(&["é!"], &["caf", "é", "!"]), ("caf".to_owned(), true));
        assert_eq!(through(&[], &["plain"]), ("plain".to_owned(), false));
    }

    #[test]
    fn held_text_is_released_as_soon_as_it_cannot_become_a_stop() {
        let mut scanner = Stops::new(vec!["\n\n".to_owned()]);
        assert_eq!(scanner.push("a\n"), "a");
        assert_eq!(scanner.push("b"), "\nb");
    }
}
