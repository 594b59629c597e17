//! What kind of thing happened after an answer: the word that picks a judge's rubric.
//!
//! The kind is detected from what is there, or stated by the route's policy; it stands on every
//! verdict, so that verdicts can be replayed and compared kind by kind.
//!
//! Invariant: the words are part of stored rows, policy file names and case files; none is renamed.

use serde::{Deserialize, Serialize};

use crate::turn::{TurnError, words};

/// The kind of a next state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateKind {
    /// A person's reply.
    Chat,
    /// A person's reply to code, or what running that code showed.
    Code,
    /// Output of a shell, with its exit code.
    Terminal,
    /// Results of tool calls.
    Tool,
    /// A repository being changed: diffs, patches, test verdicts.
    Swe,
    /// A screen or a page: DOM or accessibility text, images, addresses.
    Gui,
}

words!(StateKind, "kind of next state (chat, code, terminal, tool, swe, gui)", {
    Chat = "chat", Code = "code", Terminal = "terminal", Tool = "tool", Swe = "swe", Gui = "gui",
});
