//! On which line of a policy file a key stands.
//!
//! Why: a value is checked after the file was read, when its place is no longer known; an operator
//! who is told the line needs no search.
//! Invariant: a line is either right or not given.

use toml::de::DeTable;

use super::PolicyError;

/// `, line 7`, or nothing.
pub(super) fn in_words(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
}

/// Adds the line to an error about a value in `text`.
pub(super) fn add_line(error: PolicyError, text: &str) -> PolicyError {
    match error {
        PolicyError::Invalid { file, line: None, key, found, allowed } => {
            let line = line_of(text, &key);
            PolicyError::Invalid { file, line, key, found, allowed }
        }
        other => other,
    }
}

/// The line of a dotted key. Keys of judges and gates may begin with `judge.` or `gate.`, which
/// stands for the file.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let whole = DeTable::parse(text).ok()?;
    let find = |key: &str| {
        let mut table = whole.get_ref();
        let mut parts = key.split('.').peekable();
        loop {
            let part = parts.next()?;
            let (found, value) = table.iter().find(|(name, _)| name.get_ref() == part)?;
            if parts.peek().is_none() {
                return Some(found.span().start);
            }
            table = value.get_ref().as_table()?;
        }
    };
    let inner = key.split_once('.').filter(|(first, _)| matches!(*first, "judge" | "gate"));
    let start = find(key).or_else(|| find(inner?.1))?;
    Some(text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::line_of;

    #[test]
    fn a_key_is_found_in_its_section_and_only_there() {
        let text = "rank = 1\n\n[train]\nrank = 2\n[train.stop]\nx = 1\n[llm]\nvotes = 3\n";
        assert_eq!(line_of(text, "rank"), Some(1));
        assert_eq!(line_of(text, "train.rank"), Some(4));
        assert_eq!(line_of(text, "train.stop.x"), Some(6));
        assert_eq!(line_of(text, "judge.llm.votes"), Some(8));
        assert_eq!(line_of(text, "train.alpha"), None);
        assert_eq!(line_of("not toml", "a"), None);
    }
}
