//! What the process does when it is sent a signal, and what it tells systemd.
//!
//! | signal | effect |
//! |---|---|
//! | SIGTERM, SIGINT | stop accepting, let streams finish, end |
//! | SIGHUP | read policies, overrides, aliases and certificates again |
//! | SIGUSR2 | start the program anew with `--upgrade`: it takes the listeners over |
//!
//! Invariant: a signal never ends a stream before its grace period is over.

use std::ffi::OsString;
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::error::ProxyError;
use crate::swap::Watches;

/// The handlers, installed.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user2: Signal,
}

impl Signals {
    /// Installs the handlers. Must be called inside a runtime.
    pub(crate) fn install() -> Result<Self, ProxyError> {
        let on = |kind| {
            signal(kind).map_err(|source| ProxyError::Start { what: "signal handlers", source })
        };
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
            user2: on(SignalKind::user_defined2())?,
        })
    }

    /// Acts upon signals until the runtime ends. `upgrade` is the program and arguments that SIGUSR2
    /// starts.
    pub(crate) async fn listen(
        mut self,
        stop: CancellationToken,
        watches: Arc<Watches>,
        upgrade: Option<Vec<OsString>>,
    ) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => stop.cancel(),
                _ = self.interrupt.recv() => stop.cancel(),
                _ = self.hangup.recv() => reload(&watches).await,
                _ = self.user2.recv() => match &upgrade {
                    Some(command) => start_successor(command),
                    None => warn!("SIGUSR2: this proxy does not know how it was started"),
                },
            }
        }
    }
}

async fn reload(watches: &Arc<Watches>) {
    let watches = Arc::clone(watches);
    match tokio::task::spawn_blocking(move || watches.refresh()).await {
        Ok(found) if found.problems.is_empty() => {
            let policy_version = found.policy_version;
            info!(policy_version, "SIGHUP: policies, aliases and certificates read again");
        }
        Ok(found) => {
            warn!(problems = ?found.problems, "SIGHUP: what has a problem stays as it was")
        }
        Err(error) => error!(%error, "SIGHUP: reading failed"),
    }
}

/// Starts the successor beside this process; it says by itself when it is ready.
fn start_successor(command: &[OsString]) {
    let Some((program, arguments)) = command.split_first() else { return };
    let child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) => {
            return error!(%error, program = %program.display(), "no successor; this proxy goes on");
        }
    };
    info!(pid = child.id(), program = %program.display(), "SIGUSR2: successor started");
    // Only to be told of its failure, and to leave no zombie: it outlives this process.
    tokio::spawn(async move {
        let mut child = child;
        match child.wait().await {
            Ok(status) => warn!(%status, "the successor ended"),
            Err(error) => debug!(%error, "the successor cannot be waited for"),
        }
    });
}

/// Tells systemd, where it asked: this process serves now.
pub(crate) fn tell_ready() {
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
}

/// Tells systemd, where it asked: the service ends.
pub(crate) fn tell_stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "systemd was not told");
    }
}
