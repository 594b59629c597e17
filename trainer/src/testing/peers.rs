//! The other side of the trainer's HTTP: an engine's adapter API, a judge endpoint, a proxy.
//!
//! Each is an axum server on a loopback port of its own, implementing the contract's wire format.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

/// Serves a router on a fresh loopback port until the runtime ends.
pub async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// An address where nothing listens.
pub fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// An engine: resident adapters by name, and what it shall answer instead.
#[derive(Clone, Default)]
pub struct Engine(pub Arc<Mutex<EngineState>>);

#[derive(Default)]
pub struct EngineState {
    /// Name → path.
    pub resident: BTreeMap<String, String>,
    /// So many calls are answered 429 first.
    pub busy: usize,
    /// Most residents; 0 = no limit.
    pub residents_max: usize,
    /// Says yes to a load and forgets it.
    pub forgetful: bool,
    /// Every call, in order.
    pub calls: Vec<String>,
    /// Answers of the judge's model, first in first out; the last one stays.
    pub answers: VecDeque<(u16, Value)>,
    /// Headers of the last chat request.
    pub chat_headers: Option<HeaderMap>,
    /// Body of the last chat request.
    pub chat_body: Value,
    /// Refreshes of the proxy, with their `authorization`.
    pub refreshes: Vec<String>,
}

type Reply = (StatusCode, Json<Value>);

fn error(status: u16, code: &str) -> Reply {
    let body = json!({"error": {"message": code, "type": "x", "param": null, "code": code}});
    (StatusCode::from_u16(status).unwrap(), Json(body))
}

impl Engine {
    /// Serves the engine, with a proxy's `/v1/refresh` beside it; returns its URL.
    pub async fn serve(&self) -> String {
        let router = Router::new()
            .route("/v1/load_lora_adapter", post(load))
            .route("/v1/unload_lora_adapter", post(unload))
            .route("/v1/lora_adapters", get(list))
            .route("/v1/models", get(|| async { Json(json!({"data": [{"id": "tiny"}]})) }))
            .route("/v1/chat/completions", post(chat))
            .route("/v1/refresh", post(refresh))
            .with_state(self.clone());
        serve(router).await
    }

    /// Names of the residents.
    pub fn resident(&self) -> Vec<String> {
        self.0.lock().unwrap().resident.keys().cloned().collect()
    }

    /// An answer of the judge's model with this text.
    pub fn says(&self, text: &str) {
        let body = json!({"choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": text}}]});
        self.0.lock().unwrap().answers.push_back((200, body));
    }

    fn call(&self, what: &str) -> Result<std::sync::MutexGuard<'_, EngineState>, Reply> {
        let mut state = self.0.lock().unwrap();
        state.calls.push(what.to_owned());
        if state.busy > 0 {
            state.busy -= 1;
            return Err(error(429, "lora_load_busy"));
        }
        Ok(state)
    }
}

async fn load(State(engine): State<Engine>, Json(body): Json<Value>) -> Reply {
    let mut state = match engine.call("load") {
        Ok(state) => state,
        Err(busy) => return busy,
    };
    let name = body["lora_name"].as_str().unwrap().to_owned();
    if state.resident.contains_key(&name) {
        return error(409, "lora_adapter_already_loaded");
    }
    if state.residents_max > 0 && state.resident.len() >= state.residents_max {
        return error(409, "lora_limit_reached");
    }
    let path = body["lora_path"].as_str().unwrap().to_owned();
    assert!(std::path::Path::new(&path).join("adapter_model.safetensors").exists());
    if !state.forgetful {
        state.resident.insert(name.clone(), path);
    }
    (StatusCode::OK, Json(json!({"id": name, "object": "lora_adapter", "generation": name})))
}

async fn unload(State(engine): State<Engine>, Json(body): Json<Value>) -> Reply {
    let mut state = match engine.call("unload") {
        Ok(state) => state,
        Err(busy) => return busy,
    };
    match state.resident.remove(body["lora_name"].as_str().unwrap()) {
        Some(_) => (StatusCode::OK, Json(json!({}))),
        None => error(404, "adapter_not_found"),
    }
}

async fn list(State(engine): State<Engine>) -> Reply {
    let state = match engine.call("list") {
        Ok(state) => state,
        Err(busy) => return busy,
    };
    let entry = |name: &String| json!({"id": name, "generation": name});
    let data: Vec<Value> = state.resident.keys().map(entry).collect();
    (StatusCode::OK, Json(json!({"object": "list", "data": data})))
}

async fn chat(State(engine): State<Engine>, headers: HeaderMap, Json(body): Json<Value>) -> Reply {
    let mut state = engine.0.lock().unwrap();
    state.calls.push("chat".into());
    state.chat_headers = Some(headers);
    state.chat_body = body;
    let next = match state.answers.len() {
        0 => (503, json!({})),
        1 => state.answers[0].clone(),
        _ => state.answers.pop_front().unwrap(),
    };
    (StatusCode::from_u16(next.0).unwrap(), Json(next.1))
}

async fn refresh(State(engine): State<Engine>, headers: HeaderMap) -> Reply {
    let auth = headers.get("authorization").map(|v| v.to_str().unwrap().to_owned());
    engine.0.lock().unwrap().refreshes.push(auth.unwrap_or_default());
    (StatusCode::OK, Json(json!({})))
}
