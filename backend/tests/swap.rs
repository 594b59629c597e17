//! Generations on the real engine: the adapter API, and swaps while requests run.

#![allow(clippy::unwrap_used, clippy::panic)]

mod bed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bed::{Bed, ask, events, publish, text};
use serde_json::{Value, json};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";
const QUESTION: &str = "What is the capital of France?";

fn load(alias: &str, generation: &str) -> Value {
    json!({"lora_name": alias, "lora_path": generation, "load_inplace": true})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_adapter_api_keeps_its_contract() {
    let bed = Bed::start(|config, _| config.residents_max = 3);
    let (a, b, c) = (
        publish(&bed.registry, 1, 0.3),
        publish(&bed.registry, 2, 0.3),
        publish(&bed.registry, 3, 0.3),
    );
    bed.ready().await;

    // A new alias, its generation, and how it is chosen.
    let response = bed.post(LOAD, json!({"lora_name": "main", "lora_path": a})).await;
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["object"], "lora_adapter", "{body}");
    assert_eq!((&body["id"], &body["generation"]), (&json!("main"), &json!(a)));
    assert_eq!(body["rank"], 4);
    let base = bed.greedy("base", QUESTION, 8).await;
    let of_a = bed.greedy(&a, QUESTION, 8).await;
    assert_ne!(base, of_a, "the adapter must change the output");
    for choose in [
        json!({"model": "smol::main"}),
        json!({"model": "smol", "adapter": "main"}),
        json!({"model": "smol", "adapter": {"generation": a}}),
    ] {
        let mut body = ask(QUESTION, 8);
        for (key, value) in choose.as_object().unwrap() {
            body[key.as_str()] = value.clone();
        }
        let answer = bed.chat(body).await;
        assert_eq!(answer["adapter_generation"], json!(a));
        assert_eq!(text(&answer), of_a);
    }
    let models = bed.get("/v1/models").await;
    assert_eq!(models["data"][1]["id"], "smol::main");

    // Compare-and-swap.
    let (status, code, _) = bed.refused(LOAD, json!({"lora_name": "main", "lora_path": b})).await;
    assert_eq!((status, code.as_str()), (409, "lora_adapter_already_loaded"));
    let mut swap = load("main", &b);
    swap["expected_generation"] = json!(b);
    let (status, code, message) = bed.refused(LOAD, swap.clone()).await;
    assert_eq!((status, code.as_str()), (409, "lora_generation_mismatch"));
    assert!(message.contains(&a), "{message}");
    swap["expected_generation"] = json!(a);
    assert_eq!(bed.post(LOAD, swap).await.status(), 200);
    assert_eq!(bed.chat(ask_main()).await["adapter_generation"], json!(b));

    // Bounds: base, A and B are resident; A has no alias, so C takes its place; then all is full.
    assert_eq!(bed.post(LOAD, load("other", &c)).await.status(), 200);
    let listed = bed.get("/v1/lora_adapters").await;
    assert_eq!(listed["resident_generations"], 2, "{listed}");
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    assert_eq!(listed["limits"]["residents_max"], 3);
    let (status, code, _) = bed.refused(LOAD, load("third", &a)).await;
    assert_eq!((status, code.as_str()), (409, "lora_limit_reached"));

    // Unload; then what is in the registry is loaded on demand, what is not is unknown.
    let gone = json!({"lora_name": "other", "expected_generation": a});
    let (status, code, _) = bed.refused(UNLOAD, gone).await;
    assert_eq!((status, code.as_str()), (409, "lora_generation_mismatch"));
    assert_eq!(bed.post(UNLOAD, json!({"lora_name": "other"})).await.status(), 200);
    let (status, code, _) = bed.refused(UNLOAD, json!({"lora_name": "other"})).await;
    assert_eq!((status, code.as_str()), (404, "lora_adapter_not_found"));
    assert_eq!(bed.greedy(&a, QUESTION, 8).await, of_a, "loaded again, the same bits");
    let response = bed
        .client
        .post(bed.at("/v1/chat/completions"))
        .header("x-hone-generation", "0".repeat(64))
        .json(&ask("Hi", 2))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 404);
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], "adapter_not_found");

    // Bad paths and bad directories.
    for path in ["/etc", "../..", "."] {
        let (status, code, _) = bed.refused(LOAD, load("x", path)).await;
        assert_eq!((status, code.as_str()), (403, "adapter_path_forbidden"), "{path}");
    }
    std::fs::create_dir(bed.registry.join("empty")).unwrap();
    std::fs::rename(bed.registry.join(&c), bed.registry.join("f".repeat(64))).unwrap();
    for (path, word) in [("empty", "adapter_config"), ("missing", "no generation directory")] {
        let (status, code, message) = bed.refused(LOAD, load("x", path)).await;
        assert_eq!((status, code.as_str()), (400, "adapter_unusable"));
        assert!(message.contains(word), "{message}");
    }
    let (status, _, message) = bed.refused(LOAD, load("x", &"f".repeat(64))).await;
    assert_eq!(status, 400);
    assert!(message.contains("corrupt"), "{message}");
    let typo = json!({"lora_name": "main", "lora_path": a, "expected_generaton": a});
    assert_eq!(bed.refused(LOAD, typo).await.0, 400);
}

fn ask_main() -> Value {
    let mut body = ask(QUESTION, 4);
    body["model"] = json!("smol::main");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_of_the_registry_is_served_from_the_first_moment() {
    let mut generation = String::new();
    let bed = Bed::start(|_, registry| {
        generation = publish(registry, 5, 0.3);
        let aliases = registry.join("aliases");
        std::fs::create_dir(&aliases).unwrap();
        let state = json!({"alias": "main", "generation": generation, "previous": [],
                           "sequence": 1, "moved_ms": 1, "reason": "test"});
        std::fs::write(aliases.join("main.json"), state.to_string()).unwrap();
    });
    let early = bed.client.get(bed.at("/health")).send().await.unwrap();
    assert_eq!(early.status(), 503);
    let (status, code, _) = bed.refused("/v1/chat/completions", ask_main()).await;
    assert_eq!((status, code.as_str()), (503, "engine_loading"));
    bed.ready().await;
    assert_eq!(bed.chat(ask_main()).await["adapter_generation"], json!(generation));
}

/// Short prompts and replies keep the test short: the engine is shared by all sixteen streams.
const PROMPTS: [&str; 4] = ["The sky is", "Once upon a time", "My name is", "Two plus two"];

fn complete(prompt: &str) -> Value {
    json!({"model": "smol", "prompt": prompt, "temperature": 0, "max_tokens": 6})
}

/// The texts of base, A and B for every prompt, each asked alone.
async fn references(bed: &Bed, generations: [&str; 3]) -> Vec<[String; 3]> {
    let mut all = Vec::new();
    for prompt in PROMPTS {
        let mut texts = Vec::new();
        for generation in generations {
            let mut body = complete(prompt);
            if generation != "base" {
                body["adapter"] = json!({"generation": generation});
            }
            let answer = bed.post("/v1/completions", body).await.json::<Value>().await.unwrap();
            texts.push(answer["choices"][0]["text"].as_str().unwrap().to_owned());
        }
        all.push(texts.try_into().unwrap());
    }
    all
}

/// What a stream of `smol::main` says, and which generation says it (in the header and in all
/// events).
async fn stream(bed: &Bed, prompt: &str) -> (String, String) {
    let mut body = complete(prompt);
    body["model"] = json!("smol::main");
    body["stream"] = json!(true);
    let response = bed.post("/v1/completions", body).await;
    assert_eq!(response.status(), 200);
    let generation = response.headers()["x-hone-generation"].to_str().unwrap().to_owned();
    let events = events(&response.text().await.unwrap());
    assert!(events.iter().all(|event| event["adapter_generation"] == json!(generation)));
    let text = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    (text, generation)
}

/// One engine runs one sequence at a time on the CPU, so greedy texts are exact and every response
/// can be held against the text of the generation that it names.
#[tokio::test(flavor = "multi_thread")]
async fn swaps_under_load_lose_nothing_and_mix_nothing() {
    const SWAPS: usize = 20;
    let bed = Arc::new(Bed::start(|config, _| config.sequences_max = 20));
    let (a, b) = (publish(&bed.registry, 11, 2.0), publish(&bed.registry, 12, 2.0));
    bed.ready().await;
    assert_eq!(bed.post(LOAD, load("main", &a)).await.status(), 200);
    let before = Arc::new(references(&bed, ["base", &a, &b]).await);
    for texts in before.iter() {
        let [base, a, b] = texts;
        assert!(base != a && a != b && base != b, "the adapters must differ: {texts:?}");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let streams: Vec<_> = (0..16)
        .map(|number| {
            let (bed, stop, before) = (bed.clone(), stop.clone(), before.clone());
            let known = [a.clone(), b.clone()];
            tokio::spawn(async move {
                let mut seen = [0; 2];
                while !stop.load(Ordering::Relaxed) {
                    let which = (number + seen[0] + seen[1]) % PROMPTS.len();
                    let (text, generation) = stream(&bed, PROMPTS[which]).await;
                    let index = known.iter().position(|known| *known == generation).unwrap();
                    assert_eq!(text, before[which][index + 1]);
                    seen[index] += 1;
                }
                seen
            })
        })
        .collect();
    let mut flips = Vec::new();
    for swap in 0..SWAPS {
        let (index, next) = if swap % 2 == 0 { (2, &b) } else { (1, &a) };
        let answer = bed.post(LOAD, load("main", next)).await.json::<Value>().await.unwrap();
        assert_eq!(answer["generation"], json!(next), "{answer}");
        flips.push(answer["flip_ns"].as_u64().unwrap());
        // The first request after the flip is the new one.
        let (text, generation) = stream(&bed, PROMPTS[0]).await;
        assert_eq!((&generation, &text), (next, &before[0][index]));
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = [0; 2];
    for stream in streams {
        let own = stream.await.unwrap();
        seen = [seen[0] + own[0], seen[1] + own[1]];
    }
    flips.sort_unstable();
    println!("{seen:?} streams on A and B, median flip {} ns", flips[SWAPS / 2]);
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    assert_eq!(*references(&bed, ["base", &a, &b]).await, *before, "bit-identical afterwards");
}
