//! Bits of a turn's `flags`: what is doubtful about its bodies.
//!
//! Invariant: a bit never changes its meaning; any bit set keeps the turn out of training.

/// The request body could not be read as a conversation; it is stored raw.
pub const REQUEST_UNREAD: u32 = 1;
/// The response body could not be read as answers; it is stored raw.
pub const RESPONSE_UNREAD: u32 = 2;
/// The request body was longer than the capture limit.
pub const REQUEST_TRUNCATED: u32 = 4;
/// The response body was longer than the capture limit.
pub const RESPONSE_TRUNCATED: u32 = 8;
/// The response names more than one adapter generation, or another one than its header.
pub const GENERATION_CONFLICT: u32 = 16;
/// Some events of the stream could not be read; the response is stored raw too.
pub const BAD_EVENTS: u32 = 32;
/// A body could not be read, nor redacted safely as the route demands: it is not stored.
pub const BODY_WITHHELD: u32 = 1 << 16;
/// The content was deleted, by retention or on demand; only provenance is left.
pub const FORGOTTEN: u32 = 1 << 17;
/// The proxy or the spool lost the response.
pub const RESPONSE_LOST: u32 = 64;
/// The request only names its history, and the turn that it continues is not stored whole.
pub const HISTORY_MISSING: u32 = 128;
