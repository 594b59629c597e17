//! Lists of regular expressions, compiled into one automaton each.
//!
//! Texts and expressions are folded first: accents and typographic quotes become their plain ASCII
//! letters and signs, zero-width characters go, so that «c’était» and «c'etait» are the same and an
//! automaton needs no slow path for them. `\b` means an ASCII word boundary for the same reason.
//!
//! A list is compiled when it is read, so that a fault is found then, and once more when a text first
//! meets it: the automata of all judges take 16 MiB, and a proxy reads policies but judges nothing.
//!
//! Invariant: a text is matched in linear time.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use regex::{RegexBuilder, RegexSet, RegexSetBuilder};

use crate::policy::PolicyError;
use crate::policy::limits::Checker;

/// Most patterns of one list.
const PATTERNS_MAX: usize = 400;
/// Compiled size of one pattern, bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// Compiled size of one list, bytes.
const LIST_BYTES_MAX: usize = 32 << 20;

/// The automaton of a sound list, once it was needed.
type Automaton = Arc<OnceLock<RegexSet>>;

/// Lists that were found sound, by the hash of their sources: judges that rest on one another share
/// most of theirs, and a directory is read again whenever a file of it changes.
static COMPILED: LazyLock<Mutex<HashMap<[u8; 32], Automaton>>> = LazyLock::new(Mutex::default);
/// Most lists that are kept.
const COMPILED_MAX: usize = 256;

/// Regular expressions: case-insensitive, `^` and `$` at line ends, of which any may match.
#[derive(Clone, Default)]
pub struct Patterns {
    set: Automaton,
    sources: Vec<String>,
}

impl Patterns {
    /// Compiles a list. Error: the expression that does not compile, and what the compiler says.
    pub fn new(sources: Vec<String>) -> Result<Self, (String, String)> {
        if sources.is_empty() {
            return Ok(Self::default());
        }
        let key = blake3::hash(sources.join("\0").as_bytes());
        let lock = || COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = lock().get(key.as_bytes()) {
            return Ok(Self { set: Arc::clone(set), sources });
        }
        compile(&sources)?;
        let set = Automaton::default();
        let mut compiled = lock();
        if compiled.len() >= COMPILED_MAX {
            compiled.clear();
        }
        compiled.insert(*key.as_bytes(), Arc::clone(&set));
        Ok(Self { set, sources })
    }

    /// Compiles the list of a policy's key.
    pub(super) fn check(
        check: &Checker<'_>,
        key: &str,
        sources: Vec<String>,
    ) -> Result<Self, PolicyError> {
        if sources.len() > PATTERNS_MAX {
            let found = format!("a list of {}", sources.len());
            return Err(check.refuse(key, &found, format!("at most {PATTERNS_MAX} patterns")));
        }
        Self::new(sources).map_err(|(source, problem)| {
            let allowed = format!("a regular expression ({problem})");
            check.refuse(key, &format!("'{source}'"), allowed)
        })
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// The first expression of the list that occurs in a text, as it was written.
    pub fn first(&self, text: &str) -> Option<&str> {
        let at = self.set()?.matches(&fold(text)).iter().next()?;
        self.sources.get(at).map(String::as_str)
    }

    /// The automaton; `None` for an empty list.
    fn set(&self) -> Option<&RegexSet> {
        // It was compiled before, so it can be.
        let compiled = || compile(&self.sources).unwrap_or_else(|_| RegexSet::empty());
        (!self.is_empty()).then(|| self.set.get_or_init(compiled))
    }

    /// Whether any of them occurs in a text.
    pub fn is_match(&self, text: &str) -> bool {
        self.set().is_some_and(|set| set.is_match(&fold(text)))
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.sources, f)
    }
}

impl PartialEq for Patterns {
    fn eq(&self, other: &Self) -> bool {
        self.sources == other.sources
    }
}

/// One automaton for a list; each expression by itself first, so that a fault has a name.
fn compile(sources: &[String]) -> Result<RegexSet, (String, String)> {
    let mut prepared = Vec::with_capacity(sources.len());
    for source in sources {
        let expression = prepare(source);
        let mut one = RegexBuilder::new(&expression);
        one.case_insensitive(true).multi_line(true).size_limit(PATTERN_BYTES_MAX);
        one.build().map_err(|error| (source.clone(), error.to_string()))?;
        prepared.push(expression);
    }
    let mut all = RegexSetBuilder::new(&prepared);
    all.case_insensitive(true).multi_line(true).size_limit(LIST_BYTES_MAX);
    all.build().map_err(|error| ("the whole list".to_owned(), error.to_string()))
}

/// A folded expression whose word boundaries are ASCII ones.
fn prepare(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 16);
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            match folded(c) {
                Some("...") => out.push_str(r"\.\.\."),
                Some(plain) => out.push_str(plain),
                None => out.push(c),
            }
            continue;
        }
        match chars.next() {
            Some('b') if chars.peek() != Some(&'{') => out.push_str(r"(?-u:\b)"),
            Some(escaped) => out.extend(['\\', escaped]),
            None => out.push('\\'),
        }
    }
    out
}

/// The text that patterns see.
pub fn fold(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match folded(c) {
            Some(plain) => out.push_str(plain),
            None => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn folded(c: char) -> Option<&'static str> {
    if c.is_ascii() {
        return None;
    }
    Some(match c {
        'à'..='å' | 'À'..='Å' => "a",
        'æ' | 'Æ' => "ae",
        'ç' | 'Ç' => "c",
        'è'..='ë' | 'È'..='Ë' => "e",
        'ì'..='ï' | 'Ì'..='Ï' => "i",
        'ñ' | 'Ñ' => "n",
        'ò'..='ö' | 'ø' | 'Ò'..='Ö' | 'Ø' => "o",
        'œ' | 'Œ' => "oe",
        'ß' | 'ẞ' => "ss",
        'ù'..='ü' | 'Ù'..='Ü' => "u",
        'ý' | 'ÿ' | 'Ý' => "y",
        '‘' | '’' | '‚' | '´' | '′' => "'",
        '“' | '”' | '„' | '«' | '»' => "\"",
        '‐'..='―' => "-",
        '…' => "...",
        '\u{a0}' | '\u{202f}' => " ",
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => "",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(sources: &[&str]) -> Patterns {
        Patterns::new(sources.iter().map(|s| (*s).to_owned()).collect()).unwrap()
    }

    #[test]
    fn accents_and_quotes_make_no_difference_on_either_side() {
        let found = list(&[r"\bc'était\b", r"\bgrößer\b", "doesn't"]);
        for text in [
            "c’etait bien",
            "C'ÉTAIT",
            "etwas größer bitte",
            "it doesn’t",
            "zero\u{200b}grosser".trim_start_matches("zero"),
        ] {
            assert!(found.is_match(text), "{text}");
        }
        assert!(!found.is_match("vergrossern"));
    }

    #[test]
    fn the_first_of_the_list_is_named_as_it_was_written() {
        let found = list(&[r"\bbé\b", r"\ba\b"]);
        assert_eq!(found.first("a be"), Some(r"\bbé\b"));
        assert_eq!(found.first("nothing"), None);
        assert_eq!(Patterns::default().first("x"), None);
    }

    #[test]
    fn a_backslash_before_a_b_that_is_escaped_stays() {
        assert_eq!(prepare(r"\\b\d…"), r"\\b\d\.\.\.");
        assert_eq!(prepare(r"\bx\B"), r"(?-u:\b)x\B");
    }
}
