//! What the allocator keeps of memory that was freed.
//!
//! jemalloc gives pages back ten seconds after they were last used. A proxy holds much for as long
//! as streams are open and little afterwards, so it gives them back at once; a trainer uses the same
//! pages again and again, and keeps jemalloc's ways.

use tikv_jemalloc_ctl::{Access, AsName, Error, Name};

/// How long freed pages are kept, milliseconds.
const KEPT_MS: isize = 100;

/// Gives freed memory back soon, in the arena of the calling thread and in all that are made later.
/// Call first. Errors: jemalloc knows no such setting.
pub fn give_back_soon() -> Result<(), Error> {
    let later: &Name = b"arenas.dirty_decay_ms\0".name();
    let first: &Name = b"arena.0.dirty_decay_ms\0".name();
    later.write(KEPT_MS)?;
    first.write(KEPT_MS)
}
