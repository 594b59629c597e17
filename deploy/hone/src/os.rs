//! The two calls to the operating system that the standard library lacks: send a signal, lower our
//! priority.
//!
//! The only module of this crate in which `unsafe` is allowed; each call passes plain integers.
#![allow(unsafe_code)]

use std::io;

/// Asks the process to end (SIGTERM).
pub fn terminate(pid: u32) -> io::Result<()> {
    signal(pid, libc::SIGTERM)
}

/// Whether a process with this id runs. One that ended and was not yet waited for does not.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name of the program, in parentheses, may hold anything.
    let ended = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
    !ended && signal(pid, 0).is_ok()
}

/// Adds to our niceness, so that serving goes before training.
pub fn lower_priority(niceness: i32) -> io::Result<()> {
    // SAFETY: setpriority takes three integers; `who` 0 is this process.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn signal(pid: u32, number: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    if pid <= 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill takes two integers; the pid is positive, so no process group is addressed.
    let result = unsafe { libc::kill(pid, number) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
