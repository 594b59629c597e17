//! The system as its users meet it: byte identity, wrong input, a clean end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use std::time::Duration;

use hone_shared::store::Store;
use serde_json::{Value, json};
use support::{Up, chat_body, hone, model_dir, post, set_policy};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("runtime")
}

fn status(up: &Up) -> Value {
    let output = hone().args(["status", "--json", "--data"]).arg(up.home.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("status is JSON")
}

#[test]
fn with_learning_off_bodies_are_byte_identical_and_nothing_is_stored() {
    let up = Up::start(|policies| {
        set_policy(&policies.join("routes/chat.toml"), "mode", "\"off\"");
    });
    let engine = up.engine_url();
    runtime().block_on(async {
        for streamed in [false, true] {
            for text in ["What is 2+2?", "Name a colour. ünïcödé 🦀", "Say hello."] {
                let mut body = chat_body(&[("user", text)], 12);
                body["stream"] = json!(streamed);
                let path = "/v1/chat/completions";
                let direct = post(&format!("{engine}{path}"), &body).await.unwrap();
                let proxied = post(&format!("{}{path}", up.base_url), &body).await.unwrap();
                assert_eq!(direct.0, proxied.0);
                assert_eq!(without_identity(&direct.1), without_identity(&proxied.1), "{text}");
            }
        }
    });
    let store = Store::open_read_only(&up.data().store_path()).unwrap();
    assert_eq!(store.counts().unwrap().turns, 0);
    assert!(up.stop().success());
}

/// Two answers to the same question differ in their id and time, by the engine's own doing; nothing
/// else may differ.
fn without_identity(body: &[u8]) -> String {
    let text = String::from_utf8(body.to_vec()).expect("UTF-8");
    let id =
        regex::Regex::new(r#""id":"[^"]*"|"created":\d+|"[a-z_]*(_sec|_tok_per_sec)":[0-9.e+-]+"#);
    id.expect("pattern").replace_all(&text, "").into_owned()
}

#[test]
fn wrong_input_gets_a_clear_error_and_serving_goes_on() {
    let up = Up::start(|_| {});
    let chat = format!("{}/v1/chat/completions", up.base_url);
    runtime().block_on(async {
        let unknown = json!({"model": "gpt-9", "messages": [{"role": "user", "content": "hi"}]});
        let (code, body) = post(&chat, &unknown).await.unwrap();
        assert_eq!((code, error_code(&body).as_str()), (404, "model_not_found"));

        let broken = reqwest::Client::new()
            .post(&chat)
            .header("content-type", "application/json")
            .body("{\"model\": \"smollm2-135m\", \"messages\": [")
            .send()
            .await
            .unwrap();
        assert_eq!(broken.status().as_u16(), 400);
        let said = broken.text().await.unwrap();
        assert!(said.contains("JSON") || said.contains("line 1"), "{said}");

        let load = format!("{}/v1/load_lora_adapter", up.base_url);
        let (code, _) = post(&load, &json!({"lora_name": "x", "lora_path": "/"})).await.unwrap();
        assert_eq!(code, 403, "clients must not reach the adapter API");
        let wrong = json!({"lora_name": "x", "lora_path": "/nowhere"});
        let (code, body) =
            post(&format!("{}/v1/load_lora_adapter", up.engine_url()), &wrong).await.unwrap();
        assert!((400..500).contains(&code), "{code} {}", String::from_utf8_lossy(&body));

        let (code, body) = post(&chat, &chat_body(&[("user", "Say hello.")], 8)).await.unwrap();
        assert_eq!(code, 200, "{}", String::from_utf8_lossy(&body));
    });
    let seen = status(&up);
    assert_eq!(seen["processes"]["proxy"]["alive"], true, "{seen}");
    assert!(seen["routes"].as_array().is_some_and(|routes| !routes.is_empty()), "{seen}");
    assert!(up.stop().success());
}

#[test]
fn an_engine_that_is_down_is_said_so_and_comes_back_by_itself() {
    let up = Up::start(|_| {});
    let chat = format!("{}/v1/chat/completions", up.base_url);
    let body = chat_body(&[("user", "Say hello.")], 4);
    support::signal("KILL", up.run_file("backend").pid);
    runtime().block_on(async {
        let (code, said) = post(&chat, &body).await.unwrap();
        assert_eq!(code, 502, "{}", String::from_utf8_lossy(&said));
        assert_eq!(error_code(&said), "engine_unavailable");
        let started = std::time::Instant::now();
        while post(&chat, &body).await.unwrap().0 != 200 {
            assert!(started.elapsed() < Duration::from_secs(60), "{}", up.logs());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    assert!(up.stop().success());
}

fn error_code(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    value["error"]["code"].as_str().unwrap_or_default().to_string()
}

#[test]
fn a_policy_with_an_unknown_key_stops_the_start_and_names_file_and_key() {
    let home = tempfile::tempdir().unwrap();
    let routes = home.path().join("policies/routes");
    std::fs::create_dir_all(&routes).unwrap();
    std::fs::write(routes.join("chat.toml"), "name = \"chat\"\nlearnign = \"on\"\n").unwrap();
    for command in ["policy", "up"] {
        let mut hone = hone();
        hone.arg(command).arg("--data").arg(home.path());
        match command {
            "up" => hone.args(["--listen", "127.0.0.1:0", "--model"]).arg(model_dir()),
            _ => hone.arg("check"),
        };
        let output = hone.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{command} accepted it");
        assert!(said.contains("chat.toml") && said.contains("learnign"), "{command}: {said}");
    }
}

#[test]
fn a_second_hone_up_in_the_same_directory_is_refused() {
    let up = Up::start(|_| {});
    let output = hone()
        .args(["up", "--listen", "127.0.0.1:0", "--data"])
        .arg(up.home.path())
        .arg("--model")
        .arg(model_dir())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("runs already"));
    assert!(up.stop().success());
}

#[test]
fn rolling_back_an_alias_that_never_moved_is_a_usage_error() {
    let home = tempfile::tempdir().unwrap();
    let output = hone().args(["rollback", "--data"]).arg(home.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing else before"));
}

#[test]
fn a_stream_in_flight_finishes_when_the_system_is_stopped() {
    let up = Up::start(|_| {});
    let chat = format!("{}/v1/chat/completions", up.base_url);
    let mut body = chat_body(&[("user", "Tell me a long story about a dog.")], 64);
    body["stream"] = json!(true);
    let reader = std::thread::spawn(move || runtime().block_on(post(&chat, &body)));
    std::thread::sleep(Duration::from_millis(700));
    let (status, body) = up.stop_during(|| reader.join().unwrap().unwrap());
    assert_eq!(status, 200);
    assert!(body.ends_with(b"data: [DONE]\n\n"), "{}", String::from_utf8_lossy(&body));
}
