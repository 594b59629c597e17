//! The tap: copies the bytes of a turn as they pass, and hands them over.
//!
//! * [`capture`]: one body, up to a cap. [`ends`]: what is left of one beyond it.
//! * [`turn`]: the two halves of a turn and when each is handed over.
//! * [`rest`]: the prompt of a request that never reached an engine.
//! * [`recorder`]: the way into the spool, and the books about every turn that did not get there.
//!
//! Invariant: the tap copies bytes. For a chunk it never parses, never locks, never awaits, and
//! allocates only when a block of its capture is full. The spool's queue has a lock, which is
//! taken twice per turn, for the time of a push, and never across I/O.

pub mod capture;
pub mod ends;
pub mod recorder;
pub mod rest;
pub mod turn;

pub use self::recorder::Recorder;
pub use self::turn::Tap;
