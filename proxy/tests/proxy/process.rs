//! The proxy as a process of its own, where signals, sudden death and upgrades matter: this binary,
//! run again.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use hone_proxy::{KeyFiles, ListenTls};
use hone_shared::data_dir::{DataDir, RunFile};

use crate::harness::{config, eventually};

const DATA: &str = "HONE_PROXY_TEST_DATA";
const UPSTREAM: &str = "HONE_PROXY_TEST_UPSTREAM";
const LISTEN: &str = "HONE_PROXY_TEST_LISTEN";
const ADMIN: &str = "HONE_PROXY_TEST_ADMIN";
const TLS: &str = "HONE_PROXY_TEST_TLS";
const UPGRADE: &str = "HONE_PROXY_TEST_UPGRADE";
const ARGUMENTS: [&str; 3] = ["--exact", "process::proxy_process", "--nocapture"];

/// Not a test: the proxy process of other tests.
#[test]
fn proxy_process() {
    let Ok(data) = std::env::var(DATA) else { return };
    let upstream = std::env::var(UPSTREAM).unwrap().parse().unwrap();
    let mut cfg = config(Path::new(&data), upstream);
    let address = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    cfg.listen = address(LISTEN).unwrap_or(cfg.listen);
    cfg.admin = address(ADMIN).unwrap_or(cfg.admin);
    cfg.listen_tls = std::env::var(TLS).ok().map(|text| {
        let parts: Vec<&str> = text.split(' ').collect();
        let files = KeyFiles { certificate: parts[1].into(), key: parts[2].into() };
        ListenTls { address: parts[0].parse().unwrap(), files }
    });
    cfg.upgrade = std::env::var_os(UPGRADE).is_some();
    let mut successor = vec!["env".into(), format!("{UPGRADE}=1").into()];
    successor.push(std::env::current_exe().unwrap().into());
    successor.extend(ARGUMENTS.map(Into::into));
    cfg.upgrade_command = Some(successor);
    hone_proxy::run(cfg).unwrap();
}

/// A running proxy process; killed when dropped.
pub struct Process(pub Child);

impl Process {
    /// Starts one on free ports and waits until it is ready.
    pub async fn start(data: &DataDir, upstream: SocketAddr) -> (Self, RunFile) {
        Self::ready(data, command(data, upstream)).await
    }

    /// Starts one that takes over from the running one, which listens where `old` says.
    pub async fn upgrade(data: &DataDir, upstream: SocketAddr, old: &RunFile) -> (Self, RunFile) {
        let mut command = command(data, upstream);
        command.env(LISTEN, &old.address).env(ADMIN, old.admin_address.as_deref().unwrap());
        command.env(UPGRADE, "1");
        Self::ready(data, command).await
    }

    /// Starts one that listens with TLS too, taking over from `old` if there is one.
    pub async fn start_tls(
        data: &DataDir,
        upstream: SocketAddr,
        tls: &ListenTls,
        old: Option<&RunFile>,
    ) -> (Self, RunFile) {
        let mut command = command(data, upstream);
        let KeyFiles { certificate, key } = &tls.files;
        let text = format!("{} {} {}", tls.address, certificate.display(), key.display());
        command.env(TLS, text);
        if let Some(old) = old {
            command.env(LISTEN, &old.address).env(ADMIN, old.admin_address.as_deref().unwrap());
            command.env(UPGRADE, "1");
        }
        Self::ready(data, command).await
    }

    async fn ready(data: &DataDir, mut command: Command) -> (Self, RunFile) {
        let child = command.spawn().unwrap();
        let id = child.id();
        let process = Self(child);
        let file = || RunFile::read(data, "proxy").unwrap().filter(|file| file.pid == id);
        eventually("the proxy process is ready", || file().is_some()).await;
        (process, file().unwrap())
    }

    /// Sends a signal, such as `-TERM`.
    pub fn signal(&self, name: &str) {
        signal(name, self.0.id());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

fn command(data: &DataDir, upstream: SocketAddr) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(ARGUMENTS).stdout(Stdio::null());
    command.env(DATA, data.path()).env(UPSTREAM, upstream.to_string());
    command
}

/// Sends a signal to a process that is perhaps not a child.
pub fn signal(name: &str, id: u32) {
    assert!(Command::new("kill").args([name, &id.to_string()]).status().unwrap().success());
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
