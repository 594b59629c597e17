//! Client programs, the origin that some of them talk to, and the real `hone proxy` in front of it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use hone_shared::data_dir::{DataDir, RunFile};
use serde_json::Value;

use super::{hone, logs, wait_for};

/// A file of `tests/clients/`.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

fn python() -> String {
    std::env::var("HONE_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Runs a program of `tests/clients/`; the JSON document that it printed. A failure shows what it
/// said.
pub fn run(program: &str, arguments: &[&str]) -> Value {
    let interpreter = if program.ends_with(".mjs") { "node".into() } else { python() };
    let output = Command::new(&interpreter)
        .arg(file(program))
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{interpreter}: {error}; use deploy/test.sh"));
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {said}\n{errors}");
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{program}: {error}: {said}{errors}"))
}

/// `origin.py`; ends with this guard.
pub struct Origin {
    process: Child,
    _stdin: ChildStdin,
    pub url: String,
}

impl Origin {
    pub fn start() -> Self {
        let mut process = Command::new(python())
            .arg(file("origin.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("HONE_PYTHON names a Python: use deploy/test.sh");
        let stdin = process.stdin.take().expect("stdin");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("stdout")).read_line(&mut line).unwrap();
        let url = line.trim().to_owned();
        assert!(url.starts_with("http://"), "the origin did not start: {url:?}");
        Self { process, _stdin: stdin, url }
    }
}

/// The real `hone proxy`, by itself, observing every path under `/v1/`.
pub struct Front {
    process: Child,
    pub url: String,
    pub home: tempfile::TempDir,
}

const EVERYTHING: &str = "mode = \"observe\"\nalias = \"main\"\njudge = \"chat\"\ngate = \"chat\"\n\
                          [matches]\npaths = [\"/v1/*\"]\n";

impl Front {
    /// Starts it in front of `engine`, a base URL without a path.
    pub fn start(engine: &str) -> Self {
        let home = tempfile::tempdir().expect("temporary directory");
        let data = DataDir::new(home.path());
        data.create().expect("data directory");
        let policies = data.policies_dir();
        hone_shared::policy::install_builtin(&policies).expect("policies");
        for route in std::fs::read_dir(policies.join("routes")).unwrap() {
            std::fs::remove_file(route.unwrap().path()).unwrap();
        }
        std::fs::write(policies.join("routes/all.toml"), EVERYTHING).unwrap();
        let any = "127.0.0.1:0";
        let process = hone()
            .args(["proxy", "--listen", any, "--admin", any, "--engine", engine, "--data"])
            .arg(home.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("hone proxy starts");
        let ready = || RunFile::read(&data, "proxy").ok().flatten();
        let file = wait_for(Duration::from_secs(30), "hone proxy", ready);
        Self { process, url: format!("http://{}", file.address), home }
    }

    pub fn data(&self) -> DataDir {
        DataDir::new(self.home.path())
    }

    /// Ends it and waits until everything is stored; the data directory stays until the guard is
    /// dropped.
    pub fn stop(&mut self) {
        super::signal("TERM", self.process.id());
        let ended = || self.process.try_wait().unwrap();
        let status = wait_for(Duration::from_secs(60), "the end of hone proxy", ended);
        assert!(status.success(), "{}", logs(self.home.path()));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
