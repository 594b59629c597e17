//! An origin that plays the engine, on a real socket, and the real `hone proxy` and `hone trainer`
//! around it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking
#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use hone_agents::cli::Options;
use hone_shared::data_dir::{DataDir, RunFile};
use serde_json::{Value, json};

type Script = Box<dyn Fn(&Value, usize) -> Value + Send + Sync>;

/// An engine that answers by a script: the request's body and its number, to an assistant message.
/// A message with a `status` is an error instead.
pub struct Origin {
    pub url: String,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

struct Shared {
    script: Script,
    asked: Mutex<Vec<Value>>,
}

impl Origin {
    pub async fn start(script: impl Fn(&Value, usize) -> Value + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared { script: Box::new(script), asked: Mutex::default() });
        let models = || async { Json(json!({ "data": [{ "id": "scripted" }] })) };
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(complete))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, serving }
    }

    /// Bodies of all requests so far.
    pub fn asked(&self) -> Vec<Value> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn complete(State(shared): State<Arc<Shared>>, Json(body): Json<Value>) -> Response {
    let number = {
        let mut asked = shared.asked.lock().unwrap();
        asked.push(body.clone());
        asked.len() - 1
    };
    let message = (shared.script)(&body, number);
    if let Some(status) = message["status"].as_u64() {
        let status = StatusCode::from_u16(status as u16).unwrap();
        let error = json!({ "error": { "message": "scripted", "code": "scripted" } });
        return (status, Json(error)).into_response();
    }
    let reason = if message["tool_calls"].is_array() { "tool_calls" } else { "stop" };
    Json(json!({
        "id": format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
        "object": "chat.completion", "created": 1, "model": "scripted",
        "choices": [{ "index": 0, "message": message, "finish_reason": reason }],
        "usage": { "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15 },
    }))
    .into_response()
}

pub fn says(text: &str) -> Value {
    json!({ "role": "assistant", "content": text })
}

pub fn calls(all: &[(&str, Value)]) -> Value {
    let call = |(name, arguments): &(&str, Value)| {
        json!({ "id": format!("call_{}", uuid::Uuid::new_v4().simple()), "type": "function",
            "function": { "name": name, "arguments": arguments.to_string() } })
    };
    let calls: Vec<Value> = all.iter().map(call).collect();
    json!({ "role": "assistant", "content": null, "tool_calls": calls })
}

/// Keeps to what a request allows, as an engine with constrained decoding would: of every choice
/// the first.
pub fn obedient(body: &Value, _number: usize) -> Value {
    let first = |schema: &Value| -> Value {
        let properties = schema["properties"].as_object().unwrap();
        let value = |(name, field): (&String, &Value)| (name.clone(), field["enum"][0].clone());
        Value::Object(properties.iter().map(value).collect())
    };
    if let Some(tool) = body["tools"].get(0) {
        let function = &tool["function"];
        let name = function["name"].as_str().unwrap();
        return calls(&[(name, first(&function["parameters"]))]);
    }
    match &body["response_format"]["json_schema"]["schema"] {
        Value::Null => says("done."),
        schema => says(&first(schema).to_string()),
    }
}

/// Flags of an example.
pub fn options(base_url: &str, more: &[&str]) -> Options {
    let base_url = format!("{base_url}/v1");
    let fixed = ["agent", "--base-url", &base_url, "--data", "/nonexistent"];
    Options::parse_from(fixed.iter().chain(more))
}

/// The `hone` binary, where it is built. `HONE_BIN` names it, and then it must be there.
pub fn hone() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("HONE_BIN") {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "HONE_BIN: there is no {}", named.display());
        return Some(named);
    }
    let beside = std::env::current_exe().unwrap().parent()?.parent()?.join("hone");
    if !beside.is_file() {
        eprintln!("SKIPPED: no `hone` binary in {}; use deploy/test.sh", beside.display());
        return None;
    }
    Some(beside)
}

/// `hone proxy` and `hone trainer` in a data directory of their own; every path under `/v1/` is
/// judged and nothing is trained.
pub struct Front {
    processes: Vec<Child>,
    pub url: String,
    pub home: tempfile::TempDir,
}

const ROUTE: &str = "mode = \"shadow\"\nalias = \"agents\"\njudge = \"JUDGE\"\ngate = \"chat\"\n\
    [matches]\npaths = [\"/v1/chat/completions\"]\n\
    [round]\nsamples_min = 4096\nsamples_max = 4096\nage_ms_max = 604800000\nidle_ms = 0\n";

impl Front {
    pub fn start(hone: &Path, engine: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::new(home.path());
        data.create().unwrap();
        let policies = data.policies_dir();
        hone_shared::policy::install_builtin(&policies).unwrap();
        for route in std::fs::read_dir(policies.join("routes")).unwrap() {
            std::fs::remove_file(route.unwrap().path()).unwrap();
        }
        let kinds = policies.join("judges/terminal.toml").exists();
        let judge = if kinds { "auto" } else { "chat" };
        std::fs::write(policies.join("routes/agents.toml"), ROUTE.replace("JUDGE", judge)).unwrap();
        // The origin is no judge: rules only.
        for judge in std::fs::read_dir(policies.join("judges")).unwrap() {
            let path = judge.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(path, text.replace("enabled = true", "enabled = false")).unwrap();
        }
        let any = "127.0.0.1:0";
        let mut front = Self { processes: vec![], url: String::new(), home };
        front.spawn(hone, &["proxy", "--listen", any, "--admin", any, "--engine", engine]);
        let file = wait_for("hone proxy", || {
            let ended = front.processes[0].try_wait().unwrap();
            assert!(ended.is_none(), "hone proxy ended:\n{}", front.logs());
            RunFile::read(&data, "proxy").ok().flatten()
        });
        front.url = format!("http://{}", file.address);
        let model = model_dir();
        front.spawn(hone, &["trainer", "--engine", engine, "--model-dir", &model]);
        front
    }

    fn spawn(&mut self, hone: &Path, arguments: &[&str]) {
        let log = std::fs::File::create(self.home.path().join(arguments[0])).unwrap();
        let child = Command::new(hone)
            .args(arguments)
            .arg("--data")
            .arg(self.home.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.processes.push(child.expect("hone starts"));
    }

    /// The last lines of both logs.
    pub fn logs(&self) -> String {
        let log = |name| std::fs::read_to_string(self.home.path().join(name)).unwrap_or_default();
        format!("--- proxy\n{}\n--- trainer\n{}", log("proxy"), log("trainer"))
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn model_dir() -> String {
    std::env::var("HONE_MODEL_DIR").unwrap_or_else(|_| {
        format!("{}/.local/share/hone/models/smollm2-135m", std::env::var("HOME").unwrap())
    })
}

fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "waited for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
