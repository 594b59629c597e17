//! The new process's side: asks the running proxy for its listening sockets, and tells it when to
//! let go.
//!
//! Invariant: a socket is taken only for the address that this process was told to listen on; all
//! others are bound anew.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hone_shared::data_dir::DataDir;
use tracing::{info, warn};

use super::offer::{Hello, Sockets};
use super::wire;

/// How long the running proxy may take to answer: another upgrade may be under way.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two tries to reach it.
const PAUSE: Duration = Duration::from_millis(50);

/// What the running proxy gave, until it is told to let go.
#[derive(Debug)]
pub struct Inherited {
    link: UnixStream,
    /// Process id of the running proxy.
    pub pid: u32,
    sockets: Vec<(String, SocketAddr, OwnedFd)>,
}

/// Asks for the listeners. `None`: no proxy runs in this data directory. Blocks, at most for half a
/// minute. Errors: one runs, but does not answer.
pub fn take(data: &DataDir) -> io::Result<Option<Inherited>> {
    let since = Instant::now();
    loop {
        let link = match UnixStream::connect(data.proxy_socket()) {
            Ok(link) => link,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        match ask(link) {
            Ok(inherited) => return Ok(Some(inherited)),
            // It was replaced or stopped in this moment; whoever is there now is asked.
            Err(error) if is_gone(&error) && since.elapsed() < ANSWER => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::UnexpectedEof | Kind::BrokenPipe | Kind::ConnectionReset)
}

fn ask(link: UnixStream) -> io::Result<Inherited> {
    link.set_read_timeout(Some(ANSWER))?;
    link.set_write_timeout(Some(ANSWER))?;
    let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION").to_owned());
    let hello = Hello { hone: "upgrade".to_owned(), pid, version };
    wire::send(&link, &serde_json::to_string(&hello)?, &[])?;
    let (line, fds) = wire::receive(&link)?;
    let answer: Sockets = serde_json::from_str(&line)?;
    if fds.len() != answer.listeners.len() {
        let (said, came) = (answer.listeners.len(), fds.len());
        return Err(io::Error::other(format!("{said} listeners were named and {came} came")));
    }
    let named = answer.listeners.into_iter().zip(fds);
    let sockets = named.map(|(is, fd)| (is.name, is.address, fd)).collect();
    Ok(Inherited { link, pid: answer.pid, sockets })
}

impl Inherited {
    /// The listener of that name, if it is bound to `wanted` (port 0: to any port of the address).
    pub fn socket(&mut self, name: &str, wanted: SocketAddr) -> Option<TcpListener> {
        let fits = |is: &SocketAddr| match wanted.port() {
            0 => is.ip() == wanted.ip(),
            _ => *is == wanted,
        };
        let at = self.sockets.iter().position(|(is, address, _)| is == name && fits(address))?;
        let (_, address, fd) = self.sockets.swap_remove(at);
        info!(name, %address, "listener taken over");
        Some(TcpListener::from(fd))
    }

    /// Tells the running proxy to stop accepting. To be called when this process accepts. Blocks for
    /// a moment. That it does not answer is no error: it ended by itself.
    pub fn ready(self) {
        let told = wire::send(&self.link, "ready", &[]).and_then(|()| wire::receive(&self.link));
        match told {
            Ok((line, _)) if line == "draining" => info!(pid = self.pid, "the old proxy drains"),
            Ok((line, _)) => warn!(pid = self.pid, line, "the old proxy said something else"),
            Err(error) => warn!(pid = self.pid, %error, "the old proxy did not answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use super::super::offer::{Offer, Socket};
    use super::*;

    fn offer(data: &DataDir, tcp: &TcpListener) -> Offer {
        let fd = tcp.as_fd().try_clone_to_owned().unwrap();
        let socket = Socket { name: "data", address: tcp.local_addr().unwrap(), fd };
        Offer::open(data, vec![socket], Duration::from_secs(5)).unwrap()
    }

    async fn taken(data: &DataDir) -> Option<Inherited> {
        let data = data.clone();
        tokio::task::spawn_blocking(move || take(&data).unwrap()).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_listener_changes_hands_only_when_the_successor_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        data.create().unwrap();
        assert!(taken(&data).await.is_none(), "nobody runs");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let offer = offer(&data, &tcp);
        let mode = std::fs::metadata(data.proxy_socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let old = tokio::spawn(offer.handed_over());

        drop(taken(&data).await.unwrap());
        let mut second = taken(&data).await.unwrap();
        assert!(!old.is_finished(), "a successor that died changes nothing");
        assert!(second.socket("admin", address).is_none());
        assert!(second.socket("data", "127.0.0.1:1".parse().unwrap()).is_none());
        let inherited = second.socket("data", "127.0.0.1:0".parse().unwrap()).unwrap();
        drop(tcp);
        let client = TcpStream::connect(address).unwrap();
        assert_eq!(inherited.accept().unwrap().1, client.local_addr().unwrap());
        let path = data.proxy_socket();
        let successor = move || {
            second.ready();
            let left = path.exists();
            std::fs::write(&path, b"the successor's own").unwrap();
            left
        };
        let left = tokio::task::spawn_blocking(successor).await.unwrap();
        assert!(!left, "the path is free when the successor hears that it may go on");
        assert_eq!(old.await.unwrap(), std::process::id());
        assert!(data.proxy_socket().exists(), "what lies there now is the successor's");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_newer_process_takes_the_path_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        data.create().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let (old, new) = (offer(&data, &tcp), offer(&data, &tcp));
        drop(old);
        assert!(data.proxy_socket().exists());
        drop(new);
        assert!(!data.proxy_socket().exists());
    }
}
