//! What is wanted of a shell, in words, as a command, and how it is checked.
//!
//! Invariant: a goal is checked by what is in the scratch directory, or by what a command really
//! wrote, never by the command's text.

use crate::sandbox::{Ran, Sandbox};

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Make a directory.
    Mkdir,
    /// Make an empty file.
    Touch,
    /// Remove a file.
    Remove,
    /// Show a file.
    Show,
    /// Copy a file.
    Copy,
    /// Rename a file.
    Move,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Mkdir, Self::Touch, Self::Remove, Self::Show, Self::Copy, Self::Move];

    /// The program.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mkdir => "mkdir",
            Self::Touch => "touch",
            Self::Remove => "rm",
            Self::Show => "cat",
            Self::Copy => "cp",
            Self::Move => "mv",
        }
    }

    /// Whether it has a source and a target.
    pub fn takes_two(self) -> bool {
        matches!(self, Self::Copy | Self::Move)
    }
}

/// One goal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// What to do.
    pub verb: Verb,
    /// With this file, where it takes one that exists.
    pub file: String,
    /// Giving this, where it makes something.
    pub new: String,
}

impl Goal {
    /// In words.
    pub fn words(&self) -> String {
        let Self { verb, file, new } = self;
        match verb {
            Verb::Mkdir => format!("Make the directory {new}."),
            Verb::Touch => format!("Touch the new file {new}."),
            Verb::Remove => format!("Remove (rm) the file {file}."),
            Verb::Show => format!("Print {file} with cat."),
            Verb::Copy => format!("Copy (cp) {file} to {new}."),
            Verb::Move => format!("Move (mv) {file} to {new}."),
        }
    }

    /// A command that reaches it.
    pub fn command(&self) -> String {
        let (Self { file, new, .. }, word) = (self, self.verb.word());
        match self.verb {
            Verb::Mkdir | Verb::Touch => format!("{word} {new}"),
            Verb::Remove | Verb::Show => format!("{word} {file}"),
            Verb::Copy | Verb::Move => format!("{word} {file} {new}"),
        }
    }

    /// Whether it is reached. `before`: the text that the file had before the command ran.
    pub fn reached(&self, sandbox: &Sandbox, before: Option<&str>, ran: &Ran) -> bool {
        let (file, new) = (sandbox.read(&self.file), sandbox.read(&self.new));
        let same = before.is_some() && new.as_deref() == before;
        match self.verb {
            Verb::Mkdir => sandbox.is_dir(&self.new),
            Verb::Touch => new.as_deref() == Some(""),
            Verb::Remove => before.is_some() && file.is_none(),
            Verb::Show => before.is_some_and(|text| ran.output.contains(text.trim())),
            Verb::Copy => same && file.as_deref() == before,
            Verb::Move => same && file.is_none(),
        }
    }
}
