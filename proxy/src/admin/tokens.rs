//! Who may use the admin listener: tokens with names, so that the audit trail can say who did what.
//!
//! Invariant: a token comes from a file that only its owner may read, and is compared in constant
//! time.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hone_shared::data_dir::DataDir;
use hone_shared::secret::same_token;

use crate::error::ProxyError;

/// Shortest token, characters.
const TOKEN_CHARS_MIN: usize = 16;
/// Most tokens.
const TOKENS_MAX: usize = 100;
/// Largest file, bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Name of the data directory's own token.
const OWN: &str = "admin";

/// All tokens.
pub struct Tokens(Vec<(String, String)>);

impl Tokens {
    /// The data directory's token, named `admin`, and those of `file`: one per line, `NAME TOKEN` or
    /// `TOKEN` alone (named `operator`); `#` begins a comment. Errors say what to do.
    pub fn load(data: &DataDir, file: Option<&Path>) -> Result<Self, ProxyError> {
        let mut all = vec![(OWN.to_owned(), data.admin_token()?)];
        if let Some(path) = file {
            let wrong = |problem: &str| {
                ProxyError::Config(format!("admin token file {}: {problem}", path.display()))
            };
            let meta = fs::metadata(path).map_err(|error| wrong(&error.to_string()))?;
            if meta.mode() & 0o077 != 0 {
                return Err(wrong("others may read it: chmod 600"));
            }
            if meta.len() > FILE_BYTES_MAX {
                return Err(wrong("it is too large"));
            }
            let text = fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
            parse(&text, &mut all).map_err(|problem| wrong(&problem))?;
        }
        Ok(Self(all))
    }

    /// The name of the token that was given.
    pub fn who(&self, given: &str) -> Option<&str> {
        // Every token is compared, so that the time does not tell which one it was.
        let all = self.0.iter().map(|(name, token)| (name, same_token(given, token)));
        all.fold(None, |found, (name, same)| if same { Some(name.as_str()) } else { found })
    }
}

fn parse(text: &str, all: &mut Vec<(String, String)>) -> Result<(), String> {
    let before = all.len();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (name, token) = match line.split_once(char::is_whitespace) {
            Some((name, token)) => (name, token.trim()),
            None => ("operator", line),
        };
        if token.len() < TOKEN_CHARS_MIN || token.contains(char::is_whitespace) {
            let at = at + 1;
            return Err(format!("line {at}: a token is {TOKEN_CHARS_MIN} characters or longer"));
        }
        all.push((name.to_owned(), token.to_owned()));
    }
    match all.len() - before {
        0 => Err("it holds no token: write `NAME TOKEN` lines".to_owned()),
        found if found > TOKENS_MAX => Err(format!("it holds more than {TOKENS_MAX} tokens")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn load(text: &str, mode: u32) -> Result<Tokens, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        Tokens::load(&DataDir::new(dir.path()), Some(&file)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_has_a_name_and_anything_else_has_none() {
        let text = "# operators\nalice 0123456789abcdef\n\nbob\tfedcba9876543210 # on call\n";
        let tokens = load(text, 0o600).unwrap();
        assert_eq!(tokens.who("0123456789abcdef"), Some("alice"));
        assert_eq!(tokens.who("fedcba9876543210"), Some("bob"));
        for wrong in ["", "0123456789abcde", "0123456789abcdeF", "alice 0123456789abcdef"] {
            assert_eq!(tokens.who(wrong), None, "{wrong}");
        }
        assert_eq!(
            load("0123456789abcdef", 0o400).unwrap().who("0123456789abcdef"),
            Some("operator")
        );
    }

    #[test]
    fn a_file_that_others_may_read_or_that_holds_no_token_is_refused() {
        let wide = load("0123456789abcdef", 0o640).err().unwrap();
        assert!(wide.contains("chmod 600"), "{wide}");
        let short = load("\nalice short", 0o600).err().unwrap();
        assert!(short.contains("line 2") && !short.contains("alice"), "{short}");
        assert!(load("# nothing\n", 0o600).err().unwrap().contains("no token"));
    }
}
