//! Pieces of a response that is still on its way: handed over early, so that a long stream holds
//! little memory and a proxy that dies leaves what its clients had read.
//!
//! Invariant: the parts of a turn follow each other without a gap, from the first byte of its body
//! on, and lie between its [`Begin`](super::Begin) and its [`Done`], which says where they end.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Done, Generation, Headers, Outcome, TurnId};

/// The next bytes of a response that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Identity of the turn.
    pub turn_id: TurnId,
    /// Where in the response's body `body` begins, bytes.
    pub at: u64,
    /// From the arrival of the request to the last of these bytes, milliseconds.
    pub after_ms: u64,
    /// What was known of the response; on the first part only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Box<PartHead>>,
    /// The bytes.
    #[serde(skip)]
    pub body: Bytes,
}

/// What is known of a response before it has ended. The fields are those of [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartHead {
    /// HTTP status sent to the client.
    pub status: u16,
    /// The response headers on the allow list.
    pub headers: Headers,
    /// From arrival to the first body byte, milliseconds.
    pub first_byte_ms: Option<u64>,
    /// The generation that the engine says produced the response.
    pub generation: Option<Generation>,
}

impl PartHead {
    /// The end of a turn whose proxy died while `body` was all that it had handed over, so many
    /// milliseconds after the request came.
    pub fn crashed(self, turn_id: TurnId, body: Bytes, after_ms: u64) -> Done {
        Done {
            turn_id,
            status: self.status,
            outcome: Outcome::ProxyCrash,
            headers: self.headers,
            first_byte_ms: self.first_byte_ms,
            duration_ms: after_ms,
            generation: self.generation,
            attempts: 0,
            body_len: body.len() as u64,
            body,
            body_at: 0,
            body_truncated: true,
            body_cut: None,
        }
    }
}
