//! Subjects as an operator names them.
//!
//! Invariant: an API key is hashed here and goes no further; one that stands on a command line,
//! where others can read it, is refused.

use super::Subject;
use crate::secret::{bearer, tenant_of};

/// Shortest text that may be forgotten, characters: a shorter one is in too much.
pub const TEXT_CHARS_MIN: usize = 4;

/// Why a subject is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// Not the hash of a tenant.
    #[error(
        "a tenant is named by its hash (32 hex digits, or anonymous); an API key is never given on \
         the command line: use --tenant - and standard input"
    )]
    NotAHash,
    /// There is no key in what was given.
    #[error("no API key was given on standard input")]
    NoKey,
    /// The text would be found in too much.
    #[error("a text needs at least {TEXT_CHARS_MIN} characters")]
    TooShort,
}

/// The tenants that an API key may belong to: as a bare key, and as a bearer token.
pub fn of_key(secret: &[u8; 32], key: &str) -> Result<Vec<Subject>, SubjectError> {
    let bare = bearer(key).unwrap_or(key).trim();
    if bare.is_empty() {
        return Err(SubjectError::NoKey);
    }
    let credentials = [bare.to_owned(), format!("Bearer {bare}")];
    let of = |credential: &String| Subject::Tenant(tenant_of(secret, Some(credential)));
    Ok(credentials.iter().map(of).collect())
}

/// A tenant by its hash.
pub fn of_tenant(hash: &str) -> Result<Vec<Subject>, SubjectError> {
    let hex = hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    if hex || hash == "anonymous" {
        return Ok(vec![Subject::Tenant(hash.to_owned())]);
    }
    Err(SubjectError::NotAHash)
}

/// A text.
pub fn of_text(text: &str) -> Result<Vec<Subject>, SubjectError> {
    if text.chars().count() < TEXT_CHARS_MIN {
        return Err(SubjectError::TooShort);
    }
    Ok(vec![Subject::Text(text.to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_tenant_with_and_without_its_scheme_and_never_itself() {
        let secret = [3; 32];
        let of = |credential: &str| Subject::Tenant(tenant_of(&secret, Some(credential)));
        let wanted = vec![of("sk-1"), of("Bearer sk-1")];
        for given in ["sk-1\n", "Bearer sk-1", "bearer  sk-1"] {
            assert_eq!(of_key(&secret, given), Ok(wanted.clone()), "{given}");
        }
        for none in ["", " \n", "Bearer "] {
            assert_eq!(of_key(&secret, none), Err(SubjectError::NoKey), "{none:?}");
        }
        assert_eq!(of_tenant("sk-1"), Err(SubjectError::NotAHash));
        assert!(of_tenant(&tenant_of(&secret, Some("sk-1"))).is_ok());
        assert_eq!(of_text("abc"), Err(SubjectError::TooShort));
    }
}
