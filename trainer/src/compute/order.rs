//! Tasks that threads take in one order, the largest first, so that nobody waits long for the last.
//!
//! Invariant: each task runs once; what it computes does not depend on who runs it.

use rayon::prelude::*;

/// Something to do on some thread of the pool.
pub(super) type Task<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Runs all tasks on the current pool: a thread that is free takes the next one.
pub(super) fn run(tasks: Vec<Task<'_>>) {
    tasks.into_iter().par_bridge().for_each(|task| task());
}
