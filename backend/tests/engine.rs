//! The server on the real model, as a client sees it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod bed;

use bed::{ask, events, joined, shared, text};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn the_model_knows_the_capital_of_france() {
    let bed = shared().await;
    let body = ask("What is the capital of France?", 16);
    let response = bed.post("/v1/chat/completions", body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-hone-generation"], "base");
    let body: Value = response.json().await.unwrap();
    assert!(text(&body).contains("Paris"), "{body}");
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "smol");
    assert_eq!(body["adapter_generation"], Value::Null);
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let usage = &body["usage"];
    let count = |key: &str| usage[key].as_u64().unwrap();
    assert!(count("prompt_tokens") > 10 && count("completion_tokens") > 0);
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_what_the_whole_answer_says() {
    let bed = shared().await;
    // Emoji and accents: characters of several tokens must come out whole.
    let question = "Repeat exactly: Café 😀 naïve über 東京";
    let whole = bed.chat(ask(question, 24)).await;
    let mut body = ask(question, 24);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let response = bed.post("/v1/chat/completions", body).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["x-hone-generation"], "base");
    let events = events(&response.text().await.unwrap());
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(joined(&events, 0), text(&whole));
    let last = events.last().unwrap();
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(last["choices"], json!([]));
    let finish = &events[events.len() - 2]["choices"][0]["finish_reason"];
    assert_eq!(*finish, whole["choices"][0]["finish_reason"]);
    for event in &events {
        assert_eq!(event["id"], events[0]["id"]);
        assert!(event.as_object().unwrap().contains_key("adapter_generation"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_told_what_is_wrong() {
    let bed = shared().await;
    let chat = "/v1/chat/completions";
    let mut unknown = ask("Hi", 4);
    unknown["model"] = json!("gpt-4o");
    let (status, code, message) = bed.refused(chat, unknown).await;
    assert_eq!((status, code.as_str()), (404, "model_not_found"));
    assert!(message.contains("`smol`"), "{message}");

    let broken = bed.client.post(bed.at(chat)).body("{\n  \"model\": smol}").send().await.unwrap();
    assert_eq!(broken.status(), 400);
    let body: Value = broken.json().await.unwrap();
    assert!(body["error"]["message"].as_str().unwrap().contains("line 2 column"), "{body}");

    for (field, value) in [
        ("temperature", json!("hot")),
        ("messages", json!([])),
        ("messages", json!([{"role": "alien", "content": "x"}])),
        ("max_tokens", json!(0)),
        ("n", json!(9)),
        ("stop", json!(7)),
        ("seed", json!("x")),
        ("stream", json!("yes")),
        ("top_logprobs", json!(3)),
        ("tools", json!([{"type": "function"}])),
        ("response_format", json!({"type": "yaml"})),
    ] {
        let mut body = ask("Hi", 4);
        body[field] = value;
        let (status, code, message) = bed.refused(chat, body).await;
        assert_eq!((status, code.as_str()), (400, "invalid_value"), "{field}: {message}");
        assert!(message.contains(field), "{message}");
    }

    let long = ask(&"word ".repeat(9000), 4);
    let (status, code, message) = bed.refused(chat, long).await;
    assert_eq!((status, code.as_str()), (400, "context_length_exceeded"));
    assert!(message.contains("8192"), "{message}");
    let (status, code, _) =
        bed.refused("/v1/completions", json!({"prompt": [99_999_999], "max_tokens": 1})).await;
    assert_eq!((status, code.as_str()), (400, "invalid_value"));

    let huge = bed.client.post(bed.at(chat)).body("x".repeat(17 << 20)).send().await;
    // The server may close the connection before the client has sent it all.
    if let Ok(response) = huge {
        assert_eq!(response.status(), 413);
    }
    let lost = bed.client.get(bed.at("/v1/nothing")).send().await.unwrap();
    assert_eq!(lost.status(), 404);
    assert_eq!(bed.client.get(bed.at(chat)).send().await.unwrap().status(), 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_seeds_stops_and_logprobs_behave() {
    let bed = shared().await;
    let mut body = ask("Name a colour.", 8);
    body["temperature"] = json!(1.0);
    body["seed"] = json!(7);
    body["n"] = json!(3);
    let first = bed.chat(body.clone()).await;
    let second = bed.chat(body.clone()).await;
    assert_eq!(first["choices"], second["choices"], "a seed must give the same choices");
    assert_eq!(first["choices"].as_array().unwrap().len(), 3);
    body["n"] = json!(1);
    let one = bed.chat(body).await;
    assert_eq!(one["choices"][0], first["choices"][0]);
    assert_eq!(one["usage"]["prompt_tokens"], first["usage"]["prompt_tokens"]);
    let tokens = first["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(tokens > one["usage"]["completion_tokens"].as_u64().unwrap());

    let whole = text(&bed.chat(ask("What is the capital of France?", 16)).await);
    let mut body = ask("What is the capital of France?", 16);
    body["stop"] = json!(["is Par"]);
    let cut = bed.chat(body).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    assert_eq!(text(&cut), whole.split("is Par").next().unwrap());

    let mut body = ask("What is the capital of France?", 4);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    let answer = bed.chat(body).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 4);
    let spelt: String = content.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(spelt, text(&answer));
    for entry in &content {
        let logprob = entry["logprob"].as_f64().unwrap();
        assert!((-20.0..=0.0).contains(&logprob), "{entry}");
        assert_eq!(entry["top_logprobs"][0]["token"], entry["token"], "greedy takes the best");
        assert!(entry["top_logprobs"][1]["logprob"].as_f64().unwrap() <= logprob);
    }
}

/// mistralrs-core 0.8.1 mixes sequences that it decodes in one batch on the CPU; see
/// `resident::SEQUENCES_IN_CPU_ENGINE`. Prompts of equal length are what its scheduler batches.
#[tokio::test(flavor = "multi_thread")]
async fn replies_that_run_at_once_are_what_each_is_alone() {
    let bed = shared().await;
    let questions =
        ["Name a red fruit.", "Name a big animal.", "Name a cold country.", "Name a fast car."];
    let mut alone = Vec::new();
    for question in questions {
        alone.push(bed.chat(ask(question, 12)).await);
    }
    let lengths: Vec<&Value> = alone.iter().map(|body| &body["usage"]["prompt_tokens"]).collect();
    assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]), "{lengths:?}");
    let together = questions.iter().map(|question| bed.chat(ask(question, 12)));
    for (one, other) in futures::future::join_all(together).await.iter().zip(&alone) {
        assert_eq!(one["choices"], other["choices"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn legacy_completions_continue_the_prompt() {
    let bed = shared().await;
    let prompt = "The capital of France is";
    let ask = |prompt: Value| json!({"prompt": prompt, "temperature": 0, "max_tokens": 4});
    let one = bed.post("/v1/completions", ask(json!(prompt))).await.json::<Value>().await.unwrap();
    assert_eq!(one["object"], "text_completion");
    // The leading space belongs to the continuation and must not be trimmed.
    assert!(one["choices"][0]["text"].as_str().unwrap().starts_with(" Paris"), "{one}");
    let two = bed.post("/v1/completions", ask(json!([prompt, "1, 2, 3,"]))).await;
    let two: Value = two.json().await.unwrap();
    assert_eq!(two["choices"][0]["text"], one["choices"][0]["text"]);
    assert_eq!(two["choices"].as_array().unwrap().len(), 2);
    let mut body = ask(json!(prompt));
    body["stream"] = json!(true);
    let stream = bed.post("/v1/completions", body).await.text().await.unwrap();
    let said: String = events(&stream)
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(said, one["choices"][0]["text"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_tool_is_called_and_a_schema_is_kept() {
    let bed = shared().await;
    let tools = json!([{"type": "function", "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": false,
        },
    }}]);
    let mut body = ask("What is the weather in Paris?", 60);
    body["tools"] = tools;
    body["tool_choice"] = json!({"type": "function", "function": {"name": "get_weather"}});
    let answer = bed.chat(body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["city"].is_string());
    body["stream"] = json!(true);
    let stream = bed.post("/v1/chat/completions", body).await.text().await.unwrap();
    let events = events(&stream);
    let streamed = events
        .iter()
        .find_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0).cloned())
        .unwrap();
    assert_eq!(streamed["function"], call["function"]);
    assert_eq!(joined(&events, 0), "");

    let mut body = ask("Give me a number.", 40);
    body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": false,
    }}});
    let answer = bed.chat(body).await;
    let value: Value = serde_json::from_str(&text(&answer)).unwrap();
    assert!(value["n"].is_u64(), "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_the_engine() {
    let bed = bed::Bed::start(|config, _| config.sequences_max = 1);
    bed.ready().await;
    let mut body = ask("Write a very long story about the sea.", 4000);
    body["stream"] = json!(true);
    let mut response = bed.post("/v1/chat/completions", body).await;
    response.chunk().await.unwrap();
    drop(response);
    // With one sequence only, this would wait for 4000 tokens if the engine had not been freed.
    let next = bed.chat(ask("Hi", 4));
    tokio::time::timeout(std::time::Duration::from_secs(60), next).await.unwrap();
    for _ in 0..600 {
        if bed.get("/v1/lora_adapters").await["base"]["active_leases"] == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the lease of the client that left was never given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_models_are_listed() {
    let bed = shared().await;
    let models = bed.get("/v1/models").await;
    assert_eq!(models["data"][0]["id"], "smol");
    assert_eq!(bed.get("/v1/models/smol").await["object"], "model");
    assert_eq!(bed.get("/v1/models/other").await["error"]["code"], "model_not_found");
}
