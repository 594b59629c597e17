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

/// Whether a process with this id runs, and we may signal it. One that ended and was not yet waited
/// for does not run; the id of a thread is none of a process.
pub fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let whole = field("Tgid:").and_then(|id| id.parse().ok()) == Some(pid);
    let ended = field("State:").is_some_and(|state| state.starts_with('Z'));
    whole && !ended && signal(pid, 0).is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_and_a_process_that_ended_are_no_process_that_runs() {
        assert!(is_alive(std::process::id()));
        // `/proc/thread-self` points at `<process>/task/<thread>`.
        let (stop, until) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = tell.send(std::fs::read_link("/proc/thread-self"));
            let _ = until.recv();
        });
        let link = told.recv().unwrap().unwrap();
        let id: u32 = link.file_name().unwrap().to_string_lossy().parse().unwrap();
        assert_ne!(id, std::process::id());
        assert!(signal(id, 0).is_ok() && !is_alive(id));
        drop(stop);
        thread.join().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while is_alive(child.id()) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
