//! The name of an adapter generation, as it stands on turns, in headers and in the registry.
//!
//! Invariant: it is `base`, or 64 lower-case hex digits; nothing else can be made.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::TurnError;

/// Name of an adapter generation: `base` (no adapter) or the 64 lower-case hex digits of its
/// content hash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Generation(String);

impl Generation {
    /// The base model with no adapter.
    pub fn base() -> Self {
        Self("base".to_owned())
    }

    /// Whether this is the base model.
    pub fn is_base(&self) -> bool {
        self.0 == "base"
    }

    /// Reads `base` or 64 lower-case hex digits; anything else is an error.
    pub fn parse(text: &str) -> Result<Self, TurnError> {
        let hex = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex || text == "base" {
            return Ok(Self(text.to_owned()));
        }
        let found = text.chars().take(80).collect();
        Err(TurnError::UnknownWord { what: "generation (base or 64 hex digits)", found })
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 characters, for logs and people.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl Default for Generation {
    fn default() -> Self {
        Self::base()
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

impl FromStr for Generation {
    type Err = TurnError;

    fn from_str(text: &str) -> Result<Self, TurnError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Generation {
    type Error = TurnError;

    fn try_from(text: String) -> Result<Self, TurnError> {
        Self::parse(&text)
    }
}

impl From<Generation> for String {
    fn from(generation: Generation) -> Self {
        generation.0
    }
}
