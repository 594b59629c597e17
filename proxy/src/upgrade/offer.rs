//! The old process's side: waits for a successor and gives it the listening sockets.
//!
//! Invariant: only a process of the same user is answered, one at a time; the path is removed once, if
//! it is still ours, and before the successor is told that it may take it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hone_shared::data_dir::DataDir;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tracing::{info, warn};

use super::wire;

/// How long a process that connected may take to say hello.
const HELLO: Duration = Duration::from_secs(10);
/// After an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What a successor says first.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// `upgrade`.
    pub hone: String,
    /// Process id of the successor.
    pub pid: u32,
    /// Its version.
    pub version: String,
}

/// What it is answered; one descriptor for each listener comes with it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sockets {
    /// Process id of the old process.
    pub pid: u32,
    /// What the descriptors are, in their order.
    pub listeners: Vec<Described>,
}

/// One listening socket in words.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Described {
    /// [`super::DATA`], [`super::ADMIN`] …
    pub name: String,
    /// Where it is bound.
    pub address: SocketAddr,
}

/// A listening socket that can be given away.
#[derive(Debug)]
pub struct Socket {
    /// [`super::DATA`], [`super::ADMIN`] …
    pub name: &'static str,
    /// Where it is bound.
    pub address: SocketAddr,
    /// A descriptor of its own.
    pub fd: OwnedFd,
}

/// The offer, open until dropped.
#[derive(Debug)]
pub struct Offer {
    listener: UnixListener,
    path: Arc<OwnPath>,
    sockets: Arc<Vec<Socket>>,
    ready: Duration,
}

/// The path of the offer with the number of its socket, until it is removed.
#[derive(Debug)]
struct OwnPath(Mutex<Option<(PathBuf, u64)>>);

impl OwnPath {
    /// Removes the path if it is still ours. Who comes second waits for the first and does nothing:
    /// by then the path may be a successor's.
    fn remove(&self) {
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((path, inode)) = own.take() else { return };
        let ours = fs::metadata(&path).is_ok_and(|meta| meta.ino() == inode);
        if ours && let Err(error) = fs::remove_file(&path) {
            warn!(%error, path = %path.display(), "the socket of the proxy stays");
        }
    }
}

impl Offer {
    /// Opens `<data>/run/proxy.sock`, in the place of a former process's. A successor may take
    /// `ready` from hello to being ready. Must be called inside a runtime. Errors: the path is too
    /// long for a socket (about 100 bytes), or the directory cannot be written.
    pub fn open(data: &DataDir, sockets: Vec<Socket>, ready: Duration) -> io::Result<Self> {
        let path = data.proxy_socket();
        // Under a name of its own until nobody else may connect; then over the old one, at once.
        let temporary = path.with_extension(std::process::id().to_string());
        let removed = fs::remove_file(&temporary);
        removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        let listener = UnixListener::bind(&temporary)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        let inode = fs::metadata(&temporary)?.ino();
        fs::rename(&temporary, &path)?;
        let path = Arc::new(OwnPath(Mutex::new(Some((path, inode)))));
        Ok(Self { listener, path, sockets: Arc::new(sockets), ready })
    }

    /// Waits until a successor is ready; its process id. From then on this process must not accept
    /// any more. May be dropped at any time.
    pub async fn handed_over(self) -> u32 {
        let ours = rustix::process::getuid().as_raw();
        loop {
            let link = match self.listener.accept().await {
                Ok((link, _)) => link,
                Err(error) => {
                    warn!(%error, "cannot accept a successor");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if !link.peer_cred().is_ok_and(|peer| peer.uid() == ours) {
                warn!("a process of another user asked for the listeners and was refused");
                continue;
            }
            let Ok(link) = link.into_std() else { continue };
            let (sockets, path, ready) =
                (Arc::clone(&self.sockets), Arc::clone(&self.path), self.ready);
            let hand_over = move || hand_over(&link, &sockets, &path, ready);
            let handed = tokio::task::spawn_blocking(hand_over);
            match handed.await {
                Ok(Ok(pid)) => return pid,
                Ok(Err(error)) => warn!(%error, "the successor did not become ready; going on"),
                Err(error) => warn!(%error, "the hand-over failed; going on"),
            }
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.path.remove();
    }
}

fn hand_over(
    link: &UnixStream,
    sockets: &[Socket],
    path: &OwnPath,
    ready: Duration,
) -> io::Result<u32> {
    link.set_nonblocking(false)?;
    link.set_write_timeout(Some(HELLO))?;
    link.set_read_timeout(Some(HELLO))?;
    let (line, _) = wire::receive(link)?;
    let hello: Hello = serde_json::from_str(&line)?;
    info!(pid = hello.pid, version = hello.version, "a successor asks for the listeners");
    let described = |socket: &Socket| {
        let (name, address) = (socket.name.to_owned(), socket.address);
        Described { name, address }
    };
    let listeners = sockets.iter().map(described).collect();
    let answer = serde_json::to_string(&Sockets { pid: std::process::id(), listeners })?;
    let fds: Vec<_> = sockets.iter().map(|socket| socket.fd.as_fd()).collect();
    wire::send(link, &answer, &fds)?;
    link.set_read_timeout(Some(ready))?;
    let (line, _) = wire::receive(link)?;
    if line != "ready" {
        return Err(io::Error::other(format!("it said `{line}` instead of `ready`")));
    }
    // What lies there after the next line is the successor's own.
    path.remove();
    // It accepts already: whether it hears this changes nothing.
    if let Err(error) = wire::send(link, "draining", &[]) {
        warn!(%error, "the successor did not hear that this process drains");
    }
    Ok(hello.pid)
}
