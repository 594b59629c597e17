//! The tap: copies the bytes of a turn as they pass, and hands them over.
//!
//! * [`capture`]: one body, up to a cap. * [`turn`]: the two halves of a turn and when each is handed over.
//! * [`recorder`]: the way into the spool, and the books about every turn that did not get there.
//!
//! Invariant: the tap copies bytes. It never parses, never allocates per SSE chunk beyond the amortised growth of one
//! vector, never locks and never awaits while a request is in flight.

pub mod capture;
pub mod recorder;
pub mod turn;

pub use self::recorder::Recorder;
pub use self::turn::Tap;
