//! A whole system for the tests: the real binary, the real engine, the real small model, a data
//! directory of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking
#![allow(dead_code)] // each test file uses its part

pub mod clients;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hone_shared::data_dir::{DataDir, RunFile};
use serde_json::{Value, json};

/// `hone up` in a temporary data directory.
pub struct Up {
    process: Child,
    pub base_url: String,
    pub home: tempfile::TempDir,
}

/// The directory of the small model; a test without it must fail, not pass.
pub fn model_dir() -> PathBuf {
    let dir = match std::env::var_os("HONE_MODEL_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").expect("HOME"))
            .join(".local/share/hone/models/smollm2-135m"),
    };
    assert!(
        dir.join("model.safetensors").is_file(),
        "no model in {}: run `hone model get smollm2-135m`, or deploy/test.sh",
        dir.display()
    );
    dir
}

/// The `hone` binary under test.
pub fn hone() -> Command {
    Command::new(env!("CARGO_BIN_EXE_hone"))
}

impl Up {
    /// Starts the system; `prepare` may edit the built-in policies first, given their directory.
    pub fn start(prepare: impl FnOnce(&Path)) -> Up {
        let home = tempfile::tempdir().expect("temporary directory");
        let data = DataDir::new(home.path());
        data.create().expect("data directory");
        hone_shared::policy::install_builtin(&data.policies_dir()).expect("policies");
        prepare(&data.policies_dir());
        let mut process = hone()
            .args(["up", "--listen", "127.0.0.1:0", "--grace-ms", "20000"])
            .arg("--data")
            .arg(home.path())
            .arg("--model")
            .arg(model_dir())
            .stdout(Stdio::piped())
            .spawn()
            .expect("hone up starts");
        let mut lines = BufReader::new(process.stdout.take().expect("stdout")).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        let url = first.strip_prefix("base_url").map(str::trim).unwrap_or_default();
        assert!(!url.is_empty(), "hone up did not become ready: {first:?}\n{}", logs(home.path()));
        let base_url = url.trim_end_matches("/v1").to_string();
        // Keep reading, so that the child never writes into a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Up { process, base_url, home }
    }

    pub fn data(&self) -> DataDir {
        DataDir::new(self.home.path())
    }

    /// Process id of `backend`, `proxy` or `trainer`, once it has said so.
    pub fn run_file(&self, name: &str) -> RunFile {
        let data = self.data();
        wait_for(Duration::from_secs(60), name, || RunFile::read(&data, name).ok().flatten())
    }

    /// The engine's own address.
    pub fn engine_url(&self) -> String {
        format!("http://{}", self.run_file("backend").address)
    }

    /// Stops it while something still runs, asserts a clean end, and returns what that something
    /// saw.
    pub fn stop_during<T>(mut self, running: impl FnOnce() -> T) -> T {
        signal("TERM", self.process.id());
        let seen = running();
        assert!(self.wait_for_end().success(), "{}", self.logs());
        seen
    }

    /// Stops it, asserts a clean end, and leaves its data directory for inspection until the guard
    /// is dropped.
    pub fn stop_and_keep_data(mut self) -> Up {
        signal("TERM", self.process.id());
        assert!(self.wait_for_end().success(), "{}", self.logs());
        self
    }

    /// Stops it as Ctrl-C would, and returns how it ended.
    pub fn stop(mut self) -> ExitStatus {
        signal("TERM", self.process.id());
        self.wait_for_end()
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.process.try_wait().expect("wait") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("hone up did not stop:\n{}", logs(self.home.path()));
    }

    pub fn logs(&self) -> String {
        logs(self.home.path())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // After `stop` both fail, which is as well; after a panic they leave nothing running.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends a signal through the system's `kill`.
pub fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
    assert!(status.is_ok(), "kill is missing");
}

/// The ends of the children's logs.
pub fn logs(home: &Path) -> String {
    let tail = |name: &str| {
        let text = std::fs::read_to_string(home.join("log").join(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
    };
    ["backend.log", "proxy.log", "trainer.log"].map(tail).concat()
}

/// Polls until `probe` answers, or fails naming what was awaited.
pub fn wait_for<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A chat request body.
pub fn chat_body(messages: &[(&str, &str)], max_tokens: u32) -> Value {
    let messages: Vec<Value> =
        messages.iter().map(|(role, text)| json!({"role": role, "content": text})).collect();
    json!({"model": "smollm2-135m", "messages": messages, "max_tokens": max_tokens, "temperature": 0})
}

/// Posts JSON and returns status and raw body.
pub async fn post(url: &str, body: &Value) -> reqwest::Result<(u16, Vec<u8>)> {
    let reply = reqwest::Client::new()
        .post(url)
        .timeout(Duration::from_secs(120))
        .json(body)
        .send()
        .await?;
    Ok((reply.status().as_u16(), reply.bytes().await?.to_vec()))
}

/// Replaces every line that begins with `key` in a policy file.
pub fn set_policy(file: &Path, key: &str, value: &str) {
    let text = std::fs::read_to_string(file).expect("policy file");
    let mut found = false;
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            let is_key = line.split('=').next().is_some_and(|name| name.trim() == key);
            found |= is_key;
            if is_key { format!("{key} = {value}") } else { line.to_string() }
        })
        .collect();
    assert!(found, "{} has no {key}", file.display());
    std::fs::write(file, lines.join("\n")).expect("policy written");
}
