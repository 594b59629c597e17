//! The words that hone's proxy and trainer both speak.
//!
//! # Layout
//! * [`turn`]: what the tap records about one request and its response, and how a record is
//!   encoded.
//! * [`data_dir`]: where everything lives on disk. [`clock`]: wall time, and a hand-set one for
//!   tests.
//! * [`spool`]: append-only segments between the tap and the store; the first durable place of a
//!   turn.
//! * [`store`]: the SQLite database of turns, links, verdicts and rounds.
//! * [`toggle`]: a route's learning mode, changed at run time, with an audit row.
//! * [`text`]: the ends of a long text.
//! * [`feedback`]: what people and programs say about an answer or an episode.
//! * `wire`: parsers of request and response bodies. `link`: which turn a request continues.
//! * `policy`: the TOML files that say what is learned. `registry`: adapter generations and
//!   aliases.
//!
//! Invariant: nothing in this crate knows pingora, candle or an engine.

pub mod clock;
pub mod data_dir;
pub mod feedback;
pub mod forget;
pub mod link;
pub mod next_state;
mod pack;
pub mod policy;
pub mod redact;
pub mod registry;
pub mod secret;
pub mod spool;
pub mod store;
pub mod text;
pub mod toggle;
pub mod turn;
pub mod wire;
