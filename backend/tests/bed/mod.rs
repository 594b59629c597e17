//! The bed that the engine tests lie in: one server on the real model, and adapters made for it.

#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use hone_backend::BackendConfig;
use hone_backend::model::ModelFiles;
use reqwest::Response;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

/// The model directory; a test without it fails and says how to get it.
pub fn model_dir() -> PathBuf {
    let dir = std::env::var_os("HONE_MODEL_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        home.join(".local/share/hone/models/smollm2-135m")
    });
    assert!(
        dir.join("config.json").is_file(),
        "no model in {}: run `hone model get smollm2-135m`, or set HONE_MODEL_DIR",
        dir.display()
    );
    dir
}

/// A running backend with a registry of its own.
pub struct Bed {
    pub url: String,
    pub registry: PathBuf,
    pub client: reqwest::Client,
    _dir: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

/// The server that most tests share. It ends with the process.
pub async fn shared() -> &'static Bed {
    static BED: OnceLock<Bed> = OnceLock::new();
    let bed = BED.get_or_init(|| Bed::start(|_, _| {}));
    bed.ready().await;
    bed
}

impl Bed {
    /// Starts a backend on a thread of its own; `adjust` may fill the registry and change settings.
    pub fn start(adjust: impl FnOnce(&mut BackendConfig, &Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("registry");
        std::fs::create_dir(&registry).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = BackendConfig::new(model_dir(), "smol", any);
        config.registry = Some(registry.clone());
        adjust(&mut config, &registry);
        let listener = std::net::TcpListener::bind(any).unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let token = stop.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                hone_backend::serve(config, listener, token).await.unwrap();
            });
        });
        let client = reqwest::Client::builder()
            .no_proxy()
            // Every test has a runtime of its own; an idle connection would die with the first.
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        Self { url, registry, client, _dir: dir, _stop: stop.drop_guard() }
    }

    /// Waits until `/health` is ok.
    pub async fn ready(&self) {
        for _ in 0..1200 {
            if let Ok(response) = self.client.get(self.at("/health")).send().await
                && response.status() == 200
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the backend was not ready within a minute");
    }

    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub async fn post(&self, path: &str, body: Value) -> Response {
        self.client.post(self.at(path)).json(&body).send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Value {
        self.client.get(self.at(path)).send().await.unwrap().json().await.unwrap()
    }

    /// A chat request that must succeed.
    pub async fn chat(&self, body: Value) -> Value {
        let response = self.post("/v1/chat/completions", body).await;
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status, 200, "{body}");
        body
    }

    /// The greedy answer of a generation (or `base`) to a question.
    pub async fn greedy(&self, generation: &str, question: &str, tokens_max: usize) -> String {
        let response = self
            .client
            .post(self.at("/v1/chat/completions"))
            .header("x-hone-generation", generation)
            .json(&ask(question, tokens_max))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-hone-generation"], generation);
        let body: Value = response.json().await.unwrap();
        text(&body)
    }

    /// An error of an adapter or inference route: status and code.
    pub async fn refused(&self, path: &str, body: Value) -> (u16, String, String) {
        let response = self.post(path, body).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        let error = &body["error"];
        let word = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (status, word("code"), word("message"))
    }
}

pub fn ask(question: &str, tokens_max: usize) -> Value {
    json!({
        "model": "smol",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": tokens_max,
    })
}

pub fn text(body: &Value) -> String {
    body["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}

/// The JSON events of a stream; the last event must be `[DONE]`.
pub fn events(stream: &str) -> Vec<Value> {
    let mut data: Vec<&str> =
        stream.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{stream}");
    data.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// The text that a stream's deltas join to, for choice `index`.
pub fn joined(events: &[Value], index: u64) -> String {
    let choices = events.iter().filter_map(|event| event["choices"].get(0));
    let own = choices.filter(|choice| choice["index"] == index);
    own.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

/// Writes a LoRA with random A and B (so it changes the output) into the registry, under its hash.
pub fn publish(registry: &Path, seed: u64, strength: f32) -> String {
    const RANK: usize = 4;
    let model = ModelFiles::read(&model_dir()).unwrap();
    let targets = ["q_proj", "v_proj", "down_proj"];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 2.0
    };
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape) in &model.shapes {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        if !targets.contains(&module.rsplit('.').next().unwrap()) {
            continue;
        }
        for (half, shape) in [("A", [RANK, shape[1]]), ("B", [shape[0], RANK])] {
            let scale = if half == "A" { 1.0 / (shape[1] as f32).sqrt() } else { strength };
            let begin = data.len();
            for _ in 0..shape[0] * shape[1] {
                data.extend_from_slice(&(random() * scale).to_le_bytes());
            }
            let entry =
                json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
            header.insert(format!("base_model.model.{module}.lora_{half}.weight"), entry);
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.extend(data);
    let config = json!({
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": targets,
        "bias": "none", "lora_dropout": 0.0, "task_type": "CAUSAL_LM",
    })
    .to_string();
    let mut hash = Sha256::new();
    hash.update(&config);
    hash.update(&weights);
    let generation = hex::encode(hash.finalize());
    let dir = registry.join(&generation);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("adapter_config.json"), config).unwrap();
    std::fs::write(dir.join("adapter_model.safetensors"), weights).unwrap();
    generation
}
