//! A proxy in a process of its own, whose memory can be measured.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hone_shared::data_dir::{DataDir, RunFile};

use crate::harness::{config, eventually, write_policies};

const CHILD_DATA: &str = "HONE_DOOR_TEST_DATA";
const CHILD_UPSTREAM: &str = "HONE_DOOR_TEST_UPSTREAM";

/// Not a test: the process of the tests below, which run this binary again.
#[test]
fn proxy_process() {
    let Ok(data) = std::env::var(CHILD_DATA) else { return };
    let upstream = std::env::var(CHILD_UPSTREAM).unwrap().parse().unwrap();
    let mut cfg = config(Path::new(&data), upstream);
    cfg.limits.client_write_ms = 3000;
    hone_proxy::run(cfg).unwrap();
}

/// The process; ended when dropped.
pub struct Process {
    child: Child,
    _dir: tempfile::TempDir,
    pub address: SocketAddr,
}

impl Process {
    pub async fn start(upstream: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        data.create().unwrap();
        write_policies(&data, "observe");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::proxy_process", "--nocapture"])
            .env(CHILD_DATA, dir.path())
            .env(CHILD_UPSTREAM, upstream.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let id = child.id();
        let file = || RunFile::read(&data, "proxy").unwrap().filter(|file| file.pid == id);
        eventually("the proxy process is ready", || file().is_some()).await;
        let address = file().unwrap().address.parse().unwrap();
        Self { child, _dir: dir, address }
    }

    /// Resident memory, KiB.
    pub fn rss_kib(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
